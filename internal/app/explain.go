package app

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/filters"
	"onerec/ingest"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// Explanation is what rules would say of one session.
type Explanation struct {
	SessionID  string          `json:"session_id"`
	UserID     string          `json:"user_id"`
	Views      int             `json:"views"`
	WatchMs    int64           `json:"watch_ms"`
	WatchRatio float64         `json:"watch_ratio"`
	Engagement float64         `json:"engagement"`
	Good       bool            `json:"good"`
	Passed     map[string]bool `json:"passed"` // by rule
}

// Explain judges the sessions that are on the topic now by a rules file, without
// writing anything, and tells each to fn.
func (a *App) Explain(ctx context.Context, fn func(Explanation) error) error {
	if err := a.checkTopics(ctx); err != nil {
		return err
	}
	rules, err := a.rules()
	if err != nil {
		return err
	}
	return a.cluster().ReadTopic(ctx, schemas.TopicSessions, func(r *kgo.Record) error {
		s := new(onerecv1.Session)
		if err := proto.Unmarshal(r.Value, s); err != nil {
			return fmt.Errorf("topic %s partition %d offset %d is no Session: %w", r.Topic, r.Partition, r.Offset, err)
		}
		verdict := rules.Judge(s)
		e := Explanation{
			SessionID: s.SessionId, UserID: s.UserId, Views: len(s.Views), WatchMs: s.TotalWatchMs,
			WatchRatio: filters.WatchRatio(s), Engagement: rules.Engagement(s), Good: verdict.Good, Passed: make(map[string]bool),
		}
		for _, name := range filters.RuleNames() {
			e.Passed[name] = true
		}
		for _, name := range verdict.FailedRules {
			e.Passed[name] = false
		}
		return fn(e)
	})
}

// DeadLetters tells fn of the dead letters with a reason, all of them if it is
// empty.
func (a *App) DeadLetters(ctx context.Context, reason string, fn func(ingest.DeadLetter) error) error {
	if err := a.checkTopics(ctx); err != nil {
		return err
	}
	return ingest.DeadLetters(ctx, a.cluster(), reason, fn)
}

// ReplayDeadLetters sends dead letters to views.raw again.
func (a *App) ReplayDeadLetters(ctx context.Context, letters []ingest.DeadLetter) (int, error) {
	return ingest.Replay(ctx, a.cluster(), letters)
}
