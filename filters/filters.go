// Package filters decides which sessions are good, that is, worth imitating.
//
// A rule set is a versioned list of thresholds. OneRec calls a session good when
// at least five videos were really watched, the total watch time is above a
// threshold and there was an interaction such as a like, a collect or a share
// (arXiv 2502.18965, section 3); [DefaultRules] follows it.
package filters

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
	"gopkg.in/yaml.v3"

	"onerec/internal/stream"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// RuleSet says what a good session needs. A threshold of zero is met by every
// session.
type RuleSet struct {
	Version string `yaml:"version"`
	// MinViews is the least number of views.
	MinViews int `yaml:"min_views"`
	// MinWatch is the least total watch time.
	MinWatch time.Duration `yaml:"min_watch"`
	// MinWatchRatio is the least ratio of watch time to duration, over the views
	// whose duration is known; each view counts at most as 1, so that one loop
	// can't carry a session.
	MinWatchRatio float64 `yaml:"min_watch_ratio"`
	// MinEngagement is the least sum of Weights over the views' engagements.
	MinEngagement float64 `yaml:"min_engagement"`
	Weights       Weights `yaml:"weights"`
}

// Weights are what each engagement adds to a session's engagement.
type Weights struct {
	Like    float64 `yaml:"like"`
	Follow  float64 `yaml:"follow"`
	Comment float64 `yaml:"comment"`
	Share   float64 `yaml:"share"`
	Dislike float64 `yaml:"dislike"`
}

// DefaultRules follows the paper; the watch-time threshold, which it does not
// publish, is 30 s.
func DefaultRules() RuleSet {
	return RuleSet{
		Version: "default-1", MinViews: 5, MinWatch: 30 * time.Second, MinEngagement: 1,
		Weights: Weights{Like: 1, Follow: 1, Comment: 1, Share: 1, Dislike: -1},
	}
}

// ParseRules reads a rule set from YAML. Unknown keys and impossible thresholds
// are errors that name them.
func ParseRules(data []byte) (RuleSet, error) {
	var rules RuleSet
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&rules); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the file is empty")
		}
		return RuleSet{}, fmt.Errorf("read filter rules: %w", err)
	}
	if err := dec.Decode(new(RuleSet)); !errors.Is(err, io.EOF) {
		return RuleSet{}, errors.New("read filter rules: the file must hold one document")
	}
	if rules.Version == "" {
		return RuleSet{}, errors.New("read filter rules: version is missing; name one, so that verdicts can be traced to it")
	}
	const large = 1e12
	w := rules.Weights
	for _, b := range []struct {
		key       string
		v, lo, hi float64
	}{
		{"min_views", float64(rules.MinViews), 0, large},
		{"min_watch", rules.MinWatch.Seconds(), 0, large},
		{"min_watch_ratio", rules.MinWatchRatio, 0, 1},
		{"min_engagement", rules.MinEngagement, -large, large},
		{"weights.like", w.Like, -large, large},
		{"weights.follow", w.Follow, -large, large},
		{"weights.comment", w.Comment, -large, large},
		{"weights.share", w.Share, -large, large},
		{"weights.dislike", w.Dislike, -large, large},
	} {
		if !(b.v >= b.lo && b.v <= b.hi) {
			return RuleSet{}, fmt.Errorf("read filter rules: %s is %v, allowed is %v to %v", b.key, b.v, b.lo, b.hi)
		}
	}
	return rules, nil
}

// Names of the rules, as they stand in verdicts and reports.
const (
	RuleViews      = "min_views"
	RuleWatch      = "min_watch"
	RuleWatchRatio = "min_watch_ratio"
	RuleEngagement = "min_engagement"
)

// RuleNames lists the rules in the order in which verdicts name them.
func RuleNames() []string { return []string{RuleViews, RuleWatch, RuleWatchRatio, RuleEngagement} }

// Judge applies every rule to a session.
func (r RuleSet) Judge(s *onerecv1.Session) *onerecv1.Verdict {
	v := &onerecv1.Verdict{RulesVersion: r.Version}
	fail := func(name string, failed bool) {
		if failed {
			v.FailedRules = append(v.FailedRules, name)
		}
	}
	fail(RuleViews, len(s.Views) < r.MinViews)
	fail(RuleWatch, s.TotalWatchMs < r.MinWatch.Milliseconds())
	fail(RuleWatchRatio, r.MinWatchRatio > 0 && WatchRatio(s) < r.MinWatchRatio)
	fail(RuleEngagement, r.MinEngagement != 0 && r.Engagement(s) < r.MinEngagement)
	v.Good = len(v.FailedRules) == 0
	return v
}

// Engagement is the weighted sum of a session's engagements.
func (r RuleSet) Engagement(s *onerecv1.Session) float64 {
	w := r.Weights
	return w.Like*float64(s.Likes) + w.Follow*float64(s.Follows) + w.Comment*float64(s.Comments) + w.Share*float64(s.Shares) + w.Dislike*float64(s.Dislikes)
}

// WatchRatio is the mean ratio of watch time to duration over the views whose
// duration is known, each at most 1; 1 if none is.
func WatchRatio(s *onerecv1.Session) float64 {
	var sum float64
	n := 0
	for _, v := range s.Views {
		if v.DurationMs > 0 {
			sum += min(1, float64(v.WatchMs)/float64(v.DurationMs))
			n++
		}
	}
	if n == 0 {
		return 1 // nothing known speaks against it
	}
	return sum / float64(n)
}

// Stage is filters as a stage of the stream: each session goes to
// sessions.judged with its verdict, the good ones to sessions.good as well.
type Stage struct {
	rules   atomic.Pointer[RuleSet]
	judged  *prometheus.CounterVec
	reloads *prometheus.CounterVec
}

// NewStage returns the stage; reg may be nil.
func NewStage(rules RuleSet, reg prometheus.Registerer) *Stage {
	s := &Stage{
		judged: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "onerec_filter_sessions_total", Help: "Sessions judged; verdict is good, or the first rule that failed.",
		}, []string{"verdict"}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "onerec_filter_reloads_total", Help: "Changes of the rules file: loaded, or refused because it is not valid.",
		}, []string{"outcome"}),
	}
	s.rules.Store(&rules)
	if reg != nil {
		reg.MustRegister(s.judged, s.reloads)
	}
	return s
}

// Follow looks at the rules file whenever tick says so and takes over what changed;
// sessions from then on are judged by the new rules. A file that can't be read or
// is not valid changes nothing and is logged once. It ends with ctx.
func (s *Stage) Follow(ctx context.Context, path string, tick <-chan time.Time, log *slog.Logger) {
	last, err := os.ReadFile(path)
	if err != nil {
		last = nil // looked at again below
	}
	failed := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
		data, err := os.ReadFile(path)
		if err == nil && bytes.Equal(data, last) {
			failed = ""
			continue
		}
		var rules RuleSet
		if err == nil {
			rules, err = ParseRules(data)
		}
		if err != nil {
			if err.Error() != failed {
				failed = err.Error()
				s.reloads.WithLabelValues("refused").Inc()
				log.Error("the rules file was changed but is not valid; the old rules stay in force", "file", path, "version", s.rules.Load().Version, "error", err)
			}
			continue
		}
		last, failed = data, ""
		s.reloads.WithLabelValues("loaded").Inc()
		log.Info("new rules in force", "file", path, "version", rules.Version, "before", s.rules.Load().Version)
		s.rules.Store(&rules)
	}
}

// Process implements [stream.Stage].
func (s *Stage) Process(_ context.Context, partition int32, records []*kgo.Record, out *stream.Emitter) error {
	for _, r := range records {
		out.Cause(stream.Trace(r))
		session := new(onerecv1.Session)
		if err := proto.Unmarshal(r.Value, session); err != nil {
			return fmt.Errorf("%s partition %d offset %d is no Session (only sessionize may write there): %w", r.Topic, r.Partition, r.Offset, err)
		}
		verdict := s.rules.Load().Judge(session)
		label := "good"
		if !verdict.Good {
			label = verdict.FailedRules[0]
		}
		s.judged.WithLabelValues(label).Inc()
		out.Event(session.EndMs)
		if err := out.EmitProto(schemas.TopicJudgedSessions, partition, session.UserId, &onerecv1.JudgedSession{Session: session, Verdict: verdict}); err != nil {
			return err
		}
		if verdict.Good {
			if err := out.EmitProto(schemas.TopicGoodSessions, partition, session.UserId, &onerecv1.GoodSession{Session: session, RulesVersion: verdict.RulesVersion}); err != nil {
				return err
			}
		}
	}
	return nil
}
