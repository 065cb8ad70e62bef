// Package gradcheck holds gradients against central differences, for tests.
package gradcheck

import (
	"math"
	"math/rand/v2"
	"testing"

	"gorgonia.org/gorgonia"

	"onerec/internal/safetensors"
)

// Directions holds the gradients that nodes have after a call of loss against
// central differences of loss along three random directions of each parameter.
// The differences have an error of the fourth order in the step.
func Directions(t testing.TB, params []safetensors.Tensor, nodes []gorgonia.ValueGrad, loss func() float64) {
	t.Helper()
	loss()
	grads := make([][]float32, len(nodes))
	for i, n := range nodes {
		g, err := n.Grad()
		if err != nil {
			t.Fatal(err)
		}
		grads[i] = append([]float32(nil), g.Data().([]float32)...)
	}
	r := rand.New(rand.NewPCG(9, 9))
	for i, p := range params {
		for range 3 {
			dir := make([]float32, len(p.Data))
			var want, norm float64
			for j := range dir {
				dir[j] = float32(r.NormFloat64())
				want += float64(dir[j]) * float64(grads[i][j])
				norm += float64(dir[j]) * float64(dir[j])
			}
			h := 2e-2 / math.Sqrt(norm)
			old := append([]float32(nil), p.Data...)
			at := func(by float64) float64 {
				for j := range dir {
					p.Data[j] = old[j] + float32(by)*dir[j]
				}
				return loss()
			}
			got := (8*(at(h)-at(-h)) - (at(2*h) - at(-2*h))) / (12 * h)
			copy(p.Data, old)
			if math.Abs(got-want) > 2e-3+2e-2*math.Abs(got) {
				t.Errorf("%s: gradient along a direction is %v, central difference %v", p.Name, want, got)
			}
		}
	}
}
