//go:build amd64 && !purego

package kernels

import "golang.org/x/sys/cpu"

//go:noescape
func gemm6x16AVX2(k int, a, b, c *float32, ldc int)

var useAVX2 = cpu.X86.HasAVX2 && cpu.X86.HasFMA

func gemm6x16(k int, a, b, c []float32, ldc int) {
	if useAVX2 {
		_, _, _ = a[mr*k-1], b[nr*k-1], c[(mr-1)*ldc+nr-1] // the assembly checks no bounds
		gemm6x16AVX2(k, &a[0], &b[0], &c[0], ldc)
		return
	}
	gemm6x16Go(k, a, b, c, ldc)
}
