package bench

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"strings"
	"testing"

	"onerec/schemas/onerecv1"
	"onerec/trainer"
)

// BenchmarkRebuild measures what a warm start saves when the codebook is built anew. A
// decoder learns the first halves of what Amazon Beauty's users bought, without four items
// of ten, which are new in what follows. From there on it learns with IDs near the old ones only,
// with a new codebook that starts from the old one, and all over again with a new
// codebook. Run with -benchtime 1x -v.
func BenchmarkRebuild(b *testing.B) {
	f, err := os.Open("../../shared/data/amazon-beauty/sequences.txt.gz")
	if err != nil {
		b.Skip("the Amazon Beauty data are not there")
	}
	defer f.Close()
	gz, err := gzip.NewReader(f)
	if err != nil {
		b.Fatal(err)
	}
	var before, after []*onerecv1.Session
	for lines := bufio.NewScanner(gz); lines.Scan(); {
		items := strings.Fields(lines.Text())
		user, items := items[0], items[1:]
		half := (len(items) + 1) / 2
		known := slices.DeleteFunc(slices.Clone(items[:half]), func(item string) bool { return crc32.ChecksumIEEE([]byte(item))%10 < 4 })
		if len(known) > 0 {
			before = append(before, session(user, nil, known, int64(len(before))))
		}
		after = append(after, session(user, items[:half], items[half:], int64(1_000_000+len(after))))
	}
	cfg := trainer.DefaultConfig()
	cfg.Codes, cfg.History, cfg.Session, cfg.ReplayRatio, cfg.MaxHoldout, cfg.RebuildAfter = 176, 16, 8, 4, 600, 0.3
	learn := func(l *trainer.Learner, sessions []*onerecv1.Session, label string) {
		for i, s := range sessions {
			if err := l.Observe(s); err != nil {
				b.Fatal(err)
			}
			for l.Ready() {
				if ok, err := l.Step(); err != nil {
					b.Fatal(err)
				} else if !ok {
					break
				}
			}
			if l.Ready() && (i%4000 == 0 || i == len(sessions)-1) {
				measure(b, l, label)
			}
		}
	}
	start := func(sessions ...[]*onerecv1.Session) *trainer.Learner {
		l := trainer.NewLearner(cfg)
		for _, part := range sessions {
			for _, s := range part {
				if err := l.Observe(s); err != nil {
					b.Fatal(err)
				}
			}
		}
		if err := l.Bootstrap(b.Context()); err != nil {
			b.Fatal(err)
		}
		for {
			if ok, err := l.Step(); err != nil {
				b.Fatal(err)
			} else if !ok {
				return l
			}
		}
	}
	const enough, rest = 6000, 8000 // sessions after which the catalogue has grown by the share, and after that
	base := start(before)
	measure(b, base, "before")
	learn(base, after[:enough], "new items")
	b.Logf("outgrown: %v, %d new items of %d", base.Outgrown(), base.Stats().New, base.Stats().Built+base.Stats().New)
	files, config, err := base.Checkpoint()
	if err != nil {
		b.Fatal(err)
	}
	resume := func(stick float64) *trainer.Learner {
		cfg := cfg
		cfg.RebuildStick = stick
		l := trainer.NewLearner(cfg)
		if err := l.Resume(files, config); err != nil {
			b.Fatal(err)
		}
		for _, s := range slices.Concat(before, after[:enough]) {
			if err := l.Remember(s); err != nil {
				b.Fatal(err)
			}
		}
		return l
	}
	b.Run("keep", func(b *testing.B) {
		for b.Loop() {
			learn(resume(0), after[enough:][:rest], "keep")
		}
	})
	for _, stick := range []float64{0, 0.2, 0.5} {
		b.Run(fmt.Sprintf("rebuild, stick %v", stick), func(b *testing.B) {
			for b.Loop() {
				l := resume(stick)
				kept, err := l.Rebuild(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				b.Logf("kept, by level and in all: %.2f", kept)
				learn(l, after[enough:][:rest], "rebuild")
			}
		})
	}
	b.Run("anew", func(b *testing.B) {
		for b.Loop() {
			learn(start(before, after[:enough]), after[enough:][:rest], "anew")
		}
	})
}

func session(user string, history, items []string, at int64) *onerecv1.Session {
	s := &onerecv1.Session{UserId: user, SessionId: fmt.Sprint(user, at), StartMs: at, EndMs: at}
	for i, item := range history {
		s.History = append(s.History, &onerecv1.HistoryItem{ItemId: item, EventTimeMs: int64(i)})
	}
	for _, item := range items {
		s.Views = append(s.Views, &onerecv1.View{ItemId: item})
	}
	return s
}

// measure scores the learner on its held-out users.
func measure(b *testing.B, l *trainer.Learner, label string) {
	b.Helper()
	h, err := l.Evaluate(b.Context(), nil)
	if err != nil {
		b.Fatal(err)
	}
	st := l.Stats()
	b.Logf("%s: %d sessions, %d steps: held-out loss %.3f, hit rate at 10 %.4f", label, st.Sessions, st.Steps, h.Loss, h.HitRate10)
}
