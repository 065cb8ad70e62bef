package kernels

import "sync"

// Products of 8-bit integers: half the bytes of 16-bit ones and, where the processor has the instruction, twice the products. Each
// row of the left and each column of the right is rounded with a factor of its own, that makes its greatest absolute value mostInt8. Sums of
// products are exact, of no more than mostRows8 rows of B.
//
// The instruction multiplies bytes without a sign by bytes with one. So the left has 128 added, and sums begin with what that makes
// them too great by, which the columns of the right know. Processors that have no such instruction take the same integers, 16 bits each, through
// products of those: what comes out is the same.
const (
	mostInt8 = 127
	// mostRows8 is for how many rows of B no sum is beyond 2^31, whatever its parts are.
	mostRows8 = 1 << 16
)

type rows8 = left[uint8]

var rows8Pool = sync.Pool{New: func() any { return new(rows8) }}

// takeRows8 returns room for m rows of k integers, and for whole tiles.
func takeRows8(m, k int) *rows8 {
	r := rows8Pool.Get().(*rows8)
	r.room(m, (k+3)/4*4)
	return r
}

// fill8 rounds the rows of A, m x k. What is beyond them meets zeros.
func fill8(r *rows8, m, k int, a []float32, lda int) {
	if fitRowsOfBytes(m, k, r.q, r.ld, a, lda, r.by) {
		return
	}
	q := make([]int16, k)
	for i := range m {
		r.by[i] = fitByte(q, a[i*lda:i*lda+k])
		for j, v := range q {
			r.q[i*r.ld+j] = uint8(v + 128)
		}
	}
}

// fitByte rounds x to integers of 8 bits, with the factor that makes the greatest as large as it may be, and returns the inverse.
func fitByte(q []int16, x []float32) (by float32) {
	to, top := float32(0), maxAbs(x)
	if top >= tiny {
		to, by = mostInt8/top, top/mostInt8
	}
	for len(x) > 0 { // what is not a number makes all the row none
		n := min(len(x), len(zeros))
		by += Dot(x[:n], zeros[:n])
		round(q, x[:n], to)
		q, x = q[n:], x[n:]
	}
	return by
}

var zeros [1024]float32

// Packed8 is [Packed] in 8-bit integers.
type Packed8 struct {
	n, k int
	data []uint32 // panels of 16 columns, fours of rows after fours; the first row in the lowest byte
	less []int32  // by column: what the integers add up to, times -128
	by   []float32
	wide *columns16 // the same integers, where there is no instruction for bytes; all else is nothing then
}

var tiles8 = tiles[uint8]{4, gemmInt8, gemmInt8Two}

// NewPacked8 lays the transpose of B, n x k, out. k is at most 65,536.
func NewPacked8(n, k int, b []float32, ldb int) Packed8 { return newPacked8(n, k, b, ldb, useInt8) }

func newPacked8(n, k int, b []float32, ldb int, bytes bool) Packed8 {
	if k > mostRows8 {
		panic("kernels: too many rows for sums of products of 8-bit integers")
	}
	p := Packed8{n: n, k: k}
	q := make([]int16, (k+1)/2*2)
	if !bytes {
		p.wide = takeColumns16(n, k, panelFloats(n, 1))
		pairs := len(q) / 2
		for j := range n {
			p.wide.by[j] = fitByte(q, b[j*ldb:][:k])
			for i := range pairs {
				p.wide.data[(j/nr*pairs+i)*nr+j%nr] = pair(q[2*i], q[2*i+1])
			}
		}
		return p
	}
	fours := (k + 3) / 4
	p.data, p.less, p.by = make([]uint32, panelFloats(n, fours)), make([]int32, panelFloats(n, 1)), make([]float32, panelFloats(n, 1))
	for j := range n {
		p.by[j] = fitByte(q, b[j*ldb:][:k])
		panel := p.data[j/nr*nr*fours+j%nr:]
		for i, v := range q[:k] {
			panel[i/4*nr] |= uint32(uint8(v)) << (i % 4 * 8)
			p.less[j] -= 128 * int32(v)
		}
	}
	return p
}

// Mul computes C = A B; see [Right].
func (p Packed8) Mul(m int, a []float32, lda int, add bool, c []float32, ldc int) {
	p.mul(func(all int, fn func(j0, n int)) { fn(0, all) }, m, a, lda, add, c, ldc)
}

// MulParallel is Mul on all processors; see [Shared].
func (p Packed8) MulParallel(m int, a []float32, lda int, add bool, c []float32, ldc int) {
	rows := func(lo, hi int) { p.Mul(hi-lo, a[lo*lda:], lda, add, c[lo*ldc:], ldc) }
	if small(m, p.n, p.k) {
		rows(0, m)
	} else if !byRows(m, mc, rows) {
		p.mul(byColumns, m, a, lda, add, c, ldc)
	}
}

// mul rounds the rows of A, and has each make their products with all columns, some at a time.
func (p Packed8) mul(each func(all int, fn func(j0, n int)), m int, a []float32, lda int, add bool, c []float32, ldc int) {
	if p.wide != nil {
		r, pairs := takeRows16(m, p.k), (p.k+1)/2
		defer rows16Pool.Put(r)
		for i := range m {
			r.by[i] = fitByte(r.q[i*r.ld:][:p.k], a[i*lda:][:p.k])
		}
		clearPads(r, m, p.k)
		each(p.n, func(j0, n int) {
			mul16(m, n, pairs, r.q, r.ld, r.by, p.wide.data[j0*pairs:], pairs, p.wide.by[j0:], add, c[j0:], ldc)
		})
		return
	}
	r, fours := takeRows8(m, p.k), (p.k+3)/4
	defer rows8Pool.Put(r)
	fill8(r, m, p.k, a, lda)
	each(p.n, func(j0, n int) {
		mulInts(&tiles8, m, n, fours, r.q, r.ld, r.by, p.data[j0*fours:], fours, p.less[j0:], p.by[j0:], add, c[j0:], ldc)
	})
}
