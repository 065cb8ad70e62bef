package trainer

import (
	"bytes"
	"encoding/json"
	"fmt"

	"onerec/decoder"
	"onerec/internal/ops"
	"onerec/internal/safetensors"
	"onerec/schemas/onerecv1"
	"onerec/semanticid"
)

// FileState is the file of a candidate that only the trainer reads: the weights
// as trained (the published ones are their average), the moments of AdamW, and
// the item embeddings. Together with the sessions before the checkpoint's offsets
// it is all that a trainer needs to go on.
const FileState = "trainer.safetensors"

// counters travel as the state file's metadata.
type counters struct {
	Stats  Stats
	Debt   float64
	Solver int  // steps of AdamW, for its bias correction
	Given  bool // embeddings are the catalogue's
}

// Checkpoint returns the published weights and the codebook as files, with the
// learner's state beside them, and the decoder's configuration.
func (l *Learner) Checkpoint() (map[string][]byte, json.RawMessage, error) {
	files, config, err := decoder.Encode(l.average, l.cb)
	if err != nil {
		return nil, nil, err
	}
	meta, err := json.Marshal(counters{l.stat, l.debt, l.solver.Steps, l.given})
	if err != nil {
		return nil, nil, fmt.Errorf("save trainer: %w", err)
	}
	f := safetensors.File{Metadata: map[string]string{"counters": string(meta)}}
	for i, t := range l.raw.Tensors() {
		f.Tensors = append(f.Tensors, safetensors.Tensor{Name: "raw." + t.Name, Shape: t.Shape, Data: t.Data})
		if l.solver.M != nil {
			f.Tensors = append(f.Tensors,
				safetensors.Tensor{Name: "m." + t.Name, Shape: t.Shape, Data: l.solver.M[i]},
				safetensors.Tensor{Name: "v." + t.Name, Shape: t.Shape, Data: l.solver.V[i]})
		}
	}
	f.Tensors = append(f.Tensors, safetensors.Tensor{Name: "embeddings", Shape: []int{len(l.vectors) / l.dim, l.dim}, Data: l.vectors})
	var b bytes.Buffer
	if err := safetensors.Write(&b, f); err != nil {
		return nil, nil, fmt.Errorf("save trainer: %w", err)
	}
	files[FileState] = b.Bytes()
	if files[FileSteps], err = encodeSteps(l.steps); err != nil {
		return nil, nil, fmt.Errorf("save trainer: %w", err)
	}
	return files, config, nil
}

// Resume makes a new learner continue from a candidate's files. The sessions
// before the candidate's offsets are then handed to Remember, items to its Catalogue.
func (l *Learner) Resume(files map[string][]byte, config json.RawMessage) error {
	average, cb, err := decoder.Decode(files, config)
	if err != nil {
		return err
	}
	want, err := l.cfg.decoder(cb)
	if err != nil {
		return err
	}
	if average.Config != want {
		return fmt.Errorf("resume training: the checkpoint's decoder is %+v, the settings ask for %+v; train it under another model name, or restore the settings", average.Config, want)
	}
	f, err := safetensors.Parse(files[FileState])
	if err != nil {
		return fmt.Errorf("resume training: %s: %w", FileState, err)
	}
	tensors := make(map[string]safetensors.Tensor, len(f.Tensors))
	for _, t := range f.Tensors {
		tensors[t.Name] = t
	}
	var c counters
	if err := json.Unmarshal([]byte(f.Metadata["counters"]), &c); err != nil {
		return fmt.Errorf("resume training: counters in %s: %w", FileState, err)
	}
	raw := average.Clone()
	solver := ops.NewSolver(l.cfg.LearningRate, l.cfg.WeightDecay)
	solver.Steps = c.Solver
	for _, t := range raw.Tensors() {
		get := func(kind string) ([]float32, error) {
			if data := tensors[kind+"."+t.Name].Data; len(data) == len(t.Data) {
				return data, nil
			}
			return nil, fmt.Errorf("resume training: %s: tensor %s.%s has %d values, want %d", FileState, kind, t.Name, len(tensors[kind+"."+t.Name].Data), len(t.Data))
		}
		data, err := get("raw")
		if err != nil {
			return err
		}
		copy(t.Data, data)
		if c.Solver == 0 {
			continue
		}
		m, err := get("m")
		if err != nil {
			return err
		}
		v, err := get("v")
		if err != nil {
			return err
		}
		solver.M, solver.V = append(solver.M, m), append(solver.V, v)
	}
	e := tensors["embeddings"]
	if len(e.Shape) != 2 || e.Shape[0] != cb.Len() || e.Shape[1] != cb.Dim() || !c.Given && cb.Dim() != l.cfg.EmbeddingDim {
		return fmt.Errorf("resume training: %s: embeddings of shape %v for %d items of width %d; the settings ask for width %d", FileState, e.Shape, cb.Len(), cb.Dim(), l.cfg.EmbeddingDim)
	}
	l.vectors, l.dim, l.given = e.Data, e.Shape[1], c.Given
	l.stat, l.debt = c.Stats, c.Debt
	if l.stat.Built == 0 { // a checkpoint from before it was counted
		l.stat.Built = cb.Len()
	}
	return l.begin(cb, raw, average, solver)
}

// Remember fills the replay buffer and the held-out sessions with a session that
// the checkpoint was trained on before.
func (l *Learner) Remember(s *onerecv1.Session) error { return l.add(s, false) }

// Rebase continues training from other weights: those of a released version
// that this learner's candidate led to. The codebook must be an earlier state of
// the learner's own. The moments start anew.
func (l *Learner) Rebase(w *decoder.Weights, cb *semanticid.Codebook) error {
	if w.Config != l.raw.Config {
		return fmt.Errorf("rebase: the released decoder is %+v, this one %+v", w.Config, l.raw.Config)
	}
	if !l.cb.Extends(cb) {
		return fmt.Errorf("rebase: the released version speaks codebook %s, of which %s is no later state", cb.Version(), l.cb.Version())
	}
	l.restart(w)
	for i, t := range l.average.Tensors() {
		copy(t.Data, w.Tensors()[i].Data)
	}
	return nil
}
