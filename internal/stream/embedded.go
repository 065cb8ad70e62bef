package stream

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kfake"
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
