package semanticid

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"gonum.org/v1/gonum/mat"
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
		levels := rapid.IntRange(2, 4).Draw(t, "levels")
		k := rapid.SampledFrom([]int{0, 1, 2, 3, 4, 5, 7, 16}).Draw(t, "k")
		most := 200
		if k > 0 {
			most = min(most, capacity(levels, k))
		}
		n := rapid.OneOf(rapid.IntRange(1, most), rapid.Just(most)).Draw(t, "n")
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
		cb, err := Build(context.Background(), items(n), x, dim, Config{Levels: levels, Codes: k, Seed: 7})
		if err != nil {
			t.Fatal(err)
		}
		for l := range levels {
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
				if l == levels-1 {
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
		nearest, err := cb.Assign(fmt.Sprint("new", i), x[:dim])
		if err != nil {
			t.Fatal(err)
		}
		if nearest { // it is the first item's
			t.Fatalf("new item %d is said to have the ID that is nearest", i)
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
		"headroom":   {items(5), make([]float32, 10), Config{Levels: 3, Codes: 3, Headroom: 2}, "5 and headroom for 10 more is asked for; use at least 4"},
		"no room":    {items(1), []float32{1, 2}, Config{Levels: 3, Headroom: -1}, "headroom is -1"},
		"warm":       {items(1), []float32{1, 2}, Config{Levels: 3, Codes: 4, Warm: &Codebook{levels: 3, codes: 5}}, "no fewer codes"},
		"levels":     {items(1), []float32{1, 2}, Config{Levels: 1}, "levels is 1"},
	} {
		if _, err := Build(context.Background(), tt.items, tt.x, 2, tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, tt.want)
		}
	}
}

// paperKMeans is the paper's algorithm 1, from k-means++ starts as ours: each cluster
// in turn takes the nearest rows that are left, until assignments stay.
func paperKMeans(x []float32, n, dim, k int, rng *rand.Rand) (assign []int32, centroids []float32) {
	centroids = seedPlusPlus(x, n, dim, k, startFrom(x, nil, dim, k), rng)
	for range maxIterations {
		next := make([]int32, n)
		left := make([]int32, n)
		for i := range left {
			left[i] = int32(i)
		}
		for c := range k {
			size := n / k
			if c < n%k {
				size++
			}
			distance := func(i int32) float64 {
				return squaredDistance(x[int(i)*dim:(int(i)+1)*dim], centroids[c*dim:(c+1)*dim])
			}
			slices.SortStableFunc(left, func(a, b int32) int { return cmp.Compare(distance(a), distance(b)) })
			for _, i := range left[:size] {
				next[i] = int32(c)
			}
			left = left[size:]
		}
		meansOf(centroids, x, next, n, dim, k)
		if slices.Equal(next, assign) {
			break
		}
		assign = next
	}
	return assign, centroids
}

// TestBeatsThePapersGreedy: from the same input, at most the distortion of the paper's
// greedy at every level, at the same balance.
func TestBeatsThePapersGreedy(t *testing.T) {
	const n, dim, k, levels = 1000, 16, 16, 3
	for seed := range uint64(3) {
		r := rand.New(rand.NewPCG(seed, 2))
		x := clustered(r, n, dim, 40)
		for level := range levels {
			ours, _, err := balancedKMeans(t.Context(), x, n, dim, k, nil, 0, 1e-6, rand.New(rand.NewPCG(seed, 1)), nil)
			if err != nil {
				t.Fatal(err)
			}
			paper, theirs := paperKMeans(x, n, dim, k, rand.New(rand.NewPCG(seed, 1)))
			means := make([]float32, k*dim)
			meansOf(means, x, ours, n, dim, k)
			a, b := distortion(x, means, ours, n, dim), distortion(x, theirs, paper, n, dim)
			t.Logf("seed %d level %d: %.4f, the paper's greedy %.4f", seed, level+1, a, b)
			if a > b {
				t.Errorf("seed %d level %d: distortion %v, the paper's greedy has %v", seed, level+1, a, b)
			}
			for i, c := range ours { // the next level's input, the same for both
				row := x[i*dim : (i+1)*dim]
				for j := range row {
					row[j] -= means[int(c)*dim+j]
				}
			}
		}
	}
}

// clustered draws rows around some centres.
func clustered(r *rand.Rand, n, dim, centres int) []float32 {
	c := make([]float32, centres*dim)
	for i := range c {
		c[i] = float32(r.NormFloat64())
	}
	x := make([]float32, n*dim)
	for i := range n {
		at := r.IntN(centres) * dim
		for j := range dim {
			x[i*dim+j] = c[at+j] + 0.5*float32(r.NormFloat64())
		}
	}
	return x
}

// TestAuctionIsNearlyOptimal: sizes differ by at most one, and the mean distance is
// within epsilon of the least that any assignment with these sizes has, which is found
// by cancelling negative cycles.
func TestAuctionIsNearlyOptimal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, k := rapid.IntRange(1, 60).Draw(t, "n"), rapid.IntRange(1, 24).Draw(t, "k")
		const dim = 2
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		x, c := make([]float32, n*dim), make([]float32, k*dim)
		for i := range x {
			x[i] = float32(r.IntN(5)) // many ties
		}
		for i := range c {
			c[i] = float32(r.IntN(5))
		}
		epsilon := rapid.SampledFrom([]float64{1, 0.1, 0.001}).Draw(t, "epsilon")
		a, ended := newAuction(x, n, dim, k), 0.0
		for range rapid.IntRange(1, 2).Draw(t, "runs") { // the second from the prices of the first
			ended = a.run(c, epsilon)
		}
		cost := func(i, c2 int) float64 { return squaredDistance(x[i*dim:(i+1)*dim], c[c2*dim:(c2+1)*dim]) }
		sizes := make([]int, k)
		var total float64
		for i, cl := range a.assign {
			sizes[cl]++
			total += cost(i, int(cl))
		}
		if slices.Max(sizes)-slices.Min(sizes) > 1 {
			t.Fatalf("sizes %v", sizes)
		}
		if best := leastCost(a.assign, k, cost); total > best+float64(n)*ended+1e-3 {
			t.Fatalf("cost %v, the least is %v; %d rows, epsilon %v", total, best, n, epsilon)
		}
	})
}

// leastCost improves an assignment until no cyclic exchange of rows lowers its cost
// (Klein 1967): then it is the best with its sizes.
func leastCost(assign []int32, k int, cost func(i, c int) float64) (total float64) {
	assign = slices.Clone(assign)
	for {
		// The cheapest move of a row from cluster a to b, and Bellman-Ford over clusters.
		move, mover := make([][]float64, k), make([][]int, k)
		for a := range k {
			move[a], mover[a] = make([]float64, k), make([]int, k)
			for b := range k {
				move[a][b] = math.Inf(1)
			}
		}
		for i, a := range assign {
			for b := range k {
				if d := cost(i, b) - cost(i, int(a)); d < move[a][b] {
					move[a][b], mover[a][b] = d, i
				}
			}
		}
		dist, from := make([]float64, k), make([]int, k)
		at := -1
		for range k + 1 {
			at = -1
			for a := range k {
				for b := range k {
					if a != b && dist[a]+move[a][b] < dist[b]-1e-9 {
						dist[b], from[b], at = dist[a]+move[a][b], a, b
					}
				}
			}
		}
		if at < 0 {
			break
		}
		for range k { // into the cycle
			at = from[at]
		}
		for b, start := at, at; ; {
			a := from[b]
			assign[mover[a][b]] = int32(b)
			if b = a; b == start {
				break
			}
		}
	}
	for i, c := range assign {
		total += cost(i, int(c))
	}
	return total
}

// TestSameOnAnyNumberOfThreads: the codebook depends on the seed and the input alone.
func TestSameOnAnyNumberOfThreads(t *testing.T) {
	const n, dim = 3000, 24
	x := clustered(rand.New(rand.NewPCG(3, 3)), n, dim, 50)
	build := func(threads int) string {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(threads))
		cb, err := Build(t.Context(), items(n), x, dim, Config{Levels: 3, Codes: 64, Seed: 5})
		if err != nil {
			t.Fatal(err)
		}
		return cb.Version()
	}
	if one, many := build(1), build(7); one != many {
		t.Errorf("version %s on one thread, %s on seven", one, many)
	}
}

// TestResume: a build that is cancelled after any level goes on from there to the same
// codebook.
func TestResume(t *testing.T) {
	const n, dim = 400, 8
	x := clustered(rand.New(rand.NewPCG(3, 3)), n, dim, 20)
	cfg := Config{Levels: 3, Codes: 24, Seed: 5}
	want, err := Build(t.Context(), items(n), x, dim, cfg)
	if err != nil {
		t.Fatal(err)
	}
	for stop := range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		cfg := cfg
		var done *Partial
		level := 0
		cfg.OnLevel = func(p *Partial) error {
			if done = p; level == stop {
				cancel()
			}
			level++
			return nil
		}
		if _, err := Build(ctx, items(n), x, dim, cfg); stop < 2 && !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled after level %d: %v", stop, err)
		}
		cancel()
		cfg.OnLevel, cfg.Resume = nil, done
		got, err := Build(t.Context(), items(n), x, dim, cfg)
		if err != nil || got.Version() != want.Version() {
			t.Errorf("resumed after level %d: %v, version %v, want %v", stop, err, got.Version(), want.Version())
		}
		if _, err := Build(t.Context(), items(n-1), x[:(n-1)*dim], dim, cfg); err == nil {
			t.Error("resumed on another input")
		}
	}
}

// TestOrthonormal: the columns are orthonormal and span what they were; one that depends
// on others becomes zero.
func TestOrthonormal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, width := rapid.IntRange(3, 20).Draw(t, "n"), rapid.IntRange(1, 3).Draw(t, "width")
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		y := mat.NewDense(n, width+1, nil)
		for i := range n {
			for j := range width {
				y.Set(i, j, r.NormFloat64())
			}
			y.Set(i, width, 3*y.At(i, 0))
		}
		q := orthonormal(y)
		var gram, inside, back mat.Dense
		gram.Mul(q.T(), q)
		for i := range width + 1 {
			for j := range width + 1 {
				want := 0.
				if i == j && i < width {
					want = 1
				}
				if math.Abs(gram.At(i, j)-want) > 1e-9 {
					t.Fatalf("column %d times %d is %v", i, j, gram.At(i, j))
				}
			}
		}
		inside.Mul(q.T(), y)
		back.Mul(q, &inside)
		if !mat.EqualApprox(&back, y, 1e-9) {
			t.Fatal("the basis does not span the columns")
		}
	})
}

// TestTrieWithout: below every node a trie without some items counts those that are left; the trie that it was made of is as before.
func TestTrieWithout(t *testing.T) {
	const n, levels, codes = 40, 3, 4
	rapid.Check(t, func(t *rapid.T) {
		ids := rapid.SliceOfNDistinct(rapid.SliceOfN(rapid.Uint16Range(0, codes-1), levels, levels), n, n, func(id []uint16) string { return fmt.Sprint(id) }).Draw(t, "ids")
		cb := &Codebook{levels: levels, codes: codes}
		for i, id := range ids {
			cb.items, cb.ids = append(cb.items, fmt.Sprint(i)), append(cb.ids, id...)
		}
		whole := NewTrie(cb)
		check := func(trie *Trie, gone map[int32]bool) {
			t.Helper()
			left := make(map[string]int32)
			for i, id := range ids {
				for l := range levels {
					if !gone[int32(i)] {
						left[fmt.Sprint(id[:l+1])]++
					}
				}
			}
			for _, id := range ids {
				path, ok := trie.Path(id)
				if !ok || trie.Len() != n {
					t.Fatalf("the trie of %d items has no %v", trie.Len(), id)
				}
				for l, node := range path {
					if got, want := trie.Under(l, node), left[fmt.Sprint(id[:l+1])]; got != want {
						t.Fatalf("below %v are %d items, want %d", id[:l+1], got, want)
					}
				}
			}
		}
		trie, all := whole, make(map[int32]bool)
		for _, name := range []string{"some", "others"} {
			gone := make(map[int32]bool)
			for _, i := range rapid.SliceOfN(rapid.Int32Range(0, n-1), 0, n).Draw(t, name) {
				gone[i], all[i] = true, true
			}
			check(whole.Without(gone), gone)
			trie = trie.Without(gone)
			check(trie, all)
		}
		check(whole, nil)
	})
}

// TestTrieIsSmall: a million IDs take at most 24 bytes each, and every one is found.
func TestTrieIsSmall(t *testing.T) {
	const n, k, levels = 1_000_000, 1024, 3
	cb := &Codebook{levels: levels, codes: k, items: make([]string, n)}
	seen := make(map[[levels]uint16]bool, n)
	for r := rand.New(rand.NewPCG(1, 1)); len(seen) < n; {
		id := [levels]uint16{uint16(r.IntN(k)), uint16(r.IntN(k)), uint16(r.IntN(k))}
		if !seen[id] {
			seen[id] = true
			cb.ids = append(cb.ids, id[:]...)
		}
	}
	trie := NewTrie(cb)
	if per := float64(trie.Bytes()) / n; per > 24 {
		t.Errorf("%.1f bytes an item", per)
	} else {
		t.Logf("%.1f bytes an item", per)
	}
	for i := int32(0); i < n; i += 997 {
		path, ok := trie.Path(cb.ID(i))
		if !ok || trie.Item(path[levels-1]) != i {
			t.Fatalf("ID %v of item %d leads to %v", cb.ID(i), i, path)
		}
	}
	var under int32
	for lo, hi := trie.Roots(); lo < hi; lo++ {
		under += trie.Under(0, lo)
	}
	if under != n {
		t.Errorf("%d items below the roots", under)
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

// TestEmbedderUsesAttributes: an item that nobody has watched is near those that share its
// attributes; without them it has none.
func TestEmbedderUsesAttributes(t *testing.T) {
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
	for g := range groups {
		for i := range size + 1 { // the last is new
			e.Describe(fmt.Sprintf("%d/%d", g, i), []string{"any", fmt.Sprint("kind ", g)})
		}
	}
	e.Describe("of no kind", nil)
	x, err := e.Embed()
	if err != nil {
		t.Fatal(err)
	}
	names := e.Items()
	row := func(item string) []float32 {
		i := slices.Index(names, item)
		return x[i*dim : (i+1)*dim]
	}
	for g := range groups {
		fresh := row(fmt.Sprintf("%d/%d", g, size))
		for other := range groups {
			d := squaredDistance(fresh, row(fmt.Sprintf("%d/0", other)))
			if (other == g) != (d < 0.5) {
				t.Errorf("the new item of kind %d is at %.2f from one of kind %d", g, d, other)
			}
		}
	}
	if v := row("of no kind"); slices.ContainsFunc(v, func(v float32) bool { return v != 0 }) {
		t.Errorf("an item of which nothing is known has the embedding %v", v)
	}
}

// TestRefresh: after more sessions, embeddings lie where they lay, though the new
// decomposition alone would turn them; old items that nobody watches keep theirs.
func TestRefresh(t *testing.T) {
	const groups, size, dim = 5, 8, 8
	watch := func(e *Embedder, seed uint64, size int) {
		r := rand.New(rand.NewPCG(seed, 2))
		for range 600 {
			g := r.IntN(groups)
			var seq []string
			for range 6 {
				seq = append(seq, fmt.Sprintf("%d/%d", g, r.IntN(size)))
			}
			e.Add(seq)
		}
	}
	first := NewEmbedder(dim, 4, 1)
	watch(first, 1, size)
	x, err := first.Embed()
	if err != nil {
		t.Fatal(err)
	}
	old := new(Embeddings)
	for i, item := range first.Items() {
		if err := old.Add(item, x[i*dim:(i+1)*dim]); err != nil {
			t.Fatal(err)
		}
	}
	if err := old.Add("gone", x[:dim]); err != nil {
		t.Fatal(err)
	}
	later := NewEmbedder(dim, 4, 9)
	watch(later, 7, size+2)
	got, err := later.Refresh(old)
	if err != nil {
		t.Fatal(err)
	}
	alone, err := later.Embed()
	if err != nil {
		t.Fatal(err)
	}
	if want := len(old.Items) + 2*groups; len(got.Items) != want || !slices.Equal(got.Items[:len(old.Items)], old.Items) {
		t.Fatalf("%d items, want the old %d first and %d in all", len(got.Items), len(old.Items), want)
	}
	var moved, turned float64
	for i, item := range old.Items[:len(old.Items)-1] {
		was := old.X[i*dim : (i+1)*dim]
		moved += squaredDistance(was, got.X[i*dim:(i+1)*dim]) / float64(len(old.Items)-1)
		at := slices.Index(later.Items(), item) * dim
		turned += squaredDistance(was, alone[at:at+dim]) / float64(len(old.Items)-1)
	}
	if moved > 0.3 || turned < 2*moved {
		t.Errorf("old items moved by %.2f on average, without the rotation by %.2f", moved, turned)
	}
	at := len(old.Items) - 1
	if !slices.Equal(got.X[at*dim:(at+1)*dim], old.X[at*dim:]) {
		t.Error("an item that was not seen again has another embedding")
	}
	if _, err := later.Refresh(&Embeddings{Dim: 3}); err == nil {
		t.Error("refreshed embeddings of another width")
	}
}

// TestEmbedderIsBounded: beyond the limit the rarest pairs go, the frequent ones stay.
func TestEmbedderIsBounded(t *testing.T) {
	e := NewEmbedder(4, 2, 1)
	e.MaxPairs = 100
	for i := range 2000 {
		e.Add([]string{"often", "together"})
		e.Add([]string{fmt.Sprint("x", i), fmt.Sprint("y", i)})
		if len(e.pairs) > e.MaxPairs {
			t.Fatalf("%d pairs are kept", len(e.pairs))
		}
	}
	if n := e.pairs[[2]int32{0, 1}]; n != 2000 {
		t.Errorf("the frequent pair was counted %v times", n)
	}
}

// TestWarmRebuild: a catalogue that grew, with embeddings that turned, keeps its codes where
// the new codebook replaces the old one, at about the distortion of one that is built
// without; and codes can be added.
func TestWarmRebuild(t *testing.T) {
	const n, more, dim = 1500, 2000, 16
	r := rand.New(rand.NewPCG(3, 3))
	x := clustered(r, more, dim, 40)
	cfg := Config{Levels: 3, Codes: 32, Seed: 5}
	old, err := Build(t.Context(), items(n), x[:n*dim], dim, cfg)
	if err != nil {
		t.Fatal(err)
	}
	turned := make([]float32, len(x)) // another basis: axes permuted, some mirrored
	for i := range more {
		for j := range dim {
			turned[i*dim+(j+3)%dim] = x[i*dim+j] * float32(1-2*(j%2))
		}
	}
	cfg.Seed = 6
	cold, err := Build(t.Context(), items(more), turned, dim, cfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Warm = old
	warm, err := Build(t.Context(), items(more), turned, dim, cfg)
	if err != nil {
		t.Fatal(err)
	}
	kept, chance := warm.Kept(old), cold.Kept(old)
	t.Logf("kept by level and in all: warm %.2f, cold %.2f", kept, chance)
	if kept[0] < 0.6 || kept[0] < 5*chance[0] || kept[1] < 3*chance[1] {
		t.Errorf("the warm codebook keeps %.2f of the codes, a cold one %.2f", kept, chance)
	}
	a, b := warm.Quality(turned), cold.Quality(turned)
	for l := range a {
		if a[l].Distortion > 1.05*b[l].Distortion {
			t.Errorf("level %d: distortion %.4g, cold %.4g", l+1, a[l].Distortion, b[l].Distortion)
		}
		if a[l].Largest-a[l].Smallest > 1 {
			t.Errorf("level %d: sizes from %d to %d", l+1, a[l].Smallest, a[l].Largest)
		}
	}
	cfg.Codes = 48
	wider, err := Build(t.Context(), items(more), turned, dim, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if k := wider.Kept(old); k[0] < 0.4 {
		t.Errorf("with more codes %.2f are kept", k)
	}
}
