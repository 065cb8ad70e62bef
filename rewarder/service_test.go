package rewarder

import (
	"testing"
	"time"
)

// TestSchedule: a round begins by time or by number of sessions, whichever is first, and never
// over what the last one was over.
func TestSchedule(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		newSessions int64
		reference   string
		sessions    int64
		after       time.Duration
		want        bool
	}{
		"too early":                      {0, "b", 200, 59 * time.Minute, false},
		"time":                           {0, "b", 200, time.Hour, true},
		"time, new sessions alone":       {0, "a", 101, time.Hour, true},
		"time, a new reference alone":    {0, "b", 100, time.Hour, true},
		"time, nothing new":              {0, "a", 100, 9 * time.Hour, false},
		"enough sessions":                {50, "a", 150, time.Second, true},
		"one too few":                    {50, "a", 149, time.Second, false},
		"too few, but it is time":        {50, "a", 149, time.Hour, true},
		"new reference, sessions as few": {50, "b", 100, time.Second, false},
	} {
		s := schedule{every: time.Hour, newSessions: tt.newSessions}
		if w := s.wait(start); w <= 0 || w > 10*time.Second {
			t.Errorf("%s: %v until the first look after the first", name, w)
		}
		if !s.due("a", 100, start) {
			t.Errorf("%s: the first round is not due at once", name)
		}
		s.made("a", 100, start)
		if got := s.due(tt.reference, tt.sessions, start.Add(tt.after)); got != tt.want {
			t.Errorf("%s: due %v, want %v", name, got, tt.want)
		}
		if w := s.wait(start); tt.newSessions == 0 && w != time.Hour || tt.newSessions > 0 && w > 10*time.Second {
			t.Errorf("%s: wait %v", name, w)
		}
		if w := s.wait(start.Add(2 * time.Hour)); w <= 0 { // overdue, and nothing new: no busy loop
			t.Errorf("%s: wait %v", name, w)
		}
	}
}
