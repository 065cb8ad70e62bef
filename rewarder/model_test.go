package rewarder

import (
	"math"
	"math/rand/v2"
	"testing"

	"onerec/internal/gradcheck"
	"onerec/semanticid"
)

const testLevels, testCodes = 2, 5

func testModel(t testing.TB) *Model {
	t.Helper()
	m, err := NewModel(ModelConfig{Dim: 8, Heads: 2, Hidden: 12, Rows: 32, WeightDecay: 0.01}, testLevels, testCodes, 5000, 0.01, 1)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func randomID(r *rand.Rand) semanticid.Item {
	return semanticid.Item{uint16(r.IntN(testCodes)), uint16(r.IntN(testCodes))}
}

func randomExamples(r *rand.Rand, n int) []Example {
	var out []Example
	for range n {
		var e Example
		for range r.IntN(4) {
			e.History = append(e.History, randomID(r))
		}
		for range 1 + r.IntN(4) {
			v := Viewed{ID: randomID(r), Like: Label(r.IntN(3)), Completion: Label(r.IntN(3)), Dislike: Label(r.IntN(3)), Watch: int64(r.IntN(20_000)) - 5000, Duration: int64(r.IntN(100_000))}
			for h := range heads {
				v.Item[h], v.User[h] = float32(r.NormFloat64()), float32(r.NormFloat64())
			}
			if r.IntN(6) == 0 {
				v.ID = nil
			}
			e.Items = append(e.Items, v)
		}
		e.WatchMs = int64(r.IntN(60_000))
		out = append(out, e)
	}
	return out
}

// TestGradients holds gorgonia's gradient of every parameter against central
// differences along random directions.
func TestGradients(t *testing.T) {
	m := testModel(t)
	examples := randomExamples(rand.New(rand.NewPCG(1, 2)), 7)
	gradcheck.Directions(t, m.params, m.train.params, func() float64 {
		if err := m.run(m.train, examples); err != nil {
			t.Fatal(err)
		}
		return float64(m.train.machine.Value(m.train.cost).Data().(float32))
	})
}

// TestLossByHand computes the loss from the model's own predictions.
func TestLossByHand(t *testing.T) {
	m := testModel(t)
	examples := randomExamples(rand.New(rand.NewPCG(5, 6)), 5)
	if err := m.run(m.train, examples); err != nil {
		t.Fatal(err)
	}
	got := float64(m.train.machine.Value(m.train.cost).Data().(float32))
	predicted, err := m.Predict(examples)
	if err != nil {
		t.Fatal(err)
	}
	var perView, perList, views float64
	bce := func(p float64, l Label) float64 {
		switch l {
		case Yes:
			return -math.Log(p)
		case No:
			return -math.Log(1 - p)
		}
		return 0
	}
	for i, e := range examples {
		for j, v := range e.Items {
			views++
			perView += bce(predicted[i].Like[j], v.Like) + bce(predicted[i].Completion[j], v.Completion) + bce(predicted[i].Dislike[j], v.Dislike)
			if v.Watch >= 0 {
				d := math.Log1p(predicted[i].Watch[j]/m.scaleMs) - math.Log1p(float64(v.Watch)/m.scaleMs)
				perView += d * d
			}
		}
		d := math.Log1p(predicted[i].WatchMs/m.scaleMs) - math.Log1p(float64(e.WatchMs)/m.scaleMs)
		perList += d * d
	}
	if want := perView/views + perList/float64(len(examples)); math.Abs(got-want) > 1e-4*want {
		t.Fatalf("loss %v, by hand %v", got, want)
	}
}

// TestPredictionsDoNotDependOnTheBatch: a list is scored alike alone and among
// others, however many there are.
func TestPredictionsDoNotDependOnTheBatch(t *testing.T) {
	m := testModel(t)
	examples := randomExamples(rand.New(rand.NewPCG(7, 8)), 60) // several batches
	together, err := m.Predict(examples)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range examples {
		alone, err := m.Predict([]Example{e})
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(alone[0].WatchMs-together[i].WatchMs) > 1e-3*alone[0].WatchMs || len(alone[0].Like) != len(together[i].Like) || math.Abs(alone[0].Like[0]-together[i].Like[0]) > 1e-5 {
			t.Fatalf("example %d: %+v alone, %+v among others", i, alone[0], together[i])
		}
	}
}

// TestLearnsTastes: users of two kinds like items of two kinds; the model tells
// them apart on users it never saw.
func TestLearnsTastes(t *testing.T) {
	m := testModel(t)
	r := rand.New(rand.NewPCG(9, 10))
	sample := func(n int) (out []Example) {
		for range n {
			kind := uint16(r.IntN(2))
			e := Example{}
			for range 4 {
				e.History = append(e.History, semanticid.Item{kind, uint16(r.IntN(testCodes))})
			}
			for range 3 {
				item := uint16(r.IntN(2))
				liked := (item == kind) != (r.IntN(10) == 0)
				e.Items = append(e.Items, Viewed{ID: semanticid.Item{item, uint16(r.IntN(testCodes))}, Like: labelOf(liked), Watch: -1})
				if liked {
					e.WatchMs += 10_000
				} else {
					e.WatchMs += 1000
				}
			}
			out = append(out, e)
		}
		return out
	}
	train, test := sample(400), sample(200)
	for range 15 {
		if _, err := m.Train(train, r); err != nil {
			t.Fatal(err)
		}
	}
	q, err := m.Measure(test)
	if err != nil {
		t.Fatal(err)
	}
	if q.LikeAUC < 0.85 || q.WatchTimeSpearman < 0.6 || !math.IsNaN(q.CompletionAUC) {
		t.Fatalf("on new users: %+v", q)
	}
}

func TestRefusesNonsense(t *testing.T) {
	for _, cfg := range []ModelConfig{{}, {Dim: 7, Heads: 2, Hidden: 4, Rows: 4}, {Dim: 8, Heads: 2, Hidden: 4}} {
		if _, err := NewModel(cfg, 2, 5, 1, 0.1, 1); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
	if _, err := NewModel(DefaultModelConfig(), 2, 5, math.NaN(), 0.1, 1); err == nil {
		t.Error("a scale of NaN was accepted")
	}
}
