package nextitem

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"

	"onerec/internal/bootstrap"
)

// beyond is the rank of an item that is not among those that were ranked.
const beyond = math.MaxInt32

// Metric is a mean over users with its 95 % bootstrap interval.
type Metric = bootstrap.Interval

// Metrics are those of the literature. With one item to be found, recall is the hit rate.
type Metrics struct {
	Users    int    `json:"users"`
	Recall5  Metric `json:"recall_5"`
	NDCG5    Metric `json:"ndcg_5"`
	Recall10 Metric `json:"recall_10"`
	NDCG10   Metric `json:"ndcg_10"`
}

// resamples of the bootstrap.
const resamples = 1000

// measure turns each user's rank of the wanted item, from 0, into metrics.
func measure(ranks []int32, seed uint64) Metrics {
	metric := func(value func(rank int32) float64) Metric {
		values := make([]float64, len(ranks))
		var sum float64
		for i, rank := range ranks {
			values[i] = value(rank)
			sum += values[i]
		}
		m := Metric{Mean: sum / float64(max(1, len(ranks)))}
		if len(ranks) == 0 {
			return m
		}
		r := rand.New(rand.NewPCG(seed, 0xb007))
		m.Low, m.High = bootstrap.Bounds(resamples, func() (mean float64) {
			for range values {
				mean += values[r.IntN(len(values))]
			}
			return mean / float64(len(values))
		})
		return m
	}
	hit := func(k int32) func(int32) float64 {
		return func(rank int32) float64 {
			if rank < k {
				return 1
			}
			return 0
		}
	}
	gain := func(k int32) func(int32) float64 {
		return func(rank int32) float64 {
			if rank < k {
				return 1 / math.Log2(float64(rank)+2)
			}
			return 0
		}
	}
	return Metrics{len(ranks), metric(hit(5)), metric(gain(5)), metric(hit(10)), metric(gain(10))}
}

// popularity ranks each user's wanted item by how often items stand in the training parts,
// without what the user has.
func popularity(d *Data, users []int32, ask func([]int32) ([]int32, int32)) []int32 {
	count := make([]int, len(d.Items))
	for _, s := range d.Sequences {
		for _, item := range training(s) {
			count[item]++
		}
	}
	order := make([]int32, len(d.Items))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortStableFunc(order, func(a, b int32) int { return cmp.Compare(count[b], count[a]) })
	ranks := make([]int32, len(users))
	for i, u := range users {
		before, want := ask(d.Sequences[u])
		ranks[i] = beyond
		rank := int32(0)
		for _, item := range order[:min(len(order), 10+len(before))] {
			if item == want {
				ranks[i] = rank
				break
			}
			if !slices.Contains(before, item) {
				rank++
			}
		}
	}
	return ranks
}
