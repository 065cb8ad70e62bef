package rewarder

import (
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/stat"

	"onerec/internal/bootstrap"
)

// auc is the probability that a positive scores higher than a negative, ties
// counted half; NaN without either.
func auc(scores []float64, positive []bool) float64 {
	r := ranks(scores)
	var sum, pos float64
	for i, p := range positive {
		if p {
			sum += r[i]
			pos++
		}
	}
	neg := float64(len(scores)) - pos
	if pos == 0 || neg == 0 {
		return math.NaN()
	}
	return (sum - pos*(pos+1)/2) / (pos * neg)
}

// spearman is the correlation of the ranks of x and y; NaN if one is constant.
func spearman(x, y []float64) float64 {
	rx, ry := ranks(x), ranks(y)
	mean := float64(len(x)+1) / 2
	var xy, xx, yy float64
	for i := range rx {
		a, b := rx[i]-mean, ry[i]-mean
		xy += a * b
		xx += a * a
		yy += b * b
	}
	return xy / math.Sqrt(xx*yy)
}

// ranks returns the rank of each value from 1, ties sharing their mean.
func ranks(x []float64) []float64 {
	order := make([]int, len(x))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		switch {
		case x[a] < x[b]:
			return -1
		case x[a] > x[b]:
			return 1
		}
		return 0
	})
	r := make([]float64, len(x))
	for lo := 0; lo < len(order); {
		hi := lo
		for hi < len(order) && x[order[hi]] == x[order[lo]] {
			hi++
		}
		for _, i := range order[lo:hi] {
			r[i] = float64(lo+hi+1) / 2
		}
		lo = hi
	}
	return r
}

// interval is the 95 % bootstrap interval of the mean of x; NaN of nothing.
func interval(x []float64, rng *rand.Rand) (lo, hi float64) {
	const resamples = 2000
	if len(x) == 0 {
		return math.NaN(), math.NaN()
	}
	return bootstrap.Bounds(resamples, func() (mean float64) {
		for range x {
			mean += x[rng.IntN(len(x))]
		}
		return mean / float64(len(x))
	})
}

func total(x []float64) (sum float64) {
	for _, v := range x {
		sum += v
	}
	return sum
}

func mean(x []float64) float64 { return total(x) / float64(len(x)) }

// percentiles returns the 0th, 5th, ... 100th percentile of x: 21 values, none for none.
func percentiles(x []float64) []float64 {
	if len(x) == 0 {
		return nil
	}
	sorted := slices.Sorted(slices.Values(x))
	out := make([]float64, 21)
	for i := range out {
		out[i] = stat.Quantile(float64(i)/20, stat.LinInterp, sorted, nil)
	}
	return out
}
