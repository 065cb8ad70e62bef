package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Constants of exp, 8 times each; the polynomial is Cephes' expf.
const (
	expMin = iota
	expMax
	expLog2e
	expLn2High
	expLn2Low
	expC0
	expC1
	expC2
	expC3
	expC4
	expC5
	expOne
	exp2Min
	exp2C4
	exp2C3
	exp2C2
	exp2C1
	exp2C0
	exp2Least // -125 / log2(e)
	exp2D6
	exp2D5
	exp2D4
	exp2D3
	exp2D2
	exp2D1
	expBias
	expSign
)

var expData Mem

func expConstants() {
	expData = GLOBL("expData", RODATA|NOPTR)
	at := 0
	for _, v := range []float32{-87, 88, 1.44269504, 0.693359375, -2.12194440e-4, 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1,
		-125, 0.009570102, 0.05591786, 0.24024744, 0.6931218, 0.9999993,
		-86.643397, 1.5345811e-4, 1.3399931e-3, 9.6184891e-3, 5.5503286e-2, 0.24022646, 0.69314718} {
		for range 8 {
			DATA(at, U32(math.Float32bits(v))) // the assembler takes $(1) for an integer
			at += 4
		}
	}
	for _, v := range []uint32{127, 1 << 31} {
		for range 8 {
			DATA(at, U32(v))
			at += 4
		}
	}
}

func constant(i int) Mem { return expData.Offset(32 * i) }

// exp replaces x by e^x, zero below -87, with 88 as the greatest exponent; NaN stays.
func exp(x reg.VecVirtual) {
	below, n, p, t := YMM(), YMM(), YMM(), YMM()
	VCMPPS(Imm(1), constant(expMin), x, below)
	VMOVUPS(constant(expMax), t)
	VMINPS(x, t, x)
	VMULPS(constant(expLog2e), x, n)
	VROUNDPS(Imm(8), n, n)
	VFNMADD231PS(constant(expLn2High), n, x)
	VFNMADD231PS(constant(expLn2Low), n, x)
	VMOVUPS(constant(expC0), p)
	for c := expC1; c <= expC5; c++ {
		VFMADD213PS(constant(c), x, p)
	}
	VMULPS(x, x, t)
	VFMADD213PS(x, t, p)
	VADDPS(constant(expOne), p, p)
	VCVTPS2DQ(n, n)
	VPADDD(constant(expBias), n, n)
	VPSLLD(Imm(23), n, n)
	VMULPS(n, p, p)
	VANDNPS(p, below, x)
}

// exp2 replaces x by 2^x with a relative error below 3e-6, or by 2^-125 if it is less; x is not above 127. The
// polynomial has the least error over half a unit to either side.
func exp2(x reg.VecVirtual) {
	n, p := YMM(), YMM()
	VMAXPS(constant(exp2Min), x, x)
	VROUNDPS(Imm(8), x, n)
	VSUBPS(n, x, x)
	VMOVUPS(constant(exp2C4), p)
	for c := exp2C3; c <= exp2C0; c++ {
		VFMADD213PS(constant(c), x, p)
	}
	VCVTPS2DQ(n, n)
	VPSLLD(Imm(23), n, n)
	VPADDD(n, p, x)
}

// expBelow replaces x, which is not above 88, by e^x, or by 2^-125 if that is less; NaN stays. It computes 2 to
// the power of x log2(e): below that power's whole number, a polynomial that has the least error.
func expBelow(x, least, log2e reg.VecVirtual) {
	n, p := YMM(), YMM()
	VMAXPS(x, least, x) // of a NaN, what is here first
	VMULPS(x, log2e, n)
	VROUNDPS(Imm(8), n, n)
	VFMSUB213PS(n, log2e, x)
	VMOVUPS(constant(exp2D6), p)
	for c := exp2D5; c <= exp2D1; c++ {
		VFMADD213PS(constant(c), x, p)
	}
	VFMADD213PS(constant(expOne), x, p)
	VCVTPS2DQ(n, n)
	VPSLLD(Imm(23), n, n)
	VPADDD(n, p, x)
}

// sigmoid returns 1 / (1 + e^-x) and leaves x.
func sigmoid(x reg.VecVirtual) reg.VecVirtual {
	s, one := YMM(), YMM()
	VXORPS(constant(expSign), x, s)
	exp(s)
	VMOVUPS(constant(expOne), one)
	VADDPS(one, s, s)
	VDIVPS(s, one, s)
	return s
}

// wides are the functions over n floats, a multiple of 16, for AVX-512. Each float takes the same way as in the function of 8, and sums
// are of the same parts in the same order.
func wides() {
	constants := func(of ...int) map[int]reg.VecVirtual {
		regs := make(map[int]reg.VecVirtual)
		for _, c := range of {
			regs[c] = ZMM()
			VBROADCASTSS(constant(c), regs[c])
		}
		return regs
	}
	broadcast := func(name string) reg.VecVirtual {
		z := ZMM()
		VBROADCASTSS(param(name), z)
		return z
	}
	// loop calls body for each 16 floats at the pointers.
	loop := func(body func(), pointers ...reg.Register) {
		n := Load(Param("n"), GP64())
		Label("loop")
		body()
		for _, p := range pointers {
			ADDQ(Imm(64), p)
		}
		SUBQ(Imm(16), n)
		JNZ(LabelRef("loop"))
	}

	TEXT("swiglu16", NOSPLIT, "func(n int, y, a, b *float32)")
	Doc("swiglu16 is swiglu8, 16 floats at a time.")
	y, a, b := Load(Param("y"), GP64()), Load(Param("a"), GP64()), Load(Param("b"), GP64())
	k := constants(expSign, expMin, expMax, expLog2e, expLn2High, expLn2Low, expC0, expC1, expC2, expC3, expC4, expC5, expOne, expBias)
	loop(func() {
		v, x, n, p, t, keep := ZMM(), ZMM(), ZMM(), ZMM(), ZMM(), K()
		VMOVUPS(Mem{Base: a}, v)
		VPXORD(k[expSign], v, x)
		VCMPPS(Imm(5), k[expMin], x, keep) // not less than
		VMINPS(x, k[expMax], x)
		VMULPS(k[expLog2e], x, n)
		VRNDSCALEPS(Imm(8), n, n)
		VFNMADD231PS(k[expLn2High], n, x)
		VFNMADD231PS(k[expLn2Low], n, x)
		VMOVAPS(k[expC0], p)
		for c := expC1; c <= expC5; c++ {
			VFMADD213PS(k[c], x, p)
		}
		VMULPS(x, x, t)
		VFMADD213PS(x, t, p)
		VADDPS(k[expOne], p, p)
		VCVTPS2DQ(n, n)
		VPADDD(k[expBias], n, n)
		VPSLLD(Imm(23), n, n)
		VMULPS_Z(n, p, keep, p)
		VADDPS(k[expOne], p, p)
		VDIVPS(p, k[expOne], p)
		VMULPS(v, p, p)
		VMULPS(Mem{Base: b}, p, p)
		VMOVUPS(p, Mem{Base: y})
	}, y, a, b)
	VZEROUPPER()
	RET()

	TEXT("expSum16", NOSPLIT, "func(n int, x *float32, top float32) float32")
	Doc("expSum16 is expSum8, 16 floats at a time.")
	x := Load(Param("x"), GP64())
	top := broadcast("top")
	k = constants(exp2Least, expLog2e, exp2D6, exp2D5, exp2D4, exp2D3, exp2D2, exp2D1, expOne)
	sum := YMM()
	VXORPS(sum, sum, sum)
	loop(func() {
		expAddWide(x, top, sum, k)
	}, x)
	across(sum, VADDPS)
	Store(sum.AsX(), ReturnIndex(0))
	VZEROUPPER()
	RET()

	TEXT("max16", NOSPLIT, "func(n int, x *float32, top float32) float32")
	Doc("max16 is max8, 16 floats at a time.")
	x = Load(Param("x"), GP64())
	top = broadcast("top")
	loop(func() { VMAXPS(Mem{Base: x}, top, top) }, x)
	Store(acrossWide(top, VMAXPS), ReturnIndex(0))
	VZEROUPPER()
	RET()

	TEXT("round16AVX512", NOSPLIT, "func(n int, dst *int16, x *float32, s float32)")
	Doc("round16AVX512 is round16, 16 floats at a time.")
	dst, x := Load(Param("dst"), GP64()), Load(Param("x"), GP64())
	s := broadcast("s")
	loop(func() {
		v, q := ZMM(), YMM()
		VMULPS(Mem{Base: x}, s, v)
		VCVTPS2DQ(v, v)
		VPMOVSDW(v, q)
		VMOVDQU(q, Mem{Base: dst})
		ADDQ(Imm(32), dst)
	}, x)
	VZEROUPPER()
	RET()

	TEXT("expWeighAVX512", NOSPLIT, "func(n int, x, gain *float32, top float32) (sum, weighed, most float32)")
	Doc("expWeighAVX512 is expWeigh16, 16 floats at a time.")
	x, gain := Load(Param("x"), GP64()), Load(Param("gain"), GP64())
	top = broadcast("top")
	k = constants(expLog2e, exp2Min, exp2C4, exp2C3, exp2C2, exp2C1, exp2C0)
	accs := [3]reg.VecVirtual{ZMM(), ZMM(), ZMM()}
	for _, acc := range accs {
		VPXORD(acc, acc, acc)
	}
	loop(func() {
		weighWide(x, gain, top, k, accs)
	}, x, gain)
	for i, acc := range accs {
		Store(acrossWide(acc, []func(...Op){VADDPS, VADDPS, VMAXPS}[i]), ReturnIndex(i))
	}
	VZEROUPPER()
	RET()

	TEXT("turnHeads16", NOSPLIT, "func(heads int, x, cos, sin *float32, sign float32)")
	Doc("turnHeads16 is turn8 for the two halves, of 16 floats, of each head.")
	heads := Load(Param("heads"), GP64())
	x = Load(Param("x"), GP64())
	cos, sin, turned := ZMM(), ZMM(), ZMM()
	at := Load(Param("cos"), GP64())
	VMOVUPS(Mem{Base: at}, cos)
	at = Load(Param("sin"), GP64())
	VMOVUPS(Mem{Base: at}, sin)
	VMULPS(broadcast("sign"), sin, sin)
	Label("head")
	u, v := ZMM(), ZMM()
	VMOVUPS(Mem{Base: x}, u)
	VMOVUPS(Mem{Base: x, Disp: 64}, v)
	VMULPS(v, sin, turned)
	VFMSUB231PS(u, cos, turned)
	VMOVUPS(turned, Mem{Base: x})
	VMULPS(u, sin, turned)
	VFMADD231PS(v, cos, turned)
	VMOVUPS(turned, Mem{Base: x, Disp: 64})
	ADDQ(U32(128), x)
	DECQ(heads)
	JNZ(LabelRef("head"))
	VZEROUPPER()
	RET()

	softmaxRows(constants, broadcast)
}

// param is where a parameter is.
func param(name string) Mem {
	basic, err := Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	return basic.Addr
}

// exp2Wide is exp2 of 16 floats; it returns what it computes.
func exp2Wide(x reg.VecVirtual, k map[int]reg.VecVirtual) reg.VecVirtual {
	n, p := ZMM(), ZMM()
	VMAXPS(k[exp2Min], x, x)
	VRNDSCALEPS(Imm(8), x, n)
	VSUBPS(n, x, x)
	VMOVAPS(k[exp2C4], p)
	for c := exp2C3; c <= exp2C0; c++ {
		VFMADD213PS(k[c], x, p)
	}
	VCVTPS2DQ(n, n)
	VPSLLD(Imm(23), n, n)
	VPADDD(n, p, p)
	return p
}

// expBelowWide is expBelow of 16 floats; it returns what it computes.
func expBelowWide(x reg.VecVirtual, k map[int]reg.VecVirtual) reg.VecVirtual {
	n, p := ZMM(), ZMM()
	VMAXPS(x, k[exp2Least], x)
	VMULPS(x, k[expLog2e], n)
	VRNDSCALEPS(Imm(8), n, n)
	VFMSUB213PS(n, k[expLog2e], x)
	VMOVAPS(k[exp2D6], p)
	for c := exp2D5; c <= exp2D1; c++ {
		VFMADD213PS(k[c], x, p)
	}
	VFMADD213PS(k[expOne], x, p)
	VCVTPS2DQ(n, n)
	VPSLLD(Imm(23), n, n)
	VPADDD(n, p, p)
	return p
}

// expAddWide replaces 16 floats by e to the power of what they are above top, and adds those to 8 sums, as functions of 8 do.
func expAddWide(x reg.Register, top, sum reg.VecVirtual, k map[int]reg.VecVirtual) {
	v := ZMM()
	VMOVUPS(Mem{Base: x}, v)
	VSUBPS(top, v, v)
	p, half := expBelowWide(v, k), YMM()
	VMOVUPS(p, Mem{Base: x})
	VADDPS(p.AsY(), sum, sum)
	VEXTRACTF64X4(Imm(1), p, half)
	VADDPS(half, sum, sum)
}

// weighWide replaces 16 floats by e to the power of what they are above top, times gain. accs are the sum of the former, and the sum and
// the greatest of the latter.
func weighWide(x, gain reg.Register, top reg.VecVirtual, k map[int]reg.VecVirtual, accs [3]reg.VecVirtual) {
	v := ZMM()
	VMOVUPS(Mem{Base: x}, v)
	VSUBPS(top, v, v)
	VMULPS(k[expLog2e], v, v)
	p := exp2Wide(v, k)
	VADDPS(p, accs[0], accs[0])
	VMULPS(Mem{Base: gain}, p, p)
	VMOVUPS(p, Mem{Base: x})
	VADDPS(p, accs[1], accs[1])
	VMAXPS(p, accs[2], accs[2])
}

// acrossWide is across of 16 floats; it returns where the first one is.
func acrossWide(acc reg.VecVirtual, join func(...Op)) reg.Register {
	half := YMM()
	VEXTRACTF64X4(Imm(1), acc, half)
	join(half, acc.AsY(), half)
	return acrossHalf(half, join)
}

// acrossHalf is across for any of 32 registers.
func acrossHalf(acc reg.VecVirtual, join func(...Op)) reg.Register {
	low, high := acc.AsX(), XMM()
	VEXTRACTF32X4(Imm(1), acc, high)
	join(high, low, low)
	VMOVHLPS(low, low, high)
	join(high, low, low)
	VMOVSHDUP(low, high)
	join(high, low, low)
	return low
}

// softmaxRows does to rows of scores all that lies between the two products of attention.
func softmaxRows(constants func(...int) map[int]reg.VecVirtual, broadcast func(string) reg.VecVirtual) {
	TEXT("softmaxRows16", NOSPLIT, "func(rows int, scores *float32, width, keys, own int, ownAt int, keyMask, ownMask uint16, gain *float32, q *int16, ld int, by *float32, unseen, mostWeights, mostInt16, least float32)")
	Doc("softmaxRows16 makes weights of rows of scores, width apart: with keys, blocks of 16, at least one, and from ownAt on with own ones, blocks, maybe none. Of the last block of each the masks say what is seen. Those of keys take gain in and are rounded to integers, rows ld apart, of which by are the factors; those of own ones stay floats.")
	k := constants(expLog2e, exp2Min, exp2C4, exp2C3, exp2C2, exp2C1, exp2C0, exp2Least, exp2D6, exp2D5, exp2D4, exp2D3, exp2D2, exp2D1, expOne)
	unseen := broadcast("unseen")
	rows := Load(Param("rows"), GP64())
	scores, width := Load(Param("scores"), GP64()), Load(Param("width"), GP64())
	SHLQ(Imm(2), width)
	q, ld := Load(Param("q"), GP64()), Load(Param("ld"), GP64())
	SHLQ(Imm(1), ld)
	by := Load(Param("by"), GP64())
	ownAt := Load(Param("ownAt"), GP64())
	masks := make(map[string]reg.Register)
	for _, name := range []string{"keyMask", "ownMask"} {
		bits := Load(Param(name), GP16())
		masks[name] = K()
		KMOVW(bits.(reg.GPVirtual).As32(), masks[name])
	}
	Label("row")
	x, n := GP64(), GP64()
	own := GP64()
	LEAQ(Mem{Base: scores, Index: ownAt, Scale: 4}, own)
	top := ZMM()
	VMOVAPS(unseen, top)
	// greatest finds the greatest of blocks, and hides what the last one's mask leaves out.
	greatest := func(name, mask string) {
		DECQ(n)
		JZ(LabelRef(name + "Last"))
		Label(name)
		VMAXPS(Mem{Base: x}, top, top)
		ADDQ(Imm(64), x)
		DECQ(n)
		JNZ(LabelRef(name))
		Label(name + "Last")
		v := ZMM()
		VMOVAPS(unseen, v)
		VMOVUPS(Mem{Base: x}, masks[mask], v)
		VMOVUPS(v, Mem{Base: x})
		VMAXPS(v, top, top)
	}
	MOVQ(scores, x)
	Load(Param("keys"), n)
	greatest("keysTop", "keyMask")
	Load(Param("own"), n)
	TESTQ(n, n)
	JZ(LabelRef("topFound"))
	MOVQ(own, x)
	greatest("ownTop", "ownMask")
	Label("topFound")
	first := acrossWide(top, VMAXPS)
	VBROADCASTSS(first, top)

	sum := YMM()
	VXORPS(sum, sum, sum)
	Load(Param("own"), n)
	TESTQ(n, n)
	JZ(LabelRef("ownDone"))
	MOVQ(own, x)
	Label("ownExp")
	expAddWide(x, top, sum, k)
	ADDQ(Imm(64), x)
	DECQ(n)
	JNZ(LabelRef("ownExp"))
	Label("ownDone")
	total := acrossHalf(sum, VADDPS)

	accs := [3]reg.VecVirtual{ZMM(), ZMM(), ZMM()}
	for _, acc := range accs {
		VPXORD(acc, acc, acc)
	}
	gain := Load(Param("gain"), GP64())
	MOVQ(scores, x)
	Load(Param("keys"), n)
	Label("keysExp")
	weighWide(x, gain, top, k, accs)
	ADDQ(Imm(64), x)
	ADDQ(Imm(64), gain)
	DECQ(n)
	JNZ(LabelRef("keysExp"))
	VADDSS(acrossWide(accs[0], VADDPS), total, total)
	weighed, most := acrossWide(accs[1], VADDPS), acrossWide(accs[2], VMAXPS)
	factor, to, inverse := XMM(), XMM(), XMM()
	enough := K()
	VCMPSS(Imm(5), param("least"), weighed, enough) // not less than
	VDIVSS(param("mostWeights"), weighed, weighed)
	VDIVSS(param("mostInt16"), most, most)
	VMAXSS_Z(most, weighed, enough, factor)
	one := k[expOne].AsX()
	VDIVSS_Z(factor, one, enough, to)
	VDIVSS(total, factor, factor)
	VMOVSS(factor, Mem{Base: by})
	VDIVSS(total, one, inverse)

	scale := ZMM()
	VBROADCASTSS(to, scale)
	dst := GP64()
	MOVQ(q, dst)
	MOVQ(scores, x)
	Load(Param("keys"), n)
	Label("keysRound")
	v := ZMM()
	words := YMM()
	VMULPS(Mem{Base: x}, scale, v)
	VCVTPS2DQ(v, v)
	VPMOVSDW(v, words)
	VMOVDQU32(words, Mem{Base: dst})
	ADDQ(Imm(64), x)
	ADDQ(Imm(32), dst)
	DECQ(n)
	JNZ(LabelRef("keysRound"))

	Load(Param("own"), n)
	TESTQ(n, n)
	JZ(LabelRef("ownScaled"))
	VBROADCASTSS(inverse, scale)
	MOVQ(own, x)
	Label("ownScale")
	v = ZMM()
	VMULPS(Mem{Base: x}, scale, v)
	VMOVUPS(v, Mem{Base: x})
	ADDQ(Imm(64), x)
	DECQ(n)
	JNZ(LabelRef("ownScale"))
	Label("ownScaled")
	ADDQ(width, scores)
	ADDQ(ld, q)
	ADDQ(Imm(4), by)
	DECQ(rows)
	JNZ(LabelRef("row"))
	VZEROUPPER()
	RET()
}

// vector makes a function over n floats, a multiple of 8, of slices whose first floats
// its pointers are; body gets where each slice is.
func vector(name, doc string, scalars, pointers []string, begin func(load func(string) reg.VecVirtual), body func(at map[string]Mem), end func()) {
	sig := "func(n int"
	for _, p := range pointers {
		sig += ", " + p + " *float32"
	}
	for _, s := range scalars {
		sig += ", " + s + " float32"
	}
	sig += ")"
	if end != nil {
		sig += " float32"
	}
	TEXT(name, NOSPLIT, sig)
	Doc(doc)
	n := Load(Param("n"), GP64())
	at := make(map[string]Mem)
	var bases []reg.GPVirtual
	for _, p := range pointers {
		base := GP64()
		Load(Param(p), base)
		bases = append(bases, base)
		at[p] = Mem{Base: base}
	}
	if begin != nil {
		begin(func(s string) reg.VecVirtual {
			x, y := XMM(), YMM()
			Load(Param(s), x)
			VBROADCASTSS(x, y)
			return y
		})
	}
	Label("loop")
	TESTQ(n, n)
	JZ(LabelRef("done"))
	body(at)
	for _, b := range bases {
		ADDQ(Imm(32), b)
	}
	SUBQ(Imm(8), n)
	JMP(LabelRef("loop"))
	Label("done")
	if end != nil {
		end()
	}
	VZEROUPPER()
	RET()
}

// horizontal adds or takes the greatest of acc's floats and returns it.
func horizontal(acc reg.VecVirtual, greatest bool) func() {
	return func() {
		if greatest {
			across(acc, VMAXPS)
		} else {
			across(acc, VADDPS)
		}
		Store(acc.AsX(), ReturnIndex(0))
	}
}

// across joins acc's floats in its first one.
func across(acc reg.VecVirtual, join func(...Op)) {
	low, high := acc.AsX(), XMM()
	VEXTRACTF128(Imm(1), acc, high)
	join(high, low, low)
	VMOVHLPS(low, low, high)
	join(high, low, low)
	VMOVSHDUP(low, high)
	join(high, low, low)
}

func vectors() {
	expConstants()
	var a, b, c, d, e reg.VecVirtual
	vector("add8", "add8 adds x to y.", nil, []string{"y", "x"}, nil, func(at map[string]Mem) {
		v := YMM()
		VMOVUPS(at["y"], v)
		VADDPS(at["x"], v, v)
		VMOVUPS(v, at["y"])
	}, nil)
	vector("axpy8", "axpy8 adds s times x to y.", []string{"s"}, []string{"y", "x"}, func(load func(string) reg.VecVirtual) { a = load("s") }, func(at map[string]Mem) {
		v := YMM()
		VMOVUPS(at["y"], v)
		VFMADD231PS(at["x"], a, v)
		VMOVUPS(v, at["y"])
	}, nil)
	vector("scale8", "scale8 multiplies x by s.", []string{"s"}, []string{"x"}, func(load func(string) reg.VecVirtual) { a = load("s") }, func(at map[string]Mem) {
		v := YMM()
		VMULPS(at["x"], a, v)
		VMOVUPS(v, at["x"])
	}, nil)
	vector("max8", "max8 returns the greatest float, at least top.", []string{"top"}, []string{"x"}, func(load func(string) reg.VecVirtual) { b = load("top") }, func(at map[string]Mem) {
		VMAXPS(at["x"], b, b)
	}, func() { horizontal(b, true)() })
	vector("maxAbs8", "maxAbs8 returns the greatest absolute value.", nil, []string{"x"}, func(func(string) reg.VecVirtual) {
		a, b = YMM(), YMM()
		VMOVUPS(constant(expSign), a)
		VXORPS(b, b, b)
	}, func(at map[string]Mem) {
		v := YMM()
		VANDNPS(at["x"], a, v)
		VMAXPS(v, b, b)
	}, func() { horizontal(b, true)() })
	vector("expSum8", "expSum8 replaces x by e^(x-top), or by 2^-125 if that is less, and returns the sum.", []string{"top"}, []string{"x"}, func(load func(string) reg.VecVirtual) {
		a, b, c, d = load("top"), YMM(), YMM(), YMM()
		VMOVUPS(constant(exp2Least), b)
		VMOVUPS(constant(expLog2e), d)
		VXORPS(c, c, c)
	}, func(at map[string]Mem) {
		v := YMM()
		VMOVUPS(at["x"], v)
		VSUBPS(a, v, v)
		expBelow(v, b, d)
		VADDPS(v, c, c)
		VMOVUPS(v, at["x"])
	}, func() { horizontal(c, false)() })
	vector("swiglu8", "swiglu8 computes y = silu(a) b.", nil, []string{"y", "a", "b"}, nil, func(at map[string]Mem) {
		x := YMM()
		VMOVUPS(at["a"], x)
		s := sigmoid(x)
		VMULPS(x, s, s)
		VMULPS(at["b"], s, s)
		VMOVUPS(s, at["y"])
	}, nil)
	vector("swigluBack8", "swigluBack8 computes the gradients of y = silu(a) b, which may lie at a and b, and y in the place of dy.", nil, []string{"da", "db", "dy", "a", "b"}, nil, func(at map[string]Mem) {
		x, y, dy, t := YMM(), YMM(), YMM(), YMM()
		VMOVUPS(at["a"], x)
		VMOVUPS(at["b"], y)
		VMOVUPS(at["dy"], dy)
		s := sigmoid(x)
		// db = dy x s; y = x s b
		VMULPS(x, s, t)
		v := YMM()
		VMULPS(dy, t, v)
		VMOVUPS(v, at["db"])
		VMULPS(y, t, v)
		VMOVUPS(v, at["dy"])
		// da = dy b s (1 + x - x s)
		VADDPS(constant(expOne), x, v)
		VSUBPS(t, v, v)
		VMULPS(s, v, v)
		VMULPS(y, dy, dy)
		VMULPS(v, dy, dy)
		VMOVUPS(dy, at["da"])
	}, nil)
	vector("mulScale8", "mulScale8 computes y = x gain s.", []string{"s"}, []string{"y", "x", "gain"}, func(load func(string) reg.VecVirtual) { a = load("s") }, func(at map[string]Mem) {
		v := YMM()
		VMULPS(at["x"], a, v)
		VMULPS(at["gain"], v, v)
		VMOVUPS(v, at["y"])
	}, nil)
	vector("dot3", "dot3 returns the sum of x y z.", nil, []string{"x", "y", "z"}, func(func(string) reg.VecVirtual) {
		d = YMM()
		VXORPS(d, d, d)
	}, func(at map[string]Mem) {
		v := YMM()
		VMOVUPS(at["x"], v)
		VMULPS(at["y"], v, v)
		VFMADD231PS(at["z"], v, d)
	}, func() { horizontal(d, false)() })
	vector("normBack8", "normBack8 computes dx = dy gain r - x dot, and adds dy x r to dgain.", []string{"r", "dot"}, []string{"dx", "dgain", "dy", "x", "gain"}, func(load func(string) reg.VecVirtual) {
		a, e = load("r"), load("dot")
	}, func(at map[string]Mem) {
		dy, x, v := YMM(), YMM(), YMM()
		VMULPS(at["dy"], a, dy)
		VMOVUPS(at["x"], x)
		VMOVUPS(at["dgain"], v)
		VFMADD231PS(dy, x, v)
		VMOVUPS(v, at["dgain"])
		VMULPS(at["gain"], dy, v)
		VFNMADD231PS(x, e, v)
		VMOVUPS(v, at["dx"])
	}, nil)
	vector("softmaxBack8", "softmaxBack8 replaces dp by p (dp - dot).", []string{"dot"}, []string{"dp", "p"}, func(load func(string) reg.VecVirtual) { a = load("dot") }, func(at map[string]Mem) {
		v := YMM()
		VMOVUPS(at["dp"], v)
		VSUBPS(a, v, v)
		VMULPS(at["p"], v, v)
		VMOVUPS(v, at["dp"])
	}, nil)
	vector("turn8", "turn8 turns the pairs (a, b) by the angles of cos and sin times sign.", []string{"sign"}, []string{"a", "b", "cos", "sin"}, func(load func(string) reg.VecVirtual) { a = load("sign") }, func(at map[string]Mem) {
		u, v, c, s, t := YMM(), YMM(), YMM(), YMM(), YMM()
		VMOVUPS(at["a"], u)
		VMOVUPS(at["b"], v)
		VMOVUPS(at["cos"], c)
		VMULPS(at["sin"], a, s)
		VMULPS(v, s, t)
		VFMSUB231PS(u, c, t)
		VMOVUPS(t, at["a"])
		VMULPS(u, s, t)
		VFMADD231PS(v, c, t)
		VMOVUPS(t, at["b"])
	}, nil)
	names := []string{"scale", "b1", "c1", "b2", "c2", "shrink", "lr", "eps", "fix"}
	k := make(map[string]reg.VecVirtual)
	vector("adamw8", "adamw8 is a step of AdamW: grad times scale into the moments m (b1, c1) and v (b2, c2), then w = w shrink - lr m / (sqrt(v fix) + eps).", names, []string{"w", "grad", "m", "v"}, func(load func(string) reg.VecVirtual) {
		for _, name := range names {
			k[name] = load(name)
		}
	}, func(at map[string]Mem) {
		g, m, v := YMM(), YMM(), YMM()
		VMULPS(at["grad"], k["scale"], g)
		VMULPS(at["m"], k["b1"], m)
		VFMADD231PS(g, k["c1"], m)
		VMOVUPS(m, at["m"])
		VMULPS(g, g, g)
		VMULPS(at["v"], k["b2"], v)
		VFMADD231PS(g, k["c2"], v)
		VMOVUPS(v, at["v"])
		VMULPS(k["fix"], v, v)
		VSQRTPS(v, v)
		VADDPS(k["eps"], v, v)
		VMULPS(k["lr"], m, m)
		VDIVPS(v, m, m)
		VMULPS(at["w"], k["shrink"], v)
		VSUBPS(m, v, v)
		VMOVUPS(v, at["w"])
	}, nil)
	wides()
	packs()
}

// packs are the copies that lay matrices out for the micro-kernel.
func packs() {
	packRows("packRows16", "packRows16 copies 16 floats of each of k rows, ld floats apart.", 1, 16)
	packRows("packRows64", "packRows64 is packRows16 for 4 panels side by side, which begin panel floats apart.", 4, 16)
	packRows("packRows6", "packRows6 copies 6 floats of each of k rows, ld floats apart; it reads and writes 8, so the last row is not its own.", 1, 6)
	packRows("packRows24", "packRows24 is packRows6 for 4 panels side by side, which begin panel floats apart.", 4, 6)
	columns8("packColumns8", "func(k int, dst *float32, stride int, src *float32, ld int)", "packColumns8 transposes 8 rows of k floats, a multiple of 8, ld floats apart, into k rows of 8, stride floats apart.")
	columns8("packPairs8", "func(k int, dst *uint32, stride int, src *int16, ld int)", "packPairs8 is packColumns8 of pairs of integers: k, stride and ld count pairs.")
}

// packRows copies so many floats of each of k rows to each of 1 or 4 panels.
func packRows(name, doc string, panels, floats int) {
	signature := "func(k int, dst *float32, panel int, src *float32, ld int)"
	if panels == 1 {
		signature = "func(k int, dst, src *float32, ld int)"
	}
	TEXT(name, NOSPLIT, signature)
	Doc(doc)
	k := Load(Param("k"), GP64())
	dst := Load(Param("dst"), GP64())
	src := Load(Param("src"), GP64())
	ld := Load(Param("ld"), GP64())
	SHLQ(Imm(2), ld)
	to := []Mem{{Base: dst}}
	if panels == 4 {
		panel, panel3 := Load(Param("panel"), GP64()), GP64()
		SHLQ(Imm(2), panel)
		LEAQ(Mem{Base: panel, Index: panel, Scale: 2}, panel3)
		to = append(to, Mem{Base: dst, Index: panel, Scale: 1}, Mem{Base: dst, Index: panel, Scale: 2}, Mem{Base: dst, Index: panel3, Scale: 1})
	}
	Label("rows")
	TESTQ(k, k)
	JZ(LabelRef("end"))
	var regs []reg.VecVirtual
	for i := range to {
		for at := 0; at < floats; at += 8 {
			regs = append(regs, YMM())
			VMOVUPS(Mem{Base: src, Disp: 4 * (floats*i + at)}, regs[len(regs)-1])
		}
	}
	if floats == 16 && panels > 1 { // whole lines, of which no stream is made out: rows are too far apart
		for i := range to {
			PREFETCHT0(Mem{Base: src, Index: ld, Scale: 8, Disp: 64 * i})
		}
	}
	for i, v := range regs {
		perPanel := len(regs) / panels
		m := to[i/perPanel]
		m.Disp = 32 * (i % perPanel)
		VMOVUPS(v, m)
	}
	ADDQ(ld, src)
	ADDQ(Imm(uint64(4*floats)), dst)
	DECQ(k)
	JMP(LabelRef("rows"))
	Label("end")
	VZEROUPPER()
	RET()
}

func columns8(name, signature, doc string) {
	TEXT(name, NOSPLIT, signature)
	Doc(doc)
	k := Load(Param("k"), GP64())
	dst := Load(Param("dst"), GP64())
	stride := Load(Param("stride"), GP64())
	src := Load(Param("src"), GP64())
	ld := Load(Param("ld"), GP64())
	SHLQ(Imm(2), ld)
	SHLQ(Imm(2), stride)
	ld3, src4 := GP64(), GP64()
	LEAQ(Mem{Base: ld, Index: ld, Scale: 2}, ld3)
	LEAQ(Mem{Base: src, Index: ld, Scale: 4}, src4)
	rows := [8]Mem{
		{Base: src}, {Base: src, Index: ld, Scale: 1}, {Base: src, Index: ld, Scale: 2}, {Base: src, Index: ld3, Scale: 1},
		{Base: src4}, {Base: src4, Index: ld, Scale: 1}, {Base: src4, Index: ld, Scale: 2}, {Base: src4, Index: ld3, Scale: 1},
	}
	Label("eight")
	TESTQ(k, k)
	JZ(LabelRef("end"))
	var r, t [8]reg.VecVirtual
	for i := range r {
		r[i] = YMM()
		VMOVUPS(rows[i], r[i])
	}
	for i := 0; i < 8; i += 2 {
		t[i], t[i+1] = YMM(), YMM()
		VUNPCKLPS(r[i+1], r[i], t[i])
		VUNPCKHPS(r[i+1], r[i], t[i+1])
	}
	for i := 0; i < 8; i += 4 {
		VSHUFPS(Imm(0x44), t[i+2], t[i], r[i])
		VSHUFPS(Imm(0xee), t[i+2], t[i], r[i+1])
		VSHUFPS(Imm(0x44), t[i+3], t[i+1], r[i+2])
		VSHUFPS(Imm(0xee), t[i+3], t[i+1], r[i+3])
	}
	for i := range 8 {
		out := t[i]
		half := uint64(0x20)
		if i >= 4 {
			half = 0x31
		}
		VPERM2F128(Imm(half), r[i%4+4], r[i%4], out)
		VMOVUPS(out, Mem{Base: dst})
		ADDQ(stride, dst)
	}
	ADDQ(Imm(32), src)
	ADDQ(Imm(32), src4)
	SUBQ(Imm(8), k)
	JMP(LabelRef("eight"))
	Label("end")
	VZEROUPPER()
	RET()
}

// gathers work on rows that lie apart: row t begins at float at[t].
func gathers() {
	// row is where the next row begins.
	row := func(base, at reg.Register) Mem {
		offset := GP64()
		MOVLQSX(Mem{Base: at}, offset)
		return Mem{Base: base, Index: offset, Scale: 4}
	}
	// ask asks for the first 32 floats of a row, the place of which is as far from at's as then is from at.
	ask := func(base, at, then reg.Register, nth int) {
		soon := GP64()
		MOVLQSX(Mem{Base: at, Index: then, Scale: 1, Disp: 4 * nth}, soon)
		PREFETCHT0(Mem{Base: base, Index: soon, Scale: 4})
		PREFETCHT0(Mem{Base: base, Index: soon, Scale: 4, Disp: 64})
	}

	TEXT("dotsAt", NOSPLIT, "func(n int, x *float32, size int, y *float32, at *int32, s float32, out *float32, then *int32)")
	Doc("dotsAt writes s times the inner products of x, a multiple of 32 floats, with n rows of y that lie apart, and asks for the first 32 floats of the rows at the places then.")
	n := Load(Param("n"), GP64())
	x := Load(Param("x"), GP64())
	y := Load(Param("y"), GP64())
	at := Load(Param("at"), GP64())
	out := Load(Param("out"), GP64())
	s := XMM()
	Load(Param("s"), s)
	then := Load(Param("then"), GP64())
	SUBQ(at, then)
	from, xi, left := GP64(), GP64(), GP64()
	var acc [4]reg.VecVirtual
	for i := range acc {
		acc[i] = YMM()
	}
	Label("dots")
	ask(y, at, then, 0)
	LEAQ(row(y, at), from)
	MOVQ(x, xi)
	Load(Param("size"), left)
	for i := range acc {
		VXORPS(acc[i], acc[i], acc[i])
	}
	Label("thirtytwo")
	for i := range acc {
		v := YMM()
		VMOVUPS(Mem{Base: xi, Disp: 32 * i}, v)
		VFMADD231PS(Mem{Base: from, Disp: 32 * i}, v, acc[i])
	}
	ADDQ(U32(128), xi)
	ADDQ(U32(128), from)
	SUBQ(Imm(32), left)
	JNZ(LabelRef("thirtytwo"))
	low := sumOf(acc)
	VMULSS(s, low, low)
	VMOVSS(low, Mem{Base: out})
	ADDQ(Imm(4), at)
	ADDQ(Imm(4), out)
	DECQ(n)
	JNZ(LabelRef("dots"))
	VZEROUPPER()
	RET()

	TEXT("dotsAt32AVX512", NOSPLIT, "func(n int, x *float32, y *float32, at *int32, s float32, out *float32, then *int32) (most uint32)")
	Doc("dotsAt32AVX512 is dotsAt for 32 floats and a multiple of 4 rows; the sums are the same, to the last bit. It returns the greatest place, of which those below zero are the greatest.")
	n = Load(Param("n"), GP64())
	x = Load(Param("x"), GP64())
	y = Load(Param("y"), GP64())
	at = Load(Param("at"), GP64())
	out = Load(Param("out"), GP64())
	s = XMM()
	Load(Param("s"), s)
	VBROADCASTSS(s, s)
	then = Load(Param("then"), GP64())
	SUBQ(at, then)
	x0, x1 := ZMM(), ZMM()
	VMOVUPS(Mem{Base: x}, x0)
	VMOVUPS(Mem{Base: x, Disp: 64}, x1)
	most := XMM()
	VPXOR(most, most, most)
	Label("four")
	VPMAXUD(Mem{Base: at}, most, most)
	var sums [4]reg.VecVirtual
	for i := range sums {
		ask(y, at, then, i)
		offset := GP64()
		MOVLQSX(Mem{Base: at, Disp: 4 * i}, offset)
		p0, p1, h0, h1, h := ZMM(), ZMM(), YMM(), YMM(), XMM()
		VMULPS(Mem{Base: y, Index: offset, Scale: 4}, x0, p0)
		VMULPS(Mem{Base: y, Index: offset, Scale: 4, Disp: 64}, x1, p1)
		VEXTRACTF64X4(Imm(1), p0, h0)
		VEXTRACTF64X4(Imm(1), p1, h1)
		VADDPS(h0, p0.AsY(), h0)
		VADDPS(h1, p1.AsY(), h1)
		VADDPS(h1, h0, h0)
		VEXTRACTF128(Imm(1), h0, h)
		sums[i] = XMM()
		VADDPS(h, h0.AsX(), sums[i])
	}
	VHADDPS(sums[1], sums[0], sums[0])
	VHADDPS(sums[3], sums[2], sums[2])
	VHADDPS(sums[2], sums[0], sums[0])
	VMULPS(s, sums[0], sums[0])
	VMOVUPS(sums[0], Mem{Base: out})
	ADDQ(Imm(16), at)
	ADDQ(Imm(16), out)
	SUBQ(Imm(4), n)
	JNZ(LabelRef("four"))
	other := XMM()
	VPSHUFD(Imm(0x4e), most, other)
	VPMAXUD(other, most, most)
	VPSHUFD(Imm(0xb1), most, other)
	VPMAXUD(other, most, most)
	greatest := GP32()
	VMOVD(most, greatest)
	Store(greatest, ReturnIndex(0))
	VZEROUPPER()
	RET()

	for _, wide := range []bool{false, true} {
		register, size, name := YMM, 32, "addAt"
		if wide {
			register, size, name = ZMM, 64, "addAtAVX512"
		}
		TEXT(name, NOSPLIT, "func(n int, out *float32, y *float32, at *int32, w *float32, then *int32) (most uint32)")
		Doc(name + " adds to 32 floats those of n rows of y that lie apart, each times its w, and asks for the rows at the places then. It returns the greatest place, of which those below zero are the greatest.")
		n = Load(Param("n"), GP64())
		out = Load(Param("out"), GP64())
		y = Load(Param("y"), GP64())
		at = Load(Param("at"), GP64())
		w := Load(Param("w"), GP64())
		then = Load(Param("then"), GP64())
		SUBQ(at, then)
		var acc []reg.VecVirtual
		for i := range 128 / size {
			acc = append(acc, register())
			VMOVUPS(Mem{Base: out, Disp: size * i}, acc[i])
		}
		by := register()
		greatest := GP32()
		XORL(greatest, greatest)
		Label("rows")
		ask(y, at, then, 0)
		from := row(y, at)
		place := from.Index.(reg.GPVirtual).As32()
		CMPL(greatest, place)
		CMOVLCS(place, greatest)
		VBROADCASTSS(Mem{Base: w}, by)
		for i := range acc {
			from.Disp = size * i
			VFMADD231PS(from, by, acc[i])
		}
		ADDQ(Imm(4), at)
		ADDQ(Imm(4), w)
		DECQ(n)
		JNZ(LabelRef("rows"))
		for i := range acc {
			VMOVUPS(acc[i], Mem{Base: out, Disp: size * i})
		}
		Store(greatest, ReturnIndex(0))
		VZEROUPPER()
		RET()
	}
}
