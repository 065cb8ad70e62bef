package buckets

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"gocloud.dev/blob"
	_ "gocloud.dev/blob/memblob"

	"onerec/internal/faultybucket"
)

// TestCreate: of many writers over several opened buckets, as processes have, one wins, and the object is that
// one's.
func TestCreate(t *testing.T) {
	dir := t.TempDir()
	for round := range 50 {
		key := fmt.Sprintf("log/%03d.json", round)
		var won atomic.Int32
		var winner atomic.Int32
		var wg sync.WaitGroup
		for i := range 8 {
			b, err := Open(t.Context(), dir)
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				switch err := b.Create(context.Background(), key, fmt.Append(nil, i)); {
				case err == nil:
					won.Add(1)
					winner.Store(int32(i))
				case !errors.Is(err, ErrExists):
					t.Error(err)
				}
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		got, err := os.ReadFile(filepath.Join(dir, key))
		if err != nil || won.Load() != 1 || string(got) != fmt.Sprint(winner.Load()) {
			t.Fatalf("%d won, the object is %q of %d, %v", won.Load(), got, winner.Load(), err)
		}
	}
	left, err := os.ReadDir(filepath.Join(dir, "log"))
	if err != nil || len(left) != 50 {
		t.Errorf("%d files, %v", len(left), err)
	}
}

// TestCheckCreate: stores that let several writers create an object are found out, and nothing is left in any.
func TestCheckCreate(t *testing.T) {
	const rounds = 50
	for _, kind := range []struct {
		condition   faultybucket.Condition
		least, most int // times that it is found out
	}{
		{faultybucket.Kept, 0, 0},
		{faultybucket.LooksFirst, 1, rounds}, // a race, which one may win
		{faultybucket.Ignored, rounds, rounds},
	} {
		store := faultybucket.New()
		store.Condition = kind.condition
		b := &Bucket{Bucket: store.Open(), URL: "mem://"}
		found := 0
		for range rounds {
			if err := b.CheckCreate(t.Context()); errors.Is(err, ErrNoCreate) {
				found++
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if found < kind.least || found > kind.most || len(store.Objects) != 0 {
			t.Errorf("condition %v: found out %d times, %d objects are left", kind.condition, found, len(store.Objects))
		}
	}
	// What can't be found out is another error.
	store := faultybucket.New()
	b := &Bucket{Bucket: store.Open(), URL: "mem://"}
	store.Fault = func(int, string) faultybucket.Outcome { return faultybucket.Fails }
	if err := b.CheckCreate(t.Context()); err == nil || errors.Is(err, ErrNoCreate) {
		t.Errorf("a store that fails: %v", err)
	}
}

// TestOpen: other stores take the driver's conditional write; unknown ones are refused.
func TestOpen(t *testing.T) {
	b, err := Open(t.Context(), "mem://")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Create(t.Context(), "a", []byte("1")); err != nil {
		t.Fatal(err)
	}
	if err := b.Create(t.Context(), "a", []byte("2")); !errors.Is(err, ErrExists) {
		t.Errorf("error %v", err)
	}
	if err := errors.Join(b.Sync("a"), b.Close()); err != nil {
		t.Error(err)
	}
	if _, err := Open(t.Context(), "nothing://x"); err == nil {
		t.Error("an unknown scheme was opened")
	}
	local, err := Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(local.WriteAll(t.Context(), "d/x", nil, &blob.WriterOptions{}), local.Sync("d/x")); err != nil {
		t.Error(err)
	}
	if err := local.Sync("gone"); err == nil {
		t.Error("synced what is not there")
	}
}
