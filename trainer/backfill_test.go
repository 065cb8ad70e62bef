package trainer

import (
	"bytes"
	"context"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/schemas"
	"onerec/schemas/onerecv1"
	"onerec/snapshots"
)

// judge produces sessions as the filters do: all to sessions.judged, the good ones, of the same partition and in
// the same order, to sessions.good. Every fifth is not good.
func (w *world) judge(sessions []*onerecv1.Session) (good int) {
	w.t.Helper()
	produce := func(topic string, s *onerecv1.Session, m proto.Message) {
		value, err := proto.Marshal(m)
		if err != nil {
			w.t.Fatal(err)
		}
		if err := w.client.ProduceSync(w.t.Context(), &kgo.Record{Topic: topic, Key: []byte(s.UserId), Value: value}).FirstErr(); err != nil {
			w.t.Fatal(err)
		}
	}
	for i, s := range sessions {
		ok := i%5 != 4
		produce(schemas.TopicJudgedSessions, s, &onerecv1.JudgedSession{Session: s, Verdict: &onerecv1.Verdict{Good: ok}})
		if ok {
			produce(schemas.TopicGoodSessions, s, &onerecv1.GoodSession{Session: s})
			good++
		}
	}
	return good
}

// snapshot writes what is on sessions.judged.
func (w *world) snapshot(store *snapshots.Store) {
	w.t.Helper()
	s := &snapshots.Service{Cluster: w.cluster, Store: store, Size: 1 << 20, Memory: 1 << 20, MaxAge: time.Hour, Once: true, Log: slog.New(slog.DiscardHandler), OnReady: func() {}}
	if err := s.Run(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// TestBackfill: a new model learns the snapshots, then the stream behind them, every session once, and ends with
// the same bits however often it is killed on the way.
func TestBackfill(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	dir := t.TempDir()
	store, err := snapshots.Open(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	sessions := testSessions(240, 8)
	good := w.judge(sessions[:180])
	w.snapshot(store)
	good += w.judge(sessions[180:]) // only the stream has these

	const forever = 1 << 30
	run := func(model string, steps int) (*Candidate, error) {
		killed, kill := context.WithCancel(ctx)
		defer kill()
		s := w.service(true)
		s.Model, s.PublishSteps, s.Backfill = model, 5, &Backfill{Store: store}
		s.Progress = func(stage, _ string, _, _ int) {
			if steps--; steps <= 0 && stage == "train the decoder" {
				kill()
			}
		}
		return s.Run(killed)
	}
	whole, err := run("whole", forever)
	if err != nil {
		t.Fatal(err)
	}
	if whole.Stats.Sessions != good {
		t.Fatalf("learned %d sessions, want %d", whole.Stats.Sessions, good)
	}
	back := backfillFrom(whole.Manifest)
	if back == nil || back.seen != 144 || len(back.end) != 2 || len(back.of) != 2 {
		t.Fatalf("the manifest says of the backfill %+v", back)
	}

	rng := rand.New(rand.NewPCG(1, 2))
	var last *Candidate
	kills, inBackfill := 0, 0
	for last == nil || last.Stats.Sessions < good {
		c, err := run("killed", 5+rng.IntN(25))
		if err != nil {
			t.Fatal(err)
		}
		if kills++; kills > 200 {
			t.Fatal("it never ends")
		}
		if c != nil {
			if last = c; backfillFrom(c.Manifest).end == nil {
				inBackfill++
			}
		}
	}
	if kills < 5 || inBackfill < 2 {
		t.Fatalf("only %d runs, %d of which ended within the snapshots: the test shows nothing", kills, inBackfill)
	}
	if last.Stats.Steps != whole.Stats.Steps || last.Stats.Sessions != whole.Stats.Sessions {
		t.Fatalf("%d kills: %+v, want %+v", kills, last.Stats, whole.Stats)
	}
	files := func(c *Candidate) map[string][]byte {
		_, files, err := w.store.Load(ctx, c.Manifest.Version, c.Hash)
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	a, b := files(whole), files(last)
	for _, name := range []string{"decoder.safetensors"} {
		if !bytes.Equal(a[name], b[name]) {
			t.Errorf("%s is another after %d kills", name, kills)
		}
	}

	// Without the snapshots a part of which is learned there is no going on; a model that began without them
	// does not begin to use them.
	if _, err := run("half", 60); err != nil {
		t.Fatal(err)
	}
	s := w.service(true)
	s.Model = "half"
	if _, err := s.Run(ctx); err == nil || !strings.Contains(err.Error(), "--from-snapshots") {
		t.Errorf("error %v", err)
	}

	// A damaged file ends the training, or is left out, as told.
	if err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".parquet") {
			return err
		}
		if err := os.Truncate(path, 100); err != nil {
			return err
		}
		return fs.SkipAll
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := run("damaged", forever); err == nil || !strings.Contains(err.Error(), "--skip-damaged") || !strings.Contains(err.Error(), "date=") {
		t.Errorf("error %v", err)
	}
	s = w.service(true)
	s.Model, s.Backfill = "damaged", &Backfill{Store: store, SkipDamaged: true}
	if c, err := s.Run(ctx); err != nil || c.Stats.Sessions < 60 || c.Stats.Sessions > good {
		t.Errorf("without the damaged file: %+v, %v", c, err)
	}
}

// TestBackfillSince: older days are learned neither from the snapshots nor from the stream.
func TestBackfillSince(t *testing.T) {
	w := newWorld(t)
	store, err := snapshots.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	s := w.service(true)
	s.Backfill = &Backfill{Store: store}
	if _, err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "no snapshots") {
		t.Errorf("error %v", err)
	}
	sessions := testSessions(200, 8)
	const day = 24 * 3600 * 1000
	for i, x := range sessions {
		if i < 100 {
			x.EndMs -= 10 * day
			x.StartMs -= 10 * day
		}
	}
	w.judge(sessions)
	w.snapshot(store)
	newest := sessions[199].EndMs
	s.Backfill.Since = time.UnixMilli(newest - 5*day).UTC().Format(time.DateOnly)
	c, err := s.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c.Stats.Sessions != 80 {
		t.Errorf("learned %d sessions, want 80", c.Stats.Sessions)
	}
}
