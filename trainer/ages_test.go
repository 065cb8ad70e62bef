package trainer

import (
	"testing"
	"time"

	"onerec/publisher"
)

func TestAges(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var a ages
	if m := a.metrics(now); m != nil {
		t.Errorf("of nothing: %v", m)
	}
	for i := range 101 { // 0 to 100 s old
		a.add(now.Add(-time.Duration((i*37)%101) * time.Second))
	}
	if m := a.metrics(now); m[publisher.MetricSessions] != 101 || m[publisher.MetricAgeP50] != 50 || m[publisher.MetricAgeP99] != 99 {
		t.Errorf("%v", m)
	}
	for range 3 * maxAges {
		a.add(now.Add(-time.Second))
	}
	if m := a.metrics(now); m[publisher.MetricAgeP99] != 1 || m[publisher.MetricSessions] != 101+3*maxAges || len(a.at) != maxAges {
		t.Errorf("%v of %d", m, len(a.at))
	}
}
