package snapshots

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"onerec/internal/cloudtest"
	"onerec/schemas"
)

// TestClouds: on object stores' servers that we did not write, behind a proxy that is slow, answers 500 and hangs up
// before or after a request had its effect, owners come and go; in the end every session is there once, and compacting
// leaves them so.
func TestClouds(t *testing.T) { cloudtest.Each(t, testCloud) }

func testCloud(t *testing.T, server *cloudtest.Server) {
	var share atomic.Int64
	store := func(server *cloudtest.Server) *Store {
		s, err := Open(t.Context(), server.URL(t, ""))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	troubled, sound := store(server.Troubled(t, &share, 3)), store(server)
	tp := topicPartition{schemas.TopicJudgedSessions, 1}
	failed, flushes, next := 0, 0, 0
	for next < 240 {
		share.Store(0)
		w := newWriter(t, troubled)
		p := w.parts[tp]
		if at := int(max(p.committed, 0)); at != next && at != next+20 {
			t.Fatalf("the table goes on at %d, %d was the last that is known", at, next)
		} else {
			next = at // a flush may have worked without its answer
		}
		for err := error(nil); err == nil && next < 240; flushes++ {
			share.Store([]int64{20, 60, 95}[flushes%3])
			for i := range 20 {
				if err := w.add(tp, p, record(t, next+i)); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			if err = w.flush(ctx, tp); err == nil {
				next += 20
			} else {
				failed++
			}
			cancel()
		}
	}
	share.Store(0)
	if failed < 2 {
		t.Errorf("%d of %d flushes failed: the trouble is none", failed, flushes)
	}
	check := func() {
		t.Helper()
		v, err := sound.Verify(t.Context(), TableSessions, Range{}, nil)
		if err != nil || v.Rows != 240 || len(v.Faults) != 0 {
			t.Errorf("%+v, %v", v, err)
		}
	}
	check()
	done, err := sound.Maintain(t.Context(), TableSessions, Maintenance{Size: 1 << 20, Now: time.Now().Add(time.Minute)})
	if err != nil || done.Into == 0 {
		t.Errorf("%+v, %v", done, err)
	}
	check()
	if _, err := sound.Maintain(t.Context(), TableSessions, Maintenance{Size: 1 << 20, Now: time.Now().Add(2 * time.Minute)}); err != nil {
		t.Error(err)
	}
	if v, err := sound.Verify(t.Context(), TableSessions, Range{}, nil); err != nil || v.Loose != 0 {
		t.Errorf("%+v, %v", v, err)
	}
	// Two owners at once: conditional writes let the newer one alone commit.
	old, newer := newWriter(t, sound), newWriter(t, sound)
	if err := old.feed(t, 240, 250); !errors.Is(err, errFenced) {
		t.Errorf("the older owner: %v", err)
	}
	if err := newer.feed(t, 240, 260); err != nil {
		t.Error(err)
	}
	t.Logf("%d flushes, %d failed", flushes, failed)
}
