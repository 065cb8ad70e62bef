package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/twmb/franz-go/pkg/kgo"

	"onerec/schemas"
)

// TestKillEachStage: kill -9 of each stage at three moments, under load, so that a
// transaction is open.
func TestKillEachStage(t *testing.T) {
	c := start(t, 1)
	f := newFlow(c, 1, 40_000)
	for round := range 3 {
		for _, name := range []string{ingest, sessions, filter, snapshot} {
			share := float64(f.fed) / float64(len(f.events))
			f.feed(0.08)
			if name != filter && name != snapshot { // those lag behind the watermark
				f.reaches(name, share*0.9)
			}
			f.stages[name].kill()
			killed := time.Now()
			f.stages[name].again()
			t.Logf("round %d: %s was killed and is back after %.1f s", round+1, name, time.Since(killed).Seconds())
		}
	}
	f.check()
}

// TestBrokerStops: the only broker is stopped, away for 30 s, and started again; then it
// is killed and started again with its log.
func TestBrokerStops(t *testing.T) {
	c := start(t, 1)
	needBroker(t, c)
	f := newFlow(c, 2, 20_000)
	f.feed(0.3)
	f.reaches(sessions, 0.1)
	grace := 20 * time.Second
	if err := c.brokers[0].Stop(context.Background(), &grace); err != nil {
		t.Fatal(err)
	}
	f.feed(0.1)
	away := time.NewTimer(30 * time.Second)
	<-away.C // the fault itself: it lasts so long
	if err := c.brokers[0].Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	f.feed(0.2)
	t.Logf("stopped for 30 s: the sessionizer has caught up %.1f s after the broker's start", f.recovers(sessions).Seconds())

	killContainer(t, c.brokers[0].DockerContainer)
	f.feed(0.1)
	if err := c.brokers[0].Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	f.feed(0.1)
	t.Logf("killed: the sessionizer has caught up %.1f s after the broker's start", f.recovers(sessions).Seconds())
	f.check()
}

// TestNetworkIsCut: the sessionizer loses the broker for longer than its transaction may
// stay open while another instance takes over; back again, the first is a zombie whose
// transaction must not count.
func TestNetworkIsCut(t *testing.T) {
	c := start(t, 1, "transaction.abort.timed.out.transaction.cleanup.interval.ms=1000")
	needBroker(t, c)
	f := newFlow(c, 4, 20_000)
	second := f.launch(sessions, "two")
	second.ready()
	f.feed(0.3)
	f.reaches(sessions, 0.1)
	engine := docker(t)
	first := f.stages[sessions]
	if _, err := engine.NetworkDisconnect(context.Background(), c.network.ID, client.NetworkDisconnectOptions{Container: first.GetContainerID(), Force: true}); err != nil {
		t.Fatal(err)
	}
	cut := time.Now()
	f.feed(0.3)
	f.reaches(sessions, 0.55) // the second has all partitions: the first's membership has timed out
	t.Logf("cut off: the other instance has everything after %.1f s", time.Since(cut).Seconds())
	if _, err := engine.NetworkConnect(context.Background(), c.network.ID, client.NetworkConnectOptions{Container: first.GetContainerID(), EndpointConfig: &network.EndpointSettings{}}); err != nil {
		t.Fatal(err)
	}
	f.feed(0.1)
	f.recovers(sessions)
	if state, err := first.State(context.Background()); err != nil {
		t.Fatal(err)
	} else if !state.Running { // it may end with an error, as a fenced producer must; a process manager starts it again
		first.again()
	}
	f.check()
}

// TestJoinsAndLeaves: ten joins and leaves in a row, under load.
func TestJoinsAndLeaves(t *testing.T) {
	c := start(t, 1)
	f := newFlow(c, 5, 40_000)
	for i := range 10 {
		f.feed(0.08)
		more := f.launch(sessions, fmt.Sprint("more-", i))
		more.ready()
		f.recovers(sessions)
		more.stop()
	}
	f.check()
}

// TestPoison: a record that nothing can decode, at the head of each partition, and
// views that break a rule among the others: each is a dead letter, nothing stops.
func TestPoison(t *testing.T) {
	c := start(t, 1)
	f := newFlow(c, 6, 4000)
	manual := c.client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for p := range int32(4) {
		for _, value := range []string{"\xff\xff\xff", "", "{", "\x00\x00\x00\x00\x01\x00"} {
			if err := manual.ProduceSync(t.Context(), &kgo.Record{Topic: schemas.TopicViewsRaw, Partition: p, Value: []byte(value)}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	f.check()
	letters := 0
	f.read(schemas.TopicDeadLetters, func([]byte) error { letters++; return nil })
	if letters != 16 {
		t.Errorf("%d dead letters, want 16", letters)
	}
	if out := c.tool("dlq", "list"); strings.Count(out, "undecodable") == 0 {
		t.Errorf("dlq list: %s", out)
	}
}

// TestSlowDownstream: the filter is paused while everything before it works on, and
// catches up.
func TestSlowDownstream(t *testing.T) {
	c := start(t, 1)
	needBroker(t, c)
	f := newFlow(c, 7, 20_000)
	engine := docker(t)
	id := f.stages[filter].GetContainerID()
	if _, err := engine.ContainerPause(context.Background(), id, client.ContainerPauseOptions{}); err != nil {
		t.Fatal(err)
	}
	f.feed(0.6)
	f.reaches(sessions, 0.5)
	if _, err := engine.ContainerUnpause(context.Background(), id, client.ContainerUnpauseOptions{}); err != nil {
		t.Fatal(err)
	}
	f.check()
}

// needBroker skips a test that must break a broker or a network on a cluster that is
// not ours.
func needBroker(t *testing.T, c *cluster) {
	t.Helper()
	if c.network == nil {
		t.Skip("breaks a broker or a network: only on a cluster of its own, in Docker")
	}
}
