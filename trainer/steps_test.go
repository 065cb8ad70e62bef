package trainer

import (
	"math"
	"reflect"
	"testing"
)

// TestStepRecords: a checkpoint says of each step since the one before what it was.
func TestStepRecords(t *testing.T) {
	l := NewLearner(testConfig())
	sessions := testSessions(150, 3)
	observe(t, l, sessions[:100])
	if err := l.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	steps(t, l)
	files, _, err := l.Checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	first, err := DecodeSteps(files[FileSteps])
	if err != nil || len(first) != l.Stats().Steps || first[len(first)-1].Step != len(first) {
		t.Fatalf("%d records of %d steps, %v", len(first), l.Stats().Steps, err)
	}
	rows, tokens, fresh, seconds := 0, 0, 0, 0.0
	for _, r := range first {
		rows, tokens, fresh, seconds = rows+r.Rows, tokens+r.Tokens, fresh+r.Fresh, seconds+r.Seconds
		if !(r.Loss > 0) || !(r.GradNorm > 0) || !(r.LearningRate > 0) || r.Skipped {
			t.Errorf("record %+v", r)
		}
	}
	if st := l.Stats(); int64(rows) != st.Rows || int64(tokens) != st.Tokens || fresh == 0 || fresh > rows || math.Abs(seconds-st.Seconds) > 0.1*st.Seconds+0.01 || first[0].Loss != st.FirstLoss {
		t.Errorf("%d rows, %d tokens, %d fresh, %.2f s: %+v", rows, tokens, fresh, seconds, st)
	}
	l.Published()
	observe(t, l, sessions[100:])
	if files, _, err = l.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	second, err := DecodeSteps(files[FileSteps])
	if err != nil || len(first)+len(second) != l.Stats().Steps || len(second) == 0 || second[0].Step != len(first)+1 {
		t.Errorf("then %d records of %d steps, %v", len(second), l.Stats().Steps, err)
	}
	for range 3 * maxStepRecords / 2 {
		l.record(StepRecord{Step: 1})
	}
	if len(l.steps) > maxStepRecords {
		t.Errorf("%d records are kept", len(l.steps))
	}
	if got, err := DecodeSteps([]byte("{\"step\":3}\n{\"st")); err == nil || got != nil {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := DecodeSteps(nil); err != nil || !reflect.DeepEqual(got, []StepRecord(nil)) {
		t.Errorf("%v, %v", got, err)
	}
}
