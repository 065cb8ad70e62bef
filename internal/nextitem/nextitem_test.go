package nextitem

import (
	"bytes"
	"context"
	"fmt"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// cycles draws users who walk around one of a few circles of items.
func cycles(users int) *Data {
	const circles, size = 6, 9
	r := rand.New(rand.NewPCG(1, 1))
	d := new(Data)
	for i := range circles * size {
		d.Items = append(d.Items, fmt.Sprint("item", i))
	}
	for range users {
		circle, at := r.IntN(circles), r.IntN(size)
		var s []int32
		for range 4 + r.IntN(4) {
			s = append(s, int32(circle*size+at))
			at = (at + 1) % size
		}
		d.Sequences = append(d.Sequences, s)
	}
	return d
}

func testConfig() Config {
	c := DefaultConfig()
	c.Codes, c.Width, c.Layers, c.Dim, c.Heads, c.Hidden, c.Items = 16, 16, 2, 32, 2, 48, 6
	c.Epochs, c.BatchTokens, c.Warmup, c.Dropout, c.Beams, c.Validation, c.Every = 12, 512, 10, 0, 20, 100, 4
	c.Average = 0.9
	return c
}

// TestRun: what follows from the items before is learned, far beyond popularity; a run that
// is stopped in the middle goes on to the same result; its curve is a picture.
func TestRun(t *testing.T) {
	t.Run("one part", func(t *testing.T) { testRun(t, testConfig()) })
	experts := testConfig()
	experts.Experts, experts.Active = 4, 2
	t.Run("experts", func(t *testing.T) { testRun(t, experts) })
}

func testRun(t *testing.T, cfg Config) {
	d := cycles(300)
	want, err := Run(t.Context(), d, cfg, true, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if want.Model.Recall5.Mean < 0.9 || want.Popularity.Recall5.Mean > 0.5 || len(want.Curve) != 3 {
		t.Errorf("recall at 5 %.2f, of popularity %.2f, %d validations", want.Model.Recall5.Mean, want.Popularity.Recall5.Mean, len(want.Curve))
	}
	for _, p := range want.Curve {
		if cfg.Experts == 0 && p.Balance != 0 || cfg.Experts > 0 && !(p.Balance > 0.9 && p.Balance <= float64(cfg.Experts)/float64(cfg.Active)) {
			t.Errorf("of %d experts the balance is %v", cfg.Experts, p.Balance)
		}
	}
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	_, err = Run(ctx, d, cfg, true, dir, func(stage, _ string, _, _ int) {
		if stage == "epoch 6 of 12" {
			cancel()
		}
	})
	if err == nil {
		t.Fatal("the run was not stopped")
	}
	got, err := Run(t.Context(), d, cfg, true, dir, func(stage, _ string, _, _ int) {
		if stage == "epoch 4 of 12" {
			t.Error("an epoch that was done is done again")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if got.Model != want.Model || got.Best != want.Best {
		t.Errorf("continued: %+v, want %+v", got.Model, want.Model)
	}
	wider := cfg
	wider.Beams, wider.Numbers = 2*cfg.Beams, "int16"
	again, err := Run(t.Context(), d, wider, true, dir, func(stage, _ string, _, _ int) {
		if strings.HasPrefix(stage, "epoch") {
			t.Error("with other beams and numbers it is trained again")
		}
	})
	if err != nil || again.Best != want.Best || again.Config.Beams != wider.Beams {
		t.Errorf("with other beams and numbers: %+v, %v", again, err)
	}
	wider.Numbers = "int4"
	if _, err := Run(t.Context(), d, wider, true, dir, nil); err == nil || !strings.Contains(err.Error(), "float32 or int16") {
		t.Errorf("other numbers: %v", err)
	}
	other := cfg
	other.Dropout = 0.1
	if _, err := Run(t.Context(), d, other, true, dir, nil); err == nil || !strings.Contains(err.Error(), "another configuration") {
		t.Errorf("the state of another configuration: %v", err)
	}
	path := filepath.Join(dir, "curve.png")
	if err := Plot(path, []*Result{want, got}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if img, err := png.Decode(bytes.NewReader(data)); err != nil || img.Bounds().Dx() < 300 {
		t.Errorf("the curve: %v", err)
	}
}

// TestNothingLeaks: the test items are nowhere in what is trained on.
func TestNothingLeaks(t *testing.T) {
	d := cycles(50)
	for _, s := range d.Sequences {
		if before, want := test(s); want != s[len(s)-1] || !slices.Equal(before, s[:len(s)-1]) {
			t.Fatal("the test item is not the last")
		}
		if before, want := validation(s); want != s[len(s)-2] || !slices.Equal(before, training(s)) {
			t.Fatal("the validation item is not the one before")
		}
	}
	// A run without the last items' values is the same run.
	cfg := testConfig()
	cfg.Epochs, cfg.Every = 2, 2
	a, err := Run(t.Context(), d, cfg, true, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	unread, err := Run(t.Context(), d, cfg, false, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range d.Sequences {
		s[len(s)-1] = 0
	}
	b, err := Run(t.Context(), d, cfg, true, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Run(t.Context(), d, cfg, false, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if unread.Model != again.Model || unread.Test || a.Model == b.Model {
		t.Errorf("without the test users %+v and %+v, with them %+v and %+v", unread.Model, again.Model, a.Model, b.Model)
	}
	if !slices.EqualFunc(a.Curve, b.Curve, func(x, y Point) bool { return x.Loss == y.Loss && x.NDCG10 == y.NDCG10 }) {
		t.Error("training or validation depends on the test items")
	}
}

// TestMeasure: the formulas, on ranks by hand.
func TestMeasure(t *testing.T) {
	m := measure([]int32{0, 4, 5, 9, 10, beyond}, 1)
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 1e-12 {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	near("Recall@5", m.Recall5.Mean, 2./6)
	near("Recall@10", m.Recall10.Mean, 4./6)
	near("NDCG@5", m.NDCG5.Mean, (1+1/math.Log2(6))/6)
	near("NDCG@10", m.NDCG10.Mean, (1+1/math.Log2(6)+1/math.Log2(7)+1/math.Log2(11))/6)
	if !(m.Recall10.Low < m.Recall10.Mean && m.Recall10.Mean < m.Recall10.High) {
		t.Errorf("interval %+v", m.Recall10)
	}
	if m := measure(nil, 1); m.Recall10 != (Metric{}) {
		t.Errorf("of no users: %+v", m)
	}
}

// TestAugment: the items stay what they are, two at least, near their places.
func TestAugment(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 20).Draw(t, "n")
		s := make([]int32, n)
		for i := range s {
			s[i] = int32(i)
		}
		got := augment(s, rapid.Float64Range(0, 1).Draw(t, "leave out"), rapid.Float64Range(0, 1).Draw(t, "exchange"), rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1)))
		if len(got) < min(n, 2) || len(got) > n {
			t.Fatalf("%d of %d items", len(got), n)
		}
		order := slices.Sorted(slices.Values(got))
		for i, item := range order {
			if i > 0 && item == order[i-1] || item < 0 || int(item) >= n {
				t.Fatalf("%v", got)
			}
			if at := slices.Index(got, item); at < i-1 || at > i+1 {
				t.Fatalf("item %d of the kept ones is at %d: %v", i, at, got)
			}
		}
	})
}

// TestPopularity: items that the user has are not ranked.
func TestPopularity(t *testing.T) {
	d := &Data{Items: []string{"a", "b", "c"}, Sequences: [][]int32{{0, 1, 2}, {0, 0, 0}, {1, 2, 0}, {0, 2, 1}}}
	// In the training parts a stands three times, b once.
	if got := popularity(d, []int32{0, 2, 3}, test); !slices.Equal(got, []int32{0, 0, 0}) {
		t.Errorf("ranks %v", got)
	}
	if got := popularity(d, []int32{0}, validation); !slices.Equal(got, []int32{0}) {
		t.Errorf("ranks %v", got)
	}
}

func TestRead(t *testing.T) {
	d, skipped, err := Read(strings.NewReader("u1 a b c\n\nu2 a b\nu3 c b a a\n"))
	if err != nil || skipped != 1 || fmt.Sprint(d.Items, d.Sequences) != "[a b c] [[0 1 2] [2 1 0 0]]" {
		t.Errorf("%v, %d skipped, %v", d, skipped, err)
	}
	for text, want := range map[string]string{"u1 a b c\nu2\n": "line 2 holds a user and no item", "": "no user has three items"} {
		if _, _, err := Read(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("u1 a b c\nu2 a\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, _, err := Read(bytes.NewReader(data))
		if err != nil {
			return
		}
		for _, s := range d.Sequences {
			if len(s) < 3 {
				t.Fatalf("a sequence of %d", len(s))
			}
			for _, i := range s {
				if i < 0 || int(i) >= len(d.Items) {
					t.Fatalf("item %d of %d", i, len(d.Items))
				}
			}
		}
	})
}
