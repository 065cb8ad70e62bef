// Package bootstrap computes how certain a figure is by drawing its sample again and again, with
// replacement (Efron, 1979; the percentile method).
package bootstrap

import "slices"

// Interval is a figure with its 95 % interval.
type Interval struct {
	Mean float64 `json:"mean"`
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// Bounds returns the 95 % interval of a figure that draw computes of a new sample each time.
// resamples must be at least 40.
func Bounds(resamples int, draw func() float64) (low, high float64) {
	all := make([]float64, resamples)
	for i := range all {
		all[i] = draw()
	}
	slices.Sort(all)
	return all[resamples*25/1000], all[resamples*975/1000-1]
}
