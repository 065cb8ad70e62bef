package snapshots

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	_ "gocloud.dev/blob/s3blob"

	"onerec/internal/s3test"
	"onerec/schemas"
)

// TestS3: on an S3 server that we did not write, behind a proxy that is slow, answers 500 and hangs up before or after
// a request had its effect, owners come and go; in the end every session is there once, and compacting leaves them so.
func TestS3(t *testing.T) {
	address := s3test.Start(t, "snapshots")
	t.Setenv("AWS_ACCESS_KEY_ID", "test")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "test")
	var share atomic.Int64
	store := func(endpoint string) *Store {
		s, err := Open(t.Context(), fmt.Sprintf("s3://snapshots?region=us-east-1&use_path_style=true&endpoint=%s", endpoint))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	troubled, sound := store(s3test.Troubled(t, address, &share, 3)), store(address)
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
	// Two owners at once: S3's conditional puts let the newer one alone commit.
	old, newer := newWriter(t, sound), newWriter(t, sound)
	if err := old.feed(t, 240, 250); !errors.Is(err, errFenced) {
		t.Errorf("the older owner: %v", err)
	}
	if err := newer.feed(t, 240, 260); err != nil {
		t.Error(err)
	}
	t.Logf("%d flushes, %d failed", flushes, failed)
}
