package publisher

import (
	"cmp"
	"context"
	"errors"
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

// keptBefore is how many earlier releases a released channel's record names. None of them is removed.
const keptBefore = 5

// Announce points a channel of a model at a version that is in the store. It verifies the
// version first and returns the record that it wrote. A released channel that is held stays so.
func Announce(ctx context.Context, c stream.Cluster, s *Store, channel, version, manifestHash string) (*onerecv1.CheckpointRef, error) {
	ref, _, err := announce(ctx, c, s, channel, version, manifestHash, func(ref, now *onerecv1.CheckpointRef) error {
		ref.Held = now.GetHeld()
		return nil
	})
	return ref, err
}

// Release is Announce on the released channel as services do it: while the channel is held, nothing is
// released, and Release returns why it is held.
func Release(ctx context.Context, c stream.Cluster, s *Store, version, manifestHash string) (held string, err error) {
	ref, wrote, err := announce(ctx, c, s, ChannelReleased, version, manifestHash, func(_, now *onerecv1.CheckpointRef) error {
		if held = now.GetHeld(); held != "" {
			return errors.New("releases are held")
		}
		return nil
	})
	switch {
	case held != "":
		return held, nil
	case err != nil:
		return "", err
	}
	// Somebody may have held it meanwhile. That record, which this one has covered, is written again.
	var last *onerecv1.CheckpointRef
	err = c.ReadTopic(ctx, schemas.TopicCheckpoints, func(r *kgo.Record) error {
		if string(r.Key) != string(wrote.Key) || r.Partition != wrote.Partition || r.Offset >= wrote.Offset {
			return nil
		}
		last, err = parseRef(r)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("see whether %s may be released: %w", ref.Version, err)
	}
	if last.GetHeld() != "" {
		_, err = write(ctx, c, last)
	}
	return last.GetHeld(), err
}

// Rollback points the released channel at an earlier version, the one that was released before if none is
// named, and holds it there. It returns what was released, and the record that it wrote.
func Rollback(ctx context.Context, c stream.Cluster, s *Store, model, version, why string) (from string, ref *onerecv1.CheckpointRef, err error) {
	refs, err := Current(ctx, c, model)
	if err != nil {
		return "", nil, fmt.Errorf("roll back: %w", err)
	}
	now := refs[ChannelReleased]
	if now == nil {
		return "", nil, fmt.Errorf("nothing of model %q is released, so there is nothing to roll back", model)
	}
	if err := boundWhy(why); err != nil {
		return "", nil, err
	}
	if version = cmp.Or(version, Earlier(now)); version == "" {
		return "", nil, fmt.Errorf("nothing was released before version %s, and it has no parent; name the version to release", now.Version)
	}
	ref, _, err = announce(ctx, c, s, ChannelReleased, version, "", func(ref, now *onerecv1.CheckpointRef) error {
		from = now.GetVersion()
		ref.Held = cmp.Or(why, "rolled back from "+from)
		// What it comes back from is nothing to go back to.
		ref.Before = slices.DeleteFunc(slices.Clone(now.GetBefore()), func(v string) bool { return v >= version })
		return nil
	})
	return from, ref, err
}

// Earlier is the version that a rollback of what ref points at leads to: the one before, else the one that it was
// trained from; empty if there is neither.
func Earlier(ref *onerecv1.CheckpointRef) string {
	if before := ref.GetBefore(); len(before) > 0 {
		return before[0]
	}
	return ref.GetParent()
}

// Hold keeps services from releasing another version than what is released now, and says why; with an
// empty why they may again. Operators may promote and roll back all the same.
func Hold(ctx context.Context, c stream.Cluster, model, why string) (*onerecv1.CheckpointRef, error) {
	refs, err := Current(ctx, c, model)
	if err != nil {
		return nil, fmt.Errorf("hold what is released: %w", err)
	}
	ref := refs[ChannelReleased]
	if ref == nil {
		return nil, fmt.Errorf("nothing of model %q is released, so there is nothing to hold or to let go on", model)
	}
	if err := boundWhy(why); err != nil {
		return nil, err
	}
	ref.Held = why
	_, err = write(ctx, c, ref)
	return ref, err
}

// maxWhy is how many bytes a reason may have.
const maxWhy = 512

func boundWhy(why string) error {
	if len(why) > maxWhy {
		return fmt.Errorf("the reason has %d bytes; say it in %d", len(why), maxWhy)
	}
	return nil
}

// announce verifies a version and points a channel at it. more completes the record, given the channel's present one or
// nil, or refuses.
func announce(ctx context.Context, c stream.Cluster, s *Store, channel, version, manifestHash string, more func(ref, now *onerecv1.CheckpointRef) error) (*onerecv1.CheckpointRef, *kgo.Record, error) {
	fail := func(err error) (*onerecv1.CheckpointRef, *kgo.Record, error) {
		return nil, nil, fmt.Errorf("announce %s as %s: %w", version, channel, err)
	}
	m, hash, err := s.Manifest(ctx, version, manifestHash)
	if err != nil {
		return fail(err)
	}
	refs, err := Current(ctx, c, m.Model)
	if err != nil {
		return fail(err)
	}
	ref := &onerecv1.CheckpointRef{
		Model: m.Model, Channel: channel, Version: version, BucketUrl: s.URL(), ManifestSha256: hash,
		Parent: m.Parent, Kind: m.Kind, Codebook: m.Codebook, AnnouncedAtMs: time.Now().UnixMilli(), Metrics: m.Metrics,
	}
	if channel == ChannelReleased {
		ref.Before = before(refs[channel], version)
	}
	if err := more(ref, refs[channel]); err != nil {
		return fail(err)
	}
	if _, _, err := s.Load(ctx, version, hash); err != nil {
		return fail(err)
	}
	r, err := write(ctx, c, ref)
	if err != nil {
		return fail(err)
	}
	return ref, r, nil
}

// before lists what was released before a version that takes the place of now's. With one of them released again, it is
// what was released before that.
func before(now *onerecv1.CheckpointRef, version string) []string {
	if now == nil {
		return nil
	}
	all := append([]string{now.Version}, now.Before...)
	if at := slices.Index(all, version); at >= 0 {
		all = all[at+1:]
	}
	return all[:min(len(all), keptBefore)]
}

// write makes ref what its channel says.
func write(ctx context.Context, c stream.Cluster, ref *onerecv1.CheckpointRef) (*kgo.Record, error) {
	value, err := proto.Marshal(ref)
	if err != nil {
		return nil, fmt.Errorf("encode CheckpointRef: %w", err)
	}
	cl, err := c.Client()
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	r := &kgo.Record{Topic: schemas.TopicCheckpoints, Key: []byte(ref.Model + "/" + ref.Channel), Value: value}
	if err := cl.ProduceSync(ctx, r).FirstErr(); err != nil {
		return nil, fmt.Errorf("write to topic %s: %w", schemas.TopicCheckpoints, err)
	}
	return r, nil
}

// Withdraw takes what a channel of a model points at away; nothing is pointed at until the next
// announcement.
func Withdraw(ctx context.Context, c stream.Cluster, model, channel string) error {
	cl, err := c.Client()
	if err != nil {
		return err
	}
	defer cl.Close()
	r := &kgo.Record{Topic: schemas.TopicCheckpoints, Key: []byte(model + "/" + channel)}
	if err := cl.ProduceSync(ctx, r).FirstErr(); err != nil {
		return fmt.Errorf("withdraw %s of model %s on topic %s: %w", channel, model, schemas.TopicCheckpoints, err)
	}
	return nil
}

// Retain collects what the store's options say, but nothing that a channel of any model points at, nor what a rollback
// would lead to.
func Retain(ctx context.Context, c stream.Cluster, s *Store) (Collected, error) {
	if s.Retain.Keep == 0 {
		return Collected{}, nil
	}
	gc := s.Retain
	refs := make(map[string][]string) // versions by key
	err := c.ReadTopic(ctx, schemas.TopicCheckpoints, func(r *kgo.Record) error {
		ref, err := parseRef(r)
		refs[string(r.Key)] = append([]string{ref.GetVersion()}, ref.GetBefore()...)
		return err
	})
	if err != nil {
		return Collected{}, fmt.Errorf("read topic %s: %w", schemas.TopicCheckpoints, err)
	}
	for _, versions := range refs {
		gc.Referenced = append(gc.Referenced, slices.DeleteFunc(versions, func(v string) bool { return v == "" })...)
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
