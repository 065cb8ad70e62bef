package trainer

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"onerec/internal/holdout"
	"onerec/schemas/onerecv1"
)

func testConfig() Config {
	c := DefaultConfig()
	c.History, c.Session, c.EmbeddingDim, c.EmbeddingWindow, c.Codes, c.Levels = 6, 4, 8, 6, 8, 2
	c.Headroom = 0
	c.BatchTokens, c.ReplayRatio, c.WarmupSteps, c.Buffer = 256, 4, 5, 200
	return c
}

// testSessions draws sessions of users who each stay with one of four groups of
// items, so that there is something to learn.
func testSessions(n int, seed uint64) []*onerecv1.Session {
	r := rand.New(rand.NewPCG(seed, 1))
	item := func(group int) string { return fmt.Sprint("g", group, "-", r.IntN(10)) }
	var out []*onerecv1.Session
	for i := range n {
		user := r.IntN(60)
		s := &onerecv1.Session{SessionId: fmt.Sprint("s", i), UserId: fmt.Sprint("u", user), EndMs: int64(i) * 1000}
		for j := range 3 {
			s.History = append(s.History, &onerecv1.HistoryItem{ItemId: item(user % 4), EventTimeMs: int64(j)})
		}
		for range 2 + r.IntN(5) {
			s.Views = append(s.Views, &onerecv1.View{ItemId: item(user % 4)})
		}
		out = append(out, s)
	}
	return out
}

func observe(t testing.TB, l *Learner, sessions []*onerecv1.Session) {
	t.Helper()
	for _, s := range sessions {
		if err := l.Observe(s); err != nil {
			t.Fatal(err)
		}
		steps(t, l)
	}
}

func steps(t testing.TB, l *Learner) {
	t.Helper()
	for {
		ok, err := l.Step()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return
		}
	}
}

func trained(t testing.TB, cfg Config, first, then []*onerecv1.Session) *Learner {
	t.Helper()
	l := NewLearner(cfg)
	observe(t, l, first)
	if err := l.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	steps(t, l)
	observe(t, l, then)
	return l
}

// weights returns everything that training changes, as one slice.
func weights(l *Learner) []float32 {
	var all []float32
	for i, p := range l.raw.Tensors() {
		all = slices.Concat(all, p.Data, l.average.Tensors()[i].Data, l.solver.M[i], l.solver.V[i])
	}
	return all
}

func TestLearnsAndRepeats(t *testing.T) {
	learnsAndRepeats(t, testConfig())
}

// TestCompactRowsOfUsers: the same without separators, and with a token for users.
func TestCompactRowsOfUsers(t *testing.T) {
	cfg := testConfig()
	cfg.CompactRows, cfg.UserBuckets = true, 7
	l := learnsAndRepeats(t, cfg)
	users := make(map[int32]bool)
	for _, s := range l.buffer {
		users[s.user] = true
	}
	if len(users) != 7 || users[0] {
		t.Errorf("rows are of users %v", users)
	}
}

func learnsAndRepeats(t *testing.T, cfg Config) *Learner {
	sessions := testSessions(300, 1)
	run := func() (*Learner, Holdout) {
		l := trained(t, cfg, sessions[:150], sessions[150:])
		h, err := l.Evaluate(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return l, h
	}
	l, h := run()
	st := l.Stats()
	if st.Steps < 50 || st.LastLoss > 0.8*st.FirstLoss || st.Skipped != 0 {
		t.Fatalf("%+v", st)
	}
	// 40 items in 4 groups: who has found the groups hits 10 of 10 of them.
	if h.Predictions == 0 || h.HitRate10 < 1.5*h.PopularHitRate10 || h.NDCG10 > h.HitRate10 || h.Loss <= 0 {
		t.Fatalf("%+v", h)
	}
	again, h2 := run()
	if h != h2 || !slices.Equal(weights(l), weights(again)) || l.cb.Version() != again.cb.Version() {
		t.Fatal("the same sessions and seed gave another model")
	}
	return l
}

// TestHeldOutUsersLeaveNoTrace: what held-out users do changes neither codebook
// nor weights.
func TestHeldOutUsersLeaveNoTrace(t *testing.T) {
	cfg := testConfig()
	cfg.HoldoutPercent = 30
	var all, others []*onerecv1.Session
	for _, s := range testSessions(200, 2) {
		if holdout.Contains(s.UserId, cfg.HoldoutPercent) {
			s.Views[0].ItemId = "only-held-out"
		} else {
			others = append(others, s)
		}
		all = append(all, s)
	}
	if len(all) == len(others) {
		t.Fatal("no user is held out")
	}
	a, b := trained(t, cfg, all, nil), trained(t, cfg, others, nil)
	if _, known := a.cb.Index("only-held-out"); known {
		t.Error("a held-out user brought an item into the codebook")
	}
	if !slices.Equal(weights(a), weights(b)) || !slices.Equal(a.popular, b.popular) {
		t.Error("held-out sessions changed the model")
	}
	h, err := a.Evaluate(t.Context(), nil)
	if err != nil || h.Sessions == 0 {
		t.Fatalf("%+v, %v", h, err)
	}
}

// TestResume: a trainer that was stopped after a checkpoint continues as if
// nothing had happened, bit for bit.
func TestResume(t *testing.T) {
	cfg := testConfig()
	sessions := testSessions(240, 3)
	one := trained(t, cfg, sessions[:100], sessions[100:])

	half := trained(t, cfg, sessions[:100], sessions[100:170])
	files, config, err := half.Checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	two := NewLearner(cfg)
	if err := two.Resume(files, config); err != nil {
		t.Fatal(err)
	}
	for _, s := range sessions[:170] {
		if err := two.Remember(s); err != nil {
			t.Fatal(err)
		}
	}
	if ok, err := two.Step(); ok || err != nil {
		t.Fatalf("a step was due right after resuming: %v, %v", ok, err)
	}
	observe(t, two, sessions[170:])
	if !slices.Equal(weights(one), weights(two)) {
		t.Fatal("the continued run differs from the uninterrupted one")
	}
	a, b := one.Stats(), two.Stats()
	a.Seconds, b.Seconds = 0, 0
	if a != b {
		t.Fatalf("counters %+v, want %+v", b, a)
	}
}

func TestResumeRefusesOtherSettingsAndDamage(t *testing.T) {
	cfg := testConfig()
	l := trained(t, cfg, testSessions(60, 4), nil)
	files, config, err := l.Checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	other := cfg
	other.Preset = "small"
	if err := NewLearner(other).Resume(files, config); err == nil {
		t.Error("a checkpoint of another size was taken")
	}
	for name := range files {
		if name == FileSteps {
			continue // for people; nothing is resumed from it
		}
		whole := files[name]
		files[name] = whole[:len(whole)/2]
		if err := NewLearner(cfg).Resume(files, config); err == nil {
			t.Errorf("half of %s was taken", name)
		}
		files[name] = whole
	}
	if err := NewLearner(cfg).Resume(files, config); err != nil {
		t.Fatal(err)
	}
}

func TestNewItemsGetIDs(t *testing.T) {
	l := trained(t, testConfig(), testSessions(100, 5), nil)
	before := l.cb.Clone()
	s := &onerecv1.Session{UserId: "u0", Views: []*onerecv1.View{{ItemId: "g0-1"}, {ItemId: "new"}}}
	if holdout.Contains(s.UserId, l.cfg.HoldoutPercent) {
		t.Fatal("u0 must be a training user")
	}
	observe(t, l, []*onerecv1.Session{s})
	if _, ok := l.cb.Index("new"); !ok || !l.cb.Extends(before) || before.Extends(l.cb) {
		t.Fatal("the new item has no ID, or an old one moved")
	}
	if err := l.Rebase(l.average.Clone(), before); err != nil {
		t.Fatal(err)
	}
	steps(t, l)
}

// TestFullCodebook: when every ID is taken, new items are left out and training
// goes on.
func TestFullCodebook(t *testing.T) {
	l := trained(t, testConfig(), testSessions(100, 9), nil) // 8 x 8 IDs for 40 items
	var many []*onerecv1.Session
	for i := range 40 {
		many = append(many, &onerecv1.Session{UserId: "u0", Views: []*onerecv1.View{{ItemId: "g0-1"}, {ItemId: fmt.Sprint("new-", i)}, {ItemId: "g0-2"}}})
	}
	before := l.Stats().Steps
	observe(t, l, many)
	st := l.Stats()
	if l.cb.Len() != 64 || st.Unassigned != 40-24 || st.Steps == before {
		t.Fatalf("%d items, %+v", l.cb.Len(), st)
	}
	if _, err := l.Evaluate(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

// TestRowsLongerThanABatch: a batch may be set smaller than the longest row.
func TestRowsLongerThanABatch(t *testing.T) {
	cfg := testConfig()
	cfg.BatchTokens = 10
	if st := trained(t, cfg, testSessions(20, 10), nil).Stats(); st.Steps == 0 {
		t.Fatalf("%+v", st)
	}
}

// TestDivergenceIsSkipped: weights that are not finite are replaced by their
// average, and training goes on.
func TestDivergenceIsSkipped(t *testing.T) {
	l := trained(t, testConfig(), testSessions(100, 6), nil)
	l.raw.Tensors()[0].Data[50] = float32(math.NaN())
	for i := range l.raw.Tensors()[0].Data {
		l.raw.Tensors()[0].Data[i] = float32(math.NaN())
	}
	observe(t, l, testSessions(20, 7))
	st := l.Stats()
	if st.Skipped == 0 || math.IsNaN(st.LastLoss) {
		t.Fatalf("%+v", st)
	}
	for _, v := range weights(l) {
		if math.IsNaN(float64(v)) {
			t.Fatal("NaN is left in the weights")
		}
	}
}

func TestBootstrapNeedsSessions(t *testing.T) {
	if err := NewLearner(testConfig()).Bootstrap(context.Background()); err == nil {
		t.Fatal("no error without sessions")
	}
}

// TestRebuild: when the catalogue has grown by half, a new codebook replaces the old one;
// most codes go on meaning what they meant, so that the decoder knows at once nearly what
// it knew before, and the replay buffer speaks the new IDs.
func TestRebuild(t *testing.T) {
	cfg := testConfig()
	cfg.RebuildAfter, cfg.Codes, cfg.Preset = 0.5, 12, "tiny"
	old := testSessions(400, 8)
	for _, s := range old { // at first there are the items 0 to 5 of each group
		for _, h := range s.History {
			h.ItemId = h.ItemId[:3] + string('0'+(h.ItemId[3]-'0')%6)
		}
		for _, v := range s.Views {
			v.ItemId = v.ItemId[:3] + string('0'+(v.ItemId[3]-'0')%6)
		}
	}
	l := trained(t, cfg, old, nil)
	if l.Outgrown() || l.Stats().Built != 24 {
		t.Fatalf("outgrown at once: %+v", l.Stats())
	}
	observe(t, l, testSessions(200, 9))
	if st := l.Stats(); !l.Outgrown() || st.New != 16 {
		t.Fatalf("not outgrown with %d new items", st.New)
	}
	before, err := l.Evaluate(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	was := l.cb
	kept, err := l.Rebuild(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	after, err := l.Evaluate(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("kept %.2f; held-out loss %.2f before, %.2f after; hit rate %.2f and %.2f", kept, before.Loss, after.Loss, before.HitRate10, after.HitRate10)
	if l.cb.Extends(was) || l.Outgrown() || l.Stats().Rebuilds != 1 || l.cb.Len() != was.Len() {
		t.Errorf("after the rebuild: %+v", l.Stats())
	}
	if kept[0] < 3./12 { // chance keeps 1 of 12
		t.Errorf("%.2f of the first codes were kept", kept[0])
	}
	for i := range int32(was.Len()) {
		if l.cb.Item(i) != was.Item(i) {
			t.Fatalf("item %d was %q, is %q", i, was.Item(i), l.cb.Item(i))
		}
	}
	files, config, err := l.Checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	if err := NewLearner(cfg).Resume(files, config); err != nil {
		t.Fatal(err)
	}
	observe(t, l, testSessions(100, 10))
	if again, err := l.Evaluate(t.Context(), nil); err != nil || again.Loss > after.Loss {
		t.Errorf("training on: loss %.2f after %.2f, %v", again.Loss, after.Loss, err)
	}
}

// TestDivergence: when the weights are spoilt, training goes back to their average and on
// from there.
func TestDivergence(t *testing.T) {
	l := trained(t, testConfig(), testSessions(150, 1), nil)
	before, err := l.Evaluate(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range l.raw.Tensors() {
		for i := range p.Data {
			p.Data[i] *= 30
		}
	}
	observe(t, l, testSessions(100, 2))
	after, err := l.Evaluate(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if st := l.Stats(); st.Rollbacks != 1 || st.LastLoss > 2*before.Loss || after.Loss > before.Loss+0.2 {
		t.Errorf("held-out loss %.2f before and %.2f after, %+v", before.Loss, after.Loss, st)
	}
}
