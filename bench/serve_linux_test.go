package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/decoder"
	"onerec/internal/history"
	"onerec/internal/stream"
	"onerec/internal/telemetry"
	"onerec/publisher"
	"onerec/recommender"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
	"onerec/semanticid"
)

var serveSeconds = flag.Float64("serve-seconds", 8, "how long BenchmarkServe attacks at each rate")

// What BenchmarkServe asks for: the base preset, a history of 50 items, 128 beams, 10 items.
const (
	serveItems, serveLevels, serveCodes = 10_000, 3, 256
	serveHistory, serveList             = 50, 10
)

// BenchmarkServe attacks a recommender (embedded broker, a checkpoint of random weights, HTTP on loopback) with
// vegeta: as fast as it answers, then at rates below and above that, then while a new checkpoint is
// swapped in every two seconds. Beside it the same model in PyTorch behind Python's own server. Run
// with -benchtime 1x.
func BenchmarkServe(b *testing.B) {
	for _, mode := range []struct {
		name  string
		beams int
		ask   string
		items int // that the peer writes, one after the other
	}{
		{"list", 128, `"mode":"list"`, serveList},
		{"next", 128, `"mode":"next"`, 1},
		{"list, 16 beams", 16, `"mode":"list"`, serveList},
	} {
		b.Run(mode.name, func(b *testing.B) {
			for b.Loop() {
				url, swap := serveOurs(b, mode.beams)
				r := rand.New(rand.NewPCG(1, 2))
				targets := make([]vegeta.Target, 64)
				for i := range targets {
					var items []string
					for range serveHistory {
						items = append(items, strconv.Quote("i"+strconv.Itoa(r.IntN(serveItems))))
					}
					targets[i] = vegeta.Target{
						Method: http.MethodPost, URL: url + "/v1/recommendations", Header: http.Header{"Content-Type": {"application/json"}},
						Body: fmt.Appendf(nil, `{"history":[%s],"n":%d,%s}`, strings.Join(items, ","), serveList, mode.ask),
					}
				}
				full := attack(b, targets, 0)
				capacity := full.Throughput
				fmt.Printf("%s, as fast as it answers with 4 clients: %.1f requests/s, p50 %v, p99 %v\n", mode.name, capacity, round(full.Latencies.P50), round(full.Latencies.P99))
				b.ReportMetric(capacity, "requests/s")
				best := 0.0
				fmt.Println("OFFERED/s  ANSWERED/s  p50     p99     p99 OF ALL  STATUS")
				for _, share := range []float64{0.25, 0.5, 0.75, 0.9, 1.1, 1.5, 3, 6} {
					m := attack(b, targets, share*capacity)
					fmt.Printf("%-9.1f  %-10.1f  %-6v  %-6v  %-10v  %v\n", m.Rate, m.Throughput, round(m.good.P50), round(m.good.P99), round(m.Latencies.P99), m.StatusCodes)
					if m.good.P99 < 100*time.Millisecond && m.Success == 1 {
						best = max(best, m.Throughput)
					}
					for status := range m.StatusCodes {
						if status != "200" && status != "429" && status != "503" {
							b.Errorf("status %s at %.1f requests/s", status, m.Rate)
						}
					}
				}
				fmt.Printf("%s: most requests/s with p99 under 100 ms: %.1f\n", mode.name, best)
				b.ReportMetric(best, "requests/s-p99<100ms")
				calm := attack(b, targets, 0.5*capacity)
				stop := swap()
				swapping := attack(b, targets, 0.5*capacity)
				swaps := stop()
				fmt.Printf("half of the load: p99 %v; with %d swaps meanwhile %v, success %.4f\n", round(calm.Latencies.P99), swaps, round(swapping.Latencies.P99), swapping.Success)
				b.ReportMetric(swapping.Latencies.P99.Seconds()/calm.Latencies.P99.Seconds(), "p99-swapping/calm")
				if *torchPython == "" {
					continue
				}
				theirs := attack(b, []vegeta.Target{{Method: http.MethodPost, URL: servePeer(b, mode.beams, mode.items), Body: []byte("{}")}}, 0)
				fmt.Printf("PyTorch behind Python's server: %.1f requests/s, p50 %v, p99 %v; we answer %.2f times as many\n\n", theirs.Throughput, round(theirs.Latencies.P50), round(theirs.Latencies.P99), capacity/theirs.Throughput)
				b.ReportMetric(capacity/theirs.Throughput, "of-PyTorch")
			}
		})
	}
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

type attacked struct {
	vegeta.Metrics
	good vegeta.LatencyMetrics // of status 200
}

// attack asks at a rate, or, with 0, as fast as 4 clients get answers.
func attack(b *testing.B, targets []vegeta.Target, rate float64) (out attacked) {
	b.Helper()
	options := []func(*vegeta.Attacker){vegeta.KeepAlive(true), vegeta.Timeout(30 * time.Second)}
	pace := vegeta.Rate{Freq: int(rate * 1000), Per: 1000 * time.Second}
	if rate == 0 {
		options = append(options, vegeta.Workers(4), vegeta.MaxWorkers(4))
	}
	attacker := vegeta.NewAttacker(options...)
	var good vegeta.Metrics
	for r := range attacker.Attack(vegeta.NewStaticTargeter(targets...), pace, time.Duration(*serveSeconds*float64(time.Second)), "") {
		out.Add(r)
		if r.Code == http.StatusOK {
			good.Add(r)
		}
	}
	out.Close()
	good.Close()
	out.good = good.Latencies
	return out
}

// serveOurs starts a recommender and returns its address. swap begins to swap checkpoints, until it is told to stop and says how
// many it were.
func serveOurs(b *testing.B, beams int) (url string, swap func() (stop func() int)) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	broker, err := stream.StartEmbedded("")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(broker.Close)
	cluster := stream.Cluster{Brokers: broker.Brokers()}
	client, err := cluster.Client()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(client.Close)
	if _, err := stream.CreateTopics(ctx, client, 1, 1); err != nil {
		b.Fatal(err)
	}
	store, err := publisher.Open(ctx, b.TempDir(), publisher.Options{})
	if err != nil {
		b.Fatal(err)
	}
	const dim = 16
	r := rand.New(rand.NewPCG(1, 1))
	x, names := make([]float32, serveItems*dim), make([]string, serveItems)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	for i := range names {
		names[i] = "i" + strconv.Itoa(i)
	}
	cb, err := semanticid.Build(ctx, names, x, dim, semanticid.Config{Levels: serveLevels, Codes: serveCodes, Seed: 1})
	if err != nil {
		b.Fatal(err)
	}
	config, err := decoder.Preset("base", serveLevels, serveCodes, serveHistory, serveList)
	if err != nil {
		b.Fatal(err)
	}
	var refs []*onerecv1.CheckpointRef
	announce := func(seed uint64) {
		w, err := decoder.NewWeights(config, seed)
		if err != nil {
			b.Fatal(err)
		}
		files, text, err := decoder.Encode(w, cb)
		if err != nil {
			b.Fatal(err)
		}
		m := &publisher.Manifest{Model: "m", Kind: publisher.KindBase, Codebook: cb.Version(), Config: text}
		hash, err := store.Publish(ctx, m, files)
		if err != nil {
			b.Fatal(err)
		}
		ref, err := publisher.Announce(ctx, client, store, publisher.ChannelReleased, m.Version, hash)
		if err != nil {
			b.Fatal(err)
		}
		refs = append(refs, ref)
	}
	announce(1)
	announce(2)
	ready := make(chan struct{})
	s := &recommender.Service{
		Cluster: cluster, Store: store, Model: "m", Channel: publisher.ChannelReleased, Policy: history.DefaultPolicy(), Beams: beams, MaxUsers: 1000, MaxItems: 1000,
		MaxWait: 200 * time.Millisecond, Timeout: 5 * time.Second, Log: slog.New(slog.DiscardHandler), OnReady: func() { close(ready) },
	}
	s.Open()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan error, 2)
	go func() { done <- s.Run(ctx) }()
	go func() { done <- telemetry.Serve(ctx, l, s.Handler()) }()
	b.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				b.Error(err)
			}
		}
		if err := store.Close(); err != nil {
			b.Error(err)
		}
	})
	<-ready
	return "http://" + l.Addr().String(), func() func() int {
		swapping, end := context.WithCancel(ctx)
		swaps := make(chan int)
		go func() {
			n := 0
			for tick := time.NewTicker(2 * time.Second); ; {
				select {
				case <-swapping.Done():
					tick.Stop()
					swaps <- n
					return
				case <-tick.C:
					// The record alone: who announces verifies elsewhere.
					value, err := proto.Marshal(refs[n%2])
					if err != nil {
						continue
					}
					if client.ProduceSync(swapping, &kgo.Record{Topic: schemas.TopicCheckpoints, Key: []byte("m/" + publisher.ChannelReleased), Value: value}).FirstErr() == nil {
						n++
					}
				}
			}
		}()
		return func() int { end(); return <-swaps }
	}
}

// servePeer starts the peer and returns its address.
func servePeer(b *testing.B, beams, items int) string {
	b.Helper()
	c, err := decoder.Preset("base", serveLevels, serveCodes, serveHistory, serveList)
	if err != nil {
		b.Fatal(err)
	}
	args := []string{"decoder/peer.py", "serve"}
	for _, n := range []int{c.Layers, c.Dim, c.Heads, c.Hidden, c.Levels, c.Codes, serveHistory, beams, items} {
		args = append(args, strconv.Itoa(n))
	}
	cmd := exec.CommandContext(b.Context(), *torchPython, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatalf("the peer does not start: %v", err)
	}
	var port int
	if err := json.Unmarshal([]byte(line), &port); err != nil {
		b.Fatalf("the peer says %q", line)
	}
	return fmt.Sprintf("http://127.0.0.1:%d/", port)
}
