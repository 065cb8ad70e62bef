package app

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"

	"onerec/rewarder"
	"onerec/schemas/onerecv1"
	"onerec/semanticid"
)

// roundReports is how many rounds' reports are kept in a folder.
const roundReports = 1000

func newRoundReport(round *onerecv1.AlignmentRound) RoundReport {
	var gates []GateReport
	for _, g := range round.Gates {
		gates = append(gates, GateReport{g.Name, Float(g.Figure), Float(g.Bound), g.Least, g.Passed})
	}
	return RoundReport{
		Round: round.Round, Users: round.Users, Candidates: round.Candidates, Pairs: round.Pairs,
		RewardBefore: Float(round.RewardBefore), RewardAfter: Float(round.RewardAfter), KL: Float(round.Kl), Accepted: round.Accepted, Why: round.Why, Gates: gates,
	}
}

// writeRound leaves a round's figures and a picture of what held-out users would be served, before and
// after, in a folder: round-000001.json and round-000001.png.
func writeRound(dir string, round *onerecv1.AlignmentRound, o *rewarder.Outcome) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("report of round %d: %w", round.Round, err)
	}
	name := func(n int32, ext string) string { return filepath.Join(dir, fmt.Sprintf("round-%06d.%s", n, ext)) }
	data, err := json.MarshalIndent(struct {
		RoundReport
		Reference string `json:"reference"`
		Published string `json:"published"`
		Held      string `json:"held,omitempty"` // why it was not released
		// The reward of what each held-out user would be served, paired.
		ServedBefore []Float `json:"served_before"`
		ServedAfter  []Float `json:"served_after"`
	}{newRoundReport(round), round.Reference, round.Published, round.Held, floats(o.ServedBefore), floats(o.ServedAfter)}, "", "  ")
	if err != nil {
		return fmt.Errorf("report of round %d: %w", round.Round, err)
	}
	if err := semanticid.WriteFile(name(round.Round, "json"), func(f *os.File) error { _, err := f.Write(append(data, '\n')); return err }); err != nil {
		return fmt.Errorf("report of round %d: %w", round.Round, err)
	}
	if len(o.ServedBefore) > 0 {
		if err := drawRound(name(round.Round, "png"), round, o); err != nil {
			return fmt.Errorf("picture of round %d: %w", round.Round, err)
		}
	}
	for _, ext := range []string{"json", "png"} {
		_ = os.Remove(name(round.Round-roundReports, ext)) // it may not be there
	}
	return nil
}

func floats(x []float64) []Float {
	out := make([]Float, len(x))
	for i, v := range x {
		out[i] = Float(v)
	}
	return out
}

// drawRound draws the share of held-out users, up to each reward, of the reference and of the aligned
// model: the curve that lies further to the right is the better one.
func drawRound(path string, round *onerecv1.AlignmentRound, o *rewarder.Outcome) error {
	p := plot.New()
	verdict := "rejected"
	if round.Accepted {
		verdict = "accepted"
	}
	p.Title.Text = fmt.Sprintf("round %d: %s", round.Round, verdict)
	p.X.Label.Text, p.Y.Label.Text = "reward of what would be served (1: an ordinary session)", "share of held-out users"
	p.Y.Min, p.Y.Max, p.Legend.Left, p.Legend.Top = 0, 1, true, true
	for i, of := range []struct {
		name    string
		rewards []float64
	}{{"before", o.ServedBefore}, {"after", o.ServedAfter}} {
		sorted := slices.Sorted(slices.Values(of.rewards))
		var points plotter.XYs
		for j, r := range sorted {
			points = append(points, plotter.XY{X: r, Y: float64(j+1) / float64(len(sorted))})
		}
		line, err := plotter.NewLine(points)
		if err != nil {
			return err
		}
		line.StepStyle, line.Color = plotter.PostStep, plotutil.Color(i)
		p.Add(line)
		p.Legend.Add(of.name, line)
	}
	w, err := p.WriterTo(16*vg.Centimeter, 10*vg.Centimeter, "png")
	if err != nil {
		return err
	}
	return semanticid.WriteFile(path, func(f *os.File) error { _, err := w.WriteTo(f); return err })
}
