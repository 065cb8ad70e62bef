//go:build amd64 && !purego

package kernels

type int16Kernel = func(tiles, pairs int, a []int16, lda int, b []uint32, ra, rb, c []float32, ldc int, add bool)

// int16Kernels are the micro-kernels in assembly that this processor has.
func int16Kernels() map[string]int16Kernel {
	kernels := make(map[string]int16Kernel)
	if useAVX2 {
		kernels["AVX2"] = func(tiles, pairs int, a []int16, lda int, b []uint32, ra, rb, c []float32, ldc int, add bool) {
			gemmInt16AVX2(tiles, pairs, &a[0], lda, &b[0], &ra[0], &rb[0], &c[0], ldc, add)
		}
	}
	if useVNNI {
		kernels["VNNI"] = func(tiles, pairs int, a []int16, lda int, b []uint32, ra, rb, c []float32, ldc int, add bool) {
			gemmInt16VNNI(tiles, pairs, &a[0], lda, &b[0], &ra[0], &rb[0], &c[0], ldc, add)
		}
	}
	return kernels
}
