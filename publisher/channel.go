package publisher

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/internal/stream"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// Channels of a model.
const (
	ChannelCandidate = "candidate" // trained, not yet aligned
	ChannelCanary    = "canary"    // what a share of the users gets, to be compared with the released one
	ChannelReleased  = "released"  // what fleets serve
)

// Channels lists them.
func Channels() []string { return []string{ChannelCandidate, ChannelCanary, ChannelReleased} }

// Announce points a channel of a model at a version that is in the store. It
// verifies the version first and returns the record that it wrote.
func Announce(ctx context.Context, cl *kgo.Client, s *Store, channel, version, manifestHash string) (*onerecv1.CheckpointRef, error) {
	m, hash, err := s.Manifest(ctx, version, manifestHash)
	if err == nil {
		_, _, err = s.Load(ctx, version, hash)
	}
	if err != nil {
		return nil, fmt.Errorf("announce %s as %s: %w", version, channel, err)
	}
	ref := &onerecv1.CheckpointRef{
		Model: m.Model, Channel: channel, Version: version, BucketUrl: s.URL(), ManifestSha256: hash,
		Parent: m.Parent, Kind: m.Kind, Codebook: m.Codebook, AnnouncedAtMs: time.Now().UnixMilli(), Metrics: m.Metrics,
	}
	value, err := proto.Marshal(ref)
	if err != nil {
		return nil, fmt.Errorf("announce %s as %s: %w", version, channel, err)
	}
	r := &kgo.Record{Topic: schemas.TopicCheckpoints, Key: []byte(m.Model + "/" + channel), Value: value}
	if err := cl.ProduceSync(ctx, r).FirstErr(); err != nil {
		return nil, fmt.Errorf("announce %s as %s on topic %s: %w", version, channel, schemas.TopicCheckpoints, err)
	}
	return ref, nil
}

// Withdraw takes what a channel of a model points at away; nothing is pointed at until the next
// announcement.
func Withdraw(ctx context.Context, cl *kgo.Client, model, channel string) error {
	r := &kgo.Record{Topic: schemas.TopicCheckpoints, Key: []byte(model + "/" + channel)}
	if err := cl.ProduceSync(ctx, r).FirstErr(); err != nil {
		return fmt.Errorf("withdraw %s of model %s on topic %s: %w", channel, model, schemas.TopicCheckpoints, err)
	}
	return nil
}

// Retain collects what the store's options say, but nothing that a channel of any model points at.
func Retain(ctx context.Context, c stream.Cluster, s *Store) (Collected, error) {
	if s.Retain.Keep == 0 {
		return Collected{}, nil
	}
	gc := s.Retain
	refs := make(map[string]string) // versions by key
	err := c.ReadTopic(ctx, schemas.TopicCheckpoints, func(r *kgo.Record) error {
		ref, err := parseRef(r)
		refs[string(r.Key)] = ref.GetVersion()
		return err
	})
	if err != nil {
		return Collected{}, fmt.Errorf("read topic %s: %w", schemas.TopicCheckpoints, err)
	}
	for _, v := range refs {
		if v != "" {
			gc.Referenced = append(gc.Referenced, v)
		}
	}
	return s.Collect(ctx, gc, time.Now())
}

// Current returns what each channel of a model points at now.
func Current(ctx context.Context, c stream.Cluster, model string) (map[string]*onerecv1.CheckpointRef, error) {
	refs := make(map[string]*onerecv1.CheckpointRef)
	err := c.ReadTopic(ctx, schemas.TopicCheckpoints, func(r *kgo.Record) error {
		ref, err := parseRef(r)
		switch channel, ok := strings.CutPrefix(string(r.Key), model+"/"); {
		case err != nil || !ok:
		case ref == nil:
			delete(refs, channel)
		default:
			refs[channel] = ref
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read topic %s: %w", schemas.TopicCheckpoints, err)
	}
	return refs, nil
}

// Follow calls fn with what each channel of a model points at and with every
// later announcement, until ctx ends; the reference is nil when a channel was withdrawn. Of several that
// arrive at once only the newest of a channel counts.
func Follow(ctx context.Context, c stream.Cluster, model string, fn func(channel string, ref *onerecv1.CheckpointRef)) error {
	cl, err := c.Client(
		kgo.ConsumeTopics(schemas.TopicCheckpoints),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	)
	if err != nil {
		return fmt.Errorf("follow topic %s: %w", schemas.TopicCheckpoints, err)
	}
	defer cl.Close()
	for {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("follow topic %s: %w", schemas.TopicCheckpoints, err)
		}
		newest := make(map[string]*onerecv1.CheckpointRef)
		for r := range fetches.RecordsAll() {
			ref, err := parseRef(r)
			if err != nil {
				return err
			}
			if channel, ok := strings.CutPrefix(string(r.Key), model+"/"); ok {
				newest[channel] = ref
			}
		}
		for _, channel := range slices.Sorted(maps.Keys(newest)) {
			fn(channel, newest[channel])
		}
	}
}

func parseRef(r *kgo.Record) (*onerecv1.CheckpointRef, error) {
	if r.Value == nil {
		return nil, nil
	}
	ref := new(onerecv1.CheckpointRef)
	if err := proto.Unmarshal(r.Value, ref); err != nil {
		return nil, fmt.Errorf("topic %s offset %d is no CheckpointRef: %w", r.Topic, r.Offset, err)
	}
	return ref, nil
}
