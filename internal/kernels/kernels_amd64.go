//go:build amd64 && !purego

package kernels

import "golang.org/x/sys/cpu"

//go:noescape
func gemm6x16AVX2(tiles, k int, a, b, c *float32, ldc int, add bool)

//go:noescape
func gemm6x16RowsAVX2(tiles, k int, a *float32, lda int, b, c *float32, ldc int, add bool)

//go:noescape
func gemm6x32AVX512(tiles, k int, a, b *float32, next int, c *float32, ldc int, add bool)

//go:noescape
func gemm6x32RowsAVX512(tiles, k int, a *float32, lda int, b *float32, next int, c *float32, ldc int, add bool)

//go:noescape
func dotAVX2(n int, x, y *float32) float32

//go:noescape
func dots8AVX2(n int, a *float32, lda int, x, out *float32)

//go:noescape
func packRows6(k int, dst, src *float32, ld int)

//go:noescape
func packRows24(k int, dst *float32, panel int, src *float32, ld int)

//go:noescape
func packRows16(k int, dst, src *float32, ld int)

//go:noescape
func packRows64(k int, dst *float32, panel int, src *float32, ld int)

//go:noescape
func packColumns8(k int, dst *float32, stride int, src *float32, ld int)

//go:noescape
func packPairs8(k int, dst *uint32, stride int, src *int16, ld int)

//go:noescape
func add8(n int, y, x *float32)

//go:noescape
func axpy8(n int, y, x *float32, s float32)

//go:noescape
func scale8(n int, x *float32, s float32)

//go:noescape
func max8(n int, x *float32, top float32) float32

//go:noescape
func maxAbs8(n int, x *float32) float32

//go:noescape
func expSum8(n int, x *float32, top float32) float32

//go:noescape
func swiglu8(n int, y, a, b *float32)

//go:noescape
func swigluBack8(n int, da, db, dy, a, b *float32)

//go:noescape
func mulScale8(n int, y, x, gain *float32, s float32)

//go:noescape
func dot3(n int, x, y, z *float32) float32

//go:noescape
func normBack8(n int, dx, dgain, dy, x, gain *float32, r, dot float32)

//go:noescape
func softmaxBack8(n int, dp, p *float32, dot float32)

//go:noescape
func turn8(n int, a, b, cos, sin *float32, sign float32)

//go:noescape
func adamw8(n int, w, grad, m, v *float32, scale, b1, c1, b2, c2, shrink, lr, eps, fix float32)

//go:noescape
func gemmInt16AVX2(tiles, pairs int, a *int16, lda int, b *uint32, ra, rb, c *float32, ldc int, add bool)

//go:noescape
func gemmInt16VNNI(tiles, pairs int, a *int16, lda int, b *uint32, ra, rb, c *float32, ldc int, add bool)

//go:noescape
func gemmInt16VNNI512(tiles, pairs int, a *int16, lda int, b *uint32, next int, ra, rb, c *float32, ldc int, add bool)

//go:noescape
func swiglu16(n int, y, a, b *float32)

//go:noescape
func expSum16(n int, x *float32, top float32) float32

//go:noescape
func max16(n int, x *float32, top float32) float32

//go:noescape
func round16AVX512(n int, dst *int16, x *float32, s float32)

//go:noescape
func expWeighAVX512(n int, x, gain *float32, top float32) (sum, weighed, most float32)

//go:noescape
func softmaxRows16(rows int, scores *float32, width, keys, own int, ownAt int, keyMask, ownMask uint16, gain *float32, q *int16, ld int, by *float32, unseen, mostWeights, mostInt16, least float32)

//go:noescape
func gemmInt8VNNI(tiles, fours int, a *uint8, lda int, b *uint32, less *int32, ra, rb, c *float32, ldc int, add bool)

//go:noescape
func gemmInt8VNNI512(tiles, fours int, a *uint8, lda int, b *uint32, next int, less *int32, ra, rb, c *float32, ldc int, add bool)

//go:noescape
func fitRowsBytes(rows, n int, dst *uint8, ldd int, x *float32, ldx int, by *float32, most, tiny float32)

//go:noescape
func dotsAt(n int, x *float32, size int, y *float32, at *int32, s float32, out *float32, then *int32)

//go:noescape
func dotsAt32AVX512(n int, x *float32, y *float32, at *int32, s float32, out *float32, then *int32) (most uint32)

//go:noescape
func addAt(n int, out *float32, y *float32, at *int32, w *float32, then *int32) (most uint32)

//go:noescape
func addAtAVX512(n int, out *float32, y *float32, at *int32, w *float32, then *int32) (most uint32)

//go:noescape
func turnHeads16(heads int, x, cos, sin *float32, sign float32)

//go:noescape
func expWeigh16(n int, x, gain *float32, top float32) (sum, weighed, most float32)

//go:noescape
func fitRows16(rows, n int, dst *int16, ldd int, x *float32, ldx int, by *float32, most, tiny float32)

//go:noescape
func roundPairs16(n int, dst *uint32, panel int, x, y *float32, sx, sy float32)

//go:noescape
func round16(n int, dst *int16, x *float32, s float32)

var useAVX2 = cpu.X86.HasAVX2 && cpu.X86.HasFMA

// useVNNI says that the processor multiplies pairs of 16-bit integers and adds them up in one instruction.
var useVNNI = useAVX2 && cpu.X86.HasAVX512VNNI && cpu.X86.HasAVX512VL

// twoPanels16 says that gemmInt16Two is a kernel of its own.
var twoPanels16 = useVNNI && cpu.X86.HasAVX512F

// useInt8 says that there are kernels for bytes.
var useInt8 = twoPanels16

var useAVX512 = useAVX2 && cpu.X86.HasAVX512F && cpu.X86.HasAVX512VL

// The assembly checks no bounds: each wrapper reads the last float that it reaches of
// every slice, which panics before anything is out of bounds.

func gemm6x16(tiles, k int, a, b, c []float32, ldc int, add bool) {
	if !useAVX2 || tiles == 0 {
		gemm6x16Go(tiles, k, a, b, c, ldc, add)
		return
	}
	_, _, _ = a[mr*tiles*k-1], b[nr*k-1], c[(mr*tiles-1)*ldc+nr-1]
	gemm6x16AVX2(tiles, k, &a[0], &b[0], &c[0], ldc, add)
}

func gemm6x16Rows(tiles, k int, a []float32, lda int, b, c []float32, ldc int, add bool) {
	if !useAVX2 || tiles == 0 {
		gemm6x16RowsGo(tiles, k, a, lda, b, c, ldc, add)
		return
	}
	_, _, _ = a[(mr*tiles-1)*lda+k-1], b[nr*k-1], c[(mr*tiles-1)*ldc+nr-1]
	gemm6x16RowsAVX2(tiles, k, &a[0], lda, &b[0], &c[0], ldc, add)
}

// gemm6x32 and gemm6x32Rows are those for two panels, the second next floats after the first, where useAVX512 is set.
func gemm6x32(tiles, k int, a, b []float32, next int, c []float32, ldc int, add bool) {
	_, _, _ = a[mr*tiles*k-1], b[next+nr*k-1], c[(mr*tiles-1)*ldc+2*nr-1]
	gemm6x32AVX512(tiles, k, &a[0], &b[0], next, &c[0], ldc, add)
}

func gemm6x32Rows(tiles, k int, a []float32, lda int, b []float32, next int, c []float32, ldc int, add bool) {
	_, _, _ = a[(mr*tiles-1)*lda+k-1], b[next+nr*k-1], c[(mr*tiles-1)*ldc+2*nr-1]
	gemm6x32RowsAVX512(tiles, k, &a[0], lda, &b[0], next, &c[0], ldc, add)
}

func gemmInt16(tiles, pairs int, a []int16, lda int, b []uint32, ra, rb, c []float32, ldc int, add bool) {
	if !useAVX2 || tiles == 0 || pairs == 0 {
		gemmInt16Go(tiles, pairs, a, lda, b, ra, rb, c, ldc, add)
		return
	}
	rows := mr * tiles
	_, _, _, _, _ = a[(rows-1)*lda+2*pairs-1], b[nr*pairs-1], ra[rows-1], rb[nr-1], c[(rows-1)*ldc+nr-1]
	if useVNNI {
		gemmInt16VNNI(tiles, pairs, &a[0], lda, &b[0], &ra[0], &rb[0], &c[0], ldc, add)
		return
	}
	gemmInt16AVX2(tiles, pairs, &a[0], lda, &b[0], &ra[0], &rb[0], &c[0], ldc, add)
}

// gemmInt16Two is gemmInt16 for two panels, the second next integers pairs after the first.
func gemmInt16Two(tiles, pairs int, a []int16, lda int, b []uint32, next int, ra, rb, c []float32, ldc int, add bool) {
	if pairs == 0 {
		gemmInt16Go(tiles, pairs, a, lda, nil, ra, rb, c, ldc, add)
		gemmInt16Go(tiles, pairs, a, lda, nil, ra, rb[nr:], c[nr:], ldc, add)
		return
	}
	rows := mr * tiles
	_, _, _, _, _ = a[(rows-1)*lda+2*pairs-1], b[next+nr*pairs-1], ra[rows-1], rb[2*nr-1], c[(rows-1)*ldc+2*nr-1]
	gemmInt16VNNI512(tiles, pairs, &a[0], lda, &b[0], next, &ra[0], &rb[0], &c[0], ldc, add)
}

// gemmInt8 and gemmInt8Two are gemmInt16 and gemmInt16Two for bytes, where useInt8 is set; see gemmInt8VNNI.
func gemmInt8(tiles, fours int, a []uint8, lda int, b []uint32, _ int, less []int32, ra, rb, c []float32, ldc int, add bool) {
	rows := mr * tiles
	_, _, _, _, _, _ = a[(rows-1)*lda+4*fours-1], b[nr*fours-1], less[nr-1], ra[rows-1], rb[nr-1], c[(rows-1)*ldc+nr-1]
	gemmInt8VNNI(tiles, fours, &a[0], lda, &b[0], &less[0], &ra[0], &rb[0], &c[0], ldc, add)
}

func gemmInt8Two(tiles, fours int, a []uint8, lda int, b []uint32, next int, less []int32, ra, rb, c []float32, ldc int, add bool) {
	rows := mr * tiles
	_, _, _, _, _, _ = a[(rows-1)*lda+4*fours-1], b[next+nr*fours-1], less[2*nr-1], ra[rows-1], rb[2*nr-1], c[(rows-1)*ldc+2*nr-1]
	gemmInt8VNNI512(tiles, fours, &a[0], lda, &b[0], next, &less[0], &ra[0], &rb[0], &c[0], ldc, add)
}

// fitRowsOfBytes is fill8 of rows that are whole numbers of 16 floats; it reports whether they are.
func fitRowsOfBytes(m, k int, dst []uint8, ldd int, x []float32, ldx int, by []float32) bool {
	if m == 0 || k == 0 || k%16 > 0 || !useInt8 {
		return false
	}
	_, _, _ = dst[(m-1)*ldd+k-1], x[(m-1)*ldx+k-1], by[m-1]
	fitRowsBytes(m, k, &dst[0], ldd, &x[0], ldx, &by[0], mostInt8, tiny)
	return true
}

// expWeighBlocks is expWeigh of the first floats; it returns how many it took, too.
func expWeighBlocks(x, gain []float32, top float32) (sum, weighed, most float32, n int) {
	n = len(x) &^ 15
	if n == 0 || !useAVX2 {
		return 0, 0, 0, 0
	}
	_ = gain[n-1]
	if useAVX512 {
		sum, weighed, most = expWeighAVX512(n, &x[0], &gain[0], top)
	} else {
		sum, weighed, most = expWeigh16(n, &x[0], &gain[0], top)
	}
	return sum, weighed, most, n
}

// softmaxRowsBlocks does what [Values16.Attend] does between the products, where all rows see all keys and these are
// one block of values; it reports whether it could.
func softmaxRowsBlocks(s *Scores, gain []float32, q []int16, ld int, by []float32) bool {
	if !useAVX512 || s.rows == 0 || s.keys == 0 {
		return false
	}
	keys, own := padded(s.keys), padded(s.own)
	_, _, _, _ = s.All[(s.rows-1)*s.Width+s.ownAt+own-1], gain[keys-1], q[(s.rows-1)*ld+keys-1], by[s.rows-1]
	seen := func(n int) uint16 { return 0xffff >> (padded(n) - n) }
	softmaxRows16(s.rows, &s.All[0], s.Width, keys/scoreBlock, own/scoreBlock, s.ownAt, seen(s.keys), seen(s.own), &gain[0], &q[0], ld, &by[0], unseen, mostWeights, mostInt16, least)
	return true
}

// fitRowsOf16 is fitRows of rows that are whole numbers of 16 floats; it reports whether they are.
func fitRowsOf16(m, k int, dst []int16, ldd int, x []float32, ldx int, by []float32) bool {
	if m == 0 || k == 0 || k%16 > 0 || !useAVX2 {
		return false
	}
	_, _, _ = dst[(m-1)*ldd+k-1], x[(m-1)*ldx+k-1], by[m-1]
	fitRows16(m, k, &dst[0], ldd, &x[0], ldx, &by[0], mostInt16, tiny)
	return true
}

// roundBlocks is round of the first floats; it returns how many it took.
func roundBlocks(dst []int16, x []float32, s float32) int {
	n := len(x) &^ 15
	if n == 0 || !useAVX2 {
		return 0
	}
	_ = dst[n-1]
	if useAVX512 {
		round16AVX512(n, &dst[0], &x[0], s)
	} else {
		round16(n, &dst[0], &x[0], s)
	}
	return n
}

// dotBlocks returns the inner product of the first floats of x and y, and how many it
// took.
func dotBlocks(x, y []float32) (sum float32, n int) {
	n = len(x) &^ 31
	if n == 0 || !useAVX2 {
		return 0, 0
	}
	_ = y[n-1]
	return dotAVX2(n, &x[0], &y[0]), n
}

// dots8 writes the inner products of the first floats of 8 rows with those of x, and
// returns how many it took.
func dots8(out, a []float32, lda int, x []float32) (n int) {
	n = len(x) &^ 7
	if n == 0 || !useAVX2 {
		return 0
	}
	_, _ = a[7*lda+n-1], out[7]
	dots8AVX2(n, &a[0], lda, &x[0], &out[0])
	return n
}

// packRowsOf6 copies 6 floats of the first rows and returns how many rows: all but those
// whose 8 floats, which it reads and writes, end beyond a slice.
func packRowsOf6(k int, dst, src []float32, ld int) int {
	for k > 0 && ((k-1)*ld+8 > len(src) || (k-1)*mr+8 > len(dst)) {
		k--
	}
	if k == 0 || !useAVX2 {
		return 0
	}
	packRows6(k, &dst[0], &src[0], ld)
	return k
}

// packRowsOf24 is packRowsOf6 for 4 panels side by side, of k rows each; it leaves the last row, at least.
func packRowsOf24(k int, dst, src []float32, ld int) int {
	rows := k - 1
	for rows > 0 && (rows-1)*ld+26 > len(src) {
		rows--
	}
	if rows <= 0 || !useAVX2 {
		return 0
	}
	_ = dst[4*mr*k-1]
	packRows24(rows, &dst[0], mr*k, &src[0], ld)
	return rows
}

// packRowsOf16 copies 16 floats of k rows, if it can.
func packRowsOf16(k int, dst, src []float32, ld int) bool {
	if k == 0 || !useAVX2 {
		return false
	}
	_, _ = dst[k*nr-1], src[(k-1)*ld+nr-1]
	packRows16(k, &dst[0], &src[0], ld)
	return true
}

// packRowsOf64 is packRowsOf16 for 4 panels side by side, of k rows each.
func packRowsOf64(k int, dst, src []float32, ld int) bool {
	if k == 0 || !useAVX2 {
		return false
	}
	_, _ = dst[4*k*nr-1], src[(k-1)*ld+4*nr-1]
	packRows64(k, &dst[0], k*nr, &src[0], ld)
	return true
}

// packColumnsOf8 transposes the first columns of 8 rows and returns how many columns.
func packColumnsOf8(k int, dst []float32, stride int, src []float32, ld int) int {
	k &^= 7
	if k == 0 || !useAVX2 {
		return 0
	}
	_, _ = dst[(k-1)*stride+7], src[7*ld+k-1]
	packColumns8(k, &dst[0], stride, &src[0], ld)
	return k
}

// packPairsOf8 is packColumnsOf8 of pairs of integers, for a panel's columns.
func packPairsOf8(pairs int, dst []uint32, src []int16, ld int) int {
	k := pairs &^ 7
	if k == 0 || !useAVX2 {
		return 0
	}
	_, _ = dst[(k-1)*nr+7], src[2*(7*ld+k)-1]
	packPairs8(k, &dst[0], nr, &src[0], ld)
	return k
}

// roundPairsOf16 rounds the first floats of two rows to pairs of integers, and returns how many.
func roundPairsOf16(dst []uint32, panel int, x, y []float32, sx, sy float32) int {
	n := len(x) &^ 15
	if n == 0 || !useAVX2 {
		return 0
	}
	_, _ = y[n-1], dst[(n/nr-1)*panel+nr-1]
	roundPairs16(n, &dst[0], panel, &x[0], &y[0], sx, sy)
	return n
}

// blocks is how much of a slice the vector kernels take.
func blocks(x []float32) int {
	if !useAVX2 {
		return 0
	}
	return len(x) &^ 7
}

// wide is how much of a slice the kernels of 16 floats take.
func wide(x []float32) int {
	if !useAVX512 {
		return 0
	}
	return len(x) &^ 15
}

func addBlocks(y, x []float32) int {
	n := blocks(y)
	if n > 0 {
		_ = x[n-1]
		add8(n, &y[0], &x[0])
	}
	return n
}

func axpyBlocks(y, x []float32, s float32) int {
	n := blocks(y)
	if n > 0 {
		_ = x[n-1]
		axpy8(n, &y[0], &x[0], s)
	}
	return n
}

func scaleBlocks(x []float32, s float32) int {
	n := blocks(x)
	if n > 0 {
		scale8(n, &x[0], s)
	}
	return n
}

func maxBlocks(x []float32, top float32) (float32, int) {
	n, done := blocks(x), wide(x)
	if done > 0 {
		top = max16(done, &x[0], top)
	}
	if done < n {
		top = max8(n-done, &x[done], top)
	}
	return top, n
}

func maxAbsBlocks(x []float32) (top float32, n int) {
	n = blocks(x)
	if n > 0 {
		top = maxAbs8(n, &x[0])
	}
	return top, n
}

func expSumBlocks(x []float32, top float32) (sum float32, n int) {
	if n = wide(x); n > 0 && n == blocks(x) { // a rest would be added elsewhere
		return expSum16(n, &x[0], top), n
	}
	n = blocks(x)
	if n > 0 {
		sum = expSum8(n, &x[0], top)
	}
	return sum, n
}

func swigluBlocks(y, a, b []float32) int {
	n, done := blocks(y), wide(y)
	if n > 0 {
		_, _ = a[n-1], b[n-1]
	}
	if done > 0 {
		swiglu16(done, &y[0], &a[0], &b[0])
	}
	if done < n {
		swiglu8(n-done, &y[done], &a[done], &b[done])
	}
	return n
}

func swigluBackBlocks(da, db, dy, a, b []float32) int {
	n := blocks(dy)
	if n > 0 {
		_, _, _, _ = da[n-1], db[n-1], a[n-1], b[n-1]
		swigluBack8(n, &da[0], &db[0], &dy[0], &a[0], &b[0])
	}
	return n
}

func mulScaleBlocks(y, x, gain []float32, s float32) int {
	n := blocks(y)
	if n > 0 {
		_, _ = x[n-1], gain[n-1]
		mulScale8(n, &y[0], &x[0], &gain[0], s)
	}
	return n
}

func dot3Blocks(x, y, z []float32) (sum float32, n int) {
	n = blocks(x)
	if n > 0 {
		_, _ = y[n-1], z[n-1]
		sum = dot3(n, &x[0], &y[0], &z[0])
	}
	return sum, n
}

func normBackBlocks(dx, dgain, dy, x, gain []float32, r, dot float32) int {
	n := blocks(dx)
	if n > 0 {
		_, _, _, _ = dgain[n-1], dy[n-1], x[n-1], gain[n-1]
		normBack8(n, &dx[0], &dgain[0], &dy[0], &x[0], &gain[0], r, dot)
	}
	return n
}

func softmaxBackBlocks(dp, p []float32, dot float32) int {
	n := blocks(dp)
	if n > 0 {
		_ = p[n-1]
		softmaxBack8(n, &dp[0], &p[0], dot)
	}
	return n
}

func turnBlocks(a, b, cos, sin []float32, sign float32) int {
	n := blocks(a)
	if n > 0 {
		_, _, _ = b[n-1], cos[n-1], sin[n-1]
		turn8(n, &a[0], &b[0], &cos[0], &sin[0], sign)
	}
	return n
}

func adamwBlocks(w, g, m, v []float32, o adamwConstants) int {
	n := blocks(w)
	if n > 0 {
		_, _, _ = g[n-1], m[n-1], v[n-1]
		adamw8(n, &w[0], &g[0], &m[0], &v[0], o.scale, o.b1, o.c1, o.b2, o.c2, o.shrink, o.lr, o.eps, o.fix)
	}
	return n
}

// dotsAtBlocks and addAtBlocks say whether they could. Places are compared with what there is after the fact, where that is quicker:
// nothing was written to them.
func dotsAtBlocks(out, x, y []float32, at []int32, s float32, then []int32) bool {
	n := len(at)
	if !useAVX2 || len(x)%32 != 0 || len(x) == 0 || n == 0 {
		return false
	}
	_, _ = out[n-1], then[n-1]
	from := 0
	if useAVX512 && len(x) == 32 {
		if from = n &^ 3; from > 0 {
			within(dotsAt32AVX512(from, &x[0], &y[0], &at[0], s, &out[0], &then[0]), len(x), y)
		}
	}
	if from < n {
		for _, place := range at[from:] {
			within(uint32(place), len(x), y)
		}
		dotsAt(n-from, &x[0], len(x), &y[0], &at[from], s, &out[from], &then[from])
	}
	return true
}

func addAtBlocks(out, y []float32, at []int32, weights []float32, then []int32) bool {
	n := len(at)
	if !useAVX2 || len(out)%32 != 0 || n == 0 {
		return false
	}
	_, _ = weights[n-1], then[n-1]
	add := addAt
	if useAVX512 {
		add = addAtAVX512
	}
	for i := 0; i < len(out); i += 32 {
		within(add(n, &out[i], &y[i], &at[0], &weights[0], &then[0]), len(out), y)
	}
	return true
}

// within panics if a row of so many floats is not within y.
func within(place uint32, size int, y []float32) {
	if int(place)+size > len(y) {
		panic("kernels: a row is beyond the end")
	}
}

// turnHeads turns all heads of x by the same angles, if it can.
func turnHeads(x, cos, sin []float32, sign float32) bool {
	const half = 16
	if !useAVX512 || len(cos) != half || len(x) == 0 || len(x)%(2*half) != 0 {
		return false
	}
	_ = sin[half-1]
	turnHeads16(len(x)/(2*half), &x[0], &cos[0], &sin[0], sign)
	return true
}
