package integration

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sr"
	"github.com/twmb/franz-go/pkg/sr/srfake"
	"google.golang.org/protobuf/encoding/protojson"

	"onerec/internal/kafkatest"
	"onerec/internal/registry"
	"onerec/internal/stream"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
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

// moments is how often a fault that takes long is made, each time somewhere else in the
// stream: go test ./integration -run NetworkIsCut -args -moments 3.
var moments = flag.Int("moments", 1, "how often TestBrokerStops and TestNetworkIsCut make their fault")

// anywhere feeds some of the events and waits until the sessionizer is somewhere in them.
func (f *flow) anywhere(rng *rand.Rand) {
	f.c.t.Helper()
	before := float64(f.fed) / float64(len(f.events))
	f.feed(0.3 / float64(*moments))
	f.reaches(sessions, 0.9*(before+rng.Float64()*0.25/float64(*moments)))
}

// TestBrokerStops: the only broker is stopped, away for 30 s, and started again; then it
// is killed and started again with its log.
func TestBrokerStops(t *testing.T) {
	c := start(t, 1)
	needBroker(t, c)
	f := newFlow(c, 2, 20_000)
	rng := rand.New(rand.NewPCG(2, uint64(*moments)))
	for range *moments {
		stopAndKill(t, f, rng)
	}
	f.check()
}

func stopAndKill(t *testing.T, f *flow, rng *rand.Rand) {
	t.Helper()
	c := f.c
	f.anywhere(rng)
	grace := 20 * time.Second
	if err := c.brokers[0].Stop(context.Background(), &grace); err != nil {
		t.Fatal(err)
	}
	f.feed(0.1 / float64(*moments))
	away := time.NewTimer(30 * time.Second)
	<-away.C // the fault itself: it lasts so long
	if err := c.brokers[0].Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	f.feed(0.2 / float64(*moments))
	t.Logf("stopped for 30 s: the sessionizer has caught up %.1f s after the broker's start", f.recovers(sessions).Seconds())

	killContainer(t, c.brokers[0].DockerContainer)
	f.feed(0.1 / float64(*moments))
	if err := c.brokers[0].Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	f.feed(0.1 / float64(*moments))
	t.Logf("killed: the sessionizer has caught up %.1f s after the broker's start", f.recovers(sessions).Seconds())
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
	rng := rand.New(rand.NewPCG(4, uint64(*moments)))
	for range *moments {
		cutOff(t, f, rng)
	}
	f.check()
}

func cutOff(t *testing.T, f *flow, rng *rand.Rand) {
	t.Helper()
	c := f.c
	f.anywhere(rng)
	engine := docker(t)
	first := f.stages[sessions]
	if _, err := engine.NetworkDisconnect(context.Background(), c.network.ID, client.NetworkDisconnectOptions{Container: first.GetContainerID(), Force: true}); err != nil {
		t.Fatal(err)
	}
	cut := time.Now()
	f.feed(0.3 / float64(*moments))
	f.recovers(sessions) // the second has all partitions: the first's membership has timed out
	t.Logf("cut off: the other instance has everything after %.1f s", time.Since(cut).Seconds())
	if _, err := engine.NetworkConnect(context.Background(), c.network.ID, client.NetworkConnectOptions{Container: first.GetContainerID(), EndpointConfig: &network.EndpointSettings{}}); err != nil {
		t.Fatal(err)
	}
	f.feed(0.1 / float64(*moments))
	f.recovers(sessions)
	if state, err := first.State(context.Background()); err != nil {
		t.Fatal(err)
	} else if !state.Running { // it may end with an error, as a fenced producer must; a process manager starts it again
		first.again()
	}
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

// TestLeadersDie: of three brokers each in turn is killed, and with it the leader of some
// partitions, of some groups or of the cluster; the others take over. It comes back
// before the next one goes.
func TestLeadersDie(t *testing.T) {
	c := start(t, 3, "default.replication.factor=3", "min.insync.replicas=2", "broker.session.timeout.ms=6000")
	needBroker(t, c)
	f := newFlow(c, 9, 30_000)
	for id, b := range c.brokers {
		f.feed(0.1)
		f.recovers(sessions)
		killContainer(t, b.DockerContainer)
		killed := time.Now()
		f.feed(0.1)
		f.recovers(ingest)
		f.recovers(sessions)
		t.Logf("broker %d was killed: the others and the sessionizer have caught up after %.1f s", id+1, time.Since(killed).Seconds())
		if err := b.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "every replica is in sync", func() error {
			topics, err := f.adm.ListTopicsWithInternal(t.Context())
			if err != nil {
				return err
			}
			return errors.Join(topics.Error(), inSync(topics))
		})
	}
	f.check()
}

// inSync says which partition has a replica that is behind.
func inSync(topics kadm.TopicDetails) (err error) {
	topics.EachPartition(func(p kadm.PartitionDetail) {
		if len(p.ISR) < len(p.Replicas) {
			err = fmt.Errorf("%s partition %d: %v of %v are in sync", p.Topic, p.Partition, p.ISR, p.Replicas)
		}
	})
	return err
}

// TestDiskIsFull: the disk under the snapshots fills up while sessions come, and has
// room again later.
func TestDiskIsFull(t *testing.T) {
	c := startWith(t, 1, setup{volume: smallVolume(t, 8<<20)})
	needBroker(t, c)
	c.tool("topics", "create", "--partitions", "4")
	f := newFlowOn(c, 10, 30_000, func(stage string) []string {
		if stage == snapshot {
			return []string{"--snapshots", small + "/snapshots"}
		}
		return nil
	})
	f.fetch = func() error {
		_, err := c.shell(fmt.Sprintf("rm -rf %[2]s && cp -r %[1]s/snapshots %[2]s && chmod -R a+rwX %[2]s", small, f.snapshots()))
		return err
	}
	f.feed(0.4)
	f.reaches(sessions, 0.3)
	if out, err := c.shell("dd if=/dev/zero of=" + small + "/filler bs=1k"); err == nil {
		t.Fatalf("the disk is not full: %s", out)
	}
	f.feed(0.4)
	f.reaches(sessions, 0.7)
	eventually(t, "the snapshot service says that no room is left", func() error { return f.stages[snapshot].logs("no room is left") })
	if code, _ := get(t, f.stages[snapshot].http, "/readyz"); code == http.StatusOK {
		t.Error("it says that it is ready")
	}
	if _, err := c.shell("rm " + small + "/filler"); err != nil {
		t.Fatal(err)
	}
	freed := time.Now()
	f.stages[snapshot].ready()
	t.Logf("the snapshot service is ready %.1f s after there was room again", time.Since(freed).Seconds())
	f.check()
}

// TestRegistryIsDown: the schema registry goes away. What is known of it is enough to go
// on with; a record of a schema that nobody has seen yet waits, as does what comes
// behind it, and a service can't start; when the registry is back, everything goes on.
func TestRegistryIsDown(t *testing.T) {
	fake := srfake.New()
	defer fake.Close()
	target, err := url.Parse(fake.URL())
	if err != nil {
		t.Fatal(err)
	}
	address := kafkatest.FreeAddress(t)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	up := func() (down func()) { // for containers, the registry is a port of this machine
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", ":"+port)
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: httputil.NewSingleHostReverseProxy(target), ReadHeaderTimeout: time.Minute}
		go func() { _ = server.Serve(l) }() // its end is Close's
		return func() { _ = server.Close() }
	}
	down := up()
	defer func() { down() }()
	own, err := registry.New(t.Context(), fake.URL(), true, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := own.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := startWith(t, 1, setup{client: []kgo.Opt{kgo.WithHooks(own)}})
	c.tool("topics", "create", "--partitions", "4")
	host := hostName
	if c.network == nil {
		host = "127.0.0.1"
	}
	f := newFlowOn(c, 11, 10_000, func(string) []string { return []string{"--schema-registry", "http://" + net.JoinHostPort(host, port)} })
	f.feed(0.3)
	f.recovers(sessions)
	cl, err := sr.NewClient(sr.URLs(fake.URL()))
	if err != nil {
		t.Fatal(err)
	}
	other, err := cl.CreateSchema(t.Context(), "other-team", sr.Schema{Type: sr.TypeJSON, Schema: `{"type":"object"}`})
	if err != nil {
		t.Fatal(err)
	}
	down()
	f.feed(0.1)
	f.recovers(sessions) // known ids
	event := &onerecv1.ViewEvent{EventId: "other", UserId: "u1", ItemId: "i", EventTimeMs: f.events[f.fed-1].EventTimeMs, WatchMs: 1000}
	value, err := protojson.Marshal(event)
	if err != nil {
		t.Fatal(err)
	}
	frame, err := new(sr.ConfluentHeader).AppendEncode(nil, other.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	bare, err := stream.Cluster{Brokers: c.stream().Brokers}.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	if err := bare.ProduceSync(t.Context(), &kgo.Record{Topic: schemas.TopicViewsRaw, Key: []byte(event.UserId), Value: append(frame, value...)}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	f.events = slices.Insert(f.events, f.fed, event)
	f.fed++
	f.stages[sessions].kill()
	failed := f.launch(sessions, "one", "--schema-registry", "http://"+net.JoinHostPort(host, port))
	eventually(t, "a service without the registry says so and ends", func() error { return failed.ended("schema registry") })
	f.feed(0.2)
	eventually(t, "ingest says that it waits", func() error { return f.stages[ingest].logs("schema registry") })
	down = up()
	back := time.Now()
	f.recovers(ingest)
	f.stages[sessions].again()
	t.Logf("ingest has caught up, and the sessionizer is ready, %.1f s after the registry was back", time.Since(back).Seconds())
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
