package main

import (
	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/ir"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// products of 16-bit integers.
func int16s() {
	madd := func(a, b, acc reg.VecVirtual) {
		t := YMM()
		VPMADDWD(a, b, t)
		VPADDD(t, acc, acc)
	}
	vnni := func(opcode string) func(a, b, acc reg.VecVirtual) {
		return func(a, b, acc reg.VecVirtual) {
			// avo does not know them. Of bytes, the first operand's have a sign, and the second's none.
			Instruction(&ir.Instruction{Opcode: opcode, Operands: []Op{b, a, acc}, Inputs: []Op{a, b, acc}, Outputs: []Op{acc}})
		}
	}
	gemmInts("gemmInt16AVX2", "gemmInt16AVX2 computes tiles of C, each 6 rows below the one before and 16 columns wide, C = diag(ra) A B diag(rb), or adds to them with add, for integers A, with rows lda apart, and B, a panel of pairs of rows by 16 columns.", 16, false, madd)
	gemmInts("gemmInt16VNNI", "gemmInt16VNNI is gemmInt16AVX2 with the instruction that multiplies, adds pairs and accumulates.", 16, false, vnni("VPDPWSSD"))
	gemmInts("gemmInt16VNNI512", "gemmInt16VNNI512 is gemmInt16VNNI for tiles 32 columns wide: of two panels, the second of which begins next pairs after the first.", 16, true, vnni("VPDPWSSD"))
	gemmInts("gemmInt8VNNI", "gemmInt8VNNI is gemmInt16VNNI for bytes: A's have no sign and are greater by 128 than what they stand for, B is a panel of fours of rows by 16 columns, and less are the sums of B's columns times -128.", 8, false, vnni("VPDPBUSD"))
	gemmInts("gemmInt8VNNI512", "gemmInt8VNNI512 is gemmInt8VNNI for tiles 32 columns wide: of two panels, the second of which begins next fours after the first.", 8, true, vnni("VPDPBUSD"))
	fitRows16()
	round16()
	fitRowsBytes()
	expWeigh16()
	roundPairs16()
}

// gemmInts makes products of integers of so many bits, of which 32 bits hold a pair, or four. It has two registers for each row of a
// tile: both of one panel or, wide, each of a panel of its own.
func gemmInts(name, doc string, bits int, wide bool, dot func(a, b, acc reg.VecVirtual)) {
	register, size, left, panels := YMM, 32, "pairs int, a *int16", "b *uint32"
	if wide {
		register, size, panels = ZMM, 64, "b *uint32, next int"
	}
	units := "pairs"
	if bits == 8 {
		units, left, panels = "fours", "fours int, a *uint8", panels+", less *int32"
	}
	TEXT(name, NOSPLIT, "func(tiles, "+left+", lda int, "+panels+", ra, rb, c *float32, ldc int, add bool)")
	Doc(doc)
	tiles := Load(Param("tiles"), GP64())
	first := Load(Param("a"), GP64())
	lda := Load(Param("lda"), GP64())
	ra := Load(Param("ra"), GP64())
	c := Load(Param("c"), GP64())
	ldc := Load(Param("ldc"), GP64())
	if bits == 16 {
		SHLQ(Imm(1), lda)
	}
	SHLQ(Imm(2), ldc)
	pairs, a, a3, b := GP64(), GP64(), GP64(), GP64()
	second := func(step int) Mem { return Mem{Base: b, Disp: 64*step + 32} }
	if wide {
		next := Load(Param("next"), GP64())
		second = func(step int) Mem { return Mem{Base: b, Index: next, Scale: 4, Disp: 64 * step} }
	}

	Label("tile")
	Load(Param(units), pairs)
	Load(Param("b"), b)
	MOVQ(first, a)
	LEAQ(Mem{Base: a, Index: lda, Scale: 2}, a3)
	ADDQ(lda, a3)
	LEAQ(Mem{Base: a3, Index: lda, Scale: 2}, first)
	ADDQ(lda, first)
	at := func(row, step int) Mem {
		m := Mem{Base: a, Disp: 4 * step}
		if row >= 3 {
			m.Base = a3
		}
		if row%3 > 0 {
			m.Index, m.Scale = lda, uint8(row%3)
		}
		return m
	}
	var acc [6][2]reg.VecVirtual
	var less reg.Register
	if bits == 8 {
		less = Load(Param("less"), GP64())
	}
	for i := range acc {
		for j := range acc[i] {
			acc[i][j] = register()
			switch {
			case bits == 16:
				zero(acc[i][j], wide)
			case i == 0:
				VMOVUPS(Mem{Base: less, Disp: size * j}, acc[0][j])
			default:
				VMOVAPS(acc[0][j], acc[i][j])
			}
		}
	}
	b0, b1, ai := register(), register(), register()
	step := func(n int) {
		for s := range n {
			VMOVUPS(Mem{Base: b, Disp: 64 * s}, b0)
			VMOVUPS(second(s), b1)
			for i := range acc {
				VPBROADCASTD(at(i, s), ai)
				dot(ai, b0, acc[i][0])
				dot(ai, b1, acc[i][1])
			}
		}
		ADDQ(Imm(uint64(4*n)), a)
		ADDQ(Imm(uint64(4*n)), a3)
		ADDQ(U32(64*n), b)
	}
	fours(pairs, step)
	rb, add := Load(Param("rb"), GP64()), Load(Param("add"), GP8())
	VMOVUPS(Mem{Base: rb}, b0)
	VMOVUPS(Mem{Base: rb, Disp: size}, b1)
	store := func(sum bool) {
		for i := range acc {
			VBROADCASTSS(Mem{Base: ra, Disp: 4 * i}, ai)
			for j, by := range []reg.VecVirtual{b0, b1} {
				m := Mem{Base: c, Disp: size * j}
				VCVTDQ2PS(acc[i][j], acc[i][j])
				VMULPS(by, acc[i][j], acc[i][j])
				VMULPS(ai, acc[i][j], acc[i][j])
				if sum {
					VADDPS(m, acc[i][j], acc[i][j])
				}
				VMOVUPS(acc[i][j], m)
			}
			ADDQ(ldc, c)
		}
	}
	TESTB(add, add)
	JZ(LabelRef("over"))
	store(true)
	JMP(LabelRef("next"))
	Label("over")
	store(false)
	Label("next")
	ADDQ(Imm(24), ra)
	DECQ(tiles)
	JNZ(LabelRef("tile"))
	VZEROUPPER()
	RET()
}

// expWeigh16 is expSum8 that weighs at the same time, and is as exact as 16-bit integers ask for.
func expWeigh16() {
	TEXT("expWeigh16", NOSPLIT, "func(n int, x, gain *float32, top float32) (sum, weighed, most float32)")
	Doc("expWeigh16 replaces x by e^(x-top) times gain, which is not negative, for n floats, a multiple of 16, and returns the sum of the former, and the sum and the greatest of the latter; x is not above top. The relative error is below 1e-5, and no exponential is less than 2^-125.")
	n := Load(Param("n"), GP64())
	x := Load(Param("x"), GP64())
	gain := Load(Param("gain"), GP64())
	first, top := XMM(), YMM()
	Load(Param("top"), first)
	VBROADCASTSS(first, top)
	log2e := YMM()
	VMOVUPS(constant(expLog2e), log2e)
	var sums, weighed, tops [2]reg.VecVirtual
	for i := range sums {
		sums[i], weighed[i], tops[i] = YMM(), YMM(), YMM()
		for _, acc := range []reg.VecVirtual{sums[i], weighed[i], tops[i]} {
			VXORPS(acc, acc, acc)
		}
	}
	Label("loop")
	TESTQ(n, n)
	JZ(LabelRef("done"))
	for i := range sums {
		v := YMM()
		VMOVUPS(Mem{Base: x, Disp: 32 * i}, v)
		VSUBPS(top, v, v)
		VMULPS(log2e, v, v)
		exp2(v)
		VADDPS(v, sums[i], sums[i])
		VMULPS(Mem{Base: gain, Disp: 32 * i}, v, v)
		VMOVUPS(v, Mem{Base: x, Disp: 32 * i})
		VADDPS(v, weighed[i], weighed[i])
		VMAXPS(v, tops[i], tops[i])
	}
	ADDQ(U32(64), x)
	ADDQ(U32(64), gain)
	SUBQ(Imm(16), n)
	JMP(LabelRef("loop"))
	Label("done")
	for i, acc := range [][2]reg.VecVirtual{sums, weighed, tops} {
		join := VADDPS
		if i == 2 {
			join = VMAXPS
		}
		join(acc[1], acc[0], acc[0])
		across(acc[0], join)
		Store(acc[0].AsX(), ReturnIndex(i))
	}
	VZEROUPPER()
	RET()
}

// fitRows16 takes a row's length as dotAVX2 does, and rounds what is then in the nearest cache.
func fitRows16() {
	TEXT("fitRows16", NOSPLIT, "func(rows, n int, dst *int16, ldd int, x *float32, ldx int, by *float32, most, tiny float32)")
	Doc("fitRows16 rounds rows of n floats, a multiple of 16, to integers with the factor that makes their length most; by are the inverses. A row shorter than tiny becomes zero.")
	rows, n := Load(Param("rows"), GP64()), GP64()
	first, out := Load(Param("x"), GP64()), Load(Param("dst"), GP64())
	ldx, ldd := Load(Param("ldx"), GP64()), Load(Param("ldd"), GP64())
	SHLQ(Imm(2), ldx)
	SHLQ(Imm(1), ldd)
	by := Load(Param("by"), GP64())
	most, tiny := Load(Param("most"), XMM()), Load(Param("tiny"), XMM())
	x, dst := GP64(), GP64()
	Label("row")
	MOVQ(first, x)
	Load(Param("n"), n)
	var acc [4]reg.VecVirtual
	for i := range acc {
		acc[i] = YMM()
		VXORPS(acc[i], acc[i], acc[i])
	}
	add := func(acc []reg.VecVirtual) {
		for i := range acc {
			v := YMM()
			VMOVUPS(Mem{Base: x, Disp: 32 * i}, v)
			VFMADD231PS(v, v, acc[i])
		}
		ADDQ(U32(32*len(acc)), x)
		SUBQ(Imm(uint64(8*len(acc))), n)
	}
	Label("squares")
	CMPQ(n, Imm(32))
	JLT(LabelRef("rest"))
	add(acc[:])
	JMP(LabelRef("squares"))
	Label("rest")
	TESTQ(n, n)
	JZ(LabelRef("sum"))
	add(acc[:2])
	Label("sum")
	low := sumOf(acc)
	length, long, to, back := XMM(), XMM(), XMM(), XMM()
	VSQRTSS(low, low, length)
	VCMPSS(Imm(5), tiny, length, long) // not less than
	VDIVSS(length, most, to)
	VDIVSS(most, length, back)
	VANDPS(long, to, to)
	VANDPS(long, back, back)
	VMOVSS(back.(reg.Register), Mem{Base: by})
	s := YMM()
	VBROADCASTSS(to, s)

	MOVQ(first, x)
	MOVQ(out, dst)
	Load(Param("n"), n)
	roundRow(n, dst, x, s)
	ADDQ(ldx, first)
	ADDQ(ldd, out)
	ADDQ(Imm(4), by)
	DECQ(rows)
	JNZ(LabelRef("row"))
	VZEROUPPER()
	RET()
}

// fitRowsBytes finds a row's greatest, and rounds what is then in the nearest cache.
func fitRowsBytes() {
	TEXT("fitRowsBytes", NOSPLIT, "func(rows, n int, dst *uint8, ldd int, x *float32, ldx int, by *float32, most, tiny float32)")
	Doc("fitRowsBytes rounds rows of n floats, a multiple of 16, to integers with the factor that makes the greatest absolute value most, and adds 128; by are the inverses, not numbers for a row that has what is none. A row with nothing beyond tiny becomes zero.")
	rows, n := Load(Param("rows"), GP64()), GP64()
	first, out := Load(Param("x"), GP64()), Load(Param("dst"), GP64())
	ldx, ldd := Load(Param("ldx"), GP64()), Load(Param("ldd"), GP64())
	SHLQ(Imm(2), ldx)
	by := Load(Param("by"), GP64())
	most, tiny := Load(Param("most"), XMM()), Load(Param("tiny"), XMM())
	nothing, bias, at := ZMM(), XMM(), GP32()
	VPXORD(nothing, nothing, nothing)
	MOVL(U32(0x80808080), at)
	MOVD(at, bias)
	VPBROADCASTD(bias, bias)
	x, dst := GP64(), GP64()
	Label("row")
	MOVQ(first, x)
	Load(Param("n"), n)
	high, low, not := ZMM(), ZMM(), ZMM()
	for _, v := range []reg.VecVirtual{high, low, not} {
		VPXORD(v, v, v)
	}
	Label("greatest")
	v := ZMM()
	VMOVUPS(Mem{Base: x}, v)
	VMAXPS(v, high, high)
	VMINPS(v, low, low)
	VFMADD231PS(nothing, v, not)
	ADDQ(U32(64), x)
	SUBQ(Imm(16), n)
	JNZ(LabelRef("greatest"))
	VSUBPS(low, nothing, low)
	VMAXPS(low, high, high)
	halves := func(acc reg.VecVirtual, join func(...Op)) {
		half := YMM()
		VEXTRACTF64X4(Imm(1), acc, half)
		join(half, acc.AsY(), acc.AsY())
		low, high := acc.AsX(), XMM()
		VEXTRACTF128(Imm(1), acc.AsY(), high)
		join(high, low, low)
		VMOVHLPS(low, low, high)
		join(high, low, low)
		VMOVSHDUP(low, high)
		join(high, low, low)
	}
	halves(high, VMAXPS)
	halves(not, VADDPS)
	top, long, to, back := high.AsX(), XMM(), XMM(), XMM()
	VCMPSS(Imm(5), tiny, top, long) // not less than
	VDIVSS(top, most, to)
	VDIVSS(most, top, back)
	VANDPS(long, to, to)
	VANDPS(long, back, back)
	VADDSS(not.AsX(), back, back)
	VMOVSS(back.(reg.Register), Mem{Base: by})
	s := ZMM()
	VBROADCASTSS(to, s)

	MOVQ(first, x)
	MOVQ(out, dst)
	Load(Param("n"), n)
	Label("sixteen")
	q, bytes := ZMM(), XMM()
	VMULPS(Mem{Base: x}, s, q)
	VCVTPS2DQ(q, q)
	VPMOVSDB(q, bytes)
	VPXOR(bias, bytes, bytes)
	VMOVDQU(bytes, Mem{Base: dst})
	ADDQ(U32(64), x)
	ADDQ(Imm(16), dst)
	SUBQ(Imm(16), n)
	JNZ(LabelRef("sixteen"))
	ADDQ(ldx, first)
	ADDQ(ldd, out)
	ADDQ(Imm(4), by)
	DECQ(rows)
	JNZ(LabelRef("row"))
	VZEROUPPER()
	RET()
}

// round16 rounds floats times a factor.
func round16() {
	TEXT("round16", NOSPLIT, "func(n int, dst *int16, x *float32, s float32)")
	Doc("round16 rounds n floats, a multiple of 16, times s to integers; those beyond 16 bits become the greatest or least.")
	n := Load(Param("n"), GP64())
	dst, x := Load(Param("dst"), GP64()), Load(Param("x"), GP64())
	low, s := XMM(), YMM()
	Load(Param("s"), low)
	VBROADCASTSS(low, s)
	roundRow(n, dst, x, s)
	VZEROUPPER()
	RET()
}

// roundRow rounds n floats at x, a multiple of 16, times s, to integers at dst, and ends at a label of its own.
func roundRow(n, dst, x reg.Register, s reg.VecVirtual) {
	Label("sixteen")
	TESTQ(n, n)
	JZ(LabelRef("rounded"))
	v := [2]reg.VecVirtual{YMM(), YMM()}
	for i := range v {
		VMULPS(Mem{Base: x, Disp: 32 * i}, s, v[i])
		VCVTPS2DQ(v[i], v[i])
	}
	VPACKSSDW(v[1], v[0], v[0])
	VPERMQ(Imm(0xd8), v[0], v[0])
	VMOVDQU(v[0], Mem{Base: dst})
	ADDQ(U32(64), x)
	ADDQ(Imm(32), dst)
	SUBQ(Imm(16), n)
	JMP(LabelRef("sixteen"))
	Label("rounded")
}

// roundPairs16 makes pairs of two rows.
func roundPairs16() {
	TEXT("roundPairs16", NOSPLIT, "func(n int, dst *uint32, panel int, x, y *float32, sx, sy float32)")
	Doc("roundPairs16 rounds n floats, a multiple of 16, of x times sx and of y times sy, to pairs of integers, x's in the low half: 16 of them every panel.")
	n := Load(Param("n"), GP64())
	dst := Load(Param("dst"), GP64())
	panel := Load(Param("panel"), GP64())
	SHLQ(Imm(2), panel)
	bases := []reg.Register{Load(Param("x"), GP64()), Load(Param("y"), GP64())}
	var scales []reg.VecVirtual
	for _, name := range []string{"sx", "sy"} {
		low, s := XMM(), YMM()
		Load(Param(name), low)
		VBROADCASTSS(low, s)
		scales = append(scales, s)
	}
	Label("sixteen")
	TESTQ(n, n)
	JZ(LabelRef("done"))
	for half := range 2 {
		v := []reg.VecVirtual{YMM(), YMM()}
		for i := range v {
			VMULPS(Mem{Base: bases[i], Disp: 32 * half}, scales[i], v[i])
			VCVTPS2DQ(v[i], v[i])
		}
		VPSLLD(Imm(16), v[1], v[1])
		VPBLENDW(Imm(0xaa), v[1], v[0], v[0])
		VMOVDQU(v[0], Mem{Base: dst, Disp: 32 * half})
	}
	for _, b := range bases {
		ADDQ(U32(64), b)
	}
	ADDQ(panel, dst)
	SUBQ(Imm(16), n)
	JMP(LabelRef("sixteen"))
	Label("done")
	VZEROUPPER()
	RET()
}
