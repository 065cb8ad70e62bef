package semanticid

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"onerec/schemas/onerecv1"
)

// TestCatalogue: the newest record of an item counts, and what is wrong with one is said
// and costs nobody else anything.
func TestCatalogue(t *testing.T) {
	c := &Catalogue{MaxItems: 4}
	nan := float32(0)
	nan /= nan
	for _, item := range []*onerecv1.Item{
		{ItemId: "a", Embedding: []float32{1, 2}, Attributes: []string{"x", " ", "y"}},
		{ItemId: "b"},
		{ItemId: "c", Embedding: []float32{1, 3}},
		{ItemId: "a", Embedding: []float32{3, 4}, Attributes: []string{"z", ""}},
	} {
		c.Put(item)
	}
	if c.Refused != 0 || c.Len() != 3 || fmt.Sprint(c.Attributes("a")) != "[z]" {
		t.Errorf("%d items, %d refused (%s), attributes %v", c.Len(), c.Refused, c.Why, c.Attributes("a"))
	}
	for why, item := range map[string]*onerecv1.Item{
		"the id has 0 bytes": {},
		"the id has 300":     {ItemId: strings.Repeat("x", 300)},
		"has width 3":        {ItemId: "d", Embedding: []float32{1, 2, 3}},
		"holds NaN at 1":     {ItemId: "d", Embedding: []float32{1, nan}},
		"is all zeros":       {ItemId: "d", Embedding: []float32{0, 0}},
	} {
		before := c.Refused
		if c.Put(item); c.Refused != before+1 || !strings.Contains(c.Why, why) {
			t.Errorf("want %q, got %q", why, c.Why)
		}
	}
	c.Put(&onerecv1.Item{ItemId: "e"})
	if !strings.Contains(c.Why, "as many as are allowed") {
		t.Errorf("a fifth item of four: %q", c.Why)
	}
	c.Remove("c")
	if e := c.Embeddings(); fmt.Sprint(e.Items, e.X) != "[a] [3 4]" {
		t.Errorf("embeddings of %v: %v", e.Items, e.X)
	}
	for i := range 100 { // what comes and goes takes no room
		c.Put(&onerecv1.Item{ItemId: fmt.Sprint("passing", i)})
		c.Remove(fmt.Sprint("passing", i))
	}
	n := 0
	for range c.All {
		n++
	}
	if n != 3 || len(c.order) > 2*c.MaxItems {
		t.Errorf("%d items, %d remembered", n, len(c.order))
	}
}

// TestBuildIn: a build that was stopped goes on after its last level, to the same codebook;
// another input begins anew; a damaged file is named.
func TestBuildIn(t *testing.T) {
	const n, dim = 400, 8
	dir := t.TempDir()
	x := clustered(rand.New(rand.NewPCG(3, 3)), n, dim, 20)
	cfg := Config{Levels: 3, Codes: 24, Seed: 5}
	want, err := Build(t.Context(), items(n), x, dim, cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop := func(after int) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		cfg := cfg
		level := 0
		cfg.OnLevel = func(*Partial) error {
			if level++; level == after {
				cancel()
			}
			return nil
		}
		if _, _, err := BuildIn(ctx, dir, items(n), x, dim, cfg); !errors.Is(err, context.Canceled) {
			t.Fatalf("stopped after level %d: %v", after, err)
		}
	}
	stop(2)
	other := cfg
	other.Seed = 6
	if _, began, err := BuildIn(t.Context(), t.TempDir(), items(n), x, dim, other); err != nil || began != 0 {
		t.Errorf("another folder: began with %d levels, %v", began, err)
	}
	got, began, err := BuildIn(t.Context(), dir, items(n), x, dim, cfg)
	if err != nil || began != 2 || got.Version() != want.Version() {
		t.Errorf("began with %d levels, want 2; %v", began, err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
	stop(1)
	if _, began, err := BuildIn(t.Context(), dir, items(n), x, dim, other); err != nil || began != 0 {
		t.Errorf("another seed: began with %d levels, %v", began, err)
	}
	if err := os.WriteFile(filepath.Join(dir, partialFile), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := BuildIn(t.Context(), dir, items(n), x, dim, cfg); err == nil || !strings.Contains(err.Error(), "remove it to begin anew") {
		t.Errorf("a damaged file: %v", err)
	}
}

// TestNeighbours: those with most first codes in common come first.
func TestNeighbours(t *testing.T) {
	cb := &Codebook{levels: 3, codes: 4, items: items(6), ids: []uint16{1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 2, 1, 3, 3, 0, 1, 1}}
	if got := fmt.Sprint(cb.Neighbours(0, 2), cb.Neighbours(0, 9), cb.Neighbours(1, 9)); got != "[{3 2} {2 1}] [{3 2} {2 1} {4 1}] []" {
		t.Error(got)
	}
}
