package ops

import (
	"fmt"
	"math"

	"gorgonia.org/gorgonia"

	"onerec/internal/kernels"
)

// Solver is AdamW with clipping by global norm as a gorgonia.Solver. Its moments
// and step count are part of a checkpoint.
type Solver struct {
	kernels.AdamW
	ClipNorm float64 // 0: no clipping

	Steps    int
	M, V     [][]float32 // first and second moments, by position in the model
	LastNorm float64     // gradient norm of the last step, before clipping
	grads    [][]float32
}

// NewSolver returns a solver with moments of zero; beta2 is 0.99, which forgets
// faster than the usual 0.999, for a stream that drifts.
func NewSolver(learningRate, weightDecay float64) *Solver {
	return &Solver{AdamW: kernels.AdamW{LearningRate: learningRate, Beta1: 0.9, Beta2: 0.99, Eps: 1e-8, WeightDecay: weightDecay}, ClipNorm: 1}
}

// ErrDiverged is returned by Step when a gradient is not finite; the model is as
// it was before.
var ErrDiverged = fmt.Errorf("the gradient is not finite")

// Step implements gorgonia.Solver.
func (s *Solver) Step(model []gorgonia.ValueGrad) error {
	if s.M == nil {
		for _, n := range model {
			size := len(n.Value().Data().([]float32))
			s.M, s.V = append(s.M, make([]float32, size)), append(s.V, make([]float32, size))
		}
	}
	s.grads = s.grads[:0]
	for i, n := range model {
		g, err := n.Grad()
		if err != nil {
			return fmt.Errorf("gradient of parameter %d: %w", i, err)
		}
		s.grads = append(s.grads, g.Data().([]float32))
	}
	squares := make([]float32, len(s.grads))
	kernels.Parallel(len(s.grads), func(i int) { squares[i] = kernels.Dot(s.grads[i], s.grads[i]) })
	var sum float64
	for _, v := range squares {
		sum += float64(v)
	}
	s.LastNorm = math.Sqrt(sum)
	if math.IsNaN(s.LastNorm) || math.IsInf(s.LastNorm, 0) {
		return ErrDiverged
	}
	scale := 1.0
	if s.ClipNorm > 0 && s.LastNorm > s.ClipNorm {
		scale = s.ClipNorm / s.LastNorm
	}
	s.Steps++
	for i, n := range model {
		v := n.Value()
		s.AdamW.Step(v.Data().([]float32), s.grads[i], s.M[i], s.V[i], float32(scale), s.Steps, v.Shape().Dims() > 1)
	}
	return nil
}
