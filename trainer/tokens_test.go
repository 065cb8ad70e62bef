package trainer

import (
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"onerec/decoder"
	"onerec/internal/holdout"
	"onerec/schemas/onerecv1"
	"onerec/semanticid"
	"onerec/snapshots"
)

// exported trains a model, exports its sessions as tokens and returns the file and the version's folder.
func exported(t *testing.T) (w *decoder.Weights, cb *semanticid.Codebook, tokens *Tokens, sessions []*onerecv1.Session, file, folder string) {
	t.Helper()
	world := newWorld(t)
	dir := t.TempDir()
	store, err := snapshots.Open(t.Context(), filepath.Join(dir, "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	sessions = testSessions(200, 8)
	world.judge(sessions)
	world.snapshot(store)
	c, err := world.service(true).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m, files, err := world.store.Load(t.Context(), c.Manifest.Version, c.Hash)
	if err != nil {
		t.Fatal(err)
	}
	if w, cb, err = decoder.Decode(files, m.Config); err != nil {
		t.Fatal(err)
	}
	folder = filepath.Join(dir, m.Version)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(folder, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file = filepath.Join(dir, "tokens.arrow")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	tokens = &Tokens{Decoder: w.Config, Codebook: cb, Checkpoint: m.Version, History: 4, Session: 3, HistoryWeight: 0.25, HoldoutPercent: 20}
	tw, err := snapshots.NewTokenWriter(f, tokens.Metadata(string(m.Config)), 7)
	if err != nil {
		t.Fatal(err)
	}
	rows, n, err := tokens.Export(t.Context(), store, snapshots.Range{}, func(_ string, err error) error { return err }, tw)
	if err = errors.Join(err, tw.Close(), f.Close()); err != nil || rows < 160 || n < 10*rows {
		t.Fatalf("%d rows, %d tokens, %v", rows, n, err)
	}
	return w, cb, tokens, sessions, file, folder
}

// TestExport: the rows are those that a learner makes of the same sessions; their loss is the decoder's.
func TestExport(t *testing.T) {
	w, cb, tokens, sessions, file, _ := exported(t)
	type row struct{ id, text string }
	var want, got []row
	b := decoder.NewBatch(float32(tokens.HistoryWeight))
	sum := 0.0
	for i, s := range sessions {
		if i%5 == 4 {
			continue // not good
		}
		var history, session []decoder.Item
		for _, h := range s.History {
			if k, ok := cb.Index(h.ItemId); ok {
				history = append(history, cb.ID(k))
			}
		}
		for _, v := range s.Views {
			if k, ok := cb.Index(v.ItemId); ok {
				session = append(session, cb.ID(k))
			}
		}
		for len(session) > 0 {
			n := min(3, len(session))
			r := decoder.Row{History: history[max(0, len(history)-4):], Session: session[:n]}
			codes, weights, at, err := w.Config.Layout(r, 0.25)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, row{s.SessionId, text(codes, weights, int32(at), holdout.Contains(s.UserId, 20))})
			if err := b.Add(w.Config, r); err != nil {
				t.Fatal(err)
			}
			for _, x := range weights {
				sum += float64(x)
			}
			history, session = append(history[:len(history):len(history)], session[:n]...), session[n:]
		}
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	metadata, err := snapshots.ReadTokens(f, func(r snapshots.TokenRow) error {
		got = append(got, row{r.SessionID, text(r.Tokens, r.Weights, r.SessionAt, r.HeldOut)})
		return nil
	})
	if err != nil || metadata["onerec.codebook"] != cb.Version() || !strings.Contains(metadata["onerec.config"], "levels") {
		t.Fatalf("metadata %v, %v", metadata, err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d rows, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("row %d is %v, want %v", i, got[i], want[i])
		}
	}
	g, err := decoder.NewScorer(w, b.Tokens())
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	losses, err := g.Run(b, nil, decoder.Dropout{})
	if err != nil {
		t.Fatal(err)
	}
	loss, rows, err := TokenLoss(w, file, false, 256)
	if err != nil || rows != len(want) || math.Abs(loss-float64(losses.NTP)) > 1e-5 || sum == 0 {
		t.Errorf("loss %g of %d rows, %v, want %g of %d", loss, rows, err, losses.NTP, len(want))
	}
	if _, rows, err := TokenLoss(w, file, true, 256); err != nil || rows == 0 || rows >= len(want) {
		t.Errorf("%d held-out rows, %v", rows, err)
	}
	if _, _, err := TokenLoss(w, filepath.Join(filepath.Dir(file), "none"), true, 256); err == nil {
		t.Error("a file that is not there has a loss")
	}
}

func text(tokens []int32, weights []float32, at int32, held bool) string {
	var b strings.Builder
	for i, t := range tokens {
		b.WriteString(strconv.Itoa(int(t)) + ":" + strconv.FormatFloat(float64(weights[i]), 'g', -1, 32) + " ")
	}
	return b.String() + strconv.Itoa(int(at)) + strconv.FormatBool(held)
}

// TestPyTorchReadsTokens: docs/examples/tokens.py, by pyarrow and PyTorch, has the loss on the file that ours has
// from the same weights, and learns from it.
func TestPyTorchReadsTokens(t *testing.T) {
	python := os.Getenv("ONEREC_PYTHON")
	if python == "" {
		python = "python3"
	}
	if out, err := exec.Command(python, "-c", "import torch, safetensors, pyarrow").CombinedOutput(); err != nil {
		t.Skipf("%s has no torch, safetensors and pyarrow; set ONEREC_PYTHON to one that has: %v %.100s", python, err, out)
	}
	w, _, _, _, file, folder := exported(t)
	want, _, err := TokenLoss(w, file, false, 2048)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(python, filepath.Join("..", "docs", "examples", "tokens.py"), file, folder, "3").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var losses []float64
	for _, line := range strings.Fields(string(out)) {
		x, err := strconv.ParseFloat(line, 64)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		losses = append(losses, x)
	}
	if len(losses) != 4 || math.Abs(losses[0]-want) > 1e-4*want || math.Abs(losses[1]-want) > 1e-4*want || losses[3] >= losses[1] {
		t.Errorf("PyTorch's losses are %v, ours is %g", losses, want)
	}
	t.Logf("loss by PyTorch %.6f, ours %.6f", losses[0], want)
}
