package console

import (
	"context"
	"maps"
	"slices"
	"sync"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"onerec/ingest"
	"onerec/internal/stream"
	"onerec/schemas"
)

// Bounds of what is remembered of dead letters.
const (
	countedLetters = 100_000
	keptLetters    = 500
	shownValue     = 300 // bytes of a letter
	reasonsKept    = 100
)

// letters counts dead letters and keeps the newest.
type letters struct {
	tail tail

	mu      sync.Mutex
	total   int64
	reasons map[string]int64
	newest  []letter // the newest last
}

// letter is a dead letter as the page shows it.
type letter struct {
	Partition int32
	Offset    int64
	Reason    string
	Err       string
	Time      string
	Producer  string
	From      string
	Value     string
}

func newLetters() *letters {
	return &letters{tail: tail{topic: schemas.TopicDeadLetters, keep: countedLetters}, reasons: make(map[string]int64)}
}

func (l *letters) follow(ctx context.Context, c stream.Cluster) error {
	l.mu.Lock()
	l.total, l.reasons, l.newest = 0, make(map[string]int64), nil
	l.mu.Unlock()
	return l.tail.follow(ctx, c, l.add)
}

func (l *letters) add(r *kgo.Record) {
	d := ingest.ParseDeadLetter(r)
	value := string(d.Value[:min(len(d.Value), shownValue)])
	if v, err := schemas.DecodeViewEvent(contentType(d), d.Value); err == nil {
		value = v.String()
	}
	value = printable(value)
	if len(value) > shownValue {
		value = value[:shownValue] + "…"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total++
	if _, ok := l.reasons[d.Reason]; ok || len(l.reasons) < reasonsKept {
		l.reasons[d.Reason]++
	}
	l.newest = append(l.newest, letter{
		Partition: d.Partition, Offset: d.Offset, Reason: d.Reason, Err: d.Err, Time: d.Time, Producer: d.Producer,
		From: d.FromTopic + "/" + d.FromPartition + "/" + d.FromOffset, Value: value,
	})
	if len(l.newest) > 2*keptLetters {
		l.newest = slices.Clone(l.newest[len(l.newest)-keptLetters:])
	}
}

func contentType(d ingest.DeadLetter) string {
	for _, h := range d.Headers {
		if h.Key == schemas.HeaderContentType {
			return string(h.Value)
		}
	}
	return ""
}

// printable replaces what is no text.
func printable(s string) string {
	out := make([]rune, 0, len(s))
	for _, r := range s {
		if r == utf8.RuneError || r < ' ' || r == 0x7f {
			r = '·'
		}
		out = append(out, r)
	}
	return string(out)
}

// lettersView is what the page shows.
type lettersView struct {
	Loaded      bool
	Total, Left int64
	Reasons     []ruleCount
	Newest      []letter // the newest first
	Page, Pages int
	Reason      string // only those
}

// lettersAPage is how many the page shows at a time.
const lettersAPage = 10

func (l *letters) view(page int, reason string) lettersView {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := lettersView{Loaded: l.tail.loaded.Load(), Total: l.total, Left: l.tail.left.Load(), Reason: reason}
	for _, r := range slices.Sorted(maps.Keys(l.reasons)) {
		v.Reasons = append(v.Reasons, ruleCount{r, l.reasons[r]})
	}
	slices.SortStableFunc(v.Reasons, func(a, b ruleCount) int { return int(min(1, max(-1, b.Count-a.Count))) })
	var of []letter
	for _, d := range slices.Backward(l.newest[max(0, len(l.newest)-keptLetters):]) {
		if reason == "" || d.Reason == reason {
			of = append(of, d)
		}
	}
	v.Newest, v.Page, v.Pages = paged(of, page, lettersAPage)
	return v
}

// paged returns a page, from 1, of a list; one that does not exist is the nearest.
func paged[T any](all []T, page, size int) (part []T, at, pages int) {
	pages = max(1, (len(all)+size-1)/size)
	at = min(max(1, page), pages)
	return all[(at-1)*size : min(len(all), at*size)], at, pages
}
