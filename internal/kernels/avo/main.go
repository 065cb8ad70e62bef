// Command avo writes the AVX2/FMA kernels of the kernels package:
//
//	cd internal/kernels/avo && go run . -out ../kernels_amd64.s -pkg kernels
package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

func main() {
	ConstraintExpr("!purego")
	gemm("gemm6x16AVX2", "gemm6x16AVX2 computes C = A B, or C += A B with add, for a 6 x 16 tile of C: A is packed as k columns of 6, B as k rows of 16, C has rows ldc floats apart.", true)
	gemm("gemm6x16RowsAVX2", "gemm6x16RowsAVX2 is gemm6x16AVX2 for an A that is not packed, with rows lda floats apart.", false)
	gemm512("gemm12x16AVX512", "gemm12x16AVX512 is gemm6x16AVX2 for two tiles, one above the other.", true)
	gemm512("gemm12x16RowsAVX512", "gemm12x16RowsAVX512 is gemm6x16RowsAVX2 for two tiles, one above the other.", false)
	dot()
	dots8()
	vectors()
	gathers()
	int16s()
	Generate()
}

func gemm(name, doc string, packed bool) {
	signature := "func(k int, a *float32, lda int, b, c *float32, ldc int, add bool)"
	if packed {
		signature = "func(k int, a, b, c *float32, ldc int, add bool)"
	}
	TEXT(name, NOSPLIT, signature)
	Doc(doc)
	k := Load(Param("k"), GP64())
	a := Load(Param("a"), GP64())
	b := Load(Param("b"), GP64())
	c := Load(Param("c"), GP64())
	ldc := Load(Param("ldc"), GP64())
	add := Load(Param("add"), GP8())
	SHLQ(Imm(2), ldc)
	at := func(row, step int) Mem { return Mem{Base: a, Disp: 24*step + 4*row} }
	advance := func(n int) { ADDQ(Imm(uint64(24*n)), a) }
	if !packed {
		lda := Load(Param("lda"), GP64())
		SHLQ(Imm(2), lda)
		a3 := GP64()
		LEAQ(Mem{Base: a, Index: lda, Scale: 2}, a3)
		ADDQ(lda, a3)
		at = func(row, step int) Mem {
			m := Mem{Base: a, Disp: 4 * step}
			if row >= 3 {
				m.Base = a3
			}
			if row%3 > 0 {
				m.Index, m.Scale = lda, uint8(row%3)
			}
			return m
		}
		advance = func(n int) {
			ADDQ(Imm(uint64(4*n)), a)
			ADDQ(Imm(uint64(4*n)), a3)
		}
	}

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
				VBROADCASTSS(at(i, s), ai)
				VFMADD231PS(b0, ai, acc[i][0])
				VFMADD231PS(b1, ai, acc[i][1])
			}
		}
		advance(n)
		ADDQ(U32(64*n), b)
	}
	fours(k, step)
	store := func(sum bool) {
		for i := range acc {
			for j := range acc[i] {
				m := Mem{Base: c, Disp: 32 * j}
				if sum {
					VADDPS(m, acc[i][j], acc[i][j])
				}
				VMOVUPS(acc[i][j], m)
			}
			if i < len(acc)-1 {
				ADDQ(ldc, c)
			}
		}
		VZEROUPPER()
		RET()
	}
	TESTB(add, add)
	JZ(LabelRef("over"))
	store(true)
	Label("over")
	store(false)
}

// fours makes n steps, four at a time while there are as many. Then the label store begins.
func fours(n reg.Register, step func(n int)) {
	Label("quad")
	CMPQ(n, Imm(4))
	JLT(LabelRef("single"))
	step(4)
	SUBQ(Imm(4), n)
	JMP(LabelRef("quad"))
	Label("single")
	TESTQ(n, n)
	JZ(LabelRef("store"))
	step(1)
	DECQ(n)
	JMP(LabelRef("single"))
	Label("store")
}

// gemm512 is gemm with registers of 16 floats: one for each row of the tile, and A's floats come out of memory as they are
// multiplied. The sums are those of gemm, bit for bit.
func gemm512(name, doc string, packed bool) {
	signature := "func(k int, a *float32, lda int, b, c *float32, ldc int, add bool)"
	if packed {
		signature = "func(k int, a, b, c *float32, ldc int, add bool)"
	}
	TEXT(name, NOSPLIT, signature)
	Doc(doc)
	k := Load(Param("k"), GP64())
	b := Load(Param("b"), GP64())
	c := Load(Param("c"), GP64())
	ldc := Load(Param("ldc"), GP64())
	add := Load(Param("add"), GP8())
	SHLQ(Imm(2), ldc)
	var bases []reg.Register // of rows 0, 3, 6 and 9, or of the two packed tiles
	var at func(row, step int) Mem
	size := 4 // from a step to the next
	first := Load(Param("a"), GP64())
	bases = append(bases, first)
	if packed {
		size = 24
		second := GP64()
		IMUL3Q(Imm(24), k, second)
		ADDQ(first, second)
		bases = append(bases, second)
		at = func(row, step int) Mem { return Mem{Base: bases[row/6], Disp: 24*step + 4*(row%6)} }
	} else {
		lda := Load(Param("lda"), GP64())
		SHLQ(Imm(2), lda)
		for len(bases) < 4 {
			base := GP64()
			LEAQ(Mem{Base: bases[len(bases)-1], Index: lda, Scale: 2}, base)
			ADDQ(lda, base)
			bases = append(bases, base)
		}
		at = func(row, step int) Mem {
			m := Mem{Base: bases[row/3], Disp: 4 * step}
			if row%3 > 0 {
				m.Index, m.Scale = lda, uint8(row%3)
			}
			return m
		}
	}
	var acc [12]reg.VecVirtual
	for i := range acc {
		acc[i] = ZMM()
		VPXORD(acc[i], acc[i], acc[i])
	}
	row := ZMM()
	step := func(n int) {
		for s := range n {
			VMOVUPS(Mem{Base: b, Disp: 64 * s}, row)
			for i := range acc {
				VFMADD231PS_BCST(at(i, s), row, acc[i])
			}
		}
		for _, base := range bases {
			ADDQ(U32(size*n), base)
		}
		ADDQ(U32(64*n), b)
	}
	fours(k, step)
	store := func(sum bool) {
		for i := range acc {
			m := Mem{Base: c}
			if sum {
				VADDPS(m, acc[i], acc[i])
			}
			VMOVUPS(acc[i], m)
			if i < len(acc)-1 {
				ADDQ(ldc, c)
			}
		}
		VZEROUPPER()
		RET()
	}
	TESTB(add, add)
	JZ(LabelRef("over"))
	store(true)
	Label("over")
	store(false)
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
