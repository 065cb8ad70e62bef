package decoder

import (
	"fmt"

	"gorgonia.org/gorgonia"
)

// Names of the losses that learn from a winner and a loser.
const (
	LossDPO   = "dpo"   // Rafailov et al., arXiv 2305.18290; with Smoothing it is cDPO (Mitchell, 2023)
	LossRDPO  = "rdpo"  // Chowdhury et al., arXiv 2403.00409: unbiased when a share Smoothing of the pairs is the wrong way round
	LossIPO   = "ipo"   // Azar et al., arXiv 2310.12036, equation 17
	LossSimPO = "simpo" // Meng et al., arXiv 2405.14734: no reference, mean log probabilities, a margin Gamma
)

// PreferenceLosses lists them.
func PreferenceLosses() []string { return []string{LossDPO, LossRDPO, LossIPO, LossSimPO} }

// Preference is a loss over pairs. With m = log p(winner) - log p(loser), less the same of the
// reference, it is
//
//	dpo    (1 - s) f(-beta m) + s f(beta m)                  f(x) = log(1 + exp x)
//	rdpo   ((1 - s) f(-beta m) - s f(beta m)) / (1 - 2 s)
//	ipo    (m - 1 / (2 beta))^2
//	simpo  f(gamma - beta m), m of the model alone
type Preference struct {
	Loss      string
	Beta      float32
	Smoothing float32 // s: the share of pairs that may be the wrong way round, below a half
	Gamma     float32 // of simpo
	Average   bool    // log probabilities are means over codes, not sums; simpo's always are
}

func (p Preference) check() error {
	switch {
	case p.Loss != LossDPO && p.Loss != LossRDPO && p.Loss != LossIPO && p.Loss != LossSimPO:
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

// of is the loss of each margin.
func (p Preference) of(margin *gorgonia.Node) *gorgonia.Node {
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
