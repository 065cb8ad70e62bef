//go:build !amd64 || purego

package kernels

func gemm6x16(k int, a, b, c []float32, ldc int) { gemm6x16Go(k, a, b, c, ldc) }
