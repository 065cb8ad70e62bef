//go:build amd64 && !purego

package kernels

import "golang.org/x/sys/cpu"

//go:noescape
func gemm6x16AVX2(k int, a, b, c *float32, ldc int)

//go:noescape
func dotAVX2(n int, x, y *float32) float32

//go:noescape
func dots8AVX2(n int, a *float32, lda int, x, out *float32)

var useAVX2 = cpu.X86.HasAVX2 && cpu.X86.HasFMA

func gemm6x16(k int, a, b, c []float32, ldc int) {
	if useAVX2 {
		_, _, _ = a[mr*k-1], b[nr*k-1], c[(mr-1)*ldc+nr-1] // the assembly checks no bounds
		gemm6x16AVX2(k, &a[0], &b[0], &c[0], ldc)
		return
	}
	gemm6x16Go(k, a, b, c, ldc)
}

// dotBlocks returns the inner product of the first floats of x and y, and how many it
// took.
func dotBlocks(x, y []float32) (sum float32, n int) {
	n = len(x) &^ 31
	if n == 0 || !useAVX2 {
		return 0, 0
	}
	_ = y[n-1] // the assembly checks no bounds
	return dotAVX2(n, &x[0], &y[0]), n
}

// dots8 writes the inner products of the first floats of 8 rows with those of x, and
// returns how many it took.
func dots8(out, a []float32, lda int, x []float32) (n int) {
	n = len(x) &^ 7
	if n == 0 || !useAVX2 {
		return 0
	}
	_, _ = a[7*lda+n-1], out[7] // the assembly checks no bounds
	dots8AVX2(n, &a[0], lda, &x[0], &out[0])
	return n
}
