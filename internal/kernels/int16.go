package kernels

import (
	"math"
	"sync"
)

// Products of 16-bit integers: half the bytes of float32 and, by instruction, twice the products. Each row of
// the left and each column of the right is rounded with a factor of its own, and sums of integers are exact:
// they come out the same in any order.
//
// The factors make each row's and column's length (Euclidean norm) that of the greatest integer. So no sum can
// overflow, whatever the numbers are: by Cauchy and Schwarz no product of two, nor a part of its sum, is
// beyond its square, about 2^30; rounding lengthens a row of k by the root of k at most, for which 2^31 has room.
const mostInt16 = 1<<15 - 1

// tiny is the length below which a row counts as zero.
const tiny = 1e-15

// fitRows rounds rows of A, m x k, to integers, with the factors that make them as long as integer rows may be; by are the inverses.
func fitRows(m, k int, dst []int16, ldd int, a []float32, lda int, by []float32) {
	if fitRowsOf16(m, k, dst, ldd, a, lda, by) {
		return
	}
	for i := range m {
		x, to := a[i*lda:i*lda+k], float32(0)
		if length := float32(math.Sqrt(float64(Dot(x, x)))); length < tiny {
			by[i] = 0
		} else {
			to, by[i] = mostInt16/length, length/mostInt16
		}
		round(dst[i*ldd:], x, to)
	}
}

// round writes x times s, rounded to even, to dst.
func round(dst []int16, x []float32, s float32) {
	for i := roundBlocks(dst, x, s); i < len(x); i++ {
		dst[i] = toInt16(x[i] * s)
	}
}

func toInt16(x float32) int16 {
	return int16(max(math.MinInt16, min(math.MaxInt16, math.RoundToEven(float64(x)))))
}

func maxAbs(x []float32) float32 {
	top, i := maxAbsBlocks(x)
	for _, v := range x[i:] {
		top = max(top, v, -v)
	}
	return top
}

// left is a left side: integers, m x k with rows ld apart, and what each row is to be multiplied by.
type left[T int16 | uint8] struct {
	q  []T
	ld int
	by []float32
}

type rows16 = left[int16]

var rows16Pool = sync.Pool{New: func() any { return new(rows16) }}

// takeRows16 returns room for m rows of k integers, and for whole tiles.
func takeRows16(m, k int) *rows16 {
	r := rows16Pool.Get().(*rows16)
	r.room(m, (k+1)/2*2)
	return r
}

// room makes room for m rows of ld integers, and for whole tiles.
func (r *left[T]) room(m, ld int) {
	m, r.ld = (m+mr-1)/mr*mr, ld
	if cap(r.q) < m*ld {
		r.q = make([]T, m*ld)
	}
	r.q, r.by = r.q[:m*ld], grow(r.by, m)
}

// fill16 rounds the rows of A, m x k.
func fill16(r *rows16, m, k int, a []float32, lda int) {
	fitRows(m, k, r.q, r.ld, a, lda, r.by)
	clearPads(r, m, k)
}

// clearPads makes the integers beyond a row's k zero.
func clearPads(r *rows16, m, k int) {
	if k < r.ld {
		for i := range m {
			r.q[i*r.ld+k] = 0
		}
	}
}

// columns16 is a right side, k x n: panels of 16 columns, pairs of rows after pairs, and what each column is to
// be multiplied by.
type columns16 struct {
	n, k int
	data []uint32 // two rows' integers, the first in the low half
	by   []float32
}

var columns16Pool = sync.Pool{New: func() any { return new(columns16) }}

// takeColumns16 returns room for k x n integers and factors, which hold anything.
func takeColumns16(n, k, factors int) *columns16 {
	c := columns16Pool.Get().(*columns16)
	c.n, c.k, c.by = n, k, grow(c.by, factors)
	if size := panelFloats(n, (k+1)/2); cap(c.data) < size {
		c.data = make([]uint32, size)
	} else {
		c.data = c.data[:size]
	}
	return c
}

// Release lets others have its memory; see [Leading].
func (c *columns16) Release() { columns16Pool.Put(c) }

// Bytes is what it takes.
func (c *columns16) Bytes() int64 { return 4 * int64(cap(c.data)+cap(c.by)) }

// newTransposed16 lays out the transpose of B, n x k, times alpha.
func newTransposed16(n, k int, b []float32, ldb int, alpha float32) *columns16 {
	c := takeColumns16(n, k, panelFloats(n, 1))
	c.columns(0, b, ldb, alpha)
	return c
}

// columns lays out columns from one on: rows of B, times alpha.
func (c *columns16) columns(from int, b []float32, ldb int, alpha float32) {
	pairs := (c.k + 1) / 2
	r := takeRows16(nr, c.k)
	defer rows16Pool.Put(r)
	for at := from; at < c.n; {
		first := at % nr // of the panel's
		rows := min(nr-first, c.n-at)
		fill16(r, rows, c.k, b[(at-from)*ldb:], ldb)
		panel := c.data[(at-first)*pairs:][:nr*pairs]
		done := 0
		if rows == nr {
			done = packPairsOf8(pairs, panel, r.q, pairs)
			packPairsOf8(pairs, panel[8:], r.q[8*2*pairs:], pairs)
		}
		for j := range rows {
			q := r.q[j*r.ld : (j+1)*r.ld]
			for p := done; p < pairs; p++ {
				panel[p*nr+first+j] = pair(q[2*p], q[2*p+1])
			}
			c.by[at+j] = r.by[j] * alpha
		}
		at += rows
	}
}

// pair is two integers, the first in the low half.
func pair(low, high int16) uint32 { return uint32(uint16(low)) | uint32(uint16(high))<<16 }

// tiles are micro-kernels: one computes tiles of C, one below the other, and two, if there is such a kernel, of two panels of B, the
// second of which begins next units after the first. A unit is 32 bits, of so many integers. less is what the sums of products begin with, if
// that is not zero.
type tiles[T int16 | uint8] struct {
	per      int // integers of a unit
	one, two func(tiles, units int, a []T, lda int, b []uint32, next int, less []int32, ra, rb, c []float32, ldc int, add bool)
}

var tiles16 = func() tiles[int16] {
	t := tiles[int16]{per: 2, one: func(tiles, pairs int, a []int16, lda int, b []uint32, _ int, _ []int32, ra, rb, c []float32, ldc int, add bool) {
		gemmInt16(tiles, pairs, a, lda, b, ra, rb, c, ldc, add)
	}}
	if twoPanels16 {
		t.two = func(tiles, pairs int, a []int16, lda int, b []uint32, next int, _ []int32, ra, rb, c []float32, ldc int, add bool) {
			gemmInt16Two(tiles, pairs, a, lda, b, next, ra, rb, c, ldc, add)
		}
	}
	return t
}()

// mul16 is mulInts of pairs.
func mul16(m, n, pairs int, q []int16, ld int, rowsBy []float32, b []uint32, stride int, by []float32, add bool, c []float32, ldc int) {
	mulInts(&tiles16, m, n, pairs, q, ld, rowsBy, b, stride, nil, by, add, c, ldc)
}

// mulInts computes the first m rows of C = A B, or adds to them, for the first n columns of panels b, each of which
// is stride units of rows long, of which the first are taken. by are the factors of columns, nil: none; rows' are of a.
func mulInts[T int16 | uint8](kernel *tiles[T], m, n, units int, q []T, ld int, rowsBy []float32, b []uint32, stride int, less []int32, by []float32, add bool, c []float32, ldc int) {
	var tile *[]float32 // at the edges
	var w int           // columns at a time
	for j := 0; j < n; j += w {
		panel, factors, first := b[j*stride:], ones[:], less
		if by != nil {
			factors = by[j:]
		}
		if less != nil {
			first = less[j:]
		}
		w = min(nr, n-j)
		compute := kernel.one
		if kernel.two != nil && n-j > nr {
			w, compute = min(2*nr, n-j), kernel.two
		}
		edge := 0
		if whole := m / mr; w%nr == 0 && whole > 0 {
			compute(whole, units, q, ld, panel, nr*stride, first, rowsBy, factors, c[j:], ldc, add)
			edge = whole * mr
		}
		for i := edge; i < m; i += mr {
			if tile == nil {
				tile = take(mr * 2 * nr)
				defer scratch.Put(tile)
			}
			compute(1, units, q[i*ld:], ld, panel, nr*stride, first, rowsBy[i:], factors, *tile, 2*nr, false)
			storeEdge(c[i*ldc+j:], ldc, *tile, 2*nr, min(mr, m-i), w, add)
		}
	}
}

// gemmInt16Go is the portable micro-kernel; see gemmInt16AVX2.
func gemmInt16Go(tiles, pairs int, a []int16, lda int, b []uint32, ra, rb, c []float32, ldc int, add bool) {
	for i := range tiles * mr {
		var acc [nr]int32
		row := a[i*lda : i*lda+2*pairs]
		for p := range pairs {
			low, high := int32(row[2*p]), int32(row[2*p+1])
			for j, v := range b[p*nr : p*nr+nr] {
				acc[j] += low*int32(int16(v)) + high*int32(int16(v>>16))
			}
		}
		out := c[i*ldc : i*ldc+nr]
		for j, v := range acc {
			x := float32(float32(float32(v)*rb[j]) * ra[i])
			if add {
				x += out[j]
			}
			out[j] = x
		}
	}
}

// Packed16 is [Packed] in 16-bit integers.
type Packed16 struct{ *columns16 }

// NewPacked16 lays the transpose of B, n x k, out.
func NewPacked16(n, k int, b []float32, ldb int) Packed16 {
	return Packed16{newTransposed16(n, k, b, ldb, 1)}
}

// Mul computes C = A B; see [Right].
func (p Packed16) Mul(m int, a []float32, lda int, add bool, c []float32, ldc int) {
	Panels16(p).MulLeading(m, p.n, p.k, a, lda, add, c, ldc)
}

// MulParallel is Mul on all processors; see [Shared].
func (p Packed16) MulParallel(m int, a []float32, lda int, add bool, c []float32, ldc int) {
	rows := func(lo, hi int) { p.Mul(hi-lo, a[lo*lda:], lda, add, c[lo*ldc:], ldc) }
	if small(m, p.n, p.k) {
		rows(0, m)
		return
	}
	if byRows(m, mc, rows) {
		return
	}
	r, pairs := takeRows16(m, p.k), (p.k+1)/2
	defer rows16Pool.Put(r)
	fill16(r, m, p.k, a, lda)
	byColumns(p.n, func(j0, n int) {
		mul16(m, n, pairs, r.q, r.ld, r.by, p.data[j0*pairs:], pairs, p.by[j0:], add, c[j0:], ldc)
	})
}

// Panels16 is [Panels] of a transposed matrix in 16-bit integers.
type Panels16 struct{ *columns16 }

// NewPanels16 lays the transpose of B, n x k, times alpha out.
func NewPanels16(n, k int, b []float32, ldb int, alpha float32) Panels16 {
	return Panels16{newTransposed16(n, k, b, ldb, alpha)}
}

// WithColumns is [Panels.WithColumns].
func (p Panels16) WithColumns(from, n, k int, b []float32, ldb int, alpha float32) Panels16 {
	pairs := (k + 1) / 2
	c := &columns16{n, k, make([]uint32, panelFloats(n, pairs)), make([]float32, panelFloats(n, 1))}
	if from > 0 {
		copy(c.data, p.data[:panelFloats(from, pairs)])
		copy(c.by, p.by[:from])
	}
	c.columns(from, b, ldb, alpha)
	return Panels16{c}
}

// Mul computes C = A B; see [Right].
func (p Panels16) Mul(m int, a []float32, lda int, add bool, c []float32, ldc int) {
	p.MulLeading(m, p.n, p.k, a, lda, add, c, ldc)
}

// MulLeading is Mul with a part of B; see [Leading].
func (p Panels16) MulLeading(m, n, k int, a []float32, lda int, add bool, c []float32, ldc int) {
	r := takeRows16(m, k)
	defer rows16Pool.Put(r)
	fill16(r, m, k, a, lda)
	mul16(m, n, (k+1)/2, r.q, r.ld, r.by, p.data, (p.k+1)/2, p.by, add, c, ldc)
}

// Values16 is the right side, k x n, of products with weights, which are not negative: 16-bit integers with a
// factor for each row, so that what is known of a row does not change with those that come later. The
// weights take the factors in before they are rounded, a block of rows at a time.
type Values16 struct{ *columns16 }

const (
	valueBlock = 256       // rows
	mostValue  = 1<<13 - 1 // of the integers
	// mostWeights is what the weights of a block may add up to. Rounding adds half of valueBlock at most, so that no
	// sum of products is beyond 2^31.
	mostWeights = 1<<18 - valueBlock
	// least is what weights and values must come to, for them not to count as zero.
	least = 1e-25
)

// NewValues16 lays B, k x n, out.
func NewValues16(n, k int, b []float32, ldb int) Values16 {
	v := Values16{takeColumns16(n, k, padded(k))} // the factors are rows'
	clear(v.by[k:])
	v.rows(0, b, ldb)
	return v
}

// WithRows is [Panels.WithRows].
func (v Values16) WithRows(from, n, k int, b []float32, ldb int) Values16 {
	pairs, whole := (k+1)/2, (from+1)/2
	out := Values16{&columns16{n, k, make([]uint32, panelFloats(n, pairs)), make([]float32, padded(k))}}
	if from > 0 {
		before := (v.k + 1) / 2
		for j := 0; j < n; j += nr {
			copy(out.data[j*pairs:], v.data[j*before:][:whole*nr])
		}
		copy(out.by, v.by[:from])
	}
	out.rows(from, b, ldb)
	return out
}

// rows lays out rows from one on: B's.
func (v Values16) rows(from int, b []float32, ldb int) {
	n, pairs := v.n, (v.k+1)/2
	zeros := make([]float32, n)
	factor := func(i int) (x []float32, s float32) {
		if i == v.k {
			return zeros, 0
		}
		x = b[(i-from)*ldb:][:n]
		top := maxAbs(x)
		if top < tiny {
			v.by[i] = 0
			return zeros, 0
		}
		v.by[i] = top / mostValue
		return x, mostValue / top
	}
	p := from / 2
	if 2*p < from { // a pair has rows of both
		y, sy := factor(from)
		for j, of := range y {
			at := &v.data[(j/nr*pairs+p)*nr+j%nr]
			*at = pair(int16(*at), toInt16(of*sy))
		}
		p++
	}
	for ; p < pairs; p++ {
		x, sx := factor(2 * p)
		y, sy := factor(2*p + 1)
		for j := roundPairsOf16(v.data[p*nr:], nr*pairs, x, y, sx, sy); j < n; j++ {
			v.data[(j/nr*pairs+p)*nr+j%nr] = pair(toInt16(x[j]*sx), toInt16(y[j]*sy))
		}
	}
}

// ones are the factors of columns that have none.
var ones = func() (x [2 * nr]float32) {
	for i := range x {
		x[i] = 1
	}
	return x
}()
