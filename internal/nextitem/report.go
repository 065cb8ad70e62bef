package nextitem

import (
	"fmt"
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"

	"onerec/semanticid"
)

// Mean is that of several seeds' metrics; its intervals are empty.
func Mean(results []*Result) Metrics {
	var m Metrics
	for _, r := range results {
		m.Users = r.Model.Users
		for to, from := range map[*Metric]Metric{&m.Recall5: r.Model.Recall5, &m.NDCG5: r.Model.NDCG5, &m.Recall10: r.Model.Recall10, &m.NDCG10: r.Model.NDCG10} {
			to.Mean += from.Mean / float64(len(results))
		}
	}
	return m
}

// Plot draws each result's curve into a PNG: the loss above, recall and NDCG at 10 of the
// validation below, by epoch.
func Plot(path string, results []*Result) error {
	loss, score := plot.New(), plot.New()
	loss.Y.Label.Text, score.Y.Label.Text = "training loss (nats a code)", "validation"
	score.X.Label.Text = "epoch"
	score.Y.Min, score.Legend.Left, score.Legend.Top = 0, true, true
	add := func(p *plot.Plot, style int, name string, points plotter.XYs) error {
		line, marks, err := plotter.NewLinePoints(points)
		if err != nil {
			return fmt.Errorf("draw %s: %w", path, err)
		}
		line.Color, marks.Color, marks.Shape = plotutil.Color(style), plotutil.Color(style), plotutil.Shape(style)
		p.Add(line, marks)
		p.Legend.Add(name, line, marks)
		return nil
	}
	for i, r := range results {
		var l, recall, ndcg plotter.XYs
		for _, p := range r.Curve {
			x := float64(p.Epoch)
			l, recall, ndcg = append(l, plotter.XY{X: x, Y: p.Loss}), append(recall, plotter.XY{X: x, Y: p.Recall10}), append(ndcg, plotter.XY{X: x, Y: p.NDCG10})
		}
		seed := fmt.Sprint(", seed ", r.Config.Seed)
		for _, c := range []struct {
			p      *plot.Plot
			style  int
			name   string
			points plotter.XYs
		}{{loss, i, "loss" + seed, l}, {score, 2 * i, "Recall@10" + seed, recall}, {score, 2*i + 1, "NDCG@10" + seed, ndcg}} {
			if err := add(c.p, c.style, c.name, c.points); err != nil {
				return err
			}
		}
	}
	const width, height = 18 * vg.Centimeter, 20 * vg.Centimeter
	img := vgimg.New(width, height)
	canvas := draw.New(img)
	loss.Draw(draw.Crop(canvas, 0, 0, height/2, 0))
	score.Draw(draw.Crop(canvas, 0, 0, 0, -height/2))
	return semanticid.WriteFile(path, func(f *os.File) error {
		_, err := vgimg.PngCanvas{Canvas: img}.WriteTo(f)
		return err
	})
}
