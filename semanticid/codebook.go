// Package semanticid turns items into semantic IDs: L codes of K values each, so
// that items with similar embeddings share their first codes.
//
// The codes come from residual balanced k-means (OneRec, arXiv 2502.18965,
// section 3.1): cluster the embeddings into K clusters of equal size, subtract
// each item's centroid, cluster what is left, and so on. Equal sizes keep the
// first codes from swallowing most of the catalogue.
//
// # One ID, one item
//
// Every item has one ID and every ID one item, by construction. At the last level, items
// that share all codes before it get different codes; at the levels before, no more items
// share a prefix than half of the IDs below it, so that there are always codes enough.
// Cluster sizes still differ by at most one (see spread). The cost: where more items of
// one prefix are near the same centroid than may be, the farthest get another
// ([Codebook.Price]).
//
// # New items
//
// [Codebook.Assign] gives a new item the nearest code path that is free. It
// moves no other item; balance is then approximate, until a rebuild.
package semanticid

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/parquet-go/parquet-go"
)

// Item is an item's semantic ID: one code a level.
type Item = []uint16

// Config says how a codebook is built.
type Config struct {
	Levels int // L; 3 in the paper
	Codes  int // K; 0 chooses the least multiple of 8 that leaves the headroom
	// Headroom is the room for items to come, as a share of those that there are: with 1
	// the catalogue can double. A build with fewer codes than that needs is refused.
	Headroom float64
	Seed     uint64

	// Warm is the codebook that this build replaces, with as many levels and at most as
	// many codes, over any embeddings; nil: there is none. Each of its codes is the start
	// of the same code here, as the mean of its items' new embeddings, so that codes mean
	// what they meant as far as their items have not changed; see [Codebook.Kept].
	Warm *Codebook
	// Stick is what an item gives to keep its code of Warm, as a share of the mean squared
	// distance of an item from its centroid: with it more items keep their codes, and fit
	// a little worse.
	Stick float64

	// Progress is told of every iteration within a level; nil: nobody is.
	Progress func(level, iteration int, distortion float64)
	// OnLevel gets what is finished after each level, so that a build that is cancelled
	// can go on from there with Resume, on the same input; its error ends the build.
	OnLevel func(*Partial) error
	Resume  *Partial
}

// rounding is what float32 may make of a squared distance, as a share of the squared
// length of the vectors.
const rounding = 1e-6

// Limits of a codebook.
const (
	MaxLevels = 8
	MaxCodes  = 1 << 14

	MaxHeadroom = 1000
)

// Codebook maps items to semantic IDs and back. Assign excepted, it is safe for
// concurrent use.
type Codebook struct {
	levels, codes, dim int
	centroids          []float32 // levels x codes x dim
	items              []string
	ids                []uint16 // len(items) x levels
	index              map[string]int32
	taken              map[string]bool // ids as bytes
	price              []Price         // of unique IDs, by level; nil if the codebook was read
}

// Build makes a codebook for items with embeddings x (len(items) x dim).
func Build(ctx context.Context, items []string, x []float32, dim int, cfg Config) (*Codebook, error) {
	n := len(items)
	if err := check(items, x, dim, cfg); err != nil {
		return nil, fmt.Errorf("build codebook: %w", err)
	}
	k := cfg.Codes
	if k == 0 {
		for k = 8; float64(k*k) < (1+cfg.Headroom)*float64(n); k += 8 {
		}
		if cfg.Warm != nil {
			k = max(k, cfg.Warm.codes)
		}
	}
	if room, want := capacity(cfg.Levels, k), int(math.Ceil((1+cfg.Headroom)*float64(n))); want > room {
		return nil, fmt.Errorf("build codebook: %d levels of %d codes hold at most %d items with unique IDs, there are %d and headroom for %d more is asked for; use at least %d codes", cfg.Levels, k, room, n, want-n, leastCodes(cfg.Levels, want))
	}
	var was []int32 // of each item: its index in the codebook before, or noRow
	if cfg.Warm != nil {
		if cfg.Warm.levels != cfg.Levels || cfg.Warm.codes > k {
			return nil, fmt.Errorf("build codebook: it has %d levels of %d codes, the one that it replaces %d of %d; want as many levels and no fewer codes", cfg.Levels, k, cfg.Warm.levels, cfg.Warm.codes)
		}
		was = make([]int32, n)
		for i, item := range items {
			was[i] = noRow
			if at, ok := cfg.Warm.index[item]; ok {
				was[i] = at
			}
		}
	}
	cb := &Codebook{levels: cfg.Levels, codes: k, dim: dim, items: slices.Clone(items), ids: make([]uint16, n*cfg.Levels)}
	residual := slices.Clone(x)
	var group []int32 // of each item: the codes so far
	groups := 1
	noise := max(rounding*squaresOf(x, n, dim), math.SmallestNonzeroFloat32)
	for level := range cfg.Levels {
		var assign []int32
		var centroids []float32
		if cfg.Resume != nil && level < cfg.Resume.levels() {
			assign, centroids = cfg.Resume.level(level)
			if len(assign) != n || len(centroids) != k*dim {
				return nil, fmt.Errorf("build codebook: the level to resume after has %d items and %d floats of centroids, want %d and %d", len(assign), len(centroids), n, k*dim)
			}
			if bad := slices.IndexFunc(assign, func(c int32) bool { return c < 0 || int(c) >= k }); bad >= 0 {
				return nil, fmt.Errorf("build codebook: the level to resume after gives item %q code %d of %d", items[bad], assign[bad], k)
			}
		} else {
			var err error
			rng := rand.New(rand.NewPCG(cfg.Seed, uint64(level)))
			var start []int32
			if was != nil {
				start = make([]int32, n)
				for i, at := range was {
					if start[i] = noRow; at != noRow {
						start[i] = int32(cfg.Warm.ID(at)[level])
					}
				}
			}
			assign, centroids, err = balancedKMeans(ctx, residual, n, dim, k, start, cfg.Stick, noise, rng, func(iteration int, distortion float64) {
				if cfg.Progress != nil {
					cfg.Progress(level, iteration, distortion)
				}
			})
			if err != nil {
				return nil, fmt.Errorf("build codebook: level %d: %w", level, err)
			}
			price := Price{Before: distortion(residual, centroids, assign, n, dim)}
			price.After = price.Before
			if level > 0 {
				price.Moved = spreadOut(assign, residual, centroids, n, dim, k, limitAt(level, cfg.Levels, k), group, groups)
				if level < cfg.Levels-1 && price.Moved > 0 {
					meansOf(centroids, residual, assign, n, dim, k)
				}
				price.After = distortion(residual, centroids, assign, n, dim)
			}
			cb.price = append(cb.price, price)
			if cfg.OnLevel != nil {
				cfg.Resume = cfg.Resume.with(assign, centroids)
				if err := cfg.OnLevel(cfg.Resume); err != nil {
					return nil, fmt.Errorf("build codebook: level %d: %w", level, err)
				}
			}
		}
		cb.centroids = append(cb.centroids, centroids...)
		for i, c := range assign {
			cb.ids[i*cfg.Levels+level] = uint16(c)
			row, centroid := residual[i*dim:(i+1)*dim], centroids[int(c)*dim:]
			for j := range row {
				row[j] -= centroid[j]
			}
		}
		for i, at := range was { // an item that has another code has another residual
			if at != noRow && cfg.Warm.ID(at)[level] != uint16(assign[i]) {
				was[i] = noRow
			}
		}
		group, groups = refine(group, assign)
	}
	return cb, cb.reindex()
}

// limitAt is how many items that share all codes before a level may share its code too:
// one at the last level, before it half of the IDs that are left below the code. With
// half the room to spare, balanced clusters can always keep to it.
func limitAt(level, levels, k int) int {
	if level == levels-1 {
		return 1
	}
	below := 1
	for range levels - 1 - level {
		if below *= k; below > math.MaxInt32 {
			return math.MaxInt32
		}
	}
	return below/2 + 1
}

// capacity is how many items a build takes: k*k with two levels, beyond that half of all
// IDs, or k*k if that is more.
func capacity(levels, k int) int {
	all := k * k
	for range levels - 2 {
		if all *= k; all > math.MaxInt32 {
			return math.MaxInt32
		}
	}
	return max(k*k, all/2)
}

func leastCodes(levels, n int) int {
	k := 1
	for capacity(levels, k) < n {
		k++
	}
	return k
}

// Partial holds the levels that a build has finished.
type Partial struct {
	Assign    [][]int32   // by level: each item's code
	Centroids [][]float32 // by level: codes x dim
}

func (p *Partial) levels() int {
	if p == nil {
		return 0
	}
	return min(len(p.Assign), len(p.Centroids))
}

func (p *Partial) level(l int) ([]int32, []float32) { return p.Assign[l], p.Centroids[l] }

func (p *Partial) with(assign []int32, centroids []float32) *Partial {
	q := new(Partial)
	if p != nil {
		*q = *p
	}
	q.Assign, q.Centroids = append(q.Assign, assign), append(q.Centroids, centroids)
	return q
}

func check(items []string, x []float32, dim int, cfg Config) error {
	switch {
	case len(items) == 0:
		return errors.New("there are no items")
	case cfg.Levels < 2 || cfg.Levels > MaxLevels:
		return fmt.Errorf("levels is %d, allowed is 2 to %d", cfg.Levels, MaxLevels)
	case cfg.Codes < 0 || cfg.Codes > MaxCodes:
		return fmt.Errorf("codes is %d, allowed is 1 to %d, or 0 to choose", cfg.Codes, MaxCodes)
	case !(cfg.Headroom >= 0 && cfg.Headroom <= MaxHeadroom):
		return fmt.Errorf("headroom is %v, allowed is 0 to %d", cfg.Headroom, MaxHeadroom)
	case dim <= 0 || len(x) != len(items)*dim:
		return fmt.Errorf("%d items of width %d need %d floats, there are %d", len(items), dim, len(items)*dim, len(x))
	}
	for i, v := range x {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return fmt.Errorf("the embedding of item %q holds %v at %d", items[i/dim], v, i%dim)
		}
	}
	return nil
}

// reindex builds the maps and checks that items and IDs are unique.
func (c *Codebook) reindex() error {
	c.index = make(map[string]int32, len(c.items))
	c.taken = make(map[string]bool, len(c.items))
	for i, item := range c.items {
		if other, dup := c.index[item]; dup {
			return fmt.Errorf("codebook: item %q stands at %d and at %d", item, other, i)
		}
		c.index[item] = int32(i)
		key := idKey(c.ID(int32(i)))
		if c.taken[key] {
			return fmt.Errorf("codebook: ID %v belongs to item %q and to another", c.ID(int32(i)), item)
		}
		c.taken[key] = true
	}
	return nil
}

func idKey(id []uint16) string {
	b := make([]byte, 0, 2*len(id))
	for _, c := range id {
		b = binary.BigEndian.AppendUint16(b, c)
	}
	return string(b)
}

// Kept compares a codebook with the one that it replaced: of the items in both, the share
// that has the same code at each level, and at the end the share with the same ID.
func (c *Codebook) Kept(old *Codebook) []float64 {
	shares := make([]float64, min(c.levels, old.levels)+1)
	common := 0
	for i, item := range c.items {
		at, ok := old.index[item]
		if !ok {
			continue
		}
		common++
		is, was := c.ID(int32(i)), old.ID(at)
		for l := range len(shares) - 1 {
			if is[l] == was[l] {
				shares[l]++
			}
		}
		if slices.Equal(is, was) {
			shares[len(shares)-1]++
		}
	}
	for l := range shares {
		shares[l] /= float64(max(common, 1))
	}
	return shares
}

// Price is what unique IDs cost at a level.
type Price struct {
	Moved  int     // items that had to get another code than their cluster's
	Before float64 // distortion, had they not
	After  float64
}

// Price returns what unique IDs cost at each level that Build made; none for a codebook
// that was read, or for levels that were resumed after.
func (c *Codebook) Price() []Price { return slices.Clone(c.price) }

// Levels is L, the number of codes of an ID.
func (c *Codebook) Levels() int { return c.levels }

// Codes is K, the number of values of a code.
func (c *Codebook) Codes() int { return c.codes }

// Dim is the width of the embeddings.
func (c *Codebook) Dim() int { return c.dim }

// Len is the number of items.
func (c *Codebook) Len() int { return len(c.items) }

// Item returns the item at an index below Len.
func (c *Codebook) Item(i int32) string { return c.items[i] }

// Index returns an item's index.
func (c *Codebook) Index(item string) (int32, bool) {
	i, ok := c.index[item]
	return i, ok
}

// ID returns the codes of the item at index i. The caller must not change them.
func (c *Codebook) ID(i int32) []uint16 {
	return c.ids[int(i)*c.levels : (int(i)+1)*c.levels]
}

// ErrFull says that a codebook has no ID left.
var ErrFull = errors.New("the codebook is full")

// Assign adds an item: at each level the nearest centroid whose subtree has
// room, at the last the nearest free code; nearest says whether that was the ID it would
// have if all were free. The embedding x has the codebook's width.
func (c *Codebook) Assign(item string, x []float32) (nearest bool, err error) {
	if _, ok := c.index[item]; ok {
		return false, fmt.Errorf("assign %q: the item has an ID already", item)
	}
	if len(x) != c.dim {
		return false, fmt.Errorf("assign %q: the embedding has width %d, the codebook %d", item, len(x), c.dim)
	}
	id := c.freePath(nil, slices.Clone(x))
	if id == nil {
		return false, fmt.Errorf("assign %q: %w: all %d codes of every path are taken; rebuild the codebook", item, ErrFull, c.codes)
	}
	c.index[item] = int32(len(c.items))
	c.items = append(c.items, item)
	c.ids = append(c.ids, id...)
	c.taken[idKey(id)] = true
	return slices.Equal(id, c.nearest(x)), nil
}

func (c *Codebook) freePath(prefix []uint16, residual []float32) []uint16 {
	level := len(prefix)
	dist := make([]float32, c.codes)
	centroid := func(k int32) []float32 {
		at := (level*c.codes + int(k)) * c.dim
		return c.centroids[at : at+c.dim]
	}
	for k := range dist {
		dist[k] = float32(squaredDistance(residual, centroid(int32(k))))
	}
	for _, k := range nearestFirst(0, dist, c.codes, nil) {
		id := append(slices.Clone(prefix), uint16(k))
		if level == c.levels-1 {
			if !c.taken[idKey(id)] {
				return id
			}
			continue
		}
		rest := slices.Clone(residual)
		for j, v := range centroid(k) {
			rest[j] -= v
		}
		if id = c.freePath(id, rest); id != nil {
			return id
		}
	}
	return nil
}

// nearestFirst returns the clusters that ok accepts in order of row i's distance.
func nearestFirst(i int32, dist []float32, k int, ok func(int32) bool) []int32 {
	row := dist[int(i)*k : (int(i)+1)*k]
	order := make([]int32, 0, k)
	for c := range int32(k) {
		if ok == nil || ok(c) {
			order = append(order, c)
		}
	}
	slices.SortStableFunc(order, func(a, b int32) int {
		switch {
		case row[a] < row[b]:
			return -1
		case row[a] > row[b]:
			return 1
		}
		return 0
	})
	return order
}

// Version is a hash of the content: two codebooks with the same version give
// every item the same ID.
func (c *Codebook) Version() string {
	h := sha256.New()
	_ = binary.Write(h, binary.LittleEndian, []int64{int64(c.levels), int64(c.codes), int64(c.dim)}) // a hash never fails
	_ = binary.Write(h, binary.LittleEndian, c.centroids)
	_ = binary.Write(h, binary.LittleEndian, c.ids)
	for _, item := range c.items {
		fmt.Fprintf(h, "%d:%s", len(item), item)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Extends reports whether c is old, or old with more items assigned.
func (c *Codebook) Extends(old *Codebook) bool {
	return c.levels == old.levels && c.codes == old.codes && len(c.items) >= len(old.items) &&
		slices.Equal(c.centroids, old.centroids) &&
		slices.Equal(c.items[:len(old.items)], old.items) && slices.Equal(c.ids[:len(old.ids)], old.ids)
}

// Clone returns a copy that shares nothing that Assign changes.
func (c *Codebook) Clone() *Codebook {
	d := *c
	d.items, d.ids = slices.Clone(c.items), slices.Clone(c.ids)
	d.index, d.taken = maps.Clone(c.index), maps.Clone(c.taken)
	return &d
}

type itemRow struct {
	Item string  `parquet:"item_id"`
	ID   []int32 `parquet:"semantic_id,list"`
}

type centroidRow struct {
	Level    int32     `parquet:"level"`
	Code     int32     `parquet:"code"`
	Centroid []float32 `parquet:"centroid,list"`
}

// WriteItems writes the item table as Parquet: item_id, semantic_id.
func (c *Codebook) WriteItems(w io.Writer) error {
	rows := make([]itemRow, len(c.items))
	for i, item := range c.items {
		rows[i].Item = item
		for _, code := range c.ID(int32(i)) {
			rows[i].ID = append(rows[i].ID, int32(code))
		}
	}
	return writeParquet(w, rows)
}

// WriteJSON writes the item table as lines of JSON: item_id, semantic_id.
func (c *Codebook) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	for i, item := range c.items {
		if err := enc.Encode(struct {
			Item string   `json:"item_id"`
			ID   []uint16 `json:"semantic_id"`
		}{item, c.ID(int32(i))}); err != nil {
			return fmt.Errorf("write codebook: %w", err)
		}
	}
	return nil
}

// WriteCentroids writes the codebook proper as Parquet: level, code, centroid.
func (c *Codebook) WriteCentroids(w io.Writer) error {
	rows := make([]centroidRow, 0, c.levels*c.codes)
	for l := range c.levels {
		for k := range c.codes {
			at := (l*c.codes + k) * c.dim
			rows = append(rows, centroidRow{int32(l), int32(k), c.centroids[at : at+c.dim]})
		}
	}
	return writeParquet(w, rows)
}

func writeParquet[T any](w io.Writer, rows []T) error {
	pw := parquet.NewGenericWriter[T](w, parquet.Compression(&parquet.Zstd))
	if _, err := pw.Write(rows); err != nil {
		return fmt.Errorf("write codebook: %w", err)
	}
	if err := pw.Close(); err != nil {
		return fmt.Errorf("write codebook: %w", err)
	}
	return nil
}

func readParquet[T any](data []byte) (rows []T, err error) {
	defer func() { // parquet-go panics on some malformed files
		if p := recover(); p != nil {
			err = fmt.Errorf("malformed Parquet: %v", p)
		}
	}()
	in := bytes.NewReader(data)
	if err := checkParquet(in, int64(len(data))); err != nil {
		return nil, err
	}
	return parquet.Read[T](in, int64(len(data)))
}

// Read reads what WriteItems and WriteCentroids wrote.
func Read(items, centroids []byte) (*Codebook, error) {
	cents, err := readParquet[centroidRow](centroids)
	if err != nil {
		return nil, fmt.Errorf("read codebook: %w", err)
	}
	rows, err := readParquet[itemRow](items)
	if err != nil {
		return nil, fmt.Errorf("read codebook's items: %w", err)
	}
	if len(cents) == 0 || len(rows) == 0 {
		return nil, errors.New("read codebook: it is empty")
	}
	last := cents[len(cents)-1]
	c := &Codebook{levels: int(last.Level) + 1, codes: int(last.Code) + 1, dim: len(last.Centroid)}
	if c.levels < 1 || c.levels > MaxLevels || c.codes < 1 || c.codes > MaxCodes || len(cents) != c.levels*c.codes {
		return nil, fmt.Errorf("read codebook: %d centroids do not make %d levels of %d codes", len(cents), c.levels, c.codes)
	}
	for i, r := range cents {
		if int(r.Level) != i/c.codes || int(r.Code) != i%c.codes || len(r.Centroid) != c.dim {
			return nil, fmt.Errorf("read codebook: row %d is level %d code %d width %d", i, r.Level, r.Code, len(r.Centroid))
		}
		c.centroids = append(c.centroids, r.Centroid...)
	}
	for _, r := range rows {
		if len(r.ID) != c.levels {
			return nil, fmt.Errorf("read codebook: item %q has %d codes, want %d", r.Item, len(r.ID), c.levels)
		}
		c.items = append(c.items, r.Item)
		for _, code := range r.ID {
			if code < 0 || int(code) >= c.codes {
				return nil, fmt.Errorf("read codebook: item %q has code %d of %d", r.Item, code, c.codes)
			}
			c.ids = append(c.ids, uint16(code))
		}
	}
	return c, c.reindex()
}
