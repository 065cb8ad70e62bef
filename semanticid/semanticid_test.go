package semanticid

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func items(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint("item", i)
	}
	return out
}

// TestBuild: clusters of equal size at every level, unique IDs, for any input,
// identical embeddings included.
func TestBuild(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 200).Draw(t, "n")
		k := rapid.SampledFrom([]int{0, 15, 16, 20}).Draw(t, "k")
		distinct := rapid.IntRange(1, n).Draw(t, "distinct embeddings")
		const dim = 4
		r := rand.New(rand.NewPCG(uint64(n), uint64(distinct)))
		x := make([]float32, n*dim)
		for i := range x {
			if i < distinct*dim {
				x[i] = float32(r.NormFloat64())
			} else {
				x[i] = x[i%(distinct*dim)]
			}
		}
		cb, err := Build(context.Background(), items(n), x, dim, Config{Levels: 3, Codes: k, Seed: 7})
		if err != nil {
			t.Fatal(err)
		}
		for l := range 3 {
			sizes := make([]int, cb.Codes())
			for i := range n {
				sizes[cb.ID(int32(i))[l]]++
			}
			lo, hi := sizes[0], sizes[0]
			for _, s := range sizes {
				lo, hi = min(lo, s), max(hi, s)
			}
			if hi-lo > 1 {
				t.Fatalf("level %d: sizes %v differ by more than one", l, sizes)
			}
		}
		trie := NewTrie(cb) // reindex has checked uniqueness; the trie must agree
		if trie.Len() != n {
			t.Fatalf("trie has %d items, want %d", trie.Len(), n)
		}
		seen := 0
		var walk func(l int, lo, hi int32, prefix []uint16)
		walk = func(l int, lo, hi int32, prefix []uint16) {
			for i := lo; i < hi; i++ {
				id := append(prefix[:l:l], trie.Code(l, i))
				if l == 2 {
					if got := cb.ID(trie.Item(i)); fmt.Sprint(got) != fmt.Sprint(id) {
						t.Fatalf("leaf %v is item with ID %v", id, got)
					}
					seen++
					continue
				}
				clo, chi := trie.Children(l, i)
				if clo == chi {
					t.Fatalf("prefix %v leads nowhere", id)
				}
				walk(l+1, clo, chi, id)
			}
		}
		lo, hi := trie.Roots()
		walk(0, lo, hi, nil)
		if seen != n {
			t.Fatalf("walked %d leaves, want %d", seen, n)
		}
	})
}

func TestAssignMovesNothingAndRoundTrips(t *testing.T) {
	const n, dim = 100, 8
	r := rand.New(rand.NewPCG(1, 2))
	x := make([]float32, n*dim)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	cb, err := Build(context.Background(), items(n), x, dim, Config{Levels: 3, Codes: 12, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	before := fmt.Sprint(cb.ids)
	old := cb.Clone()
	for i := range 300 { // all with the same embedding: they must spread
		if err := cb.Assign(fmt.Sprint("new", i), x[:dim]); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.HasPrefix(fmt.Sprint(cb.ids), strings.TrimSuffix(before, "]")) {
		t.Fatal("Assign moved an old ID")
	}
	if old.Len() != n || cb.Version() == old.Version() {
		t.Fatal("the clone changed, or the version did not")
	}
	if err := cb.reindex(); err != nil {
		t.Fatal(err)
	}
	var a, b bytes.Buffer
	if err := cb.WriteItems(&a); err != nil {
		t.Fatal(err)
	}
	if err := cb.WriteCentroids(&b); err != nil {
		t.Fatal(err)
	}
	again, err := Read(a.Bytes(), b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if again.Version() != cb.Version() {
		t.Fatal("reading back changed the codebook")
	}
	if _, err := Read(a.Bytes()[:a.Len()/2], b.Bytes()); err == nil {
		t.Fatal("a truncated item table was read")
	}
}

func TestBuildRefuses(t *testing.T) {
	nan := float32(0)
	nan /= nan
	for name, tt := range map[string]struct {
		items []string
		x     []float32
		cfg   Config
		want  string
	}{
		"empty":      {nil, nil, Config{Levels: 3}, "no items"},
		"width":      {items(2), []float32{1, 2, 3}, Config{Levels: 3}, "need 4 floats"},
		"nan":        {items(1), []float32{1, nan}, Config{Levels: 3}, "NaN"},
		"duplicates": {[]string{"a", "a"}, []float32{1, 2, 3, 4}, Config{Levels: 3}, "stands at"},
		"crowded":    {items(5), make([]float32, 10), Config{Levels: 3, Codes: 2}, "use at least 3"},
		"levels":     {items(1), []float32{1, 2}, Config{Levels: 1}, "levels is 1"},
	} {
		if _, err := Build(context.Background(), tt.items, tt.x, 2, tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, tt.want)
		}
	}
}

// paperAssign is the assignment of the paper: each cluster in turn takes the
// nearest rows that are left.
func paperAssign(dist []float32, n, k int) []int32 {
	assign := make([]int32, n)
	left := map[int32]bool{}
	for i := range n {
		left[int32(i)] = true
	}
	for c := range k {
		size := n / k
		if c < n%k {
			size++
		}
		for range size {
			best := int32(-1)
			for _, i := range sorted(left) {
				if best < 0 || dist[int(i)*k+c] < dist[int(best)*k+c] {
					best = i
				}
			}
			assign[best] = int32(c)
			delete(left, best)
		}
	}
	return assign
}

// TestBeatsThePapersAssignment: at the same balance, less distortion.
func TestBeatsThePapersAssignment(t *testing.T) {
	const n, dim, k = 300, 8, 10
	for seed := range uint64(5) {
		r := rand.New(rand.NewPCG(seed, 2))
		x := make([]float32, n*dim)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		c := seedPlusPlus(x, n, dim, k, r)
		dist := make([]float32, n*k)
		distances(dist, x, c, n, dim, k)
		total := func(assign []int32) (s float32) {
			for i, a := range assign {
				s += dist[i*k+int(a)]
			}
			return s
		}
		ours := assignBalanced(dist, n, k)
		swap(ours, dist, n, k, nil)
		if paper := paperAssign(dist, n, k); total(ours) > total(paper) {
			t.Errorf("seed %d: distortion %v, the paper's greedy has %v", seed, total(ours), total(paper))
		}
	}
}

// TestEmbedderFindsGroups: items watched together end up near each other.
func TestEmbedderFindsGroups(t *testing.T) {
	const groups, size, dim = 5, 8, 8
	r := rand.New(rand.NewPCG(1, 2))
	e := NewEmbedder(dim, 4, 1)
	for range 600 {
		g := r.IntN(groups)
		var seq []string
		for range 6 {
			seq = append(seq, fmt.Sprintf("%d/%d", g, r.IntN(size)))
		}
		e.Add(seq)
	}
	x, err := e.Embed()
	if err != nil {
		t.Fatal(err)
	}
	var same, other float64
	var ns, no int
	names := e.Items()
	for i := range names {
		for j := range i {
			d := squaredDistance(x[i*dim:(i+1)*dim], x[j*dim:(j+1)*dim])
			if names[i][0] == names[j][0] {
				same += d
				ns++
			} else {
				other += d
				no++
			}
		}
	}
	if same/float64(ns) > 0.5*other/float64(no) {
		t.Fatalf("mean squared distance within groups %v, between %v", same/float64(ns), other/float64(no))
	}
}
