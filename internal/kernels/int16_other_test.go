//go:build !amd64 || purego

package kernels

type int16Kernel = func(tiles, pairs int, a []int16, lda int, b []uint32, next int, ra, rb, c []float32, ldc int, add bool)

func int16Kernels() map[string]int16Kernel { return nil }
