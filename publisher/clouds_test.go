package publisher

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"onerec/internal/cloudtest"
)

// TestClouds: against object stores' servers that we did not write, sound and in trouble. What Publish says
// is published loads, what it does not say never loads as something else, and a collection leaves nothing
// behind.
func TestClouds(t *testing.T) { cloudtest.Each(t, testCloud) }

func testCloud(t *testing.T, server *cloudtest.Server) {
	bucket := func(server *cloudtest.Server, prefix string) *Store {
		s, err := Open(t.Context(), server.URL(t, prefix), Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	files := func(i int) map[string][]byte {
		big := make([]byte, 6<<20) // more than one part of an upload
		for j := range big {
			big[j] = byte(i + j*j)
		}
		return map[string][]byte{"big": big, "small": fmt.Append(nil, i), "empty": nil}
	}
	check := func(t *testing.T, s *Store, m *Manifest, hash string, i int) {
		t.Helper()
		_, got, err := s.Load(t.Context(), m.Version, hash)
		if err != nil {
			t.Errorf("%s does not load: %v", m.Version, err)
			return
		}
		for name, want := range files(i) {
			if string(got[name]) != string(want) {
				t.Errorf("%s of %s differs", name, m.Version)
			}
		}
	}

	t.Run("sound", func(t *testing.T) {
		s := bucket(server, "sound/")
		if err := s.CheckCreate(t.Context()); err != nil {
			t.Errorf("is the server safe for two writers: %v", err)
		}
		for i := range 3 {
			m := &Manifest{Model: "m"}
			hash, err := s.Publish(t.Context(), m, files(i))
			if err != nil {
				t.Fatal(err)
			}
			check(t, s, m, hash, i)
		}
		if _, _, err := s.Load(t.Context(), "000009-aa", ""); !errors.Is(err, ErrNotFound) {
			t.Errorf("a version that is not there: %v", err)
		}
		c, err := s.Collect(t.Context(), GC{Keep: 1}, time.Now().Add(time.Minute))
		if err != nil || len(c.Versions) != 2 {
			t.Fatalf("%+v, %v", c, err)
		}
		// Several writers: conditional writes share the numbers out.
		done := make(chan error, 4)
		for i := range 4 {
			go func() {
				_, err := s.Publish(context.WithoutCancel(t.Context()), &Manifest{Model: "m"}, map[string][]byte{"a": fmt.Append(nil, "writer ", i)})
				done <- err
			}()
		}
		for range 4 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		versions, err := s.List(t.Context())
		if err != nil || len(versions) != 5 {
			t.Fatalf("%v, %v", versions, err)
		}
		for i, v := range versions {
			if n, _ := sequence(v); n != 3+i {
				t.Errorf("numbers of %v", versions)
			}
		}
	})

	t.Run("in trouble", func(t *testing.T) {
		var share atomic.Int64
		s := bucket(server.Troubled(t, &share, 1), "trouble/")
		published, failed := 0, 0
		for i := range 6 {
			share.Store([]int64{5, 50, 95}[i%3])
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			m := &Manifest{Model: "m"}
			hash, err := s.Publish(ctx, m, files(i))
			cancel()
			share.Store(0)
			if err != nil {
				failed++
			} else {
				published++
				check(t, s, m, hash, i)
			}
			versions, err := s.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range versions {
				if _, _, err := s.Load(t.Context(), v, ""); err != nil {
					t.Errorf("%s is there and does not load: %v", v, err)
				}
			}
		}
		t.Logf("%d published, %d failed", published, failed)
		if published == 0 || failed == 0 {
			t.Errorf("%d published, %d failed: the trouble is none, or too much", published, failed)
		}
		last := &Manifest{Model: "m"}
		hash, err := s.Publish(t.Context(), last, files(99))
		if err != nil {
			t.Fatalf("after the trouble: %v", err)
		}
		check(t, s, last, hash, 99)
		if _, err := s.Collect(t.Context(), GC{Keep: 1}, time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		folders, err := s.folders(t.Context())
		if err != nil || len(folders) != 1 || len(folders[last.Version]) != 4 {
			t.Errorf("after the collection: %v, %v", folders, err)
		}
	})
}
