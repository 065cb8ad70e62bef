// Package kernels holds the float32 kernels of the models: matrix product,
// normalisation, rotary positions, attention, SwiGLU, cross-entropy, AdamW. It
// knows nothing of any model.
//
// Matrices are row-major slices; an argument ld is the distance between rows.
// Kernels with a derivative come as a pair with the same shapes, Foo and
// FooBackward; a Backward adds to the gradients that it is given.
//
// Work is split over goroutines by rows of the output, never along a sum, so a
// result does not depend on how many there are.
package kernels

import "sync"

// Blocks of the matrix product, after Goto and van de Geijn (ACM TOMS 34/3,
// 2008): a kc x 16 panel of B stays in the L1 cache, an mc x kc block of A in L2.
const (
	mr = 6
	nr = 16
	kc = 256
	mc = 96
	nc = 2048
)

type gemmBuffers struct{ a, b []float32 }

var gemmPool = sync.Pool{New: func() any {
	return &gemmBuffers{a: make([]float32, mc*kc), b: make([]float32, kc*nc)}
}}

// Gemm computes C = alpha op(A) op(B) + beta C for C m x n, op(A) m x k and
// op(B) k x n, where op transposes if transA or transB is set.
func Gemm(transA, transB bool, m, n, k int, alpha float32, a []float32, lda int, b []float32, ldb int, beta float32, c []float32, ldc int) {
	if m == 0 || n == 0 {
		return
	}
	blocks := (m + mc - 1) / mc
	if 2*m*n*k < 1<<20 {
		gemmRows(transA, transB, 0, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)
		return
	}
	Parallel(blocks, func(i int) {
		gemmRows(transA, transB, i*mc, min(m, (i+1)*mc), n, k, alpha, a, lda, b, ldb, beta, c, ldc)
	})
}

// gemmRows computes rows m0 to m1 of C.
func gemmRows(transA, transB bool, m0, m1, n, k int, alpha float32, a []float32, lda int, b []float32, ldb int, beta float32, c []float32, ldc int) {
	if beta != 1 {
		for i := m0; i < m1; i++ {
			row := c[i*ldc : i*ldc+n]
			if beta == 0 {
				clear(row)
				continue
			}
			for j := range row {
				row[j] *= beta
			}
		}
	}
	if alpha == 0 || k == 0 {
		return
	}
	buf := gemmPool.Get().(*gemmBuffers)
	defer gemmPool.Put(buf)
	var tile [mr * nr]float32
	for jc := 0; jc < n; jc += nc {
		nb := min(nc, n-jc)
		for pc := 0; pc < k; pc += kc {
			kb := min(kc, k-pc)
			packB(buf.b, transB, b, ldb, pc, kb, jc, nb)
			for ic := m0; ic < m1; ic += mc {
				mb := min(mc, m1-ic)
				packA(buf.a, transA, a, lda, ic, mb, pc, kb, alpha)
				for jr := 0; jr < nb; jr += nr {
					pb := buf.b[jr*kb:]
					w := min(nr, nb-jr)
					for ir := 0; ir < mb; ir += mr {
						pa := buf.a[ir*kb:]
						h := min(mr, mb-ir)
						at := (ic+ir)*ldc + jc + jr
						if h == mr && w == nr {
							gemm6x16(kb, pa, pb, c[at:], ldc)
							continue
						}
						tile = [mr * nr]float32{}
						gemm6x16(kb, pa, pb, tile[:], nr)
						for i := range h {
							dst, src := c[at+i*ldc:at+i*ldc+w], tile[i*nr:i*nr+w]
							for j := range dst {
								dst[j] += src[j]
							}
						}
					}
				}
			}
		}
	}
}

// packA lays an mb x kb block of op(A), times alpha, out as panels of 6 rows,
// column after column; rows beyond the block are zero.
func packA(dst []float32, trans bool, a []float32, lda, i0, mb, p0, kb int, alpha float32) {
	for ir := 0; ir < mb; ir += mr {
		panel := dst[ir*kb : ir*kb+mr*kb]
		h := min(mr, mb-ir)
		if h < mr {
			clear(panel)
		}
		if trans {
			for p := range kb {
				src := a[(p0+p)*lda+i0+ir:]
				col := panel[p*mr : p*mr+mr]
				for i := range h {
					col[i] = alpha * src[i]
				}
			}
			continue
		}
		for i := range h {
			src := a[(i0+ir+i)*lda+p0 : (i0+ir+i)*lda+p0+kb]
			for p, v := range src {
				panel[p*mr+i] = alpha * v
			}
		}
	}
}

// packB lays a kb x nb block of op(B) out as panels of 16 columns, row after
// row; columns beyond the block are zero.
func packB(dst []float32, trans bool, b []float32, ldb, p0, kb, j0, nb int) {
	for jr := 0; jr < nb; jr += nr {
		panel := dst[jr*kb : jr*kb+nr*kb]
		w := min(nr, nb-jr)
		if w < nr {
			clear(panel)
		}
		if trans {
			for j := range w {
				src := b[(j0+jr+j)*ldb+p0 : (j0+jr+j)*ldb+p0+kb]
				for p, v := range src {
					panel[p*nr+j] = v
				}
			}
			continue
		}
		for p := range kb {
			copy(panel[p*nr:p*nr+w], b[(p0+p)*ldb+j0+jr:])
		}
	}
}

// gemm6x16Go is the portable micro-kernel; see gemm6x16AVX2.
func gemm6x16Go(k int, a, b, c []float32, ldc int) {
	var acc [mr][nr]float32
	for p := range k {
		pa, pb := a[p*mr:p*mr+mr], b[p*nr:p*nr+nr]
		for i, v := range pa {
			row := &acc[i]
			for j, w := range pb {
				row[j] += v * w
			}
		}
	}
	for i := range mr {
		row := c[i*ldc : i*ldc+nr]
		for j := range row {
			row[j] += acc[i][j]
		}
	}
}
