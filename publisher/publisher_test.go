package publisher

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestPublishAndLoad(t *testing.T) {
	ctx := context.Background()
	s, err := Open(ctx, t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	files := map[string][]byte{"a": []byte("hello"), "b": {0, 1, 2}}
	m := &Manifest{Model: "default", Kind: KindBase, Metrics: map[string]float64{"loss": 1.5}}
	hash, err := s.Publish(ctx, m, files)
	if err != nil {
		t.Fatal(err)
	}
	m2 := &Manifest{Model: "default", Kind: KindAligned, Parent: m.Version}
	if _, err := s.Publish(ctx, m2, files); err != nil {
		t.Fatal(err)
	}
	if v, err := s.List(ctx); err != nil || len(v) != 2 || v[0] != m.Version || v[1] != m2.Version {
		t.Fatalf("versions %v, %v", v, err)
	}
	if _, some, err := s.Load(ctx, m.Version, hash, "b"); err != nil || len(some) != 1 || len(some["b"]) != 3 {
		t.Errorf("one file alone: %v, %v", some, err)
	}
	if _, _, err := s.Load(ctx, m.Version, hash, "a", "c"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a file that it has not: %v", err)
	}
	got, data, err := s.Load(ctx, m.Version, hash)
	if err != nil || string(data["a"]) != "hello" || got.Metrics["loss"] != 1.5 {
		t.Fatalf("loaded %+v, %v", got, err)
	}
}

// TestEveryFlippedByteIsRefused: change any byte of any file, shorten or remove
// it, and nobody loads the version.
func TestEveryFlippedByteIsRefused(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	s, err := Open(ctx, dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	m := &Manifest{Model: "default", Kind: KindBase}
	hash, err := s.Publish(ctx, m, map[string][]byte{"weights": []byte("some weights")})
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, want error) {
		t.Helper()
		if _, _, err := s.Load(ctx, m.Version, hash); !errors.Is(err, want) {
			t.Errorf("%s: error %v, want %v", what, err, want)
		}
	}
	for _, name := range []string{"weights", "manifest.json"} {
		path := filepath.Join(dir, "versions", m.Version, name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range good {
			bad := append([]byte(nil), good...)
			bad[i] ^= 4
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			refused(name, ErrCorrupt)
		}
		if err := os.WriteFile(path, good[:len(good)-1], 0o600); err != nil {
			t.Fatal(err)
		}
		refused(name+" truncated", ErrCorrupt)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		refused(name+" removed", ErrNotFound)
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := s.Load(ctx, m.Version, hash); err != nil {
		t.Fatalf("restored, it should load: %v", err)
	}
	if _, _, err := s.Load(ctx, "../"+m.Version, hash); err == nil {
		t.Error("a path outside the bucket was read")
	}
}

// TestTornUpload: files without a manifest are no version, and the next publish
// works.
func TestTornUpload(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	s, err := Open(ctx, dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	torn := filepath.Join(dir, "versions", "000001-deadbeef")
	if err := os.MkdirAll(torn, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(torn, "decoder.safetensors"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if v, err := s.List(ctx); err != nil || len(v) != 0 {
		t.Fatalf("versions %v, %v", v, err)
	}
	if _, err := s.Publish(ctx, &Manifest{Model: "default", Kind: KindBase}, map[string][]byte{"a": nil}); err != nil {
		t.Fatal(err)
	}
}
