package closedloop

import (
	"bytes"
	"math"
	"strings"
	"testing"

	"onerec/decoder"
	"onerec/rewarder"
)

// smallConfig is a loop of seconds.
func smallConfig() Config {
	c := DefaultConfig()
	c.World.Users, c.World.Items, c.World.Days = 300, 300, 7
	c.Trainer.ReplayRatio, c.Trainer.MaxHoldout = 2, 60
	c.Align.Users, c.Align.HeldOut, c.Align.Candidates = 60, 60, 12
	c.Rounds, c.Days = []int{1}, 2
	return c
}

// TestLoop: what must hold in any world. The oracle, which knows the tastes, is ahead of everybody, the decoder
// gives more likes than popular items do, and a round is served if and only if its gates let it
// pass. How much alignment brings is measured on larger worlds: onerec simulate loop.
func TestLoop(t *testing.T) {
	c := smallConfig()
	other := c.Align
	other.Loss, other.Pairing, other.PairsAUser, other.LearningRate = decoder.LossCoPG, rewarder.PairRandom, 2, 1e-4
	c.Variants = []Variant{{"another way", other}}
	r, err := Loop(t.Context(), c, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Good < 100 || r.Training.Steps < 50 || r.Holdout.HitRate10 <= r.Holdout.PopularHitRate10 || len(r.Rounds) != 1 || !(r.Reward.LikeAUC > 0.5) {
		t.Fatalf("%d good sessions, %+v, %+v, %+v", r.Good, r.Training, r.Holdout, r.Reward)
	}
	lines := make(map[string]Line)
	for _, l := range Compare([]*Run{r}) {
		lines[l.Policy] = l
		if l.Views < 1 || l.WatchSeconds <= 0 || l.Coverage <= 0 || l.Coverage > 1 {
			t.Errorf("%+v", l)
		}
	}
	if len(lines) != 6 {
		t.Fatalf("policies %v", lines)
	}
	oracle := lines[Oracle]
	for name, l := range lines {
		if name != Oracle && (l.WatchSeconds >= oracle.WatchSeconds || l.Likes >= oracle.Likes) {
			t.Errorf("%s: %.1f s and %.3f likes a session, the oracle %.1f and %.3f", name, l.WatchSeconds, l.Likes, oracle.WatchSeconds, oracle.Likes)
		}
	}
	if lines[Pretrained].LikesOverPopularity.Mean <= 0 {
		t.Errorf("likes of the decoder over popular items: %+v", lines[Pretrained].LikesOverPopularity)
	}
	if same := lines[Aligned(1)].WatchSeconds == lines[Pretrained].WatchSeconds; same == r.Rounds[0].Accepted {
		t.Errorf("the round was accepted: %v, and served the same as before: %v", r.Rounds[0].Accepted, same)
	}
	var b bytes.Buffer
	if err := Print(&b, []*Run{r}); err != nil || !strings.Contains(b.String(), Aligned(1)) {
		t.Errorf("%v\n%s", err, b.String())
	}
	variants := CompareVariants([]*Run{r}, c.Variants)
	if v := variants[0]; len(variants) != 1 || v.Pairs == 0 || v.Pairs > 2*c.Align.Users || v.KL <= 0 || v.WatchSeconds == lines[Pretrained].WatchSeconds {
		t.Errorf("%+v", variants)
	}
	if err := PrintVariants(&b, variants); err != nil || !strings.Contains(b.String(), "another way") {
		t.Errorf("%v\n%s", err, b.String())
	}
}

// TestIntervals: a policy beside itself gains nothing, with no doubt; twice as much is a gain of 1.
func TestIntervals(t *testing.T) {
	x, n := []float64{1, 5, 0, 3}, []float64{1, 2, 0, 1}
	if i := ratio(x, n, x, n); i != (Interval{}) {
		t.Errorf("beside itself: %+v", i)
	}
	twice := make([]float64, len(x))
	for i, v := range x {
		twice[i] = 2 * v
	}
	if i := ratio(twice, n, x, n); math.Abs(i.Mean-1) > 1e-12 || math.Abs(i.Low-1) > 1e-12 || math.Abs(i.High-1) > 1e-12 {
		t.Errorf("twice as much: %+v", i)
	}
	if i := ratio(x, n, []float64{1, 1, 1, 1}, n); !(i.Low < i.Mean && i.Mean < i.High) {
		t.Errorf("%+v", i)
	}
}
