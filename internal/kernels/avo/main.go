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
	gemm("gemm6x16AVX2", "gemm6x16AVX2 computes C = A B, or C += A B with add, for 6 x 16 tiles of C, one above the other: A is packed as k columns of 6 for each, B as k rows of 16, C has rows ldc floats apart.", true, false)
	gemm("gemm6x16RowsAVX2", "gemm6x16RowsAVX2 is gemm6x16AVX2 for an A that is not packed, with rows lda floats apart.", false, false)
	gemm("gemm6x32AVX512", "gemm6x32AVX512 is gemm6x16AVX2 for tiles 32 columns wide: of two panels, the second of which begins next floats after the first.", true, true)
	gemm("gemm6x32RowsAVX512", "gemm6x32RowsAVX512 is gemm6x32AVX512 for an A that is not packed.", false, true)
	dot()
	dots8()
	vectors()
	gathers()
	int16s()
	Generate()
}

// gemm has two registers for each row of a tile: both of one panel or, wide, each of a panel of its own. The sums are the
// same, to the last bit.
func gemm(name, doc string, packed, wide bool) {
	register, size, left, right := YMM, 32, "a *float32, ", "b *float32, "
	if !packed {
		left += "lda int, "
	}
	if wide {
		register, size = ZMM, 64
		right += "next int, "
	}
	TEXT(name, NOSPLIT, "func(tiles, k int, "+left+right+"c *float32, ldc int, add bool)")
	Doc(doc)
	first := Load(Param("a"), GP64())
	c := Load(Param("c"), GP64())
	ldc := Load(Param("ldc"), GP64())
	SHLQ(Imm(2), ldc)
	a, a3, b, n := GP64(), GP64(), GP64(), GP64()
	at := func(row, step int) Mem { return Mem{Base: a, Disp: 24*step + 4*row} }
	begin := func() {
		MOVQ(first, a)
		Load(Param("k"), n)
		IMUL3Q(Imm(24), n, n)
		ADDQ(n, first)
	}
	advance := func(n int) { ADDQ(Imm(uint64(24*n)), a) }
	if !packed {
		lda := Load(Param("lda"), GP64())
		SHLQ(Imm(2), lda)
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
		begin = func() {
			MOVQ(first, a)
			LEAQ(Mem{Base: a, Index: lda, Scale: 2}, a3)
			ADDQ(lda, a3)
			LEAQ(Mem{Base: a3, Index: lda, Scale: 2}, first)
			ADDQ(lda, first)
		}
		advance = func(n int) {
			ADDQ(Imm(uint64(4*n)), a)
			ADDQ(Imm(uint64(4*n)), a3)
		}
	}
	second := func(step int) Mem { return Mem{Base: b, Disp: 64*step + 32} }
	if wide {
		next := Load(Param("next"), GP64())
		second = func(step int) Mem { return Mem{Base: b, Index: next, Scale: 4, Disp: 64 * step} }
	}
	Label("tile")
	begin()
	Load(Param("k"), n)
	Load(Param("b"), b)
	var acc [6][2]reg.VecVirtual
	for i := range acc {
		for j := range acc[i] {
			acc[i][j] = register()
			zero(acc[i][j], wide)
		}
	}
	prefetchTile(c, ldc, len(acc), size/32)
	b0, b1, ai := register(), register(), register()
	fours(n, func(n int) {
		for s := range n {
			VMOVUPS(Mem{Base: b, Disp: 64 * s}, b0)
			VMOVUPS(second(s), b1)
			for i := range acc {
				VBROADCASTSS(at(i, s), ai)
				VFMADD231PS(b0, ai, acc[i][0])
				VFMADD231PS(b1, ai, acc[i][1])
			}
		}
		advance(n)
		ADDQ(U32(64*n), b)
	})
	storeTiles(func(sum bool) {
		for i := range acc {
			for j := range acc[i] {
				m := Mem{Base: c, Disp: size * j}
				if sum {
					VADDPS(m, acc[i][j], acc[i][j])
				}
				VMOVUPS(acc[i][j], m)
			}
			ADDQ(ldc, c)
		}
	})
}

// zero clears a register; the shorter ones' instruction knows no wide ones.
func zero(v reg.VecVirtual, wide bool) {
	if wide {
		VPXORD(v, v, v)
	} else {
		VXORPS(v, v, v)
	}
}

// prefetchTile asks for the lines of C that a tile will be written to, while it is computed.
func prefetchTile(c, ldc reg.Register, rows, lines int) {
	at := GP64()
	MOVQ(c, at)
	for range rows {
		for line := range lines {
			PREFETCHT0(Mem{Base: at, Disp: 64 * line})
		}
		ADDQ(ldc, at)
	}
}

// storeTiles ends a kernel: store writes a tile, or adds it to C, and leaves C at the next one.
func storeTiles(store func(sum bool)) {
	add := Load(Param("add"), GP8())
	TESTB(add, add)
	JZ(LabelRef("over"))
	store(true)
	JMP(LabelRef("next"))
	Label("over")
	store(false)
	Label("next")
	tiles, err := Param("tiles").Resolve()
	if err != nil {
		panic(err)
	}
	DECQ(tiles.Addr)
	JNZ(LabelRef("tile"))
	VZEROUPPER()
	RET()
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

// sumOf adds what a dot product has in its registers up, into the first float of the first.
func sumOf(acc [4]reg.VecVirtual) reg.Register {
	VADDPS(acc[1], acc[0], acc[0])
	VADDPS(acc[3], acc[2], acc[2])
	VADDPS(acc[2], acc[0], acc[0])
	low, high := acc[0].AsX(), XMM()
	VEXTRACTF128(Imm(1), acc[0], high)
	VADDPS(high, low, low)
	VHADDPS(low, low, low)
	VHADDPS(low, low, low)
	return low
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
	low := sumOf(acc)
	Store(low, ReturnIndex(0))
	VZEROUPPER()
	RET()
}
