package console

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/internal/stream"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// keptRounds is how many rounds are remembered.
const keptRounds = 500

// rounds keeps the newest rounds of a model.
type rounds struct {
	mu  sync.Mutex
	all []roundAt // the newest last
	t   *tail
}

type roundAt struct {
	*onerecv1.AlignmentRound
	At time.Time
}

func (r *rounds) follow(ctx context.Context, c stream.Cluster, model string) error {
	t := &tail{topic: schemas.TopicRounds, keep: 2 * keptRounds}
	r.mu.Lock()
	r.all, r.t = nil, t
	r.mu.Unlock()
	return t.follow(ctx, c, func(rec *kgo.Record) {
		round := new(onerecv1.AlignmentRound)
		if proto.Unmarshal(rec.Value, round) != nil || round.Model != model {
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.all = append(r.all, roundAt{round, rec.Timestamp})
		if len(r.all) > 2*keptRounds {
			r.all = slices.Clone(r.all[len(r.all)-keptRounds:])
		}
	})
}

// roundsView is what the page shows.
type roundsView struct {
	Loaded      bool
	Total       int
	Accepted    int
	Page, Pages int
	Rounds      []roundView // the newest first
	Shown       *roundView  // whose gates and distributions are shown
	Gains       chart
}

// roundView is a round.
type roundView struct {
	roundAt
	Gates []gateView
	Dist  chart
}

// gateView is a gate of a round.
type gateView struct {
	Name, Side    string
	Figure, Bound float64
	Passed        bool
}

// roundsAPage is how many the page shows at a time.
const roundsAPage = 8

func (r *rounds) view(page int, shown int32) roundsView {
	r.mu.Lock()
	all := slices.Clone(r.all)
	v := roundsView{Loaded: r.t != nil && r.t.loaded.Load(), Total: len(all)}
	r.mu.Unlock()
	var x, before, after []float64
	for _, round := range all {
		if round.Accepted {
			v.Accepted++
		}
		x, before, after = append(x, float64(round.Round)), append(before, round.RewardBefore), append(after, round.RewardAfter)
	}
	v.Gains = chart{X: x, Series: []series{{Label: "before", Values: before, Points: true}, {Label: "after", Values: after, Points: true}}, XLabel: "round", Y: "reward of what held-out users would be served"}
	slices.Reverse(all)
	if len(all) == 0 {
		return v
	}
	var part []roundAt
	part, v.Page, v.Pages = paged(all, page, roundsAPage)
	for _, round := range part {
		v.Rounds = append(v.Rounds, roundView{roundAt: round})
	}
	at := all[0]
	for _, round := range all {
		if round.Round == shown {
			at = round
			break
		}
	}
	rv := detail(at)
	v.Shown = &rv
	return v
}

func detail(round roundAt) roundView {
	v := roundView{roundAt: round}
	for _, g := range round.GetGates() {
		side := "at most"
		if g.Least {
			side = "at least"
			if strings.HasSuffix(g.Name, "_gain") {
				side = "above"
			}
		}
		v.Gates = append(v.Gates, gateView{strings.ReplaceAll(g.Name, "_", " "), side, g.Figure, g.Bound, g.Passed})
	}
	before, after := round.RewardBeforePercentiles, round.RewardAfterPercentiles
	if n := len(before); n > 1 && n == len(after) {
		// Both curves over one axis: the rewards of both, and the share of users up to each.
		x := slices.Sorted(slices.Values(slices.Concat(before, after)))
		x = slices.Compact(x)
		v.Dist = chart{X: x, XLabel: "reward (1: an ordinary session)", Y: "% of held-out users with at most that", Series: []series{
			{Label: "before", Values: shares(before, x)}, {Label: "after", Values: shares(after, x)},
		}}
	}
	return v
}

// shares returns, for each x, what percent of users have at most that, from equally spaced percentiles.
func shares(percentiles, x []float64) []float64 {
	out := make([]float64, len(x))
	step := 100 / float64(len(percentiles)-1)
	for i, v := range x {
		j := 0
		for j < len(percentiles) && percentiles[j] <= v {
			j++
		}
		switch {
		case j == 0:
			out[i] = 0
		case j == len(percentiles):
			out[i] = 100
		default:
			low, high := percentiles[j-1], percentiles[j]
			out[i] = step * (float64(j-1) + (v-low)/(high-low))
		}
	}
	return out
}

// Title names a round for people.
func (r roundView) Title() string {
	verdict := "rejected"
	if r.Accepted {
		verdict = "accepted"
	}
	return fmt.Sprintf("round %d, %s", r.Round, verdict)
}
