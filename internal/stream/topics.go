package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"onerec/schemas"
)

const (
	metadataTimeout = 15 * time.Second // within which brokers learn of a new topic
	brokerTimeout   = 3 * time.Second  // for one broker to say what topics it knows
)

var (
	// ErrMissingTopics says that topics of the contract do not exist.
	ErrMissingTopics = errors.New("topics do not exist")

	errSpreading = errors.New("brokers do not agree on topics")
)

// CreateTopics creates the topics of the contract that do not exist yet and
// returns their names, once every broker knows them. Topics that exist stay as they are.
func CreateTopics(ctx context.Context, cl *kgo.Client, userPartitions int, replication int16) ([]string, error) {
	adm := kadm.NewClient(cl)
	var created []string
	for _, t := range schemas.Topics() {
		settings := make(map[string]*string)
		for k, v := range maps.All(t.Settings()) {
			settings[k] = &v
		}
		resp, err := adm.CreateTopic(ctx, t.Partitions(userPartitions), replication, settings, t.Name)
		if err == nil {
			err = resp.Err
		}
		if errors.Is(err, kerr.TopicAlreadyExists) {
			continue
		}
		if err != nil {
			return created, fmt.Errorf("create topic %q: %w", t.Name, err)
		}
		created = append(created, t.Name)
	}
	return created, awaitTopics(ctx, cl, ErrMissingTopics, errSpreading)
}

// CheckCoPartitioned reports topics that are missing and topics keyed by user
// whose numbers of partitions differ: a stage would write a user's records to
// the wrong partition. It waits for brokers that have not heard of a topic yet.
func CheckCoPartitioned(ctx context.Context, cl *kgo.Client) error {
	return awaitTopics(ctx, cl, errSpreading)
}

// awaitTopics checks the topics until it finds nothing wrong, or something else than
// what time mends.
func awaitTopics(ctx context.Context, cl *kgo.Client, mended ...error) error {
	for deadline := time.Now().Add(metadataTimeout); ; {
		err := checkTopics(ctx, cl)
		passes := kerr.IsRetriable(err) || slices.ContainsFunc(mended, func(m error) bool { return errors.Is(err, m) })
		if !passes || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// checkTopics holds the topics that the brokers know against the contract. Each broker
// is asked: one learns of a topic up to seconds after another, and a service may be
// given any of them.
func checkTopics(ctx context.Context, cl *kgo.Client) error {
	brokers, err := kadm.NewClient(cl).ListBrokers(ctx)
	if err != nil {
		return fmt.Errorf("list brokers: %w", err)
	}
	var known []map[string]int32 // by each broker that answers
	var failed error
	for _, b := range brokers {
		counts, err := knownBy(ctx, cl.Broker(int(b.NodeID)))
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("broker %d: %w", b.NodeID, err))
			continue
		}
		known = append(known, counts)
	}
	if len(known) == 0 {
		return failed
	}
	byCount := make(map[int32][]string)
	var missing, spreading []string
	for _, t := range schemas.Topics() {
		least, most := int32(math.MaxInt32), int32(0)
		for _, counts := range known {
			n := counts[t.Name]
			least, most = min(least, n), max(most, n)
		}
		switch {
		case most == 0:
			missing = append(missing, t.Name)
		case least < most:
			spreading = append(spreading, t.Name)
		case t.ByUser:
			byCount[most] = append(byCount[most], t.Name)
		}
	}
	switch {
	case len(missing) > 0:
		return fmt.Errorf("%w: %v; run \"onerec topics create\"", ErrMissingTopics, missing)
	case len(spreading) > 0:
		return fmt.Errorf("%w: %v; one may have just been created; otherwise see whether every broker keeps up with the controller", errSpreading, spreading)
	case len(byCount) > 1:
		return fmt.Errorf("topics keyed by user must have the same number of partitions, but have %v (partitions: topics, sizes %v); recreate or extend them", byCount, slices.Sorted(maps.Keys(byCount)))
	}
	return nil
}

func knownBy(ctx context.Context, broker *kgo.Broker) (map[string]int32, error) {
	ctx, cancel := context.WithTimeout(ctx, brokerTimeout)
	defer cancel()
	return partitionCounts(ctx, broker)
}

// partitionCounts returns the number of partitions of every topic, as of now: the
// admin client would answer from a cache, in which topics that were just created
// are missing.
func partitionCounts(ctx context.Context, r kmsg.Requestor) (map[string]int32, error) {
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = nil // all
	resp, err := req.RequestWith(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	counts := make(map[string]int32, len(resp.Topics))
	for _, t := range resp.Topics {
		if err := kerr.ErrorForCode(t.ErrorCode); err != nil {
			return nil, fmt.Errorf("list topics: %w", err)
		}
		if t.Topic != nil {
			counts[*t.Topic] = int32(len(t.Partitions))
		}
	}
	return counts, nil
}
