package publisher

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"onerec/internal/stream"
	"onerec/schemas/onerecv1"
)

// channels is a broker and a store of versions.
type channels struct {
	t       *testing.T
	cluster stream.Cluster
	store   *Store
}

func newChannels(t *testing.T) *channels {
	t.Helper()
	b, err := stream.StartEmbedded("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	w := &channels{t: t, cluster: stream.Cluster{Brokers: b.Brokers()}}
	cl, err := w.cluster.Client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	if _, err := stream.CreateTopics(t.Context(), cl, 2, 1); err != nil {
		t.Fatal(err)
	}
	if w.store, err = Open(t.Context(), t.TempDir(), Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.store.Close() })
	return w
}

func (w *channels) publish(kind, parent string) string {
	w.t.Helper()
	m := &Manifest{Model: "m", Kind: kind, Parent: parent}
	if _, err := w.store.Publish(w.t.Context(), m, map[string][]byte{"weights": []byte("of " + parent + kind)}); err != nil {
		w.t.Fatal(err)
	}
	return m.Version
}

func (w *channels) announce(channel, version string) {
	w.t.Helper()
	if _, err := Announce(w.t.Context(), w.cluster, w.store, channel, version, ""); err != nil {
		w.t.Fatal(err)
	}
}

func (w *channels) at(channel string) *onerecv1.CheckpointRef {
	w.t.Helper()
	refs, err := Current(w.t.Context(), w.cluster, "m")
	if err != nil {
		w.t.Fatal(err)
	}
	return refs[channel]
}

// wants checks what is released, why that is held, and what was released before.
func (w *channels) wants(version, held string, before ...string) {
	w.t.Helper()
	ref := w.at(ChannelReleased)
	if ref.GetVersion() != version || ref.GetHeld() != held || !slices.Equal(ref.GetBefore(), before) {
		w.t.Errorf("released %s, held %q, before %v; want %s, %q, %v", ref.GetVersion(), ref.GetHeld(), ref.GetBefore(), version, held, before)
	}
}

// TestRollback: back to what was released before, step by step, and nothing else is released until somebody resumes.
func TestRollback(t *testing.T) {
	w, ctx := newChannels(t), t.Context()
	if _, _, err := Rollback(ctx, w.cluster, w.store, "m", "", ""); err == nil || !strings.Contains(err.Error(), "nothing to roll back") {
		t.Errorf("with nothing released: %v", err)
	}
	if _, err := Hold(ctx, w.cluster, "m", "a holiday"); err == nil || !strings.Contains(err.Error(), "nothing to hold") {
		t.Errorf("with nothing released: %v", err)
	}
	base := w.publish(KindBase, "")
	one := w.publish(KindAligned, base)
	candidate := w.publish(KindBase, base) // trained while one was made
	two := w.publish(KindAligned, candidate)
	w.announce(ChannelCandidate, base)
	w.announce(ChannelCandidate, candidate)
	for _, version := range []string{one, two} {
		if held, err := Release(ctx, w.cluster, w.store, version, ""); held != "" || err != nil {
			t.Fatalf("release %s: held %q, %v", version, held, err)
		}
	}
	w.wants(two, "", one)
	if got := w.at(ChannelCandidate).Before; len(got) > 0 {
		t.Errorf("the candidates before are remembered: %v", got)
	}

	// Not to two's parent, which nobody was ever served.
	if from, ref, err := Rollback(ctx, w.cluster, w.store, "m", "", "likes fell"); err != nil || from != two || ref.Version != one {
		t.Fatalf("rolled back from %s to %s: %v", from, ref.GetVersion(), err)
	}
	w.wants(one, "likes fell")
	if held, err := Release(ctx, w.cluster, w.store, two, ""); held != "likes fell" || err != nil {
		t.Errorf("released while that is held: %q, %v", held, err)
	}
	w.wants(one, "likes fell")

	// Before one nothing was released: to its parent. The reason is what happened, if none is given.
	if _, _, err := Rollback(ctx, w.cluster, w.store, "m", "", ""); err != nil {
		t.Fatal(err)
	}
	w.wants(base, "rolled back from "+one)
	if _, _, err := Rollback(ctx, w.cluster, w.store, "m", "", ""); err == nil || !strings.Contains(err.Error(), "no parent") {
		t.Errorf("beyond the first version: %v", err)
	}

	// An operator may release all the same; that it is held stays.
	w.announce(ChannelReleased, two)
	w.wants(two, "rolled back from "+one, base)
	w.announce(ChannelReleased, one)
	w.announce(ChannelReleased, two)
	w.wants(two, "rolled back from "+one, base)
	since := w.at(ChannelReleased).AnnouncedAtMs
	if _, err := Hold(ctx, w.cluster, "m", strings.Repeat("x", maxWhy+1)); err == nil {
		t.Error("a reason without an end")
	}
	if _, err := Hold(ctx, w.cluster, "m", ""); err != nil {
		t.Fatal(err)
	}
	w.wants(two, "", base)
	if got := w.at(ChannelReleased).AnnouncedAtMs; got != since {
		t.Errorf("it was announced at %d, now at %d", since, got)
	}
	three := w.publish(KindAligned, two)
	if held, err := Release(ctx, w.cluster, w.store, three, ""); held != "" || err != nil {
		t.Fatalf("after resuming: held %q, %v", held, err)
	}
	w.wants(three, "", two, base)
	if _, _, err := Rollback(ctx, w.cluster, w.store, "m", "000099-nobody", ""); err == nil {
		t.Error("rolled back to what is not there")
	}
	w.wants(three, "", two, base)
}

// TestEarlierReleasesAreKept: what a rollback leads to outlives younger versions, and what is remembered is bounded.
func TestEarlierReleasesAreKept(t *testing.T) {
	w := newChannels(t)
	var released []string
	for range keptBefore + 3 {
		released = append(released, w.publish(KindAligned, ""))
		w.announce(ChannelReleased, released[len(released)-1])
	}
	for range 4 {
		w.announce(ChannelCandidate, w.publish(KindBase, ""))
	}
	newest := len(released) - 1
	want := slices.Clone(released[newest-keptBefore : newest])
	slices.Reverse(want)
	w.wants(released[newest], "", want...)
	w.store.Retain = GC{Keep: 1, KeepFor: 0}
	if _, err := Retain(t.Context(), w.cluster, w.store); err != nil {
		t.Fatal(err)
	}
	for i, version := range released {
		_, _, err := w.store.Load(t.Context(), version, "")
		if kept := newest-i <= keptBefore; kept != (err == nil) {
			t.Errorf("release %d of %d: %v", i, len(released), err)
		}
	}
}

// TestHoldWins: whoever releases while somebody else begins to hold, it is held in the end, and what was released
// meanwhile is taken back.
func TestHoldWins(t *testing.T) {
	w, ctx := newChannels(t), t.Context()
	first, second := w.publish(KindAligned, ""), w.publish(KindAligned, "")
	covered := 0
	for round := range 40 {
		w.announce(ChannelReleased, first)
		why := fmt.Sprint("held in round ", round)
		done := make(chan string, 1)
		go func() {
			time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
			held, err := Release(ctx, w.cluster, w.store, second, "")
			if err != nil {
				held = err.Error()
			}
			done <- held
		}()
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
		ref, err := Hold(ctx, w.cluster, "m", why)
		if err != nil {
			t.Fatal(err)
		}
		held := <-done
		switch held {
		case why:
			w.wants(first, why, w.at(ChannelReleased).GetBefore()...)
			covered++
		case "": // it was released before somebody held it, or is covered by who did
			w.wants(ref.Version, why, w.at(ChannelReleased).GetBefore()...)
		default:
			t.Fatalf("round %d: %s", round, held)
		}
		if _, err := Hold(ctx, w.cluster, "m", ""); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("in %d of 40 rounds it was held in time", covered)
}
