package app

import (
	"encoding/json"
	"image/png"
	"os"
	"path/filepath"
	"testing"

	"onerec/rewarder"
	"onerec/schemas/onerecv1"
)

// TestRoundReport: figures that are no numbers are null, a picture is there, and old reports go.
func TestRoundReport(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "rounds")
	o := &rewarder.Outcome{ServedBefore: []float64{1, 0.5, 2}, ServedAfter: []float64{1.5, 0.7, 2}}
	round := &onerecv1.AlignmentRound{Round: 3, RewardBefore: 1.1, RewardAfter: 1.4, Accepted: true, Gates: []*onerecv1.AlignmentGate{{Name: "kl", Figure: 1, Bound: 2, Passed: true}}}
	if err := writeRound(dir, round, o); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "round-000003.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Round       int32     `json:"round"`
		ServedAfter []float64 `json:"served_after"`
		Gates       []GateReport
	}
	if err := json.Unmarshal(data, &got); err != nil || got.Round != 3 || len(got.ServedAfter) != 3 || len(got.Gates) != 1 {
		t.Fatalf("%v, %s", err, data)
	}
	f, err := os.Open(filepath.Join(dir, "round-000003.png"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if img, err := png.Decode(f); err != nil || img.Bounds().Dx() < 300 {
		t.Fatalf("picture: %v", err)
	}

	round.Round += roundReports
	if err := writeRound(dir, round, &rewarder.Outcome{}); err != nil { // nobody was served: no picture
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 1 {
		t.Fatalf("%v, %v", left, err)
	}
}
