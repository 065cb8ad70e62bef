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

// gathers work on rows that lie apart: row t begins at entry slots[t] of block t.
func gathers() {
	type rows struct{ base, block, row, slots reg.Register }
	load := func(pointer string) rows {
		r := rows{Load(Param(pointer), GP64()), Load(Param("block"), GP64()), Load(Param("row"), GP64()), Load(Param("slots"), GP64())}
		SHLQ(Imm(2), r.block)
		SHLQ(Imm(2), r.row)
		return r
	}
	// next computes the addresses of the rows, one after the other.
	next := func(r rows) reg.GPVirtual {
		at := GP64()
		MOVLQSX(Mem{Base: r.slots}, at)
		IMULQ(r.row, at)
		ADDQ(r.base, at)
		ADDQ(Imm(4), r.slots)
		ADDQ(r.block, r.base)
		return at
	}

	TEXT("dotsAt", NOSPLIT, "func(n int, x *float32, size int, y *float32, block, row int, slots *int32, s float32, out *float32, then *int32)")
	Doc("dotsAt writes s times the inner products of x, a multiple of 32 floats, with n rows of y that lie apart, and asks for the first 32 floats of the rows at the slots then.")
	n := Load(Param("n"), GP64())
	x := Load(Param("x"), GP64())
	r := load("y")
	out := Load(Param("out"), GP64())
	s := XMM()
	Load(Param("s"), s)
	ahead := Load(Param("then"), GP64())
	SUBQ(r.slots, ahead) // from a slot to the one of the same block
	xi, left := GP64(), GP64()
	var acc [4]reg.VecVirtual
	for i := range acc {
		acc[i] = YMM()
	}
	Label("dots")
	soon := GP64()
	MOVLQSX(Mem{Base: r.slots, Index: ahead, Scale: 1}, soon)
	IMULQ(r.row, soon)
	ADDQ(r.base, soon)
	PREFETCHT0(Mem{Base: soon})
	PREFETCHT0(Mem{Base: soon, Disp: 64})
	at := next(r)
	MOVQ(x, xi)
	Load(Param("size"), left)
	for i := range acc {
		VXORPS(acc[i], acc[i], acc[i])
	}
	Label("thirtytwo")
	for i := range acc {
		v := YMM()
		VMOVUPS(Mem{Base: xi, Disp: 32 * i}, v)
		VFMADD231PS(Mem{Base: at, Disp: 32 * i}, v, acc[i])
	}
	ADDQ(U32(128), xi)
	ADDQ(U32(128), at)
	SUBQ(Imm(32), left)
	JNZ(LabelRef("thirtytwo"))
	low := sumOf(acc)
	VMULSS(s, low, low)
	VMOVSS(low, Mem{Base: out})
	ADDQ(Imm(4), out)
	DECQ(n)
	JNZ(LabelRef("dots"))
	VZEROUPPER()
	RET()

	TEXT("addAt", NOSPLIT, "func(n int, out *float32, y *float32, block, row int, slots *int32, w *float32)")
	Doc("addAt adds to 32 floats those of n rows of y that lie apart, each times its w.")
	n = Load(Param("n"), GP64())
	out = Load(Param("out"), GP64())
	r = load("y")
	w := Load(Param("w"), GP64())
	for i := range acc {
		VMOVUPS(Mem{Base: out, Disp: 32 * i}, acc[i])
	}
	by := YMM()
	Label("rows")
	at = next(r)
	VBROADCASTSS(Mem{Base: w}, by)
	for i := range acc {
		VFMADD231PS(Mem{Base: at, Disp: 32 * i}, by, acc[i])
	}
	ADDQ(Imm(4), w)
	DECQ(n)
	JNZ(LabelRef("rows"))
	for i := range acc {
		VMOVUPS(acc[i], Mem{Base: out, Disp: 32 * i})
	}
	VZEROUPPER()
	RET()
}
