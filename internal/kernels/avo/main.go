// Command avo writes the AVX2/FMA kernels of the kernels package:
//
//	cd internal/kernels/avo && go run . -out ../gemm_amd64.s -pkg kernels
package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

func main() {
	ConstraintExpr("!purego")
	TEXT("gemm6x16AVX2", NOSPLIT, "func(k int, a, b, c *float32, ldc int)")
	Doc("gemm6x16AVX2 computes C += A B for a 6 x 16 tile of C: A is packed as k columns of 6, B as k rows of 16, C has rows ldc floats apart.")
	k := Load(Param("k"), GP64())
	a := Load(Param("a"), GP64())
	b := Load(Param("b"), GP64())
	c := Load(Param("c"), GP64())
	ldc := Load(Param("ldc"), GP64())
	SHLQ(Imm(2), ldc)

	var acc [6][2]reg.VecVirtual
	for i := range acc {
		for j := range acc[i] {
			acc[i][j] = YMM()
			VXORPS(acc[i][j], acc[i][j], acc[i][j])
		}
	}
	b0, b1, ai := YMM(), YMM(), YMM()

	step := func(n int) {
		for s := range n {
			VMOVUPS(Mem{Base: b, Disp: 64 * s}, b0)
			VMOVUPS(Mem{Base: b, Disp: 64*s + 32}, b1)
			for i := range acc {
				VBROADCASTSS(Mem{Base: a, Disp: 24*s + 4*i}, ai)
				VFMADD231PS(b0, ai, acc[i][0])
				VFMADD231PS(b1, ai, acc[i][1])
			}
		}
		ADDQ(Imm(uint64(24*n)), a)
		ADDQ(U32(64*n), b)
	}
	Label("quad")
	CMPQ(k, Imm(4))
	JLT(LabelRef("single"))
	step(4)
	SUBQ(Imm(4), k)
	JMP(LabelRef("quad"))
	Label("single")
	TESTQ(k, k)
	JZ(LabelRef("store"))
	step(1)
	DECQ(k)
	JMP(LabelRef("single"))

	Label("store")
	for i := range acc {
		for j := range acc[i] {
			m := Mem{Base: c, Disp: 32 * j}
			VADDPS(m, acc[i][j], acc[i][j])
			VMOVUPS(acc[i][j], m)
		}
		if i < len(acc)-1 {
			ADDQ(ldc, c)
		}
	}
	VZEROUPPER()
	RET()
	dot()
	dots8()
	Generate()
}

func dots8() {
	TEXT("dots8AVX2", NOSPLIT, "func(n int, a *float32, lda int, x, out *float32)")
	Doc("dots8AVX2 computes the inner products of 8 rows of A, lda floats apart, with x; n is a multiple of 8.")
	n := Load(Param("n"), GP64())
	a := Load(Param("a"), GP64())
	lda := Load(Param("lda"), GP64())
	x := Load(Param("x"), GP64())
	out := Load(Param("out"), GP64())
	SHLQ(Imm(2), lda)
	lda3, a4 := GP64(), GP64()
	LEAQ(Mem{Base: lda, Index: lda, Scale: 2}, lda3)
	LEAQ(Mem{Base: a, Index: lda, Scale: 4}, a4)
	rows := [8]Mem{
		{Base: a}, {Base: a, Index: lda, Scale: 1}, {Base: a, Index: lda, Scale: 2}, {Base: a, Index: lda3, Scale: 1},
		{Base: a4}, {Base: a4, Index: lda, Scale: 1}, {Base: a4, Index: lda, Scale: 2}, {Base: a4, Index: lda3, Scale: 1},
	}
	var acc [8]reg.VecVirtual
	for i := range acc {
		acc[i] = YMM()
		VXORPS(acc[i], acc[i], acc[i])
	}
	v := YMM()
	Label("eight")
	TESTQ(n, n)
	JZ(LabelRef("out"))
	VMOVUPS(Mem{Base: x}, v)
	for i, row := range rows {
		VFMADD231PS(row, v, acc[i])
	}
	ADDQ(Imm(32), x)
	ADDQ(Imm(32), a)
	ADDQ(Imm(32), a4)
	SUBQ(Imm(8), n)
	JMP(LabelRef("eight"))
	Label("out")
	for i := range acc {
		low, high := acc[i].AsX(), v.AsX()
		VEXTRACTF128(Imm(1), acc[i], high)
		VADDPS(high, low, low)
		VHADDPS(low, low, low)
		VHADDPS(low, low, low)
		VMOVSS(low, Mem{Base: out, Disp: 4 * i})
	}
	VZEROUPPER()
	RET()
}

func dot() {
	TEXT("dotAVX2", NOSPLIT, "func(n int, x, y *float32) float32")
	Doc("dotAVX2 returns the inner product of n floats, a multiple of 32.")
	n := Load(Param("n"), GP64())
	x := Load(Param("x"), GP64())
	y := Load(Param("y"), GP64())
	var acc [4]reg.VecVirtual
	for i := range acc {
		acc[i] = YMM()
		VXORPS(acc[i], acc[i], acc[i])
	}
	Label("dot")
	CMPQ(n, Imm(32))
	JLT(LabelRef("sum"))
	for i := range acc {
		v := YMM()
		VMOVUPS(Mem{Base: x, Disp: 32 * i}, v)
		VFMADD231PS(Mem{Base: y, Disp: 32 * i}, v, acc[i])
	}
	ADDQ(U32(128), x)
	ADDQ(U32(128), y)
	SUBQ(Imm(32), n)
	JMP(LabelRef("dot"))
	Label("sum")
	VADDPS(acc[1], acc[0], acc[0])
	VADDPS(acc[3], acc[2], acc[2])
	VADDPS(acc[2], acc[0], acc[0])
	low, high := acc[0].AsX(), XMM()
	VEXTRACTF128(Imm(1), acc[0], high)
	VADDPS(high, low, low)
	VHADDPS(low, low, low)
	VHADDPS(low, low, low)
	Store(low, ReturnIndex(0))
	VZEROUPPER()
	RET()
}
