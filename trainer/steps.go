package trainer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// FileSteps is the file of a candidate that says what each step was, since the candidate before: a JSON object a
// line, a [StepRecord].
const FileSteps = "steps.jsonl"

// StepRecord is what a training step was.
type StepRecord struct {
	Step         int     `json:"step"`          // counts finite steps; one that was skipped has the number of the one before
	Loss         float64 `json:"loss"`          // next-token loss of the batch, nats a token; 0: skipped
	GradNorm     float64 `json:"grad_norm"`     // before clipping
	LearningRate float64 `json:"learning_rate"` // of this step
	Rows         int     `json:"rows"`
	Tokens       int     `json:"tokens"`
	Fresh        int     `json:"fresh"` // rows that were trained on for the first time
	Seconds      float64 `json:"seconds"`
	Skipped      bool    `json:"skipped,omitempty"` // not finite: the weights stayed as they were
}

// maxStepRecords bounds the records that are kept between two candidates, the newest.
const maxStepRecords = 100_000

// record keeps what a step was.
func (l *Learner) record(r StepRecord) {
	if len(l.steps) >= maxStepRecords {
		l.steps = append(l.steps[:0], l.steps[len(l.steps)/2:]...)
	}
	l.steps = append(l.steps, r)
}

// Published tells the learner that a checkpoint of it is kept: the next one's steps begin here.
func (l *Learner) Published() { l.steps = nil }

func encodeSteps(steps []StepRecord) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, s := range steps {
		if err := enc.Encode(s); err != nil {
			return nil, fmt.Errorf("step %d: %w", s.Step, err)
		}
	}
	return b.Bytes(), nil
}

// DecodeSteps reads a candidate's FileSteps.
func DecodeSteps(data []byte) (steps []StepRecord, err error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	for {
		var s StepRecord
		if err := dec.Decode(&s); errors.Is(err, io.EOF) {
			return steps, nil
		} else if err != nil {
			return nil, fmt.Errorf("%s: record %d: %w", FileSteps, len(steps)+1, err)
		}
		steps = append(steps, s)
	}
}
