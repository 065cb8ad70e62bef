//go:build amd64 && !purego

package kernels

// int16Kernel computes tiles of two panels.
type int16Kernel = func(tiles, pairs int, a []int16, lda int, b []uint32, next int, ra, rb, c []float32, ldc int, add bool)

// int16Kernels are the micro-kernels in assembly that this processor has.
func int16Kernels() map[string]int16Kernel {
	type one = func(tiles, pairs int, a *int16, lda int, b *uint32, ra, rb, c *float32, ldc int, add bool)
	twice := func(kernel one) int16Kernel {
		return func(tiles, pairs int, a []int16, lda int, b []uint32, next int, ra, rb, c []float32, ldc int, add bool) {
			kernel(tiles, pairs, &a[0], lda, &b[0], &ra[0], &rb[0], &c[0], ldc, add)
			kernel(tiles, pairs, &a[0], lda, &b[next], &ra[0], &rb[nr], &c[nr], ldc, add)
		}
	}
	kernels := make(map[string]int16Kernel)
	if useAVX2 {
		kernels["AVX2"] = twice(gemmInt16AVX2)
	}
	if useVNNI {
		kernels["VNNI"] = twice(gemmInt16VNNI)
	}
	if twoPanels16 {
		kernels["VNNI, two panels"] = gemmInt16Two
	}
	return kernels
}
