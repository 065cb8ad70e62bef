package stream

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"onerec/schemas"
)

// Lead runs fn in one process of a consumer group at a time: the one to which
// Kafka gives the only partition of the checkpoints topic, which serves as the
// token. The others stand by. fn's context ends when the token moves on; Lead
// waits for fn before it lets go, so two never work at once unless one was cut
// off for longer than its session's timeout. What they publish must therefore
// still be conditional.
//
// With a name, static, the process is a static member of the group (KIP-345): within the
// session's timeout a restarted process of that name has the token at once. It does not
// give it up when it ends.
//
// Lead returns when fn does with ctx still alive, or when ctx ends. It commits
// nothing.
func Lead(ctx context.Context, c Cluster, group, static string, onReady func(), fn func(context.Context) error) error {
	type term struct {
		ctx    context.Context
		cancel context.CancelFunc
		done   chan struct{}
	}
	terms := make(chan term)
	var current *term // only touched by the group's callbacks, which never run at the same time
	lose := func(context.Context, *kgo.Client, map[string][]int32) {
		if current != nil {
			current.cancel()
			<-current.done
			current = nil
		}
	}
	opts := []kgo.Opt{
		kgo.ConsumerGroup(group),
		kgo.ConsumeTopics(schemas.TopicCheckpoints),
		kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, parts map[string][]int32) {
			onReady()
			if len(parts[schemas.TopicCheckpoints]) == 0 {
				return
			}
			runCtx, cancel := context.WithCancel(ctx)
			t := term{runCtx, cancel, make(chan struct{})}
			select {
			case terms <- t:
				current = &t
			case <-ctx.Done():
				cancel()
			}
		}),
		kgo.OnPartitionsRevoked(lose),
		kgo.OnPartitionsLost(lose),
	}
	if static != "" {
		opts = append(opts, kgo.InstanceID(static))
	}
	cl, err := c.Client(opts...)
	if err != nil {
		return fmt.Errorf("join group %q: %w", group, err)
	}
	defer cl.Close()
	cl.PauseFetchTopics(schemas.TopicCheckpoints) // the partition is a token, its records are read elsewhere
	failed := make(chan error, 1)
	polling, stop := context.WithCancel(ctx)
	defer stop()
	go func() { // a poll is how a group says that it can't be joined
		for polling.Err() == nil {
			for _, e := range cl.PollFetches(polling).Errors() {
				if polling.Err() == nil {
					select {
					case failed <- e.Err:
					default:
					}
					return
				}
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("group %q: %w", group, err)
		case t := <-terms:
			err := fn(t.ctx)
			lost := t.ctx.Err() != nil
			t.cancel()
			close(t.done)
			if !lost || ctx.Err() != nil {
				return err
			}
		}
	}
}
