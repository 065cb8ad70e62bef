package trainer

import (
	"slices"
	"testing"

	"onerec/internal/holdout"
)

// TestPrequential: each row of a held-out user counts once, at the weights of its time: what is
// learned later does not change what it was scored at, and scoring changes nothing that is learned.
func TestPrequential(t *testing.T) {
	sessions := testSessions(400, 3)
	cfg := testConfig()
	cfg.HoldoutPercent = 25
	l := trained(t, cfg, sessions[:150], nil)
	if p, err := l.Prequential(t.Context()); err != nil || p.Predictions != 0 {
		t.Fatalf("the sessions that the codebook was made from were scored: %+v, %v", p, err)
	}
	rows := 0
	for _, s := range sessions[150:250] {
		if holdout.Contains(s.UserId, cfg.HoldoutPercent) {
			rows += (len(s.Views) + cfg.Session - 1) / cfg.Session
		}
	}
	observe(t, l, sessions[150:250])
	first, err := l.Prequential(t.Context())
	if err != nil || first.Sessions != rows || first.Predictions < rows || first.Loss <= 0 || first.HitRate10 <= 0 {
		t.Fatalf("%+v of %d rows, %v", first, rows, err)
	}
	if again, err := l.Prequential(t.Context()); err != nil || again != first {
		t.Fatalf("asked twice: %+v, then %+v, %v", first, again, err)
	}

	// The weights of today know better than those of then.
	observe(t, l, sessions[250:])
	var today tally
	if err := l.scoreLoss(l.heldOut[:rows], &today); err != nil {
		t.Fatal(err)
	}
	all, err := l.Prequential(t.Context())
	if err != nil || all.Sessions <= first.Sessions {
		t.Fatalf("%+v, %v", all, err)
	}
	if then := first.Loss; today.holdout().Loss >= then {
		t.Errorf("loss of the first rows %.3f when they came, %.3f with today's weights", then, today.holdout().Loss)
	}
	l.ResetPrequential()
	if p, err := l.Prequential(t.Context()); err != nil || p != (Holdout{}) {
		t.Fatalf("after the reset: %+v, %v", p, err)
	}

	other := trained(t, cfg, sessions[:150], nil)
	for _, s := range sessions[150:] { // without the scores
		if err := other.Observe(s); err != nil {
			t.Fatal(err)
		}
		other.arrived = nil
		steps(t, other)
	}
	if !slices.Equal(weights(l), weights(other)) {
		t.Fatal("scoring changed what is learned")
	}
}
