package semanticid

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// FuzzRead: no files make the reader of codebooks panic or break what it promises.
func FuzzRead(f *testing.F) {
	cb, err := Build(f.Context(), items(20), clustered(rand.New(rand.NewPCG(1, 1)), 20, 3, 4), 3, Config{Levels: 2, Codes: 6, Seed: 1})
	if err != nil {
		f.Fatal(err)
	}
	var a, b bytes.Buffer
	if err := cb.WriteItems(&a); err != nil {
		f.Fatal(err)
	}
	if err := cb.WriteCentroids(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(a.Bytes(), b.Bytes())
	f.Fuzz(func(t *testing.T, items, centroids []byte) {
		cb, err := Read(items, centroids)
		if err != nil {
			return
		}
		for i := range int32(cb.Len()) {
			if at, ok := cb.Index(cb.Item(i)); !ok || at != i || len(cb.ID(i)) != cb.Levels() {
				t.Fatalf("item %d of a codebook that was read has no place", i)
			}
			for _, c := range cb.ID(i) {
				if int(c) >= cb.Codes() {
					t.Fatalf("item %d has code %d of %d", i, c, cb.Codes())
				}
			}
		}
		NewTrie(cb)
	})
}
