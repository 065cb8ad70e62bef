package closedloop

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"onerec/decoder"
	"onerec/rewarder"
)

// AblationConfig is [DefaultConfig] with a round of each variant of alignment instead of rounds in
// a row.
func AblationConfig() Config {
	c := DefaultConfig()
	c.Rounds, c.Seeds = nil, 3
	c.Variants = Variants(c.Align)
	return c
}

// Variants are changes of one thing each: the number of candidates, the share of users, which
// candidates are compared, the loss over them.
func Variants(base rewarder.AlignConfig) []Variant {
	var out []Variant
	add := func(name string, change func(c *rewarder.AlignConfig)) {
		v := Variant{name, base}
		change(&v.Align)
		out = append(out, v)
	}
	add("default", func(*rewarder.AlignConfig) {})
	for _, n := range []int{2, 8, 128} {
		add(fmt.Sprintf("%d candidates", n), func(c *rewarder.AlignConfig) { c.Candidates = n })
	}
	for _, percent := range []float64{1, 5, 20} {
		add(fmt.Sprintf("%g %% of users", percent), func(c *rewarder.AlignConfig) { c.UserPercent, c.Users = percent, 1 })
	}
	add("4 of the worst", func(c *rewarder.AlignConfig) { c.PairsAUser = 4 })
	add("a random pair", func(c *rewarder.AlignConfig) { c.Pairing = rewarder.PairRandom })
	add("4 random pairs", func(c *rewarder.AlignConfig) { c.Pairing, c.PairsAUser = rewarder.PairRandom, 4 })
	add("cdpo 0.1", func(c *rewarder.AlignConfig) { c.Smoothing = 0.1 })
	add("rdpo 0.1", func(c *rewarder.AlignConfig) { c.Loss, c.Smoothing = decoder.LossRDPO, 0.1 })
	add("ipo", func(c *rewarder.AlignConfig) { c.Loss = decoder.LossIPO })
	add("simpo", func(c *rewarder.AlignConfig) { c.Loss, c.Beta, c.Gamma = decoder.LossSimPO, 2, 0.5 })
	add("sdpo 4 losers", func(c *rewarder.AlignConfig) { c.Loss, c.PairsAUser = decoder.LossSDPO, 4 })
	add("best only", func(c *rewarder.AlignConfig) { c.Loss = rewarder.LossBest })
	add("policy gradient", func(c *rewarder.AlignConfig) {
		c.Loss, c.Pairing, c.PairsAUser, c.MinMargin = decoder.LossCoPG, rewarder.PairRandom, 8, 0
	})
	return out
}

// VariantLine is what a variant was worth over all runs.
type VariantLine struct {
	Line
	Pairs    int     `json:"pairs_a_round"`
	KL       float64 `json:"kl_nats"`
	Gain     float64 `json:"predicted_reward_gain"` // of the served list, on held-out users
	Second   float64 `json:"second_reward_gain"`
	Accepted int     `json:"accepted_rounds"`
	Rounds   int     `json:"rounds"`
	// Failed is how often each gate failed.
	Failed map[string]int `json:"failed_gates"`
}

// CompareVariants sums up the variants of runs.
func CompareVariants(runs []*Run, variants []Variant) []VariantLine {
	lines := make(map[string]Line)
	for _, l := range Compare(runs) {
		lines[l.Policy] = l
	}
	var out []VariantLine
	for i, v := range variants {
		l := VariantLine{Line: lines[v.Name], Rounds: len(runs), Failed: make(map[string]int)}
		n := float64(len(runs))
		for _, r := range runs {
			o := r.Variants[i]
			l.Pairs += o.Pairs
			l.KL += o.KL / n
			l.Gain += (o.After.Reward - o.Before.Reward) / n
			l.Second += (o.After.Second - o.Before.Second) / n
			if o.Accepted {
				l.Accepted++
			}
			for _, g := range o.Gates {
				if !g.Passed() {
					l.Failed[g.Name]++
				}
			}
		}
		l.Pairs /= len(runs)
		out = append(out, l)
	}
	return out
}

// PrintVariants writes a table.
func PrintVariants(w io.Writer, lines []VariantLine) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "VARIANT\tPAIRS\tKL, nats\tPREDICTED GAIN\tSECOND MODEL\tACCEPTED\tWATCH, BESIDE PRETRAINED\tLIKES\tCOVERAGE\tFAILED GATES\n")
	for _, l := range lines {
		failed := ""
		for _, name := range slices.Sorted(maps.Keys(l.Failed)) {
			failed += fmt.Sprintf(" %s %d", name, l.Failed[name])
		}
		fmt.Fprintf(t, "%s\t%d\t%.2f\t%+.3f\t%+.3f\t%d of %d\t%s\t%s\t%.2f\t%s\n", l.Policy, l.Pairs, l.KL, l.Gain, l.Second, l.Accepted, l.Rounds,
			percent(l.WatchOverPretrained), percent(l.LikesOverPretrained), l.Coverage, strings.TrimSpace(failed))
	}
	return t.Flush()
}
