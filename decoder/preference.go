package decoder

import (
	"fmt"
	"math"
	"slices"

	"gorgonia.org/gorgonia"

	"onerec/internal/ops"
)

// Names of the losses that learn from a winner and a loser.
const (
	LossDPO   = "dpo"   // Rafailov et al., arXiv 2305.18290; with Smoothing it is cDPO (Mitchell, 2023)
	LossRDPO  = "rdpo"  // Chowdhury et al., arXiv 2403.00409: unbiased when a share Smoothing of the pairs is the wrong way round
	LossIPO   = "ipo"   // Azar et al., arXiv 2310.12036, equation 17
	LossSimPO = "simpo" // Meng et al., arXiv 2405.14734: no reference, mean log probabilities, a margin Gamma
	LossSDPO  = "sdpo"  // Chen et al., arXiv 2406.09215: a winner against several losers at once
	// Flet-Berliac et al., arXiv 2406.19185: the contrastive policy gradient. Its gradient at the
	// reference is REINFORCE's over two samples, each the other's baseline; its optimum is that of the
	// reward less beta times the KL divergence, whoever drew the samples.
	LossCoPG = "copg"
)

// PreferenceLosses lists them.
func PreferenceLosses() []string {
	return []string{LossDPO, LossRDPO, LossIPO, LossSimPO, LossSDPO, LossCoPG}
}

// Preference is a loss over pairs. With m = log p(winner) - log p(loser), less the same of the
// reference, it is
//
//	dpo    (1 - s) f(-beta m) + s f(beta m)                  f(x) = log(1 + exp x)
//	rdpo   ((1 - s) f(-beta m) - s f(beta m)) / (1 - 2 s)
//	ipo    (m - 1 / (2 beta))^2
//	simpo  f(gamma - beta m), m of the model alone
//	sdpo   log(1 + sum over the winner's losers of exp(-beta m))
//	copg   (r - beta m)^2, r the winner's reward less the loser's
type Preference struct {
	Loss      string
	Beta      float32
	Smoothing float32 // s: the share of pairs that may be the wrong way round, below a half
	Gamma     float32 // of simpo
	Average   bool    // log probabilities are means over codes, not sums; simpo's always are
}

func (p Preference) check() error {
	switch {
	case !slices.Contains(PreferenceLosses(), p.Loss):
		return fmt.Errorf("preference loss %q is none of %v", p.Loss, PreferenceLosses())
	case !(p.Beta > 0):
		return fmt.Errorf("preference loss: beta is %v, it must be above 0", p.Beta)
	case !(p.Smoothing >= 0 && p.Smoothing < 0.5):
		return fmt.Errorf("preference loss: label smoothing is %v, allowed is 0 to below 0.5", p.Smoothing)
	}
	return nil
}

// Averaged reports whether log probabilities are means over codes.
func (p Preference) Averaged() bool { return p.Average || p.Loss == LossSimPO }

// ReferenceFree reports whether the loss knows no reference: then pairs have no RefMargin.
func (p Preference) ReferenceFree() bool { return p.Loss == LossSimPO }

// of is the loss of each margin, given each pair's reward; of S-DPO, where pairs of one winner are
// one loss, the loss is on the first of them.
func (p Preference) of(margin, reward *gorgonia.Node, groups func() []int) *gorgonia.Node {
	times := func(n *gorgonia.Node, by float32) *gorgonia.Node {
		return gorgonia.Must(gorgonia.Mul(n, gorgonia.NewConstant(by)))
	}
	plus := func(n *gorgonia.Node, by float32) *gorgonia.Node {
		return gorgonia.Must(gorgonia.Add(n, gorgonia.NewConstant(by)))
	}
	won := func() *gorgonia.Node { // -log sigmoid(z) = softplus(-z)
		return gorgonia.Must(gorgonia.Softplus(times(margin, -p.Beta)))
	}
	lost := func() *gorgonia.Node { return gorgonia.Must(gorgonia.Softplus(times(margin, p.Beta))) }
	switch p.Loss {
	case LossIPO:
		return gorgonia.Must(gorgonia.Square(plus(margin, -1/(2*p.Beta))))
	case LossSimPO:
		return gorgonia.Must(gorgonia.Softplus(plus(times(margin, -p.Beta), p.Gamma)))
	case LossSDPO:
		return p.softmax(margin, groups)
	case LossCoPG:
		return gorgonia.Must(gorgonia.Square(gorgonia.Must(gorgonia.Sub(reward, times(margin, p.Beta)))))
	}
	s := p.Smoothing
	switch {
	case s == 0:
		return won()
	case p.Loss == LossRDPO:
		return times(gorgonia.Must(gorgonia.Sub(times(won(), 1-s), times(lost(), s))), 1/(1-2*s))
	}
	return gorgonia.Must(gorgonia.Add(times(won(), 1-s), times(lost(), s)))
}

// softmax is S-DPO's loss. Group g of the margins runs from groups()[g] to groups()[g+1].
func (p Preference) softmax(margin *gorgonia.Node, groups func() []int) *gorgonia.Node {
	shape := margin.Shape().Clone()
	// terms calls fn with each group's bounds and the logarithm of 1 + sum of exp(-beta m).
	terms := func(m []float32, fn func(lo, hi int, log float64)) {
		at := groups()
		for g := range len(at) - 1 {
			lo, hi := at[g], at[g+1]
			most := 0.0
			for _, v := range m[lo:hi] {
				most = max(most, float64(-p.Beta*v))
			}
			sum := math.Exp(-most)
			for _, v := range m[lo:hi] {
				sum += math.Exp(float64(-p.Beta*v) - most)
			}
			fn(lo, hi, most+math.Log(sum))
		}
	}
	return ops.Apply("softmax of losers", shape, func(out []float32, v [][]float32) {
		clear(out)
		terms(v[0], func(lo, _ int, log float64) { out[lo] = float32(log) })
	}, func(in gorgonia.Nodes, _, dy *gorgonia.Node) gorgonia.Nodes {
		return gorgonia.Nodes{ops.Apply("softmax of losers dm", shape, func(dm []float32, v [][]float32) {
			clear(dm)
			dy, m := v[0], v[1]
			terms(m, func(lo, hi int, log float64) {
				for i := lo; i < hi; i++ {
					dm[i] = -p.Beta * dy[lo] * float32(math.Exp(float64(-p.Beta*m[i])-log))
				}
			})
		}, nil, dy, in[0])}
	}, margin)
}
