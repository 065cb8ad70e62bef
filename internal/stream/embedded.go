package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"onerec/schemas"
)

// Embedded is a Kafka broker inside this process (franz-go's kfake), for demos,
// tests and development. It keeps one copy of everything and promises nothing
// when the machine, rather than the process, dies.
type Embedded struct{ cluster *kfake.Cluster }

// StartEmbedded starts a broker on a loopback port. Its log is under dir, and
// what an earlier broker left there is there again; an empty dir means memory
// only.
func StartEmbedded(dir string) (*Embedded, error) {
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.BrokerConfigs(map[string]string{"message.max.bytes": "16777216"}),
	}
	if dir != "" {
		opts = append(opts, kfake.DataDir(dir))
	}
	c, err := kfake.NewCluster(opts...)
	if err != nil {
		return nil, fmt.Errorf("start the embedded broker in %q: %w", dir, err)
	}
	return &Embedded{c}, nil
}

// Brokers returns the addresses to connect to.
func (e *Embedded) Brokers() []string { return e.cluster.ListenAddrs() }

// Cluster returns the kfake cluster, for tests that inject faults.
func (e *Embedded) Cluster() *kfake.Cluster { return e.cluster }

// Close stops the broker and writes its log out.
func (e *Embedded) Close() { e.cluster.Close() }

// CreateTopics creates the topics of the contract that do not exist yet and
// returns their names. Topics that exist stay as they are.
func CreateTopics(ctx context.Context, cl *kgo.Client, userPartitions int, replication int16) ([]string, error) {
	adm := kadm.NewClient(cl)
	var created []string
	for _, t := range schemas.Topics() {
		settings := make(map[string]*string)
		for k, v := range maps.All(t.Settings()) {
			settings[k] = &v
		}
		resp, err := adm.CreateTopic(ctx, t.Partitions(userPartitions), replication, settings, t.Name)
		switch {
		case err == nil:
			err = resp.Err
		case errors.Is(err, kerr.TopicAlreadyExists):
		}
		if errors.Is(err, kerr.TopicAlreadyExists) {
			continue
		}
		if err != nil {
			return created, fmt.Errorf("create topic %q: %w", t.Name, err)
		}
		created = append(created, t.Name)
	}
	// A broker learns of a new topic a moment after the controller made it.
	deadline := time.Now().Add(metadataTimeout)
	for {
		err := CheckCoPartitioned(ctx, cl)
		if !errors.Is(err, ErrMissingTopics) || time.Now().After(deadline) {
			return created, err
		}
		select {
		case <-ctx.Done():
			return created, context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// metadataTimeout is how long topics may take to be known everywhere.
const metadataTimeout = 15 * time.Second

// ErrMissingTopics says that topics of the contract do not exist.
var ErrMissingTopics = errors.New("topics do not exist")

// CheckCoPartitioned reports topics that are missing and topics keyed by user
// whose numbers of partitions differ: a stage would write a user's records to
// the wrong partition.
func CheckCoPartitioned(ctx context.Context, cl *kgo.Client) error {
	counts, err := partitionCounts(ctx, cl)
	if err != nil {
		return err
	}
	byCount := make(map[int32][]string)
	var missing []string
	for _, t := range schemas.Topics() {
		switch n, ok := counts[t.Name]; {
		case !ok:
			missing = append(missing, t.Name)
		case t.ByUser:
			byCount[n] = append(byCount[n], t.Name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: %v; run \"onerec topics create\"", ErrMissingTopics, missing)
	}
	if len(byCount) > 1 {
		return fmt.Errorf("topics keyed by user must have the same number of partitions, but have %v (partitions: topics, sizes %v); recreate or extend them", byCount, slices.Sorted(maps.Keys(byCount)))
	}
	return nil
}
