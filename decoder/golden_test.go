package decoder

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"testing"

	"onerec/internal/kernels"
	"onerec/internal/ops"
	"onerec/internal/safetensors"
)

// golden is what testdata/golden.py found with PyTorch, from the same weights and rows.
type golden struct {
	Config Config
	Rows   []struct {
		History, Session [][]uint16
		User             int32
	}
	HistoryWeight float32 `json:"history_weight"`
	Losses        []float64
	Balance       float64
	Optimizer     struct {
		LearningRate float64 `json:"learning_rate"`
		WeightDecay  float64 `json:"weight_decay"`
		Beta1, Beta2 float64
		Eps, Clip    float64
	}

	Preference struct {
		Losses                 map[string]float64
		Pairs, Groups          [][2]int
		Ref                    []float32
		Beta, Smoothing, Gamma float32
		Reward                 []float32
		GroupsRef              []float32 `json:"groups_ref"`
		Balance                float64
	}

	tensors map[string][]float32
}

// weights are those that everything begins from.
func (g golden) weights() *Weights {
	w := &Weights{Config: g.Config, params: g.Config.layout()}
	for i := range w.params {
		w.params[i].Data = append([]float32(nil), g.tensors["w."+w.params[i].Name]...)
	}
	return w
}

// near holds got against want, relative to the largest of the tensor.
func near(t *testing.T, what string, got, want []float32, tolerance float64) {
	t.Helper()
	if len(got) < len(want) || len(want) == 0 {
		t.Errorf("%s: %d values, want %d", what, len(got), len(want))
		return
	}
	var worst, largest float64
	for i, v := range want {
		worst = max(worst, math.Abs(float64(got[i]-v)))
		largest = max(largest, math.Abs(float64(v)))
	}
	if worst > tolerance*largest {
		t.Errorf("%s: off by %.2g, %.2g of its largest", what, worst, worst/largest)
	}
}

// goldens calls test with each form of rows, with separators, and compact ones of users, and with experts.
func goldens(t *testing.T, test func(t *testing.T, want golden)) {
	for _, name := range []string{"golden", "golden-compact", "golden-experts"} {
		t.Run(name, func(t *testing.T) { test(t, readGolden(t, name)) })
	}
}

func readGolden(t *testing.T, name string) (g golden) {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name + ".safetensors")
	if err != nil {
		t.Fatal(err)
	}
	f, err := safetensors.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(f.Metadata["golden"]), &g); err != nil {
		t.Fatal(err)
	}
	g.tensors = make(map[string][]float32)
	for _, x := range f.Tensors {
		g.tensors[x.Name] = x.Data
	}
	return g
}

// TestPyTorch: from the same weights and rows, the log probabilities, the loss, every
// weight's gradient and ten steps of AdamW with clipping are PyTorch's, in one lane and in two; with experts in one: each
// lane keeps its own tokens' balance.
func TestPyTorch(t *testing.T) {
	goldens(t, func(t *testing.T, want golden) {
		for lanes := 1; lanes <= 2 && (lanes == 1 || want.Config.Experts == 0); lanes++ {
			t.Run(fmt.Sprint(lanes), func(t *testing.T) { testPyTorch(t, want, lanes) })
		}
	})
}

func testPyTorch(t *testing.T, want golden, lanes int) {
	w := want.weights()
	g, err := newGraph(w, 128, lanes, true, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := NewBatch(want.HistoryWeight)
	for _, r := range want.Rows {
		if err := b.Add(want.Config, Row{History: r.History, Session: r.Session, User: r.User}); err != nil {
			t.Fatal(err)
		}
	}
	b.Close()
	o := want.Optimizer
	solver := &ops.Solver{AdamW: kernels.AdamW{LearningRate: o.LearningRate, Beta1: o.Beta1, Beta2: o.Beta2, Eps: o.Eps, WeightDecay: o.WeightDecay}, ClipNorm: o.Clip}
	for step, loss := range want.Losses {
		l, err := g.Run(b, nil, Dropout{})
		if err != nil {
			t.Fatal(err)
		}
		tolerance := 1e-4
		if step > 0 { // of weights that steps have changed
			tolerance = 1e-3
		}
		if math.Abs(float64(l.NTP)-loss) > tolerance*loss {
			t.Errorf("step %d: loss %.6f, want %.6f", step, l.NTP, loss)
		}
		if step == 0 {
			if math.Abs(float64(l.Balance)-want.Balance) > 1e-5*want.Balance {
				t.Errorf("balance %v, want %v", l.Balance, want.Balance)
			}
			near(t, "log probabilities", g.logProbs(), want.tensors["logp"], 1e-4)
			for i, n := range g.model {
				grad, err := n.Grad()
				if err != nil {
					t.Fatal(err)
				}
				near(t, "gradient of "+w.params[i].Name, grad.Data().([]float32), want.tensors["grad."+w.params[i].Name], 1e-4)
			}
		}
		if err := solver.Step(g.model); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range w.params {
		near(t, p.Name+" after the steps", p.Data, want.tensors["after."+p.Name], 1e-3)
	}
}

// TestPyTorchPreferences: the losses over pairs, and DPO's gradients, are PyTorch's.
func TestPyTorchPreferences(t *testing.T) { goldens(t, testPyTorchPreferences) }

func testPyTorchPreferences(t *testing.T, want golden) {
	p := want.Preference
	for name, of := range map[string]Preference{
		"dpo":   {Loss: LossDPO, Beta: p.Beta},
		"cdpo":  {Loss: LossDPO, Beta: p.Beta, Smoothing: p.Smoothing},
		"rdpo":  {Loss: LossRDPO, Beta: p.Beta, Smoothing: p.Smoothing},
		"ipo":   {Loss: LossIPO, Beta: p.Beta},
		"simpo": {Loss: LossSimPO, Beta: p.Beta, Gamma: p.Gamma},
		"sdpo":  {Loss: LossSDPO, Beta: p.Beta},
		"copg":  {Loss: LossCoPG, Beta: p.Beta},
	} {
		g, err := NewPreferenceGraph(want.weights(), 128, len(p.Groups), of, 1)
		if err != nil {
			t.Fatal(err)
		}
		b := NewBatch(0)
		for _, r := range want.Rows {
			if err := b.AddUnweighted(want.Config, Row{History: r.History, Session: r.Session, User: r.User}); err != nil {
				t.Fatal(err)
			}
		}
		b.Close()
		var pairs []Pair
		compared, ref := p.Pairs, p.Ref
		if of.Loss == LossSDPO {
			compared, ref = p.Groups, p.GroupsRef
		}
		for i, rows := range compared {
			pair := Pair{Winner: rows[0], Loser: rows[1], RefMargin: ref[i]}
			if of.Loss == LossCoPG {
				pair.Reward = p.Reward[i]
			}
			if of.ReferenceFree() {
				pair.RefMargin = 0
			}
			pairs = append(pairs, pair)
		}
		l, err := g.Run(b, pairs, Dropout{})
		if err != nil {
			t.Fatal(err)
		}
		if loss := p.Losses[name]; loss == 0 || math.Abs(float64(l.DPO)-loss) > 1e-5*loss || math.Abs(float64(l.Total)-loss-balanceFactor*p.Balance*float64(want.Config.Layers)) > 1e-5*loss {
			t.Errorf("%s: %+v, want %.7f", name, l, loss)
		}
		if name == "dpo" {
			for i, n := range g.model {
				grad, err := n.Grad()
				if err != nil {
					t.Fatal(err)
				}
				near(t, "DPO's gradient of "+g.weights.params[i].Name, grad.Data().([]float32), want.tensors["dpo."+g.weights.params[i].Name], 1e-5)
			}
		}
	}
}
