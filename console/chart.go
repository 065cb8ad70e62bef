package console

import (
	"bytes"
	"encoding/json"
	"math"
	"strconv"
)

// chart is what console.js draws with uPlot: some series over one axis.
type chart struct {
	Time   bool      // X is seconds since the epoch
	X      []float64 // rising
	Series []series
	XLabel string
	Y      string // what the left axis shows, with its unit
	Right  string // the right one, or empty
}

// series has a value for each X, NaN where there is none.
type series struct {
	Label  string
	Values []float64
	Points bool // draw each value as a point, too
	Bars   bool // draw bars
	Right  bool // on the right axis
}

// Empty reports whether there is nothing to draw.
func (c chart) Empty() bool { return len(c.X) == 0 }

// JSON is the chart for console.js, numbers rounded to what can be seen.
func (c chart) JSON() (string, error) {
	type jsonSeries struct {
		Label  string          `json:"label"`
		Values json.RawMessage `json:"values"`
		Points bool            `json:"points,omitempty"`
		Bars   bool            `json:"bars,omitempty"`
		Right  bool            `json:"right,omitempty"`
	}
	out := struct {
		Time   bool            `json:"time,omitempty"`
		X      json.RawMessage `json:"x"`
		Series []jsonSeries    `json:"series"`
		XLabel string          `json:"xLabel,omitempty"`
		Y      string          `json:"y"`
		Right  string          `json:"right,omitempty"`
	}{Time: c.Time, X: numbers(c.X, 12), XLabel: c.XLabel, Y: c.Y, Right: c.Right}
	for _, s := range c.Series {
		out.Series = append(out.Series, jsonSeries{s.Label, numbers(s.Values, 4), s.Points, s.Bars, s.Right})
	}
	b, err := json.Marshal(out)
	return string(b), err
}

// numbers writes an array with so many digits; what is not finite is null.
func numbers(x []float64, digits int) json.RawMessage {
	var b bytes.Buffer
	b.WriteByte('[')
	for i, v := range x {
		if i > 0 {
			b.WriteByte(',')
		}
		if math.IsNaN(v) || math.IsInf(v, 0) {
			b.WriteString("null")
			continue
		}
		b.Write(strconv.AppendFloat(nil, v, 'g', digits, 64))
	}
	b.WriteByte(']')
	return b.Bytes()
}

// Summary says in words what the chart shows last, for those who can't see it.
func (c chart) Summary() string {
	if c.Empty() {
		return "no data yet"
	}
	var b bytes.Buffer
	b.WriteString(c.Y)
	b.WriteString(". Newest:")
	for i, s := range c.Series {
		if i > 0 {
			b.WriteByte(',')
		}
		last := math.NaN()
		for _, v := range s.Values {
			if !math.IsNaN(v) {
				last = v
			}
		}
		b.WriteString(" " + s.Label + " " + num(last))
	}
	return b.String()
}
