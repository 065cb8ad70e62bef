package console

import (
	"context"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	"onerec/internal/stream"
	"onerec/schemas"
)

// Bounds of what is remembered of sessions.
const (
	keptSessions = 200_000 // the newest, of which a user's can be found
	keptBuckets  = 2_000   // of time
	bucketMs     = 10 * 60 * 1000
)

// sessions counts judged sessions.
type sessions struct {
	tail  tail
	rules []string
	seed  maphash.Seed

	mu         sync.Mutex
	total      int64
	good       int64
	unreadable int64
	failed     map[string]int64
	version    string           // of the rules that judged last
	buckets    map[int64]*tally // by time of the session's end
	recent     []place          // a ring
	next       int
}

// tally counts sessions.
type tally struct{ total, good int64 }

// place is where a session of a user lies on its topic.
type place struct {
	user      uint64 // hash
	partition int32
	offset    int64
}

func newSessions(rules []string) *sessions {
	return &sessions{tail: tail{topic: schemas.TopicJudgedSessions, keep: keptSessions}, rules: rules, seed: maphash.MakeSeed(), failed: make(map[string]int64), buckets: make(map[int64]*tally)}
}

func (s *sessions) follow(ctx context.Context, c stream.Cluster) error {
	s.mu.Lock() // it begins anew
	s.total, s.good, s.unreadable, s.recent, s.next = 0, 0, 0, nil, 0
	s.failed, s.buckets = make(map[string]int64), make(map[int64]*tally)
	s.mu.Unlock()
	return s.tail.follow(ctx, c, s.add)
}

func (s *sessions) add(r *kgo.Record) {
	var j schemas.RawJudged
	err := j.Scan(r.Value)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.unreadable++
		return
	}
	s.total++
	if j.Good {
		s.good++
	}
	for _, rule := range j.FailedRules {
		if _, ok := s.failed[string(rule)]; ok || len(s.failed) < 100 {
			s.failed[string(rule)]++
		}
	}
	if s.version != string(j.RulesVersion) {
		s.version = string(j.RulesVersion)
	}
	at := j.EndMs / bucketMs
	b := s.buckets[at]
	if b == nil {
		if len(s.buckets) >= keptBuckets {
			oldest := at
			for t := range s.buckets {
				oldest = min(oldest, t)
			}
			delete(s.buckets, oldest)
		}
		b = new(tally)
		s.buckets[at] = b
	}
	b.total++
	if j.Good {
		b.good++
	}
	p := place{maphash.Bytes(s.seed, j.UserID), r.Partition, r.Offset}
	if len(s.recent) < keptSessions {
		s.recent = append(s.recent, p)
		return
	}
	s.recent[s.next] = p
	s.next = (s.next + 1) % keptSessions
}

// places returns where the newest n sessions of a user are, the newest first. Another user's may be among
// them, seldom.
func (s *sessions) places(user string, n int) (out []place) {
	hash := maphash.String(s.seed, user)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.recent {
		p := s.recent[(s.next+len(s.recent)-1-i)%len(s.recent)]
		if p.user == hash {
			if out = append(out, p); len(out) == n {
				break
			}
		}
	}
	return out
}

// sessionsView is what the page shows.
type sessionsView struct {
	Loaded                        bool
	Total, Good, Unreadable, Left int64
	Version                       string
	Failed                        []ruleCount
	Chart                         chart
}

type ruleCount struct {
	Rule  string
	Count int64
}

// sessionPoints is how many points of time the chart has at most.
const sessionPoints = 120

func (s *sessions) view() sessionsView {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := sessionsView{Loaded: s.tail.loaded.Load(), Total: s.total, Good: s.good, Unreadable: s.unreadable, Left: s.tail.left.Load(), Version: s.version}
	for _, rule := range s.rules {
		v.Failed = append(v.Failed, ruleCount{rule, s.failed[rule]})
	}
	for _, rule := range slices.Sorted(maps.Keys(s.failed)) {
		if !slices.Contains(s.rules, rule) { // of other filters
			v.Failed = append(v.Failed, ruleCount{rule, s.failed[rule]})
		}
	}
	if len(s.buckets) == 0 {
		return v
	}
	times := slices.Sorted(maps.Keys(s.buckets))
	width := int64(1)
	for (times[len(times)-1]-times[0])/width+1 > sessionPoints {
		width++
	}
	var x, total, good []float64
	for _, t := range times {
		at := float64(t / width * width * bucketMs / 1000)
		if len(x) == 0 || x[len(x)-1] != at {
			x, total, good = append(x, at), append(total, 0), append(good, 0)
		}
		total[len(x)-1] += float64(s.buckets[t].total)
		good[len(x)-1] += float64(s.buckets[t].good)
	}
	for i := range total {
		good[i] = 100 * good[i] / total[i]
	}
	v.Chart = chart{Time: true, X: x, Series: []series{
		{Label: fmt.Sprintf("sessions by time of their end, each %d min", 10*width), Values: total, Bars: true},
		{Label: "good, %", Values: good, Right: true},
	}, Y: "sessions", Right: "good, %"}
	return v
}
