//go:build !amd64 || purego

package kernels

func gemm6x16(k int, a, b, c []float32, ldc int) { gemm6x16Go(k, a, b, c, ldc) }

func dotBlocks(x, y []float32) (sum float32, n int) { return 0, 0 }

func dots8(out, a []float32, lda int, x []float32) (n int) { return 0 }
