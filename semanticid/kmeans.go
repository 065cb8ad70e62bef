package semanticid

import (
	"context"
	"math"
	"math/rand/v2"

	"onerec/internal/kernels"
)

// How a level is clustered.
const (
	sampleOf      = 256  // rows a cluster from which the centroids are found; the rest only follow
	seedsFrom     = 32   // rows a cluster that k-means++ draws from
	maxIterations = 25   // over the sample
	lastRounds    = 4    // over all rows
	tolerance     = 1e-3 // relative change of distortion that ends the iterations
	// epsilon of the auction as a share of the distortion, at first and in the end. It
	// bounds how far an assignment may be from the best.
	firstEpsilon, lastEpsilon = 0.05, 0.002
)

// balancedKMeans partitions n rows of x (width dim) into k clusters whose sizes differ
// by at most one, after OneRec's balanced k-means (arXiv 2502.18965, algorithm 1).
// Where the paper fills one cluster after the other with its nearest rows, an auction
// finds nearly the best assignment. It returns each row's cluster and the centroids (k x
// dim), which are the clusters' means. They start as the means of the clusters that start
// puts rows into (nil, or noRow for a row: it is in none), and for other clusters as
// k-means++ draws them; a row gives stick, as a share of the distortion, to be in that
// cluster. progress gets the distortion, the mean squared distance of a row
// from its centroid, after each iteration.
func balancedKMeans(ctx context.Context, x []float32, n, dim, k int, start []int32, stick, noise float64, rng *rand.Rand, progress func(iteration int, distortion float64)) (assign []int32, centroids []float32, err error) {
	sample, m := x, n
	if n > sampleOf*k {
		m = sampleOf * k
		sample = choose(x, n, m, dim, rng)
	}
	centroids = seedPlusPlus(sample, m, dim, k, startFrom(x, start, dim, k), rng)
	iteration := 0
	cluster := func(a *auction, rounds int, first float64) error {
		squares := squaresOf(a.x, a.n, dim)
		share, last := first, math.Inf(1)
		scale := squares // before anything is assigned, the rows' own size
		for range rounds {
			if err := ctx.Err(); err != nil {
				return err
			}
			a.stick = 0
			if a.home != nil {
				a.stick = float32(stick * scale)
			}
			a.run(centroids, max(share*scale, noise))
			meansOf(centroids, a.x, a.assign, a.n, dim, k)
			d := squares
			for i, v := range a.dist {
				if a.atHome(int32(i), a.assign[i]) {
					v += a.stick
				}
				d += float64(v) / float64(a.n)
			}
			d = max(d, 0)
			if iteration++; progress != nil {
				progress(iteration, d)
			}
			if share <= lastEpsilon && last-d <= tolerance*last {
				break
			}
			last, scale, share = d, d, max(share/2, lastEpsilon)
		}
		return nil
	}
	a := newAuction(sample, m, dim, k)
	if m == n {
		a.home = start
	}
	if err := cluster(a, maxIterations, firstEpsilon); err != nil {
		return nil, nil, err
	}
	if m < n {
		all := newAuction(x, n, dim, k)
		all.home = start
		copy(all.prices, a.prices)
		a = all
		if err := cluster(a, lastRounds, 2*lastEpsilon); err != nil {
			return nil, nil, err
		}
	}
	return a.assign, centroids, nil
}

// choose copies m of n rows, each with the same probability.
func choose(x []float32, n, m, dim int, rng *rand.Rand) []float32 {
	out := make([]float32, 0, m*dim)
	for i := range n {
		if left := m - len(out)/dim; left > 0 && rng.IntN(n-i) < left {
			out = append(out, x[i*dim:(i+1)*dim]...)
		}
	}
	return out
}

// seeds are centroids that are there already.
type seeds struct {
	centroids []float32 // k x dim
	given     []bool    // k
}

// startFrom returns the mean of the rows that start puts into each cluster; a cluster
// without rows is not given.
func startFrom(x []float32, start []int32, dim, k int) seeds {
	s := seeds{make([]float32, k*dim), make([]bool, k)}
	count := make([]float32, k)
	for i, c := range start {
		if c != noRow {
			kernels.Add(s.centroids[int(c)*dim:int(c+1)*dim], x[i*dim:(i+1)*dim])
			count[c]++
			s.given[c] = true
		}
	}
	for i := range s.centroids {
		s.centroids[i] /= max(1, count[i/dim])
	}
	return s
}

// seedPlusPlus draws the centroids that are not given as k-means++ does (Arthur and
// Vassilvitskii, SODA 2007): each with probability proportional to its squared distance
// from those before.
func seedPlusPlus(x []float32, n, dim, k int, from seeds, rng *rand.Rand) []float32 {
	if n > seedsFrom*k {
		x = choose(x, n, seedsFrom*k, dim, rng)
		n = seedsFrom * k
	}
	c := from.centroids
	near, squares := make([]float64, n), make([]float32, n)
	for i := range near {
		near[i] = math.Inf(1)
		row := x[i*dim : (i+1)*dim]
		squares[i] = kernels.Dot(row, row)
	}
	draw := func() int {
		var sum float64
		for _, d := range near {
			sum += d
		}
		if math.IsInf(sum, 1) || sum == 0 { // there is no centroid yet, or one on every row
			return rng.IntN(n)
		}
		at := rng.Float64() * sum
		for i, d := range near {
			if at -= d; at < 0 {
				return i
			}
		}
		return rng.IntN(n)
	}
	take := func(j int) {
		centroid := c[j*dim : (j+1)*dim]
		norm := kernels.Dot(centroid, centroid)
		const chunk = 1024
		kernels.Parallel((n+chunk-1)/chunk, func(part int) {
			for i := part * chunk; i < min((part+1)*chunk, n); i++ {
				d := squares[i] + norm - 2*kernels.Dot(x[i*dim:(i+1)*dim], centroid)
				near[i] = min(near[i], max(0, float64(d)))
			}
		})
	}
	for j, given := range from.given {
		if given {
			take(j)
		}
	}
	for j, given := range from.given {
		if !given {
			pick := draw()
			copy(c[j*dim:(j+1)*dim], x[pick*dim:])
			take(j)
			near[pick] = 0
		}
	}
	return c
}

func squaredDistance(a, b []float32) float64 {
	var s float32
	for i, v := range a {
		d := v - b[i]
		s += d * d
	}
	return float64(s)
}

// squaresOf is the mean of |x|^2.
func squaresOf(x []float32, n, dim int) (mean float64) {
	for i := range n {
		row := x[i*dim : (i+1)*dim]
		mean += float64(kernels.Dot(row, row)) / float64(n)
	}
	return mean
}

func meansOf(centroids, x []float32, assign []int32, n, dim, k int) {
	clear(centroids)
	count := make([]float32, k)
	for i := range n {
		c := int(assign[i])
		kernels.Add(centroids[c*dim:(c+1)*dim], x[i*dim:(i+1)*dim])
		count[c]++
	}
	for c, m := range count {
		if m > 0 {
			row := centroids[c*dim : (c+1)*dim]
			for j := range row {
				row[j] /= m
			}
		}
	}
}

// distortion is the mean squared distance of a row from its centroid.
func distortion(x, centroids []float32, assign []int32, n, dim int) float64 {
	var sum float64
	for i := range n {
		c := int(assign[i])
		sum += squaredDistance(x[i*dim:(i+1)*dim], centroids[c*dim:(c+1)*dim])
	}
	return sum / float64(n)
}
