package trainer

import (
	"slices"
	"time"

	"onerec/publisher"
)

// ages holds when sessions came on sessions.good: from their close on they wait for a model
// that knows them.
type ages struct {
	seen int
	at   []time.Time // a sample: the newest maxAges
}

const maxAges = 10_000

func (a *ages) add(t time.Time) {
	if len(a.at) < maxAges {
		a.at = append(a.at, t)
	} else {
		a.at[a.seen%maxAges] = t
	}
	a.seen++
}

// metrics says how old the sessions are now, for the manifest; empty if none came.
func (a *ages) metrics(now time.Time) map[string]float64 {
	if a.seen == 0 {
		return nil
	}
	sorted := slices.SortedFunc(slices.Values(a.at), func(x, y time.Time) int { return y.Compare(x) }) // youngest first
	age := func(percent int) float64 { return now.Sub(sorted[(len(sorted)-1)*percent/100]).Seconds() }
	return map[string]float64{publisher.MetricSessions: float64(a.seen), publisher.MetricAgeP50: age(50), publisher.MetricAgeP99: age(99)}
}
