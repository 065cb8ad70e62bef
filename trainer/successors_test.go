package trainer

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"onerec/decoder"
)

// TestSuccessors: the most frequent successors come first, also when there are many rare
// ones, and no more are kept than allowed.
func TestSuccessors(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s successors
		rare := rapid.SliceOfN(rapid.IntRange(10, 500), 0, 300).Draw(t, "rare")
		for i := range 400 {
			s.add(3, 1)
			if i%2 == 0 {
				s.add(3, 2)
			}
			if i < len(rare) {
				s.add(3, int32(rare[i]))
			}
		}
		if got := s.after(3); len(got) > perItem || !slices.Equal(got[:2], []int32{1, 2}) {
			t.Fatalf("after 3 come %v", got)
		}
		if s.after(0) != nil && len(s.after(0)) > 0 || s.after(9) != nil || s.after(unknown) != nil {
			t.Fatal("items follow one that never was")
		}
	})
}

// TestRankOf: seen and repeated items take no place.
func TestRankOf(t *testing.T) {
	seen := map[int32]bool{5: true}
	for _, tt := range []struct {
		want   int32
		orders [][]int32
		rank   int
	}{
		{7, [][]int32{{5, 6}, {6, 5, 7}}, 1},
		{6, [][]int32{{5, 6}, {6, 5, 7}}, 0},
		{8, [][]int32{{6}, {7}}, -1},
		{10, [][]int32{{0, 1, 2, 3, 4}, {6, 7, 8, 9, 11, 10}}, -1},
	} {
		if got := rankOf(tt.want, seen, tt.orders...); got != tt.rank {
			t.Errorf("rank of %d in %v: %d, want %d", tt.want, tt.orders, got, tt.rank)
		}
	}
}

// TestMemoryIsRefused: what does not fit is refused with the numbers before training starts.
func TestMemoryIsRefused(t *testing.T) {
	l := NewLearner(DefaultConfig())
	c, err := decoder.Preset("base", 3, 4096, 32, 8)
	if err != nil {
		t.Fatal(err)
	}
	l.Available = 1 << 30
	m, err := l.fits(c, 1<<16)
	if err == nil || !strings.Contains(err.Error(), "1024 MiB are available") || !strings.Contains(err.Error(), "--preset") {
		t.Errorf("%v take %v", m, err)
	}
	l.Available = m.Total()
	if _, err := l.fits(c, 1<<16); err != nil {
		t.Error(err)
	}
	l.Available = 0
	if _, err := l.fits(c, 1<<16); err != nil {
		t.Error(err)
	}
}
