package app

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"onerec/snapshots"
)

// TestFinishedDemo checks what a demo left in the folder ONEREC_TEST_DEMO; CI runs
// it after each of its demos.
func TestFinishedDemo(t *testing.T) {
	dir := os.Getenv("ONEREC_TEST_DEMO")
	if dir == "" {
		t.Skip("ONEREC_TEST_DEMO does not name a folder of a finished demo")
	}
	data, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	r := new(Report)
	if err := json.Unmarshal(data, r); err != nil {
		t.Fatal(err)
	}
	if err := r.check(); err != nil {
		t.Error(err)
	}
	views, items := int64(0), map[string]bool{}
	sessions, good := int64(0), int64(0)
	err = snapshots.ReadAll(t.Context(), filepath.Join(dir, "snapshots"), func(s snapshots.Session) error {
		if sessions++; s.Good {
			good++
		}
		for _, v := range s.Views {
			views++
			items[v.ItemID] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if views != r.Views.Accepted || sessions != r.Sessions.Closed || good != r.Sessions.Good {
		t.Errorf("the snapshots hold %d views in %d sessions, %d good; the report says %+v and %+v", views, sessions, good, r.Views, r.Sessions)
	}
	if r.Training.Steps == 0 || !(r.Training.LastLoss < r.Training.FirstLoss) {
		t.Errorf("the loss did not fall: %+v", r.Training)
	}
	if h := r.Training.Holdout; h.Predictions == 0 || h.HitRate10 <= h.PopularityHitRate10 {
		t.Errorf("the decoder does not beat popularity on held-out users: %+v", h)
	}
	if w := r.SessionToServing; w.P50 <= 0 || w.P99 < w.P50 || w.P99 > r.Seconds["total"] {
		t.Errorf("sessions waited %+v for a serving model, in a demo of %v s", w, r.Seconds["total"])
	}
	if len(r.Alignment) == 0 {
		t.Error("there was no round")
	}
	for _, a := range r.Alignment {
		if a.Accepted && a.RewardAfter <= a.RewardBefore || a.Why == "" {
			t.Errorf("round %+v", a)
		}
	}
	if len(r.Recommendations) == 0 {
		t.Error("nothing was recommended")
	}
	for _, rec := range r.Recommendations {
		for _, item := range rec.Items {
			if !items[item] {
				t.Errorf("item %s, recommended to %s, was never seen", item, rec.UserID)
			}
		}
	}
	if r.PeakRSSBytes > 2<<30 {
		t.Errorf("the peak memory was %d MiB", r.PeakRSSBytes>>20)
	}
	if _, err := os.Stat(filepath.Join(dir, markerFile)); errors.Is(err, os.ErrNotExist) {
		t.Error("the folder is not marked as a demo's")
	}
}
