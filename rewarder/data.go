package rewarder

import (
	"onerec/internal/holdout"
	"onerec/schemas/onerecv1"
	"onerec/semanticid"
)

// Limits of the data in memory.
const (
	maxSessions = 100_000 // the newest are kept; held-out users have as many again
	maxViews    = 64      // of a session; what follows is left out
	maxItems    = 5_000_000
)

// session is a session in terms of the dataset's own item numbers.
type session struct {
	user           string
	history, items []int32
	like, dislike  []bool
	completion     []Label
	watch          []int64 // ms
	watchMs        int64
	good           bool
	past           [heads]float32 // what the user's earlier sessions say, see priors.pasts
}

// dataset holds the newest sessions of all users, held-out ones apart.
type dataset struct {
	percent        int // of users held out
	names          []string
	duration       []int64 // of each, ms, as of the newest view; 0: unknown
	index          map[string]int32
	train, heldOut ring
	seen           int64 // sessions added since the dataset began
}

func newDataset(percent int) *dataset {
	return &dataset{percent: percent, index: make(map[string]int32)}
}

type ring struct {
	sessions []session
	next     int
}

func (r *ring) add(s session) {
	if len(r.sessions) < maxSessions {
		r.sessions = append(r.sessions, s)
		return
	}
	r.sessions[r.next] = s
	r.next = (r.next + 1) % maxSessions
}

func (d *dataset) add(j *onerecv1.JudgedSession) {
	d.seen++
	in := j.Session
	s := session{user: in.UserId, good: j.Verdict.GetGood()}
	for _, h := range in.History {
		s.history = append(s.history, d.number(h.ItemId))
	}
	for _, v := range in.Views[:min(len(in.Views), maxViews)] {
		n := d.number(v.ItemId)
		if n >= 0 && v.DurationMs > 0 {
			d.duration[n] = v.DurationMs
		}
		s.items = append(s.items, n)
		s.like, s.dislike = append(s.like, v.Like), append(s.dislike, v.Dislike)
		complete := Unknown
		if v.DurationMs > 0 {
			complete = labelOf(v.WatchMs >= v.DurationMs)
		}
		s.completion = append(s.completion, complete)
		s.watch = append(s.watch, v.WatchMs)
		s.watchMs += v.WatchMs
	}
	if len(s.items) == 0 {
		return
	}
	if holdout.Contains(s.user, d.percent) {
		d.heldOut.add(s)
	} else {
		d.train.add(s)
	}
}

// number returns an item's number; when there are too many, the item is one that
// nobody knows.
func (d *dataset) number(item string) int32 {
	n, ok := d.index[item]
	if !ok {
		if len(d.names) >= maxItems {
			return -1
		}
		n = int32(len(d.names))
		d.index[item] = n
		d.names = append(d.names, item)
		d.duration = append(d.duration, 0)
	}
	return n
}

func (d *dataset) id(cb *semanticid.Codebook, item int32) semanticid.Item {
	if item >= 0 {
		if i, ok := cb.Index(d.names[item]); ok {
			return cb.ID(i)
		}
	}
	return nil
}

// example returns a session as the reward model reads it. An item without an ID
// is there, but has no labels: items get IDs because someone engaged with them, so
// that one has none tells how its views went, and the model would learn that.
func (d *dataset) example(cb *semanticid.Codebook, s session) Example {
	e := Example{WatchMs: s.watchMs}
	for _, h := range s.history {
		if id := d.id(cb, h); id != nil {
			e.History = append(e.History, id)
		}
	}
	for i, item := range s.items {
		v := Viewed{Watch: -1}
		if id := d.id(cb, item); id != nil {
			v = s.view(i)
			v.ID, v.Duration = id, d.duration[item]
		}
		e.Items = append(e.Items, v)
	}
	return e
}

// view says what became of a view.
func (s session) view(i int) Viewed {
	return Viewed{Like: labelOf(s.like[i]), Completion: s.completion[i], Dislike: labelOf(s.dislike[i]), Watch: s.watch[i]}
}

func (d *dataset) examples(cb *semanticid.Codebook, sessions []session) []Example {
	out := make([]Example, len(sessions))
	for i, s := range sessions {
		out[i] = d.example(cb, s)
	}
	return out
}

// prompt returns what the decoder is asked for at a session's start, and what it
// learned to answer if the session was good.
func (d *dataset) prompt(cb *semanticid.Codebook, s session) Prompt {
	p := Prompt{User: s.user, Past: s.past}
	for _, h := range s.history {
		if id := d.id(cb, h); id != nil {
			i, _ := cb.Index(d.names[h])
			p.History, p.Seen = append(p.History, id), append(p.Seen, i)
		}
	}
	if s.good {
		for _, item := range s.items {
			if id := d.id(cb, item); id != nil {
				p.Session = append(p.Session, id)
			}
		}
	}
	return p
}

// facts returns what is known of a codebook's items by their index, beside their IDs.
func (d *dataset) facts(cb *semanticid.Codebook, p *priors, scaleMs float64) []Viewed {
	out := make([]Viewed, cb.Len())
	for i := range out {
		item := int32(-1)
		if n, ok := d.index[cb.Item(int32(i))]; ok {
			item = n
			out[i].Duration = d.duration[n]
		}
		out[i].Item = p.outputs(p.of(item), scaleMs)
	}
	return out
}
