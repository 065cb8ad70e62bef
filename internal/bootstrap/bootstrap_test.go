package bootstrap

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestBounds: of numbers that are drawn from a normal distribution, 95 % lie within 1.96 deviations.
func TestBounds(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	low, high := Bounds(100_000, func() float64 { return 3 + 2*r.NormFloat64() })
	if math.Abs(low-(3-1.96*2)) > 0.05 || math.Abs(high-(3+1.96*2)) > 0.05 {
		t.Errorf("%v to %v", low, high)
	}
	n := 0.0
	if low, high := Bounds(40, func() float64 { n++; return n }); low != 2 || high != 39 {
		t.Errorf("of 1 to 40: %v to %v", low, high)
	}
}
