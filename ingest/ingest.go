// Package ingest turns raw view events into views that every later stage can
// trust.
//
// It is stateless and exactly once: each record of views.raw becomes one View on
// views or one dead letter on views.dlq, in the same transaction as its offset.
// Nothing is dropped and nothing stops the stream: what can't be decoded or
// breaks a rule of [schemas.ViewRules] is kept byte for byte with headers that
// say why and where it was.
package ingest

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"onerec/internal/stream"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// Rejection says why an event was refused.
type Rejection struct {
	Reason string // a rule's name, or schemas.ReasonUndecodable
	Err    string // what was wrong, for a person
}

// Validator is ingest's pure core: bytes in, a View or a Rejection out.
type Validator struct {
	rules []schemas.Rule
	keys  Keys
}

// NewValidator returns a validator. With pseudonym keys, user ids are replaced by
// their HMAC-SHA256 under the key that is valid at the event's time (the first 16
// bytes, as hex): while a key is valid the same user always gets the same
// pseudonym, and nobody without the key can tell which.
func NewValidator(bounds schemas.Bounds, keys Keys) *Validator {
	return &Validator{schemas.ViewRules(bounds), keys}
}

// Check decodes and validates one value at wall-clock time now. Exactly one
// result is not nil. It also returns the producer's user id, which chooses the
// partition.
func (v *Validator) Check(contentType string, value []byte, now time.Time) (view *onerecv1.View, user string, rejected *Rejection) {
	e, err := schemas.DecodeViewEvent(contentType, value)
	if err != nil {
		return nil, "", &Rejection{schemas.ReasonUndecodable, err.Error()}
	}
	for _, r := range v.rules {
		if broken := r.Broken(e, now); broken != "" {
			return nil, e.UserId, &Rejection{r.Name, broken}
		}
	}
	return &onerecv1.View{
		EventId: e.EventId, UserId: v.user(e.UserId, e.EventTimeMs), ItemId: e.ItemId,
		EventTimeMs: e.EventTimeMs, WatchMs: e.WatchMs, DurationMs: e.DurationMs,
		Like: e.Like, Follow: e.Follow, Comment: e.Comment, Share: e.Share, Dislike: e.Dislike,
		Surface: e.Surface, RecommendationId: e.RecommendationId, CheckpointVersion: e.CheckpointVersion,
	}, e.UserId, nil
}

func (v *Validator) user(id string, eventTimeMs int64) string {
	secret := v.keys.at(eventTimeMs)
	if secret == nil {
		return id
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(id))
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

// Stage is ingest as a stage of the stream.
type Stage struct {
	core      *Validator
	now       func() time.Time
	producers map[string]bool // seen; see producerLabel
	rejected  *prometheus.CounterVec
}

// NewStage returns the stage; reg may be nil.
func NewStage(core *Validator, reg prometheus.Registerer) *Stage {
	s := &Stage{core: core, now: time.Now, producers: make(map[string]bool), rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "onerec_ingest_rejected_total", Help: "Records sent to the dead-letter topic, by reason and by producer (header onerec-producer).",
	}, []string{"reason", "producer"})}
	if reg != nil {
		reg.MustRegister(s.rejected)
	}
	return s
}

// Process implements [stream.Stage].
func (s *Stage) Process(_ context.Context, _ int32, records []*kgo.Record, out *stream.Emitter) error {
	now := s.now()
	partitions := out.Partitions(schemas.TopicViews)
	for _, r := range records {
		var view *onerecv1.View
		var user string
		var rejected *Rejection
		out.Cause(stream.Trace(r))
		if err := stream.FrameError(r); err != nil {
			rejected = &Rejection{schemas.ReasonUndecodable, err.Error()}
		} else {
			view, user, rejected = s.core.Check(header(r, schemas.HeaderContentType), r.Value, now)
		}
		if rejected != nil {
			s.rejected.WithLabelValues(rejected.Reason, s.producerLabel(r)).Inc()
			out.Emit(deadLetter(r, rejected, now))
			continue
		}
		out.Event(view.EventTimeMs)
		// By the producer's id, not the pseudonym: a well-keyed input keeps its
		// partition and so its order; see the package comment of schemas.
		if err := out.EmitProto(schemas.TopicViews, out.PartitionOf(user, partitions), view.UserId, view); err != nil {
			return err
		}
	}
	return nil
}

func header(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

func deadLetter(r *kgo.Record, why *Rejection, now time.Time) *kgo.Record {
	headers := map[string]string{
		schemas.HeaderReason:    why.Reason,
		schemas.HeaderError:     why.Err,
		schemas.HeaderTopic:     r.Topic,
		schemas.HeaderPartition: strconv.Itoa(int(r.Partition)),
		schemas.HeaderOffset:    strconv.FormatInt(r.Offset, 10),
		schemas.HeaderTime:      now.UTC().Format(time.RFC3339),
	}
	d := &kgo.Record{Topic: schemas.TopicDeadLetters, Partition: r.Partition, Key: r.Key, Value: stream.Original(r), Headers: slices.Clone(r.Headers)}
	for _, k := range slices.Sorted(maps.Keys(headers)) {
		d.Headers = append(d.Headers, kgo.RecordHeader{Key: k, Value: []byte(headers[k])})
	}
	return d
}
