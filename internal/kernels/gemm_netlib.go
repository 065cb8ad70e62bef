//go:build netlib

package kernels

import (
	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/netlib/blas/netlib"
)

// With the build tag netlib, large products are those of the C library that gonum's netlib
// is linked with, OpenBLAS for one: CGO_LDFLAGS=-lopenblas go build -tags netlib ./cmd/onerec
func init() {
	transpose := map[bool]blas.Transpose{false: blas.NoTrans, true: blas.Trans}
	external = func(transA, transB bool, m, n, k int, alpha float32, a []float32, lda int, b []float32, ldb int, beta float32, c []float32, ldc int) {
		netlib.Implementation{}.Sgemm(transpose[transA], transpose[transB], m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)
	}
}
