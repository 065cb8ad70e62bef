//go:build !amd64 || purego

package kernels

func gemm6x16(tiles, k int, a, b, c []float32, ldc int, add bool) {
	gemm6x16Go(tiles, k, a, b, c, ldc, add)
}

func gemm6x16Rows(tiles, k int, a []float32, lda int, b, c []float32, ldc int, add bool) {
	gemm6x16RowsGo(tiles, k, a, lda, b, c, ldc, add)
}

const useAVX512 = false

func gemm6x32(int, int, []float32, []float32, int, []float32, int, bool) {
	panic("there is no such kernel")
}

func gemm6x32Rows(int, int, []float32, int, []float32, int, []float32, int, bool) {
	panic("there is no such kernel")
}

func gemmInt16(tiles, pairs int, a []int16, lda int, b []uint32, ra, rb, c []float32, ldc int, add bool) {
	gemmInt16Go(tiles, pairs, a, lda, b, ra, rb, c, ldc, add)
}

const twoPanels16 = false

func gemmInt16Two(int, int, []int16, int, []uint32, int, []float32, []float32, []float32, int, bool) {
	panic("there is no such kernel")
}

const useInt8 = false

func gemmInt8(int, int, []uint8, int, []uint32, int, []int32, []float32, []float32, []float32, int, bool) {
	panic("there is no such kernel")
}

func gemmInt8Two(int, int, []uint8, int, []uint32, int, []int32, []float32, []float32, []float32, int, bool) {
	panic("there is no such kernel")
}

func fitRowsOfBytes(m, k int, dst []uint8, ldd int, x []float32, ldx int, by []float32) bool {
	return false
}

func expWeighBlocks(x, gain []float32, top float32) (sum, weighed, most float32, n int) {
	return 0, 0, 0, 0
}

func softmaxRowsBlocks(s *Scores, gain []float32, q []int16, ld int, by []float32) bool { return false }

func fitRowsOf16(m, k int, dst []int16, ldd int, x []float32, ldx int, by []float32) bool {
	return false
}

func roundBlocks(dst []int16, x []float32, s float32) int { return 0 }

func packPairsOf8(pairs int, dst []uint32, src []int16, ld int) int { return 0 }

func roundPairsOf16(dst []uint32, panel int, x, y []float32, sx, sy float32) int { return 0 }

func dotBlocks(x, y []float32) (sum float32, n int) { return 0, 0 }

func dots8(out, a []float32, lda int, x []float32) (n int) { return 0 }

func packRowsOf6(k int, dst, src []float32, ld int) int                          { return 0 }
func packRowsOf24(k int, dst, src []float32, ld int) int                         { return 0 }
func packRowsOf16(k int, dst, src []float32, ld int) bool                        { return false }
func packRowsOf64(k int, dst, src []float32, ld int) bool                        { return false }
func packColumnsOf8(k int, dst []float32, stride int, src []float32, ld int) int { return 0 }

// The vector kernels take what is a multiple of 8 of their slices and return how much
// that is: nothing here.

func addBlocks(y, x []float32) int                                        { return 0 }
func axpyBlocks(y, x []float32, s float32) int                            { return 0 }
func scaleBlocks(x []float32, s float32) int                              { return 0 }
func maxBlocks(x []float32, top float32) (float32, int)                   { return top, 0 }
func maxAbsBlocks(x []float32) (float32, int)                             { return 0, 0 }
func expSumBlocks(x []float32, top float32) (float32, int)                { return 0, 0 }
func swigluBlocks(y, a, b []float32) int                                  { return 0 }
func swigluBackBlocks(da, db, dy, a, b []float32) int                     { return 0 }
func mulScaleBlocks(y, x, gain []float32, s float32) int                  { return 0 }
func dot3Blocks(x, y, z []float32) (float32, int)                         { return 0, 0 }
func normBackBlocks(dx, dgain, dy, x, gain []float32, r, dot float32) int { return 0 }
func softmaxBackBlocks(dp, p []float32, dot float32) int                  { return 0 }

func turnBlocks(a, b, cos, sin []float32, sign float32) int { return 0 }

func turnHeads(x, cos, sin []float32, sign float32) bool { return false }

func adamwBlocks(w, g, m, v []float32, o adamwConstants) int { return 0 }

func dotsAtBlocks(out, x, y []float32, at []int32, s float32, then []int32) bool { return false }

func addAtBlocks(out, y []float32, at []int32, weights []float32, then []int32) bool { return false }
