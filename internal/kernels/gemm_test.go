package kernels

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/gonum"
	"pgregory.net/rapid"
)

func random(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

// TestGemm holds every combination of transposes and odd shapes against
// float64 sums.
func TestGemm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, n, k := rapid.IntRange(1, 120).Draw(t, "m"), rapid.IntRange(1, 70).Draw(t, "n"), rapid.IntRange(1, 600).Draw(t, "k")
		ta, tb := rapid.Bool().Draw(t, "ta"), rapid.Bool().Draw(t, "tb")
		alpha, beta := rapid.SampledFrom([]float32{1, 0.5, 0}).Draw(t, "alpha"), rapid.SampledFrom([]float32{0, 1, -2}).Draw(t, "beta")
		pad := rapid.IntRange(0, 3).Draw(t, "pad")
		r := rand.New(rand.NewPCG(1, uint64(m*n*k)))
		shape := func(trans bool, rows, cols int) (int, int) {
			if trans {
				return cols, rows + pad
			}
			return rows, cols + pad
		}
		ar, lda := shape(ta, m, k)
		if rapid.Bool().Draw(t, "rows apart as L1 repeats itself") {
			lda = (lda+1023)/1024*1024 + pad - 1
		}
		br, ldb := shape(tb, k, n)
		ldc := n + pad
		a, b, c := random(r, ar*lda), random(r, br*ldb), random(r, m*ldc)
		want := make([]float64, len(c))
		scale := make([]float64, len(c))
		for i := range c {
			want[i] = float64(c[i])
		}
		for i := range m {
			for j := range n {
				var s, abs float64
				for p := range k {
					ai, bi := i*lda+p, p*ldb+j
					if ta {
						ai = p*lda + i
					}
					if tb {
						bi = j*ldb + p
					}
					av, bv := a[ai], b[bi]
					s += float64(av) * float64(bv)
					abs += math.Abs(float64(av) * float64(bv))
				}
				want[i*ldc+j] = float64(alpha)*s + float64(beta)*float64(c[i*ldc+j])
				scale[i*ldc+j] = abs
			}
		}
		Gemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)
		for i := range c {
			if math.Abs(float64(c[i])-want[i]) > 1e-5*(1+scale[i]) {
				t.Fatalf("at %d: %v, want %v", i, c[i], want[i])
			}
		}
	})
}

// TestMicroKernels holds the assembly against the portable kernel.
func TestMicroKernels(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, k := range []int{1, 2, 3, 4, 5, 7, 8, 64, 255, 256} {
		for tiles := 1; tiles <= 5; tiles++ {
			a, b, rows := random(r, tiles*mr*k), random(r, nr*k), random(r, tiles*mr*(k+3))
			c := random(r, tiles*mr*20)
			want := append([]float32(nil), c...)
			same := func(what string) {
				t.Helper()
				for i := range c {
					if math.Abs(float64(c[i]-want[i])) > 1e-4 {
						t.Fatalf("%s, %d tiles, k %d, at %d: %v, want %v", what, tiles, k, i, c[i], want[i])
					}
				}
			}
			for _, add := range []bool{true, false} {
				gemm6x16Go(tiles, k, a, b, want, 20, add)
				gemm6x16(tiles, k, a, b, c, 20, add)
				same("packed")
				gemm6x16RowsGo(tiles, k, rows, k+3, b, want, 20, add)
				gemm6x16Rows(tiles, k, rows, k+3, b, c, 20, add)
				same("rows")
			}
		}
	}
}

// TestGemmThreads: the same bits on any number of processors.
func TestGemmThreads(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	m, n, k := 500, 100, 300
	a, b := random(r, m*k), random(r, k*n)
	run := func(procs int) []float32 {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
		c := make([]float32, m*n)
		Gemm(false, false, m, n, k, 1, a, k, b, n, 0, c, n)
		return c
	}
	one, two := run(1), run(2)
	for i := range one {
		if one[i] != two[i] {
			t.Fatalf("at %d: %v on one processor, %v on two", i, one[i], two[i])
		}
	}
}

// BenchmarkGemm runs the products of the decoder's layers, forward and both gradients, with
// ours, with gonum's and, with the build tag netlib, with OpenBLAS', in turn:
//
//	CGO_LDFLAGS=-lopenblas go test -tags netlib -run xxx -bench Gemm ./internal/kernels
func BenchmarkGemm(b *testing.B) {
	theirs := external
	defer func() { external = theirs }()
	r := rand.New(rand.NewPCG(1, 2))
	for _, layer := range []struct{ tokens, out, in int }{
		{2048, 384, 128}, {2048, 704, 128}, {2048, 128, 352}, {1536, 1023, 128},
		{2048, 768, 256}, {2048, 1408, 256}, {2048, 256, 704},
		{2048, 1536, 512}, {2048, 512, 1408},
	} {
		x, w, y := random(r, layer.tokens*layer.in), random(r, layer.out*layer.in), random(r, layer.tokens*layer.out)
		t, o, i := layer.tokens, layer.out, layer.in
		for _, kind := range []struct {
			name           string
			transA, transB bool
			m, n, k        int
			a              []float32
			lda            int
			b              []float32
			ldb            int
		}{
			{"forward", false, true, t, o, i, x, i, w, i},
			{"dx", false, false, t, i, o, y, o, w, i},
			{"dw", true, false, o, i, t, y, o, x, i},
		} {
			c := make([]float32, kind.m*kind.n)
			flops := float64(2*kind.m) * float64(kind.n*kind.k)
			run := func(product func()) float64 { // GFLOP/s, the median of 9
				time.Sleep(100 * time.Millisecond)                                   // OpenBLAS' threads go on looking for work for a while
				for begun := time.Now(); time.Since(begun) < 100*time.Millisecond; { // until all processors are awake
					product()
				}
				times := make([]float64, 9)
				for j := range times {
					begun := time.Now()
					product()
					times[j] = time.Since(begun).Seconds()
				}
				slices.Sort(times)
				return flops / times[len(times)/2] / 1e9
			}
			gemm := func() {
				Gemm(kind.transA, kind.transB, kind.m, kind.n, kind.k, 1, kind.a, kind.lda, kind.b, kind.ldb, 0, c, kind.n)
			}
			b.Run(fmt.Sprintf("%dx%dx%d/%s", t, o, i, kind.name), func(b *testing.B) {
				for b.Loop() {
					external = nil
					b.ReportMetric(run(gemm), "GFLOP/s")
					if external = theirs; theirs != nil {
						blas := run(gemm)
						external = nil
						ours := run(gemm) // again: what the machine's other users do changes
						b.ReportMetric(ours/blas, "times-OpenBLAS")
						continue
					}
					transpose := map[bool]blas.Transpose{false: blas.NoTrans, true: blas.Trans}
					pure := run(func() {
						gonum.Implementation{}.Sgemm(transpose[kind.transA], transpose[kind.transB], kind.m, kind.n, kind.k, 1, kind.a, kind.lda, kind.b, kind.ldb, 0, c, kind.n)
					})
					b.ReportMetric(run(gemm)/pure, "times-gonum")
				}
			})
		}
	}
}
