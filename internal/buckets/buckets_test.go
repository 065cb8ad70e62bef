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
