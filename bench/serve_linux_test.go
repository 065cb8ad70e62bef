package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
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
	"onerec/snapshots"
)

var (
	serveSeconds = flag.Float64("serve-seconds", 8, "how long BenchmarkServe attacks at each rate")
	serveDemo    = flag.String("serve-demo", "", "folder of a demo with the base preset: its newest checkpoint and its users take the place of random ones")
)

// What BenchmarkServe asks for: the base preset, a history of 50 items, 128 beams, 10 items.
const (
	serveItems, serveLevels, serveCodes = 10_000, 3, 256
	serveHistory, serveList             = 50, 10
)

// Users who return ask a few times, each time after a few more items, at least so many of them in turn, and as many more as it takes for
// a user to pause between two requests; their histories have 50 items in the mean.
const (
	returns, watchedBetween, inTurn = 4, 2, 16
	pause                           = 500 * time.Millisecond
)

// BenchmarkServe attacks a recommender (embedded broker, a checkpoint of random weights, HTTP on loopback) with
// vegeta: as fast as it answers, in float32, int16, int8 and, beside it, the same model in PyTorch behind Python's own server, by
// turns; then, in one of those, at rates below and above that, then while a new checkpoint is swapped in every two seconds. Run
// with -benchtime 1x.
func BenchmarkServe(b *testing.B) {
	for _, mode := range []struct {
		name    string
		beams   int
		ask     string
		items   int             // that the peer writes, one after the other
		returns int             // requests of a user
		clients uint64          // who ask as fast as they are answered, without being turned away
		numbers decoder.Numbers // in which it is asked at rates
	}{
		{"list", 128, `"mode":"list"`, serveList, 1, 2, decoder.Int8},
		{"next", 128, `"mode":"next"`, 1, 1, 4, decoder.Int16},
		{"next, users return", 128, `"mode":"next"`, 1, returns, 4, decoder.Int16},
		{"list, 32 beams", 32, `"mode":"list"`, serveList, 1, 4, decoder.Int16}, // the default
		{"list, 16 beams", 16, `"mode":"list"`, serveList, 1, 4, decoder.Int16},
	} {
		b.Run(mode.name, func(b *testing.B) {
			for b.Loop() {
				of := servedOf(b)
				kinds := []decoder.Numbers{decoder.Float32, decoder.Int16, decoder.Int8}
				var asks func(rate float64) vegeta.Targeter
				var swap func() (stop func() int)
				asked := make([]func(rate float64) vegeta.Targeter, len(kinds))
				for i, numbers := range kinds {
					url, swaps := serveOurs(b, of, mode.beams, numbers)
					asked[i] = of.asks(url, mode.ask, mode.returns)
					if numbers == mode.numbers {
						asks, swap = asked[i], swaps
					}
				}
				var its peerServer
				if *torchPython != "" {
					its = servePeer(b, of.weights.Config, mode.beams, mode.items)
					peer := vegeta.Target{Method: http.MethodPost, URL: fmt.Sprintf("http://127.0.0.1:%d/", its.Port), Body: []byte("{}")}
					asked = append(asked, func(float64) vegeta.Targeter { return vegeta.NewStaticTargeter(peer) })
				}
				fast := make([][]attacked, len(asked))
				for range *peerRuns { // by turns
					for i, asks := range asked {
						fast[i] = append(fast[i], attack(b, asks(0), 0, mode.clients))
					}
				}
				capacity := 0.0
				for i, full := range fast {
					answered := func(m attacked) float64 { return m.Throughput }
					throughput := middle(full, answered)
					said := fmt.Sprintf("%.1f requests/s, p50 %.0fms, p99 %.0fms", throughput,
						middle(full, func(m attacked) float64 { return 1e3 * m.Latencies.P50.Seconds() }), middle(full, func(m attacked) float64 { return 1e3 * m.Latencies.P99.Seconds() }))
					if i == len(kinds) {
						fmt.Printf("PyTorch behind Python's server: %s; alone, without one, %.1f a second, in bfloat16 %.1f\n", said, its.Alone, its.BFloat16)
						continue
					}
					fmt.Printf("%s, in %v, as fast as it answers with %d clients: %s", mode.name, kinds[i], mode.clients, said)
					if kinds[i] == mode.numbers {
						capacity = throughput
					}
					if len(fast) > len(kinds) {
						ratio := timesOf(full, fast[len(kinds)], answered)
						fmt.Printf(", %v PyTorch", ratio)
						b.ReportMetric(ratio.median(), fmt.Sprintf("of-PyTorch-%v", kinds[i]))
					}
					fmt.Println()
				}
				b.ReportMetric(capacity, "requests/s")
				best := 0.0
				fmt.Printf("%s, in %v:\n", mode.name, mode.numbers)
				fmt.Println("OFFERED/s  ANSWERED/s  p50     p99     p99 OF ALL  STATUS")
				for _, share := range []float64{0.25, 0.5, 0.75, 0.9, 1.1, 1.5, 3, 6} {
					m := attack(b, asks(share*capacity), share*capacity, 0)
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
				var calm, swapping []time.Duration
				swaps, failed := 0, 0.0
				for range 3 {
					calm = append(calm, attack(b, asks(0.5*capacity), 0.5*capacity, 0).Latencies.P99)
					stop := swap()
					m := attack(b, asks(0.5*capacity), 0.5*capacity, 0)
					swaps += stop()
					swapping, failed = append(swapping, m.Latencies.P99), failed+1-m.Success
				}
				slices.Sort(calm)
				slices.Sort(swapping)
				fmt.Printf("half of the load: p99 %v; with %d swaps meanwhile %v (medians of three turns), %.4f failed\n", round(calm[1]), swaps, round(swapping[1]), failed/3)
				b.ReportMetric(swapping[1].Seconds()/calm[1].Seconds(), "p99-swapping/calm")
			}
		})
	}
}

// served is a model to ask, and whom to ask about.
type served struct {
	weights *decoder.Weights
	cb      *semanticid.Codebook
	// histories are of real users, each longer than what is asked about; none: of random items.
	histories [][]string
}

func servedOf(b *testing.B) (of served) {
	b.Helper()
	ctx := b.Context()
	if *serveDemo == "" {
		const dim = 16
		r := rand.New(rand.NewPCG(1, 1))
		x, names := make([]float32, serveItems*dim), make([]string, serveItems)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		for i := range names {
			names[i] = "i" + strconv.Itoa(i)
		}
		config, err := decoder.Preset("base", serveLevels, serveCodes, serveHistory, serveList)
		if err != nil {
			b.Fatal(err)
		}
		if of.cb, err = semanticid.Build(ctx, names, x, dim, semanticid.Config{Levels: serveLevels, Codes: serveCodes, Seed: 1}); err != nil {
			b.Fatal(err)
		}
		if of.weights, err = decoder.NewWeights(config, 1); err != nil {
			b.Fatal(err)
		}
		return of
	}
	store, err := publisher.Open(ctx, filepath.Join(*serveDemo, "checkpoints"), publisher.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	versions, err := store.List(ctx)
	if err != nil || len(versions) == 0 {
		b.Fatalf("%s has no checkpoint: %v", *serveDemo, err)
	}
	manifest, files, err := store.Load(ctx, slices.Max(versions), "", decoder.Files()...)
	if err != nil {
		b.Fatal(err)
	}
	if of.weights, of.cb, err = decoder.Decode(files, manifest.Config); err != nil {
		b.Fatal(err)
	}
	if c := of.weights.Config; c.Layers != 6 || c.Dim != 256 || c.MaxItems() < serveHistory+serveList {
		b.Fatalf("%s has a model of %d layers of %d, and rows of %d items; run the demo with --preset base --train-history 50 --train-session 10", *serveDemo, c.Layers, c.Dim, c.MaxItems())
	}
	snapshot, err := snapshots.Open(ctx, filepath.Join(*serveDemo, "snapshots"))
	if err != nil {
		b.Fatal(err)
	}
	longest := make(map[string][]string)
	if err := snapshots.ReadGood(ctx, snapshot, snapshots.Range{}, nil, nil, func(rows []snapshots.GoodSession) error {
		for _, s := range rows {
			history := slices.DeleteFunc(slices.Concat(s.History, s.Items), func(item string) bool {
				_, known := of.cb.Index(item)
				return !known
			})
			if len(history) > len(longest[s.UserID]) {
				longest[s.UserID] = history
			}
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	for _, user := range slices.Sorted(maps.Keys(longest)) {
		if most := serveHistory + returns*watchedBetween; len(longest[user]) >= most {
			of.histories = append(of.histories, longest[user][len(longest[user])-most:])
		}
	}
	if len(of.histories) < inTurn {
		b.Fatalf("only %d users of %s have histories long enough", len(of.histories), *serveDemo)
	}
	fmt.Printf("%s: checkpoint %s, %d items, %d users\n", *serveDemo, manifest.Version, of.cb.Len(), len(of.histories))
	return of
}

// asks returns requests, at a rate, of one new user after the other, each of whom asks so many times, while others do.
func (s served) asks(url, ask string, returns int) func(rate float64) vegeta.Targeter {
	next := 0
	return func(rate float64) vegeta.Targeter {
		first := next
		next += 1 << 20 // whom nobody has seen yet
		return s.asksFrom(first, max(inTurn, int(rate*pause.Seconds())), url, ask, returns)
	}
}

func (s served) asksFrom(next, inTurn int, url, ask string, returns int) vegeta.Targeter {
	r := rand.New(rand.NewPCG(1, 2))
	type user struct {
		id    int
		items []string
		asked int
	}
	var mu sync.Mutex
	users, turn := make([]*user, inTurn), 0
	return func(t *vegeta.Target) error {
		mu.Lock()
		defer mu.Unlock()
		at := turn % len(users)
		turn++
		u := users[at]
		if u == nil || u.asked == returns {
			begun := 0
			if u == nil {
				begun = at % returns // not all for the first time at once
			}
			u = &user{id: next, asked: begun}
			users[at] = u
			if next++; len(s.histories) > 0 {
				u.items = s.histories[u.id%len(s.histories)]
			}
			for len(u.items) < serveHistory+returns*watchedBetween {
				u.items = append(u.items, s.cb.Item(r.Int32N(int32(s.cb.Len()))))
			}
		}
		n := serveHistory + watchedBetween*u.asked - watchedBetween*(returns-1)/2
		u.asked++
		body := struct {
			User    string   `json:"user_id"`
			History []string `json:"history"`
			N       int      `json:"n"`
		}{strconv.Itoa(u.id), u.items[:n], serveList}
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		*t = vegeta.Target{
			Method: http.MethodPost, URL: url + "/v1/recommendations", Header: http.Header{"Content-Type": {"application/json"}},
			Body: fmt.Appendf(nil, "%s,%s}", text[:len(text)-1], ask),
		}
		return nil
	}
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

type attacked struct {
	vegeta.Metrics
	good vegeta.LatencyMetrics // of status 200
}

// attack asks at a rate, or, with 0, as fast as so many clients get answers.
func attack(b *testing.B, asks vegeta.Targeter, rate float64, clients uint64) (out attacked) {
	b.Helper()
	options := []func(*vegeta.Attacker){vegeta.KeepAlive(true), vegeta.Timeout(30 * time.Second)}
	pace := vegeta.Rate{Freq: int(rate * 1000), Per: 1000 * time.Second}
	if rate == 0 {
		options = append(options, vegeta.Workers(clients), vegeta.MaxWorkers(clients))
	}
	attacker := vegeta.NewAttacker(options...)
	var good vegeta.Metrics
	for r := range attacker.Attack(asks, pace, time.Duration(*serveSeconds*float64(time.Second)), "") {
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
func serveOurs(b *testing.B, of served, beams int, numbers decoder.Numbers) (url string, swap func() (stop func() int)) {
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
	var refs []*onerecv1.CheckpointRef
	announce := func(w *decoder.Weights) {
		files, text, err := decoder.Encode(w, of.cb)
		if err != nil {
			b.Fatal(err)
		}
		m := &publisher.Manifest{Model: "m", Kind: publisher.KindBase, Codebook: of.cb.Version(), Config: text}
		hash, err := store.Publish(ctx, m, files)
		if err != nil {
			b.Fatal(err)
		}
		ref, err := publisher.Announce(ctx, cluster, store, publisher.ChannelReleased, m.Version, hash)
		if err != nil {
			b.Fatal(err)
		}
		refs = append(refs, ref)
	}
	other := of.weights.Clone()
	other.Tensors()[0].Data[0] += 1e-3
	announce(of.weights)
	announce(other)
	ready := make(chan struct{})
	s := &recommender.Service{
		Cluster: cluster, Store: store, Model: "m", Channel: publisher.ChannelReleased, Policy: history.DefaultPolicy(), Beams: beams, Numbers: numbers, MaxUsers: 1000, MaxItems: 1000, HistoryCache: 256 << 20,
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

// peerServer is where the peer listens, and how many lists a second it writes without a server.
type peerServer struct {
	Port     int     `json:"port"`
	Alone    float64 `json:"alone_per_s"`
	BFloat16 float64 `json:"bfloat16_per_s"`
}

// servePeer starts the peer.
func servePeer(b *testing.B, c decoder.Config, beams, items int) (its peerServer) {
	b.Helper()
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
	if err := json.Unmarshal([]byte(line), &its); err != nil {
		b.Fatalf("the peer says %q", line)
	}
	return its
}

// BenchmarkBeams writes lists with beams of different widths, in int16 and in other numbers, one after the other, for the users of -serve-demo or, without
// one, of random weights: how long one takes, and how good the best is. Run with -benchtime 1x.
func BenchmarkBeams(b *testing.B) {
	of := servedOf(b)
	gen, err := decoder.NewGenerator(of.weights, of.cb)
	if err != nil {
		b.Fatal(err)
	}
	const users = 64
	asked := make([]decoder.Options, users)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range asked {
		o := decoder.Options{Length: serveList, Exclude: make(map[int32]bool)}
		for j := range serveHistory {
			item := r.Int32N(int32(of.cb.Len()))
			if len(of.histories) > 0 {
				item, _ = of.cb.Index(of.histories[i%len(of.histories)][j])
			}
			o.History, o.Exclude[item] = append(o.History, of.cb.ID(item)), true
		}
		asked[i] = o
	}
	type kind struct {
		width   int
		numbers decoder.Numbers
	}
	widest := kind{128, decoder.Int16} // the others are held against it
	kinds := []kind{{1, decoder.Int16}, {4, decoder.Int16}, {8, decoder.Int16}, {16, decoder.Int16}, {32, decoder.Int16}, {64, decoder.Int16}, widest, {32, decoder.Int8}, {128, decoder.Int8}, {128, decoder.Float32}}
	gens := make([]*decoder.Generator, len(kinds))
	for k, of := range kinds {
		if gens[k] = gen.In(of.numbers); k > 0 && kinds[k-1].numbers == of.numbers {
			gens[k] = gens[k-1]
		}
	}
	for b.Loop() {
		found := make(map[kind][]decoder.List) // each user's best
		times := make(map[kind][]float64)
		for _, o := range asked {
			for k, of := range kinds {
				o.Width = of.width
				begun := time.Now()
				lists, err := gens[k].Generate(o)
				if err != nil {
					b.Fatal(err)
				}
				times[of] = append(times[of], 1e3*time.Since(begun).Seconds())
				found[of] = append(found[of], lists[0])
			}
		}
		fmt.Println("BEAMS  NUMBERS  A LIST, p50  p99     LOG PROBABILITY OF THE BEST  ITS ITEMS IN THAT BY 128 BEAMS IN INT16  THE SAME LIST")
		for _, of := range kinds {
			slices.Sort(times[of])
			var score, shared, same float64
			for i, l := range found[of] {
				most := found[widest][i]
				score += l.Score / users
				for _, item := range l.Items {
					if slices.Contains(most.Items, item) {
						shared += 1.0 / users / serveList
					}
				}
				if slices.Equal(l.Items, most.Items) {
					same += 1.0 / users
				}
			}
			fmt.Printf("%-5d  %-7v  %-11s  %-6s  %-27.2f  %-39s  %.0f %%\n", of.width, of.numbers, fmt.Sprintf("%.0f ms", times[of][users/2]), fmt.Sprintf("%.0f ms", times[of][users-1]), score, fmt.Sprintf("%.0f %%", 100*shared), 100*same)
		}
	}
}
