package decoder

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"onerec/semanticid"
)

// TestPythonOpensACheckpoint: docs/examples/checkpoint.py, with safetensors and PyTorch, computes from a checkpoint's
// file what we compute.
func TestPythonOpensACheckpoint(t *testing.T) {
	python := os.Getenv("ONEREC_PYTHON")
	if python == "" {
		python = "python3"
	}
	if out, err := exec.Command(python, "-c", "import torch, safetensors").CombinedOutput(); err != nil {
		t.Skipf("%s has no torch and safetensors; set ONEREC_PYTHON to one that has: %v %.100s", python, err, out)
	}
	c := Config{Layers: 2, Dim: 32, Heads: 4, Hidden: 48, Levels: 3, Codes: 8, MaxLen: 80}
	experts := c
	experts.Experts, experts.Active = 5, 2
	for name, c := range map[string]Config{"separated": c, "compact, with users": c.WithRows(true, 5), "experts": experts} {
		t.Run(name, func(t *testing.T) { pythonOpens(t, python, c) })
	}
}

func pythonOpens(t *testing.T, python string, c Config) {
	r := rand.New(rand.NewPCG(9, 9))
	const items = 30
	names, x := make([]string, items), make([]float32, items*4)
	for i := range names {
		names[i] = fmt.Sprint("i", i)
	}
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	cb, err := semanticid.Build(t.Context(), names, x, 4, semanticid.Config{Levels: 3, Codes: 8, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	w := randomWeights(t, c, 5)
	files, _, err := Encode(w, cb)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var rows []Row
	var in bytes.Buffer
	for i := range 5 {
		row := randomRow(r, c, i, 1+i%3)
		user := ""
		if i > 0 {
			user = fmt.Sprint("u", i)
		}
		row.User = c.User(user)
		rows = append(rows, row)
		codesOf := map[string][][]int{"history": {}, "session": {}}
		for name, of := range map[string][]Item{"history": row.History, "session": row.Session} {
			for _, item := range of {
				var codes []int
				for _, code := range item {
					codes = append(codes, int(code))
				}
				codesOf[name] = append(codesOf[name], codes)
			}
		}
		if err := json.NewEncoder(&in).Encode(map[string]any{"user": user, "history": codesOf["history"], "session": codesOf["session"]}); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(python, filepath.Join("..", "docs", "examples", "checkpoint.py"), dir)
	cmd.Stdin = &in
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.Bytes())
	}
	g, err := NewScorer(w, 256)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(bytes.NewReader(out))
	for i, row := range rows {
		b := testBatch(t, c, 0, row)
		if _, err := g.Run(b, nil, Dropout{}); err != nil {
			t.Fatal(err)
		}
		ours := g.logProbs()[:b.Predictions(0)]
		var theirs []float64
		if !lines.Scan() || json.Unmarshal(lines.Bytes(), &theirs) != nil || len(theirs) != len(ours) {
			t.Fatalf("row %d: %s, want %d numbers", i, lines.Bytes(), len(ours))
		}
		for j := range ours {
			if math.Abs(float64(ours[j])-theirs[j]) > 1e-4 {
				t.Errorf("row %d, code %d: log probability %.6f, PyTorch says %.6f", i, j, ours[j], theirs[j])
			}
		}
	}
}
