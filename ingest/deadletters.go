package ingest

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"onerec/internal/stream"
	"onerec/schemas"
)

// DeadLetter is a record of views.dlq.
type DeadLetter struct {
	Partition int32 // of views.dlq, as Offset
	Offset    int64
	Reason    string // a rule's name, or schemas.ReasonUndecodable
	Err       string // what was wrong, for a person
	Time      string // when it was refused, RFC 3339
	Producer  string // who sent it, if it said so
	// Where it was, as text: topic, partition and offset.
	FromTopic, FromPartition, FromOffset string
	Key, Value                           []byte             // the original's
	Headers                              []kgo.RecordHeader // the original's
}

// DeadLetters calls fn with what is on views.dlq now and passes the filter (empty:
// everything), and returns fn's first error.
func DeadLetters(ctx context.Context, c stream.Cluster, reason string, fn func(DeadLetter) error) error {
	return c.ReadTopic(ctx, schemas.TopicDeadLetters, func(r *kgo.Record) error {
		if d := ParseDeadLetter(r); reason == "" || d.Reason == reason {
			return fn(d)
		}
		return nil
	})
}

// ParseDeadLetter reads a record of views.dlq.
func ParseDeadLetter(r *kgo.Record) DeadLetter {
	d := DeadLetter{Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value}
	for _, h := range r.Headers {
		v := string(h.Value)
		switch h.Key {
		case schemas.HeaderReason:
			d.Reason = v
		case schemas.HeaderError:
			d.Err = v
		case schemas.HeaderTime:
			d.Time = v
		case schemas.HeaderTopic:
			d.FromTopic = v
		case schemas.HeaderPartition:
			d.FromPartition = v
		case schemas.HeaderOffset:
			d.FromOffset = v
		default:
			if h.Key == schemas.HeaderProducer {
				d.Producer = v
			}
			d.Headers = append(d.Headers, h)
		}
	}
	return d
}

// Replay sends dead letters to views.raw again, as they were: key, value and
// headers. One that is refused again becomes a new dead letter; one that is
// accepted twice is a duplicate by its event id for as long as its session is
// open, and late after that. It returns how many it sent.
func Replay(ctx context.Context, c stream.Cluster, letters []DeadLetter) (int, error) {
	cl, err := c.Client(kgo.DefaultProduceTopic(schemas.TopicViewsRaw))
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	for i, d := range letters {
		headers := slices.DeleteFunc(slices.Clone(d.Headers), func(h kgo.RecordHeader) bool { return h.Key == schemas.HeaderReplayed })
		r := &kgo.Record{Key: d.Key, Value: d.Value, Headers: append(headers, kgo.RecordHeader{
			Key: schemas.HeaderReplayed, Value: fmt.Appendf(nil, "%s/%d/%d", schemas.TopicDeadLetters, d.Partition, d.Offset),
		})}
		if err := cl.ProduceSync(ctx, r).FirstErr(); err != nil {
			return i, fmt.Errorf("replay dead letter %d/%d to %s: %w", d.Partition, d.Offset, schemas.TopicViewsRaw, err)
		}
	}
	return len(letters), nil
}

// Keys are the pseudonym keys and the event times from which each is valid. That
// the event's time chooses the key, and not the clock, lets a replay give the same
// pseudonyms again.
type Keys []Key

// Key is a secret that is valid from an event time on.
type Key struct {
	FromMs int64 // ms since epoch
	Secret []byte
}

// minKeyBytes is the shortest secret.
const minKeyBytes = 16

// ParseKeys reads a key file: one key a line, each but the first with the time from
// which it is valid before it:
//
//	0123456789abcdef0123456789abcdef
//	2026-07-01T00:00:00Z fedcba9876543210fedcba9876543210
//
// To rotate, add a line whose time is in the future. Lines that begin with # are
// left out. Secrets are used as they stand, so nothing in an error shows one.
func ParseKeys(data []byte) (Keys, error) {
	var keys Keys
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		var k Key
		switch {
		case len(fields) == 1 && len(keys) == 0:
		case len(fields) == 2 && len(keys) > 0:
			from, err := time.Parse(time.RFC3339, fields[0])
			if err != nil {
				return nil, fmt.Errorf("pseudonym keys: line %d: the time must be as 2026-07-01T00:00:00Z", n)
			}
			if k.FromMs = from.UnixMilli(); k.FromMs <= keys[len(keys)-1].FromMs {
				return nil, fmt.Errorf("pseudonym keys: line %d: the times must rise", n)
			}
		default:
			return nil, fmt.Errorf("pseudonym keys: line %d: expected a key, preceded by the time from which it is valid on every line but the first", n)
		}
		if k.Secret = []byte(fields[len(fields)-1]); len(k.Secret) < minKeyBytes {
			return nil, fmt.Errorf("pseudonym keys: line %d: the key has %d bytes, at least %d are needed", n, len(k.Secret), minKeyBytes)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("pseudonym keys: there is none")
	}
	return keys, nil
}

// at returns the secret for an event time, nil if there are no keys.
func (k Keys) at(ms int64) []byte {
	var secret []byte
	for _, key := range k {
		if len(secret) == 0 || key.FromMs <= ms {
			secret = key.Secret
		}
	}
	return secret
}

// maxProducers bounds the label of the counter of rejects.
const maxProducers = 100

// producerLabel returns the label for a producer; unknown ones beyond the limit
// share one, so that a broken producer can't fill the memory with names.
func (s *Stage) producerLabel(r *kgo.Record) string {
	name := header(r, schemas.HeaderProducer)
	switch {
	case name == "":
		return "unknown"
	case s.producers[name]:
		return name
	case len(s.producers) >= maxProducers || len(name) > 64:
		return "other"
	}
	if strconv.Quote(name) != `"`+name+`"` { // labels must be clean text
		return "other"
	}
	s.producers[name] = true
	return name
}
