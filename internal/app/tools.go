package app

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"onerec/internal/stream"
	"onerec/publisher"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// TopicInfo is a topic's contract as the command line shows it.
type TopicInfo struct {
	Name      string   `json:"name"`
	Message   string   `json:"message"`
	Key       string   `json:"key"`
	ByUser    bool     `json:"by_user"`
	Retention string   `json:"retention"`
	Owner     string   `json:"owner"`
	Producers []string `json:"producers"`
	Consumers []string `json:"consumers"`
	Doc       string   `json:"doc"`
}

// Contract returns the contract of every topic.
func (a *App) Contract() []TopicInfo {
	var out []TopicInfo
	for _, t := range schemas.Topics() {
		retention := "newest of each key"
		if !t.Compacted {
			retention = fmt.Sprintf("%d days", int(t.Retention.Hours()/24))
		}
		out = append(out, TopicInfo{t.Name, t.Message, t.Key, t.ByUser, retention, t.Owner, t.Producers, t.Consumers, t.Doc})
	}
	return out
}

// withClient connects, with a limit to how long an unreachable broker is waited
// for.
func (a *App) withClient(ctx context.Context, fn func(*kgo.Client) error) error {
	cl, err := a.cluster().Client()
	if err != nil {
		return err
	}
	defer cl.Close()
	ping, cancel := context.WithTimeout(ctx, brokersTimeout)
	defer cancel()
	if err := cl.Ping(ping); err != nil {
		return fmt.Errorf("no broker of %v answers; is Kafka running there? Set --brokers: %w", a.Brokers, err)
	}
	return fn(cl)
}

// CreateTopics creates the topics that do not exist and returns their names.
func (a *App) CreateTopics(ctx context.Context) (created []string, err error) {
	err = a.withClient(ctx, func(cl *kgo.Client) (err error) {
		created, err = stream.CreateTopics(ctx, cl, a.Partitions, int16(a.Replication))
		return err
	})
	return created, err
}

// CheckTopics returns what differs between the cluster's topics and the contract.
func (a *App) CheckTopics(ctx context.Context) (differences []string, err error) {
	err = a.withClient(ctx, func(cl *kgo.Client) error {
		var names []string
		for _, t := range schemas.Topics() {
			names = append(names, t.Name)
		}
		adm := kadm.NewClient(cl)
		details, err := adm.ListTopics(ctx)
		if err != nil {
			return fmt.Errorf("list topics: %w", err)
		}
		users := len(details[schemas.TopicViewsRaw].Partitions)
		configs, err := adm.DescribeTopicConfigs(ctx, names...)
		if err != nil {
			return fmt.Errorf("describe topics: %w", err)
		}
		for _, t := range schemas.Topics() {
			if !details.Has(t.Name) {
				differences = append(differences, fmt.Sprintf("%s: does not exist", t.Name))
				continue
			}
			if n, want := len(details[t.Name].Partitions), int(t.Partitions(users)); n != want {
				differences = append(differences, fmt.Sprintf("%s: has %d partitions, want %d", t.Name, n, want))
			}
			config, err := configs.On(t.Name, nil)
			if err == nil {
				err = config.Err
			}
			if err != nil {
				return fmt.Errorf("describe topic %s: %w", t.Name, err)
			}
			have := make(map[string]string)
			for _, kv := range config.Configs {
				have[kv.Key] = kv.MaybeValue()
			}
			for key, want := range t.Settings() {
				if have[key] != want {
					differences = append(differences, fmt.Sprintf("%s: %s is %q, want %q", t.Name, key, have[key], want))
				}
			}
		}
		slices.Sort(differences)
		return nil
	})
	return differences, err
}

// Versions returns the manifests of all versions, oldest first. One that can't be read is told to
// bad.
func (a *App) Versions(ctx context.Context, bad func(version string, err error)) (out []*publisher.Manifest, err error) {
	err = a.withStore(ctx, func(store *publisher.Store) error {
		names, err := store.List(ctx)
		if err != nil {
			return err
		}
		for _, v := range names {
			m, _, err := store.Manifest(ctx, v, "")
			switch {
			case errors.Is(err, publisher.ErrCorrupt), errors.Is(err, publisher.ErrUntrusted):
				bad(v, err)
			case err != nil:
				return err
			default:
				out = append(out, m)
			}
		}
		return nil
	})
	return out, err
}

// Current returns what the model's channels point at.
func (a *App) Current(ctx context.Context) (refs map[string]*onerecv1.CheckpointRef, err error) {
	err = a.withClient(ctx, func(*kgo.Client) error {
		refs, err = publisher.Current(ctx, a.cluster(), a.Model)
		return err
	})
	return refs, err
}

// Collect removes what the settings and gc do not keep, and nothing that a channel points at.
func (a *App) Collect(ctx context.Context, dryRun bool) (c publisher.Collected, err error) {
	err = a.withClient(ctx, func(*kgo.Client) error {
		return a.withStore(ctx, func(store *publisher.Store) error {
			store.Retain.DryRun = dryRun
			c, err = publisher.Retain(ctx, a.cluster(), store)
			return err
		})
	})
	return c, err
}

// Lineage returns a version's manifest and those of its ancestors, as far as they
// are still there.
func (a *App) Lineage(ctx context.Context, version string) (out []*publisher.Manifest, err error) {
	err = a.withStore(ctx, func(store *publisher.Store) error {
		for v := version; v != ""; {
			m, _, err := store.Manifest(ctx, v, "")
			if errors.Is(err, publisher.ErrNotFound) && len(out) > 0 {
				return nil
			}
			if err != nil {
				return err
			}
			out = append(out, m)
			v = m.Parent
		}
		return nil
	})
	return out, err
}

// Verify reads versions, all of them if none is named, and tells each one's state
// to fn. The error says how many are bad.
func (a *App) Verify(ctx context.Context, versions []string, fn func(version string, err error)) error {
	return a.withStore(ctx, func(store *publisher.Store) error {
		if len(versions) == 0 {
			var err error
			if versions, err = store.List(ctx); err != nil {
				return err
			}
		}
		bad := 0
		for _, v := range versions {
			_, _, err := store.Load(ctx, v, "")
			fn(v, err)
			if err != nil {
				bad++
			}
		}
		if bad > 0 {
			return fmt.Errorf("%d of %d versions are not whole", bad, len(versions))
		}
		return nil
	})
}

// Promote points a channel at a version and returns what it pointed at before, and why releases are held, if they
// are: see [App.Hold]. What is released leaves the canary channel.
func (a *App) Promote(ctx context.Context, version, channel string) (before, held string, err error) {
	err = a.withRelease(ctx, func(store *publisher.Store, refs map[string]*onerecv1.CheckpointRef) error {
		before = refs[channel].GetVersion()
		ref, err := publisher.Announce(ctx, a.cluster(), store, channel, version, "")
		if err != nil {
			return err
		}
		held = ref.Held
		if channel == publisher.ChannelReleased && refs[publisher.ChannelCanary].GetVersion() == version {
			return publisher.Withdraw(ctx, a.cluster(), a.Model, publisher.ChannelCanary)
		}
		return nil
	})
	return before, held, err
}

// Withdraw takes a version off the canary channel and returns it; its users get the released one again.
func (a *App) Withdraw(ctx context.Context) (before string, err error) {
	err = a.withRelease(ctx, func(_ *publisher.Store, refs map[string]*onerecv1.CheckpointRef) error {
		if before = refs[publisher.ChannelCanary].GetVersion(); before == "" {
			return fmt.Errorf("no version of model %q is on the canary channel", a.Model)
		}
		return publisher.Withdraw(ctx, a.cluster(), a.Model, publisher.ChannelCanary)
	})
	return before, err
}

// Rollback releases an earlier version again, the one before if none is named, and holds it there: see [App.Hold].
func (a *App) Rollback(ctx context.Context, version, why string) (from, to string, err error) {
	err = a.withClient(ctx, func(*kgo.Client) error {
		return a.withStore(ctx, func(store *publisher.Store) error {
			var ref *onerecv1.CheckpointRef
			from, ref, err = publisher.Rollback(ctx, a.cluster(), store, a.Model, version, why)
			to = ref.GetVersion()
			return err
		})
	})
	return from, to, err
}

// Hold keeps the rewarder, and a judgement that is applied, from releasing another version, and says why; with an
// empty why they may again. It returns what is released.
func (a *App) Hold(ctx context.Context, why string) (released string, err error) {
	err = a.withClient(ctx, func(*kgo.Client) error {
		ref, err := publisher.Hold(ctx, a.cluster(), a.Model, why)
		released = ref.GetVersion()
		return err
	})
	return released, err
}

func (a *App) withRelease(ctx context.Context, fn func(*publisher.Store, map[string]*onerecv1.CheckpointRef) error) error {
	return a.withClient(ctx, func(*kgo.Client) error {
		refs, err := publisher.Current(ctx, a.cluster(), a.Model)
		if err != nil {
			return err
		}
		return a.withStore(ctx, func(store *publisher.Store) error { return fn(store, refs) })
	})
}
