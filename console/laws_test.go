package console

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestPages: every element is on one page, in order, and a page that does not exist is the nearest.
func TestPages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(rapid.Int(), 0, 100).Draw(t, "all")
		size := rapid.IntRange(1, 20).Draw(t, "size")
		var together []int
		_, _, pages := paged(all, 1, size)
		for p := 1; p <= pages; p++ {
			part, at, _ := paged(all, p, size)
			if at != p || len(part) > size {
				t.Fatalf("page %d: %d of %d", p, at, len(part))
			}
			together = append(together, part...)
		}
		if !slices.Equal(together, all) {
			t.Fatalf("pages hold %v of %v", together, all)
		}
		if _, at, _ := paged(all, rapid.Int().Draw(t, "page"), size); at < 1 || at > pages {
			t.Fatalf("page %d of %d", at, pages)
		}
	})
}

// TestShares: a share rises from 0 to 100, and is that of the percentile at each of them.
func TestShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		percentiles := rapid.SliceOfNDistinct(rapid.Float64Range(-10, 10), 21, 21, rapid.ID).Draw(t, "percentiles")
		slices.Sort(percentiles)
		got := shares(percentiles, percentiles)
		for i, s := range got {
			if want := 5 * float64(i); s < want-1e-6 || s > want+1e-6 {
				t.Fatalf("share at the %g percentile: %g", want, s)
			}
		}
		x := slices.Sorted(slices.Values(rapid.SliceOf(rapid.Float64Range(-20, 20)).Draw(t, "x")))
		last := 0.0
		for _, s := range shares(percentiles, x) {
			if s < last-1e-9 || s > 100+1e-9 {
				t.Fatalf("shares %v", shares(percentiles, x))
			}
			last = s
		}
	})
}
