package console

import (
	"context"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/internal/stream"
	"onerec/internal/telemetry"
	"onerec/publisher"
	"onerec/recommender"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// world is what a console watches in tests.
type world struct {
	t       *testing.T
	cluster stream.Cluster
	cl      *kgo.Client
	store   *publisher.Store
	targets []Target
	serves  string // URL of a recommender
	ops     operations
	limit   time.Duration // for a request to come, and for its answer; 0: none
}

func newWorld(t *testing.T) *world {
	t.Helper()
	broker, err := stream.StartEmbedded("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(broker.Close)
	w := &world{t: t, cluster: stream.Cluster{Brokers: broker.Brokers()}}
	if w.cl, err = w.cluster.Client(kgo.RecordPartitioner(kgo.ManualPartitioner())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.cl.Close)
	if _, err := stream.CreateTopics(t.Context(), w.cl, 2, 1); err != nil {
		t.Fatal(err)
	}
	if w.store, err = publisher.Open(t.Context(), t.TempDir(), publisher.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.store.Close() })
	w.ops.w = w
	return w
}

func (w *world) produce(topic string, partition int32, m proto.Message, headers ...kgo.RecordHeader) {
	w.t.Helper()
	value, err := proto.Marshal(m)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.cl.ProduceSync(w.t.Context(), &kgo.Record{Topic: topic, Partition: partition, Value: value, Headers: headers}).FirstErr(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) session(user string, at int, failed ...string) {
	w.t.Helper()
	w.produce(schemas.TopicJudgedSessions, int32(at%2), &onerecv1.JudgedSession{
		Session: &onerecv1.Session{
			SessionId: fmt.Sprint("s", at), UserId: user, StartMs: int64(at) * 3600_000, EndMs: int64(at)*3600_000 + 60_000, TotalWatchMs: 42_000,
			Views: []*onerecv1.View{{ItemId: "i1", WatchMs: 12_000, DurationMs: 20_000, Like: true, CheckpointVersion: "000002-bb"}},
		},
		Verdict: &onerecv1.Verdict{Good: len(failed) == 0, FailedRules: failed, RulesVersion: "rules-7"},
	})
}

func (w *world) publish(kind, parent, channel string, metrics map[string]float64) string {
	w.t.Helper()
	files := map[string][]byte{"weights": []byte(fmt.Sprint(kind, parent, metrics))}
	if kind == publisher.KindBase {
		var b strings.Builder
		for i := range 120 {
			fmt.Fprintf(&b, "{\"step\":%d,\"loss\":%g}\n", i+1, 5-0.01*float64(i))
		}
		files[fileSteps] = []byte(b.String())
	}
	m := &publisher.Manifest{Model: "default", Kind: kind, Parent: parent, Codebook: "c0de", Metrics: metrics, Offsets: map[string]map[int32]int64{schemas.TopicGoodSessions: {0: 0, 1: 0}}}
	hash, err := w.store.Publish(w.t.Context(), m, files)
	if err != nil {
		w.t.Fatal(err)
	}
	w.announce(m.Version, hash, channel)
	return m.Version
}

func (w *world) announce(version, hash, channel string) {
	w.t.Helper()
	if _, err := publisher.Announce(w.t.Context(), w.cluster, w.store, channel, version, hash); err != nil {
		w.t.Fatal(err)
	}
}

// operations does to the world what an operator does, and remembers the replays.
type operations struct {
	w        *world
	replayed []string
	items    []string
}

func (o *operations) Promote(_ context.Context, version, channel string) (string, string, error) {
	o.w.announce(version, "", channel)
	return "", "", nil
}

func (o *operations) Rollback(ctx context.Context, version, why string) (string, string, error) {
	_, ref, err := publisher.Rollback(ctx, o.w.cluster, o.w.store, "default", version, why)
	return "", ref.GetVersion(), err
}

func (o *operations) Hold(ctx context.Context, why string) (string, error) {
	ref, err := publisher.Hold(ctx, o.w.cluster, "default", why)
	return ref.GetVersion(), err
}

func (o *operations) Withdraw(ctx context.Context) (string, error) {
	return "", publisher.Withdraw(ctx, o.w.cluster, "default", publisher.ChannelCanary)
}

func (o *operations) WithdrawItem(_ context.Context, item string, gone bool) error {
	o.items = append(o.items, fmt.Sprint(item, gone))
	return nil
}

func (o *operations) Replay(_ context.Context, reason string, partition int32, offset int64) (int, error) {
	if reason == "beyond repair" {
		return 0, fmt.Errorf("the broker is away")
	}
	o.replayed = append(o.replayed, fmt.Sprintf("%s/%d/%d", reason, partition, offset))
	return 1, nil
}

// start runs a console over the world.
func (w *world) start(auth Auth) (*Console, *httptest.Server) {
	w.t.Helper()
	c, err := New(Config{
		Cluster: w.cluster, Store: w.store, Model: "default", Targets: func() []Target { return w.targets }, Recommender: func() string { return w.serves },
		Rules: []string{"min_views", "min_watch"}, Operations: &w.ops, Auth: auth, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	srv := httptest.NewUnstartedServer(c.Handler())
	srv.Config.ReadTimeout, srv.Config.WriteTimeout = w.limit, w.limit
	srv.Start()
	w.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
		srv.Close()
	})
	return c, srv
}

// eventually waits for what other goroutines bring about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// get returns status, body and headers.
func get(t *testing.T, address string, more ...func(*http.Request)) (int, string, http.Header) {
	t.Helper()
	return send(t, http.MethodGet, address, nil, more...)
}

func send(t *testing.T, method, address string, form url.Values, more ...func(*http.Request)) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for _, fn := range more {
		fn(req)
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body), resp.Header
}

func header(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

func host(name string) func(*http.Request) { return func(r *http.Request) { r.Host = name } }

// TestShowsWhatIsThere: topics, checkpoints and services, each as it is.
func TestShowsWhatIsThere(t *testing.T) {
	w := newWorld(t)
	for i := range 7 {
		w.session("u1", i)
	}
	w.session("<u2>", 8, "min_views", "min_watch")
	w.session("<u2>", 9, "min_views", "odd_rule")
	w.produce(schemas.TopicDeadLetters, 1, &onerecv1.ViewEvent{EventId: "e1", ItemId: "<script>"}, kgo.RecordHeader{Key: schemas.HeaderReason, Value: []byte("no_user")}, kgo.RecordHeader{Key: schemas.HeaderError, Value: []byte("user_id is empty")})
	base := w.publish(publisher.KindBase, "", publisher.ChannelCandidate, map[string]float64{"train_steps": 120, "holdout_loss": 2.345, "holdout_hit_rate_10": 0.1234, "popularity_hit_rate_10": 0.0456, "last_item_hit_rate_10": 0.0789, "holdout_ndcg_10": 0.0321})
	aligned := w.publish(publisher.KindAligned, base, publisher.ChannelReleased, map[string]float64{"reward_before": 0.9, "reward_after": 1.1})
	var before, after []float64
	for i := range 21 {
		before, after = append(before, float64(i)), append(after, float64(i)+0.5)
	}
	w.produce(schemas.TopicRounds, 0, &onerecv1.AlignmentRound{Model: "default", Round: 2, Reference: base, Published: "000002-held", Accepted: true, Why: "it rose", Held: "likes <fell>"})
	w.produce(schemas.TopicRounds, 0, &onerecv1.AlignmentRound{
		Model: "default", Round: 3, Reference: base, Published: aligned, Users: 20, Candidates: 32, Pairs: 18, RewardBefore: 0.9012, RewardAfter: 1.1034, Kl: 0.321, Accepted: true, Why: "held-out reward rose",
		RewardBeforePercentiles: before, RewardAfterPercentiles: after,
		Gates: []*onerecv1.AlignmentGate{{Name: "reward_gain", Figure: 0.2, Bound: 0, Least: true, Passed: true}, {Name: "max_kl", Figure: 12, Bound: 10}},
	})
	w.produce(schemas.TopicRounds, 0, &onerecv1.AlignmentRound{Model: "another", Round: 99})
	reg, probe := prometheus.NewRegistry(), new(telemetry.Probe)
	stream.NewMetrics(reg, "filter")
	admin := httptest.NewServer(telemetry.Handler(reg, probe, nil))
	defer admin.Close()
	probe.Ready()
	w.targets = []Target{{Stage: "filter", URL: admin.URL}, {Stage: "train", URL: "http://127.0.0.1:1", Done: true}}

	c, srv := w.start(Auth{})
	var page string
	eventually(t, "the page shows everything", func() bool {
		_, page, _ = get(t, srv.URL+"/")
		return strings.Contains(page, `data-figure="judged" title="9"`) && strings.Contains(page, "no user") && strings.Contains(page, `data-round="3"`) &&
			strings.Contains(page, `data-stage="filter"><th scope="row">filter</th><td><span class="health healthy">`) && strings.Contains(page, `data-figure="released" class="version">`+aligned)
	})
	for _, want := range []string{
		`data-figure="good" title="7">7 <small>77.8 %`, `data-rule="min_views"><th scope="row">min views</th><td class="n" title="2">2</td><td class="n">22.2 %`, `data-rule="odd_rule"`, "rules-7",
		"0.1234", "0.0456", "0.0789", "2.345 nats", "held-out reward rose", "0.9012", "1.1034", "max kl", "at most 10", "above 0", "it has done its work and ended",
		base, "user_id is empty", "&lt;script&gt;", "✔ accepted, held", "it rose; not released: likes &lt;fell&gt;", `"label":"training"`, `released</text>`,
	} {
		text := strings.ReplaceAll(page, "&#34;", `"`)
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	for _, never := range []string{"<script>\"", "another", "ZgotmplZ", "%!", "NaN", "<no value>", "min_watch_ratio"} {
		if strings.Contains(page, never) {
			t.Errorf("the page holds %s", never)
		}
	}
	// The other pages.
	for path, want := range map[string]string{
		"/rounds": `data-round="3"`, "/rounds?round=3&page=99": "round 3, accepted", "/checkpoints": base, "/compare": "reward after", "/compare?a=" + base + "&b=" + aligned: "Change",
		"/letters?reason=no_user": "user_id is empty", "/letters?reason=other&page=-1": "All</a>", "/user": "Type an id", "/user?id=u1": "no recommender runs", "/item?id=x": "no recommender runs",
		"/sign-in": "Token", "/confirm?do=promote": "nobody may act",
	} {
		if _, body, _ := get(t, srv.URL+path); !strings.Contains(body, want) {
			t.Errorf("%s lacks %q:\n%s", path, want, body)
		}
	}
	// A user's sessions come from the topic, the newest first.
	_, body, _ := get(t, srv.URL+"/user?id="+url.QueryEscape("<u2>"))
	if strings.Count(body, "Session of 1970-01-01") != 2 || !strings.Contains(body, "failed min views odd rule") || strings.Index(body, "odd rule") > strings.Index(body, "min watch") || !strings.Contains(body, "&lt;u2&gt;") {
		t.Errorf("the user's page: %s", body)
	}
	if got := c.sessions.places("u1", 3); len(got) != 3 || c.sessions.places("nobody", 3) != nil {
		t.Errorf("places %v", got)
	}
	if status, _, _ := get(t, srv.URL+"/nothing"); status != http.StatusNotFound {
		t.Errorf("a page that does not exist: %d", status)
	}
}

// TestPushesChanges: a browser gets everything first, then what changed and nothing else; a stage that dies turns red.
func TestPushesChanges(t *testing.T) {
	w := newWorld(t)
	reg, probe := prometheus.NewRegistry(), new(telemetry.Probe)
	admin := httptest.NewServer(telemetry.Handler(reg, probe, nil))
	defer admin.Close()
	w.targets, w.limit = []Target{{Stage: "ingest", URL: admin.URL}}, 2*time.Second
	c, srv := w.start(Auth{})
	eventually(t, "the stage is seen", func() bool {
		st := c.watch.now.get()
		return len(st.Stages) > 0 && st.Stages[0].Health == troubled
	})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() }) //nolint:bodyclose // it is read below, by another goroutine
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Fatalf("content type %s", got)
	}
	events := make(chan string, 100)
	go func() {
		defer close(events)
		var b strings.Builder
		buf := make([]byte, 1<<16)
		for {
			n, err := resp.Body.Read(buf)
			b.Write(buf[:n])
			for {
				one, rest, ok := strings.Cut(b.String(), "\n\n")
				if !ok {
					break
				}
				events <- one
				b.Reset()
				b.WriteString(rest)
			}
			if err != nil {
				return
			}
		}
	}()
	first := <-events
	for _, part := range liveParts {
		if !strings.Contains(first, `hx-target="#`+part+`"`) {
			t.Errorf("the first event lacks %s", part)
		}
	}
	for line := range strings.Lines(first) {
		if !strings.HasPrefix(line, "data: ") {
			t.Fatalf("line %q of an event", line)
		}
	}
	until := func(what string, ok func(event string) bool) {
		t.Helper()
		timeout := time.After(90 * time.Second)
		for {
			select {
			case e, open := <-events:
				if !open {
					t.Fatalf("the events ended before %s", what)
				}
				if strings.Contains(e, `hx-target="#letters"`) {
					t.Errorf("dead letters were pushed, and have not changed: %s", e)
				}
				if ok(e) {
					return
				}
			case <-timeout:
				t.Fatalf("never: %s", what)
			}
		}
	}
	probe.Ready()
	until("the stage turns green", func(e string) bool {
		return strings.Contains(e, `hx-target="#flow"`) && strings.Contains(e, "health healthy")
	})
	for range 4 { // until the connection is older than the server allows a request to be
		until("the clock goes on", func(e string) bool { return strings.Contains(e, `hx-target="#status"`) })
	}
	w.session("u", 1)
	until("a session is counted", func(e string) bool {
		return strings.Contains(e, `hx-target="#sessions"`) && strings.Contains(e, `data-figure="judged" title="1"`)
	})
	admin.CloseClientConnections()
	admin.Close()
	until("the dead stage turns red", func(e string) bool {
		return strings.Contains(e, `<span class="health down">`) && strings.Contains(e, "nothing listens there") && strings.Contains(e, "ingest is down")
	})
}

// TestWhoMay: tokens, addresses, names, origins.
func TestWhoMay(t *testing.T) {
	w := newWorld(t)
	version := w.publish(publisher.KindBase, "", publisher.ChannelReleased, nil)
	file := func(name, token string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const look, act = "viewer-0123456789", "operator-0123456789"
	viewers, operators := file("viewers", look), file("operators", act)
	form := url.Values{"do": {"replay"}, "reason": {"no_user"}}
	post := func(t *testing.T, base string, more ...func(*http.Request)) int {
		status, _, _ := send(t, http.MethodPost, base+"/act", form, more...)
		return status
	}
	bearer := func(token string) func(*http.Request) { return header("Authorization", "Bearer "+token) }

	t.Run("without tokens", func(t *testing.T) {
		c, srv := w.start(Auth{})
		eventually(t, "the version is listed", func() bool { return c.versions.has(version) })
		status, _, h := get(t, srv.URL+"/")
		if status != 200 {
			t.Errorf("on loopback: %d", status)
		}
		if csp := h.Get("Content-Security-Policy"); !strings.Contains(csp, "script-src 'self';") || strings.Contains(csp, "unsafe") || !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") {
			t.Errorf("policy %q", csp)
		}
		for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store", "Cross-Origin-Opener-Policy": "same-origin"} {
			if h.Get(name) != want {
				t.Errorf("%s: %q", name, h.Get(name))
			}
		}
		for _, name := range []string{"console.example", "127.0.0.1.example", "10.0.0.7:8090"} {
			if status, _, _ := get(t, srv.URL+"/", host(name)); status != http.StatusMisdirectedRequest {
				t.Errorf("asked as %s: %d", name, status)
			}
		}
		if status := post(t, srv.URL); status != http.StatusForbidden {
			t.Errorf("acts without a right: %d", status)
		}
	})
	t.Run("operate", func(t *testing.T) {
		_, srv := w.start(Auth{Operate: true})
		for origin, want := range map[string]int{"https://evil.example": http.StatusForbidden, srv.URL: http.StatusSeeOther} {
			if status := post(t, srv.URL, header("Origin", origin)); status != want {
				t.Errorf("from %s: %d", origin, status)
			}
		}
		if status := post(t, srv.URL, header("Sec-Fetch-Site", "cross-site")); status != http.StatusForbidden {
			t.Errorf("cross-site: %d", status)
		}
		if status, _, _ := get(t, srv.URL+"/act?do=replay&reason=no_user"); status != http.StatusNotFound && status != http.StatusMethodNotAllowed {
			t.Errorf("acts by a link: %d", status)
		}
	})
	t.Run("tokens", func(t *testing.T) {
		_, srv := w.start(Auth{ViewerTokens: viewers, OperatorTokens: operators})
		away := host("console.example")
		if status, _, h := get(t, srv.URL+"/", away); status != http.StatusSeeOther || h.Get("Location") != "/sign-in" {
			t.Errorf("without a token: %d to %s", status, h.Get("Location"))
		}
		for _, path := range []string{"/events", "/user?id=u", "/letters", "/confirm?do=withdraw"} {
			if status, _, _ := get(t, srv.URL+path); status != http.StatusUnauthorized {
				t.Errorf("%s without a token: %d", path, status)
			}
		}
		for _, c := range []struct {
			token     string
			look, act int
		}{{look, 200, http.StatusForbidden}, {act, 200, http.StatusSeeOther}, {"guess-0123456789ab", http.StatusSeeOther, http.StatusUnauthorized}, {"", http.StatusSeeOther, http.StatusUnauthorized}} {
			if status, _, _ := get(t, srv.URL+"/", bearer(c.token), away); status != c.look {
				t.Errorf("token %q looks: %d", c.token, status)
			}
			if status := post(t, srv.URL, bearer(c.token), away); status != c.act {
				t.Errorf("token %q acts: %d", c.token, status)
			}
		}
		// In a browser: a form, then a cookie.
		if status, body, h := send(t, http.MethodPost, srv.URL+"/sign-in", url.Values{"token": {"wrong"}}); status != http.StatusUnauthorized || h.Get("Set-Cookie") != "" || !strings.Contains(body, "not known") {
			t.Errorf("a wrong token: %d %s", status, h.Get("Set-Cookie"))
		}
		status, _, h := send(t, http.MethodPost, srv.URL+"/sign-in", url.Values{"token": {act}})
		set := h.Get("Set-Cookie")
		if status != http.StatusSeeOther || !strings.Contains(set, "HttpOnly") || !strings.Contains(set, "SameSite=Strict") || strings.Contains(set, act) {
			t.Fatalf("signed in: %d %s", status, set)
		}
		pair, _, _ := strings.Cut(set, ";")
		signed := header("Cookie", pair)
		if _, body, _ := get(t, srv.URL+"/", signed); !strings.Contains(body, "Sign out") || !strings.Contains(body, `class="operator"`) {
			t.Error("signed in, and the page does not say so")
		}
		if status := post(t, srv.URL, signed); status != http.StatusSeeOther {
			t.Errorf("signed in, acts: %d", status)
		}
		send(t, http.MethodPost, srv.URL+"/sign-out", nil, signed)
		if status := post(t, srv.URL, signed); status != http.StatusUnauthorized {
			t.Errorf("signed out, acts: %d", status)
		}
	})
	t.Run("operators' tokens alone", func(t *testing.T) {
		c, _ := w.start(Auth{OperatorTokens: operators})
		for _, from := range []struct {
			address, host string
			want          role
		}{{"127.0.0.1:9", "localhost:8090", viewer}, {"10.0.0.7:9", "127.0.0.1:8090", nobody}, {"127.0.0.1:9", "console.example", nobody}, {"10.0.0.7:9", "console.example", nobody}} {
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.RemoteAddr, r.Host = from.address, from.host
			if got := c.role(r); got != from.want {
				t.Errorf("%+v: %v", from, got)
			}
		}
	})
	t.Run("addresses", func(t *testing.T) {
		for _, c := range []struct {
			auth    Auth
			address string
			ok      bool
		}{
			{Auth{}, "127.0.0.1:8090", true}, {Auth{Operate: true}, "[::1]:8090", true}, {Auth{}, ":8090", false}, {Auth{Operate: true}, "0.0.0.0:8090", false},
			{Auth{ViewerTokens: "f"}, ":8090", true}, {Auth{OperatorTokens: "f"}, ":8090", true}, {Auth{OperatorTokens: "f", Operate: true}, "127.0.0.1:1", false},
		} {
			if err := c.auth.Check(c.address); (err == nil) != c.ok {
				t.Errorf("%+v on %s: %v", c.auth, c.address, err)
			}
		}
	})
	t.Run("the limit of browsers", func(t *testing.T) {
		s := newSignedIn()
		now := time.Now()
		first := s.add(viewer, now)
		for i := range maxSignedIn {
			s.add(viewer, now.Add(time.Duration(i+1)*time.Second))
		}
		if _, ok := s.sessions[first]; ok || len(s.sessions) != maxSignedIn {
			t.Errorf("%d signed in", len(s.sessions))
		}
	})
}

// TestActs: what is confirmed is done, and only if the world is still as it was.
func TestActs(t *testing.T) {
	w := newWorld(t)
	one := w.publish(publisher.KindBase, "", publisher.ChannelReleased, map[string]float64{"x": 1})
	two := w.publish(publisher.KindAligned, one, publisher.ChannelReleased, map[string]float64{"x": 2})
	c, srv := w.start(Auth{Operate: true})
	eventually(t, "the versions are listed", func() bool {
		return c.versions.has(one) && c.versions.has(two) && c.versions.at(publisher.ChannelReleased) == two
	})
	do := func(form url.Values, want int, says string) {
		t.Helper()
		if status, body, _ := send(t, http.MethodPost, srv.URL+"/act", form); status != want || !strings.Contains(body, says) {
			t.Errorf("%v: %d, want %d with %q: %s", form, status, want, says, body)
		}
	}
	if _, body, _ := get(t, srv.URL+"/confirm?do=rollback&version="+one); !strings.Contains(body, "is released again instead of "+two) || !strings.Contains(body, `name="why"`) || !strings.Contains(body, `name="expect" value="`+two) {
		t.Errorf("the question: %s", body)
	}
	do(url.Values{"do": {"rollback"}, "version": {one}, "expect": {one}}, http.StatusConflict, "nothing was done")
	do(url.Values{"do": {"rollback"}, "version": {one}, "expect": {two}, "why": {"likes <fell>"}}, http.StatusSeeOther, "")
	eventually(t, "it is rolled back", func() bool { return c.versions.at(publisher.ChannelReleased) == one })
	held := func(want string) {
		t.Helper()
		eventually(t, "releases are held: "+want, func() bool { return c.versions.view(1).Held == want })
		_, body, _ := get(t, srv.URL+"/")
		if says := strings.Contains(body, "Releases are held: "+html.EscapeString(want)) && strings.Contains(body, "Resume releases…"); says != (want != "") || says == strings.Contains(body, "Hold releases…") {
			t.Errorf("held %q: %s", want, body)
		}
	}
	held("likes <fell>")
	do(url.Values{"do": {"resume"}, "expect": {one}}, http.StatusSeeOther, "")
	held("")
	do(url.Values{"do": {"hold"}, "expect": {two}}, http.StatusConflict, "nothing was done")
	do(url.Values{"do": {"hold"}, "expect": {one}}, http.StatusSeeOther, "")
	held("held in the console")
	do(url.Values{"do": {"hold"}, "expect": {one}, "why": {strings.Repeat("x", 600)}}, http.StatusSeeOther, "")
	held(strings.Repeat("x", 512))
	do(url.Values{"do": {"promote"}, "channel": {"canary"}, "version": {two}, "expect": {one}}, http.StatusSeeOther, "")
	eventually(t, "the canary is there", func() bool { return c.versions.at(publisher.ChannelCanary) == two })
	do(url.Values{"do": {"withdraw"}, "expect": {one}}, http.StatusSeeOther, "")
	eventually(t, "the canary is gone", func() bool { return c.versions.at(publisher.ChannelCanary) == "" })
	do(url.Values{"do": {"promote"}, "channel": {"released"}, "version": {two}, "expect": {one}}, http.StatusSeeOther, "")
	do(url.Values{"do": {"replay"}, "partition": {"1"}, "offset": {"7"}}, http.StatusSeeOther, "")
	do(url.Values{"do": {"replay"}, "reason": {"beyond repair"}}, http.StatusBadGateway, "the broker is away")
	if got := fmt.Sprint(w.ops.replayed); got != "[/1/7]" {
		t.Errorf("replayed %s", got)
	}
	if _, body, _ := get(t, srv.URL+"/confirm?do=withdraw-item&item="+url.QueryEscape("i <9>")); !strings.Contains(body, "i &lt;9&gt;, whatever model serves") || !strings.Contains(body, `name="item" value="i &lt;9&gt;"`) {
		t.Errorf("the question: %s", body)
	}
	do(url.Values{"do": {"withdraw-item"}, "item": {"i <9>"}}, http.StatusSeeOther, "")
	if _, _, h := send(t, http.MethodPost, srv.URL+"/act", url.Values{"do": {"restore-item"}, "item": {"i <9>"}}); h.Get("Location") != "/item?id=i+%3C9%3E&done=restore-item" {
		t.Errorf("afterwards to %s", h.Get("Location"))
	}
	if got := fmt.Sprint(w.ops.items); got != "[i <9>true i <9>false]" {
		t.Errorf("items: %s", got)
	}
	eventually(t, "it is released", func() bool { return c.versions.at(publisher.ChannelReleased) == two })
	for _, form := range []url.Values{
		{"do": {"explode"}}, {}, {"do": {"promote"}, "version": {"nobody"}, "channel": {"released"}}, {"do": {"promote"}, "version": {one}, "channel": {"candidate"}},
		{"do": {"rollback"}, "version": {"../../etc"}}, {"do": {"withdraw"}}, {"do": {"withdraw-item"}}, {"do": {"restore-item"}, "item": {strings.Repeat("x", 300)}}, {"do": {"replay"}, "partition": {"x"}, "offset": {"1"}}, {"do": {"replay"}, "partition": {"1"}, "offset": {"-1"}},
	} {
		form.Set("expect", two)
		do(form, http.StatusBadRequest, "alert")
	}
}

// TestLooksUp: what a recommender says of users and items, and what it does not.
func TestLooksUp(t *testing.T) {
	w := newWorld(t)
	status, token, withdrawn := http.StatusOK, "", false
	api := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		token = r.Header.Get("Authorization")
		rw.WriteHeader(status)
		var v any
		switch {
		case status != http.StatusOK:
			v = map[string]string{"detail": "checkpoint 7 knows no such thing"}
		case r.URL.Path == "/v1/users/a b/c":
			v = recommender.UserInfo{UserID: "a b/c", History: []recommender.HistoryItem{{ItemID: "i1", SemanticID: []uint16{3, 4}, EventTimeMs: 1000}, {ItemID: "i<2>", EventTimeMs: 2000}}}
		case r.URL.Path == "/v1/recommendations":
			v = recommender.Answer{CheckpointVersion: "000009-aa", Channel: "released", Source: "model", Items: []recommender.Item{{ItemID: "i9", SemanticID: []uint16{1, 2, 3}, LogProb: -1.5}}}
		case r.URL.Path == "/v1/items/i9":
			v = recommender.ItemInfo{ItemID: "i9", SemanticID: []uint16{1, 2, 3}, CheckpointVersion: "000009-aa", Withdrawn: withdrawn, Neighbours: []recommender.Neighbour{{ItemID: "i8", SemanticID: []uint16{1, 2, 9}, CommonCodes: 2}, {ItemID: "odd", CommonCodes: 99}}}
		default:
			t.Errorf("asked for %s", r.URL.Path)
		}
		_ = json.NewEncoder(rw).Encode(v)
	}))
	defer api.Close()
	w.serves = api.URL + "/"
	c, srv := w.start(Auth{})
	c.lookup.token = "secret"
	_, body, _ := get(t, srv.URL+"/user?id="+url.QueryEscape("a b/c"))
	for _, want := range []string{"000009-aa (released)", "1 › 2 › 3", "-1.50", "History: 2 engaged items", "3 › 4", "i&lt;2&gt;", "none of the newest"} {
		if !strings.Contains(body, want) {
			t.Errorf("the user's page lacks %q: %s", want, body)
		}
	}
	if token != "Bearer secret" {
		t.Errorf("asked with %q", token)
	}
	if strings.Index(body, "i&lt;2&gt;") > strings.Index(body, ">i1<") {
		t.Error("the history is not the newest first")
	}
	for _, withdrawn = range []bool{true, false} {
		if _, body, _ := get(t, srv.URL+"/item?id=i9"); strings.Contains(body, "do=restore-item&amp;item=i9") != withdrawn || strings.Contains(body, "do=withdraw-item&amp;item=i9") == withdrawn {
			t.Errorf("the page of an item that is withdrawn (%v): %s", withdrawn, body)
		}
	}
	if _, body, _ := get(t, srv.URL+"/item?id=i9&done=withdraw-item"); !strings.Contains(body, "no answer holds it") {
		t.Errorf("the item's page after it was taken down: %s", body)
	}
	if _, body, _ := get(t, srv.URL+"/item?id=i9"); !strings.Contains(body, "<mark>1 › 2</mark> › 9") {
		t.Errorf("the item's page: %s", body)
	}
	status = http.StatusNotFound
	for _, path := range []string{"/item?id=i9", "/user?id=x"} {
		if _, body, _ := get(t, srv.URL+path); !strings.Contains(body, "checkpoint 7 knows no such thing") {
			t.Errorf("%s: %s", path, body)
		}
	}
	api.Close()
	if _, body, _ := get(t, srv.URL+"/item?id=i9"); !strings.Contains(body, "nothing listens there") {
		t.Errorf("without a recommender: %s", body)
	}
}

// TestAssets: kept by browsers for ever, under a name that changes with them.
func TestAssets(t *testing.T) {
	_, srv := newWorld(t).start(Auth{})
	_, page, _ := get(t, srv.URL+"/")
	total := len(page)
	for _, part := range strings.Split(page, `"`) {
		if !strings.HasPrefix(part, "/assets/") {
			continue
		}
		status, body, h := get(t, srv.URL+part)
		if status != 200 || h.Get("Cache-Control") != "public, max-age=31536000, immutable" || h.Get("Content-Type") == "" {
			t.Errorf("%s: %d %v", part, status, h)
		}
		if !strings.Contains(part, "icon") {
			total += len(body)
		}
	}
	if total > 300<<10 {
		t.Errorf("the first screen takes %d bytes", total)
	}
	if status, _, _ := get(t, srv.URL+"/assets/0123456789abcdef/console.js"); status != http.StatusNotFound {
		t.Errorf("an asset of another build: %d", status)
	}
}

// TestWithoutBrokers: the page comes, and says what is wrong.
func TestWithoutBrokers(t *testing.T) {
	w := newWorld(t)
	w.cluster = stream.Cluster{Brokers: []string{"127.0.0.1:1"}}
	_, srv := w.start(Auth{})
	eventually(t, "the page says so", func() bool {
		_, body, _ := get(t, srv.URL+"/")
		return strings.Contains(body, "the brokers do not answer") && strings.Contains(body, `role="alert"`)
	})
}

// TestTailLeavesOut: what comes faster than it is read is left out, and counted.
func TestTailLeavesOut(t *testing.T) {
	w := newWorld(t)
	n := 0
	produce := func() {
		var many []*kgo.Record
		for range 1000 {
			many = append(many, &kgo.Record{Topic: schemas.TopicRounds, Key: fmt.Append(nil, n), Value: make([]byte, 20_000)}) // so that not all of them come at once
			n++
		}
		if err := w.cl.ProduceSync(t.Context(), many...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	produce()
	tl := &tail{topic: schemas.TopicRounds, keep: 10}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []string
	more := make(chan bool)
	ended := make(chan error, 1)
	go func() {
		ended <- tl.follow(ctx, w.cluster, func(r *kgo.Record) {
			if got = append(got, string(r.Key)); len(got) == 10 {
				more <- true // while it is here, much comes
				<-more
			}
			if string(r.Key) == "3999" {
				cancel()
			}
		})
	}()
	<-more
	for range 3 {
		produce()
	}
	more <- true
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if got[0] != "990" || got[9] != "999" {
		t.Errorf("began with %v", got[:10])
	}
	if left := tl.left.Load(); left == 0 || left+int64(len(got)) != 3010 {
		t.Errorf("%d read, %d left out, of 3010", len(got), left)
	}
}

func TestTargets(t *testing.T) {
	for text, ok := range map[string]bool{"filter=http://h:1": true, "filter=https://h": true, "filter": false, "films=http://h:1": false, "filter=ftp://h": false, "filter=http://": false, "": false} {
		if got, err := ParseTarget(text); (err == nil) != ok {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if got, _ := ParseTarget("serve=http://h:1/"); got.URL != "http://h:1" {
		t.Errorf("%v", got)
	}
}

// TestHealth: what makes a stage green, amber, red.
func TestHealth(t *testing.T) {
	spec := flow[0]
	group := func(members int, committed int64) brokers {
		return brokers{ends: map[string]map[int32]int64{spec.reads: {0: 10_000}}, groups: map[string]group{spec.name: {members, map[string]map[int32]int64{spec.reads: {0: committed}}}}}
	}
	p := func(up, ready, reached, done bool) process {
		return process{stage: spec.name, url: "http://h", up: up, ready: ready, reached: reached, done: done}
	}
	for _, c := range []struct {
		what string
		ps   []process
		k    brokers
		want health
	}{
		{"ready", []process{p(true, true, true, false)}, group(1, 10_000), healthy},
		{"not ready", []process{p(true, false, true, false)}, group(1, 10_000), troubled},
		{"one of two gone", []process{p(true, true, true, false), p(false, false, true, false)}, group(2, 10_000), troubled},
		{"gone", []process{p(false, false, true, false)}, group(1, 10_000), down},
		{"never there", []process{p(false, false, false, false)}, brokers{}, unseen},
		{"done", []process{p(false, false, true, true)}, group(0, 10_000), unseen},
		{"no targets, members", nil, group(2, 10_000), healthy},
		{"no targets, no members, and it had worked", nil, group(0, 10_000), down},
		{"no targets, nothing known", nil, brokers{}, unseen},
	} {
		w := newWatcher(stream.Cluster{}, newScraper(nil, ""), nil)
		if got := w.stage(time.Now(), spec, c.ps, c.k); got.Health != c.want || got.Health != healthy && got.Why == "" {
			t.Errorf("%s: %s, want %s (%s)", c.what, got.Health, c.want, got.Why)
		}
	}
	// Falling behind.
	w := newWatcher(stream.Cluster{}, newScraper(nil, ""), nil)
	now := time.Now()
	var got stageState
	for i := range int64(10) {
		k := group(1, 10)
		k.ends[spec.reads][0] = 10_000 + 1000*i
		got = w.stage(now.Add(time.Duration(i)*time.Second), spec, nil, k)
	}
	if got.Health != troubled || got.Lag != 18_990 {
		t.Errorf("falls behind: %+v", got)
	}
}

func TestNumbers(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 1: "1", 0.1234567: "0.123", 0.01234: "0.0123", 12.345: "12.3", 999.4: "999", 1234: "1234", 9999: "9999", 12345: "12.3 k", 1234567: "1.23 M", 2.5e9: "2.5 G", -1500000: "-1.5 M", 0.0001234: "0.00012", 999.6e3: "1 M", math.NaN(): "–", math.Inf(1): "–"} {
		if got := num(v); got != want {
			t.Errorf("%g: %q, want %q", v, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1\u202f000", -1234567: "-1\u202f234\u202f567"} {
		if got := grouped(n); got != want {
			t.Errorf("%d: %q", n, got)
		}
	}
	for s, want := range map[float64]string{0.0000021: "2 µs", 0.0421: "42 ms", 1.26: "1.3 s", 300: "5 min", 7300: "2 h", 3e5: "3 days", math.NaN(): "–"} {
		if got := secs(s); got != want {
			t.Errorf("%g s: %q, want %q", s, got, want)
		}
	}
	if got := strings.Join([]string{string(numbers([]float64{1.23456, math.NaN(), math.Inf(-1), 1700000000}, 4)), string(numbers(nil, 3))}, ""); got != "[1.235,null,null,1.7e+09][]" {
		t.Error(got)
	}
	at := time.Now()
	for d, want := range map[time.Duration]string{time.Second: "less than a minute ago", 5 * time.Minute: "5 min ago", 3 * time.Hour: "3 h ago", 72 * time.Hour: "3 days ago"} {
		if got := ago(at, at.Add(-d)); got != want {
			t.Errorf("%v: %q", d, got)
		}
	}
}

func TestMeter(t *testing.T) {
	m, now := new(meter), time.Now()
	var got float64
	for i := range 20 {
		got = m.slope(now.Add(time.Duration(i)*time.Second), float64(100*i))
	}
	if math.Abs(got-100) > 1e-9 || len(m.values) > 8 {
		t.Errorf("slope %g of %d values", got, len(m.values))
	}
	if got := m.slope(now.Add(20*time.Second), 3); got != 0 { // it began anew
		t.Errorf("after a restart %g", got)
	}
	if got := m.slope(now.Add(21*time.Second), 53); math.Abs(got-50) > 1e-9 {
		t.Errorf("after a restart, then %g", got)
	}
}

func TestThin(t *testing.T) {
	var b strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&b, "{\"step\":%d,\"loss\":%d}\n", i+1, 2)
	}
	b.WriteString("no step\n{\"step\":1001,\"loss\":0}\n")
	got := thin([]byte(b.String()))
	if len(got) != stepPoints || got[len(got)-1].Step != 1000 || math.Abs(got[3].Loss-2) > 1e-9 {
		t.Errorf("%d steps: %v", len(got), got)
	}
	if thin(nil) != nil {
		t.Error("steps of nothing")
	}
}

func TestOrdered(t *testing.T) {
	nan := math.NaN()
	x, a, b := ordered([]float64{2, 1, 2, 3}, []float64{5, 6, nan, nan}, []float64{nan, nan, 7, 8})
	if got := fmt.Sprint(x, a, b); got != "[1 2 3] [6 5 NaN] [NaN 7 8]" {
		t.Error(got)
	}
}

func TestLineage(t *testing.T) {
	var all []*publisher.Manifest
	for i := range 40 {
		m := &publisher.Manifest{Version: fmt.Sprintf("%06d-x", i+1), Kind: publisher.KindBase}
		if i > 0 {
			m.Parent = all[i-1].Version
		}
		if i%2 == 1 {
			m.Kind = publisher.KindAligned
		}
		all = append(all, m)
	}
	l := drawLineage(all, func(v string) []string { return map[string][]string{"000040-x": {"released"}}[v] })
	if len(l.Nodes) != lineageNodes || l.Older != 16 || len(l.Edges) != lineageNodes-1 || !l.Nodes[lineageNodes-1].Released || l.Nodes[0].Label != "17" || l.Nodes[0].Y == l.Nodes[1].Y {
		t.Errorf("%+v", l)
	}
}
