package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/internal/attribution"
	"onerec/internal/kafkatest"
	"onerec/internal/stream"
	"onerec/recommender"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
	"onerec/semanticid"
	"onerec/sessionizer"
	"onerec/snapshots"
)

// binary builds onerec once.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "onerec-test-*")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "onerec")
	out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := binary(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

func onerec(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "ONEREC_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	return cmd
}

// run runs a command to its end.
func run(t *testing.T, args ...string) (stdout string, code int, stderr string) {
	t.Helper()
	cmd := onerec(t, args...)
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	var exit *exec.ExitError
	if e := cmd.Run(); e != nil && !errors.As(e, &exit) {
		t.Fatal(e)
	}
	return out.String(), cmd.ProcessState.ExitCode(), err.String()
}

// process is a running service.
type process struct {
	cmd  *exec.Cmd
	http string
	done chan struct{}
}

func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{http: kafkatest.FreeAddress(t), done: make(chan struct{})}
	p.cmd = onerec(t, append(args, "--http", p.http)...)
	pipe, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		for lines := bufio.NewScanner(pipe); lines.Scan(); {
			t.Logf("%s: %s", args[0], lines.Text())
		}
		_ = p.cmd.Wait() // the state says how it ended
	}()
	t.Cleanup(func() { p.kill() })
	eventually(t, args[0]+" is ready", func() bool { return get(p.http+"/readyz") == http.StatusOK })
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// stop asks the service to end and checks that it did so cleanly.
func (p *process) stop(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.done:
		if code := p.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("%v ended with code %d", p.cmd.Args[1], code)
		}
	case <-time.After(2 * time.Minute):
		t.Errorf("%v did not end within two minutes of SIGTERM", p.cmd.Args[1])
	}
}

func get(address string) int {
	resp, err := http.Get("http://" + address)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(90 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("it never happened: %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// TestServices runs every service as a process of its own against one broker,
// kills the sessionizer in the middle, and follows the views to a recommendation.
func TestServices(t *testing.T) {
	b, err := stream.StartEmbedded("")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	cluster := stream.Cluster{Brokers: b.Brokers()}
	brokers := strings.Join(b.Brokers(), ",")
	dir := t.TempDir()
	checkpoints, files := filepath.Join(dir, "checkpoints"), filepath.Join(dir, "snapshots")
	common := func(args ...string) []string { return append(args, "--brokers", brokers, "--log-level", "warn") }

	if _, code, stderr := run(t, common("ingest")...); code == 0 || !strings.Contains(stderr, "onerec topics create") {
		t.Fatalf("without topics: code %d, %s", code, stderr)
	}
	if out, code, stderr := run(t, common("topics", "create", "--partitions", "3")...); code != 0 || !strings.Contains(out, "created views.raw") {
		t.Fatalf("topics create: code %d, %s%s", code, out, stderr)
	}
	if out, code, stderr := run(t, "topics", "check", "--brokers", brokers); code != 0 {
		t.Fatalf("topics check: %s%s", out, stderr)
	}

	sessionize := common("sessionize", "--idle-timeout", "10m", "--instance", "one", "--static-membership") // or the killed one's partitions would come back after 45 s
	services := []*process{
		start(t, common("ingest")...),
		start(t, common("filter")...),
		start(t, common("snapshot", "--snapshots", files, "--snapshot-age", "200ms")...),
	}
	victim := start(t, sessionize...)
	if get(victim.http+"/healthz") != http.StatusOK || get(victim.http+"/metrics") != http.StatusOK {
		t.Error("no /healthz or /metrics")
	}
	world := []string{"--sim-users", "60", "--sim-items", "120", "--sim-days", "4"}
	out, code, stderr := run(t, append(common("replay"), world...)...)
	if code != 0 {
		t.Fatalf("replay: %s", stderr)
	}
	var views int
	if _, err := fmt.Sscanf(out, "%d views", &views); err != nil {
		t.Fatalf("replay printed %q: %v", out, err)
	}
	victim.kill()
	services = append(services, start(t, sessionize...))
	// Once more, the same events: all doubles or late, and then the end.
	if out, code, stderr := run(t, append(common("replay", "--finish"), world...)...); code != 0 {
		t.Fatalf("replay: %s%s", out, stderr)
	}
	cl, err := cluster.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	for _, w := range [][2]string{{"sessionize", schemas.TopicViews}, {"filter", schemas.TopicSessions}, {"snapshot", schemas.TopicJudgedSessions}} {
		if err := stream.WaitCaughtUp(ctx, cl, w[0], w[1]); err != nil {
			t.Fatal(err)
		}
	}
	totals, err := sessionizer.Totals(ctx, cluster)
	if err != nil {
		t.Fatal(err)
	}
	rejected := int64(0)
	if err := cluster.ReadTopic(ctx, schemas.TopicDeadLetters, func(*kgo.Record) error { rejected++; return nil }); err != nil {
		t.Fatal(err)
	}
	if totals.Accepted+totals.Duplicates+totals.Late+rejected != int64(2*views) {
		t.Errorf("%v and %d rejected do not add up to twice %d views", totals, rejected, views)
	}
	events, doubled := map[string]bool{}, 0
	eventually(t, "every accepted view is in a snapshot", func() bool {
		clear(events)
		doubled = 0
		if err := snapshots.ReadAll(t.Context(), files, func(s snapshots.Session) error {
			for _, v := range s.Views {
				if events[v.EventID] {
					doubled++
				}
				events[v.EventID] = true
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return int64(len(events)) >= totals.Accepted
	})
	if doubled > 0 || int64(len(events)) != totals.Accepted {
		t.Errorf("%d views in the snapshots, %d of them twice; accepted were %d", len(events), doubled, totals.Accepted)
	}

	// Looking at what was refused, and trying other rules.
	if out, code, stderr := run(t, common("dlq", "list")...); code != 0 || !strings.Contains(out, "bad_watch_time") {
		t.Errorf("dlq list: %s%s", out, stderr)
	}
	var letters struct {
		ByReason map[string]int64 `json:"by_reason"`
		Newest   []struct{ Partition, Offset int64 }
	}
	if out, code, stderr := run(t, common("dlq", "list", "--json", "--limit", "1")...); code != 0 || json.Unmarshal([]byte(out), &letters) != nil || letters.ByReason["bad_watch_time"] != rejected || len(letters.Newest) != 1 {
		t.Fatalf("dlq list --json: %s%s", out, stderr)
	}
	at := []string{fmt.Sprint(letters.Newest[0].Partition), fmt.Sprint(letters.Newest[0].Offset)}
	if out, code, stderr := run(t, common("dlq", "show", at[0], at[1])...); code != 0 || !strings.Contains(out, "watch_ms") {
		t.Errorf("dlq show: %s%s", out, stderr)
	}
	if out, code, stderr := run(t, common("dlq", "replay", at[0], at[1])...); code != 0 || !strings.Contains(out, "1 dead letters sent") {
		t.Errorf("dlq replay: %s%s", out, stderr)
	}
	rules := filepath.Join(dir, "rules.yaml")
	if err := os.WriteFile(rules, []byte("version: x\nmin_views: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var explained struct{ Sessions, Good int64 }
	if out, code, stderr := run(t, common("filter", "--explain", rules, "--json")...); code != 0 || json.Unmarshal([]byte(out), &explained) != nil || explained.Sessions != totals.Closed || explained.Good != totals.Closed {
		t.Errorf("explain: %s%s; %d sessions were closed", out, stderr, totals.Closed)
	}

	// Learning, as services, on what is there.
	learn := []string{"--checkpoints", checkpoints, "--batch-tokens", "1024", "--holdout-percent", "20"}
	address := kafkatest.FreeAddress(t)
	serve := start(t, common("serve", "--checkpoints", checkpoints, "--listen", address)...)
	train := start(t, append(common("train", "--bootstrap-sessions", "50", "--publish-every", "1s", "--train-history", "8", "--replay-ratio", "1"), learn...)...)
	reward := start(t, append(common("reward", "--reward-every", "1s", "--align-users", "10", "--candidates", "8", "--candidate-items", "3", "--reward-epochs", "1"), learn...)...)
	var answer recommender.Answer
	eventually(t, "a model answers", func() bool {
		resp, err := http.Post("http://"+address+"/v1/recommendations", "application/json", strings.NewReader(`{"user_id":"u00001","n":3}`))
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		return err == nil && json.Unmarshal(data, &answer) == nil && answer.Source == "model"
	})
	if len(answer.Items) != 3 || answer.CheckpointVersion == "" {
		t.Errorf("answer %+v", answer)
	}
	// The simulator's users live on with what is served, and their views say by which model.
	if out, code, stderr := run(t, append(common("replay", "--finish", "--recommender", "http://"+address, "--list", "3"), world...)...); code != 0 || !strings.Contains(out, "served by http://"+address) {
		t.Errorf("replay: %s%s", out, stderr)
	}
	attributed := 0
	if err := cluster.ReadTopic(ctx, schemas.TopicViewsRaw, func(r *kgo.Record) error {
		v := new(onerecv1.ViewEvent)
		if err := proto.Unmarshal(r.Value, v); err == nil && v.CheckpointVersion != "" && v.RecommendationId != "" {
			attributed++
		}
		return nil
	}); err != nil || attributed == 0 {
		t.Errorf("%d views of what was recommended, %v", attributed, err)
	}
	eventually(t, "the snapshots say what the checkpoints were worth", func() bool {
		var lines []attribution.Line
		out, code, stderr := run(t, "report", "attribution", "--snapshots", files, "--json")
		if err := json.Unmarshal([]byte(out), &lines); err != nil || code != 0 {
			t.Fatalf("report attribution: %v, %s%s", err, out, stderr)
		}
		return len(lines) > 1 && lines[0].Version == "" && lines[1].Views > 0 && lines[1].WatchMs > 0
	})
	eventually(t, "a round is recorded", func() bool {
		n := 0
		if err := cluster.ReadTopic(ctx, schemas.TopicRounds, func(*kgo.Record) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
		return n > 0
	})
	for _, p := range append(services, train, reward, serve) {
		p.stop(t)
	}

	historyTools(t, common, files, checkpoints)

	// The tools, on what the services left.
	if out, code, stderr := run(t, "checkpoints", "verify", "--checkpoints", checkpoints); code != 0 || !strings.Contains(out, "ok") {
		t.Errorf("verify: %s%s", out, stderr)
	}
	if out, code, stderr := run(t, common("checkpoints", "promote", answer.CheckpointVersion, "--checkpoints", checkpoints)...); code != 0 {
		t.Errorf("promote: %s%s", out, stderr)
	}
	if out, code, stderr := run(t, "checkpoints", "show", answer.CheckpointVersion, "--checkpoints", checkpoints); code != 0 || !strings.Contains(out, "decoder.safetensors") {
		t.Errorf("show: %s%s", out, stderr)
	}
	if out, code, stderr := run(t, common("checkpoints", "channels")...); code != 0 || !strings.Contains(out, answer.CheckpointVersion) {
		t.Errorf("channels: %s%s", out, stderr)
	}
	if out, code, stderr := run(t, common("checkpoints", "withdraw", "--checkpoints", checkpoints)...); code == 0 || !strings.Contains(stderr, "canary") {
		t.Errorf("withdraw of nothing: %s%s", out, stderr)
	}
	if out, code, stderr := run(t, common("checkpoints", "promote", answer.CheckpointVersion, "--channel", "canary", "--checkpoints", checkpoints)...); code != 0 || !strings.Contains(out, "canary: "+answer.CheckpointVersion) {
		t.Errorf("promote to canary: %s%s", out, stderr)
	}
	if out, code, stderr := run(t, common("checkpoints", "judge", "--checkpoints", checkpoints, "--snapshots", files, "--since", "2020-01-01T00:00:00Z")...); code != 0 || !strings.Contains(out, "wait "+answer.CheckpointVersion) {
		t.Errorf("judge: %s%s", out, stderr)
	}
	if out, code, stderr := run(t, common("checkpoints", "withdraw", "--checkpoints", checkpoints)...); code != 0 {
		t.Errorf("withdraw: %s%s", out, stderr)
	}
	if out, code, stderr := run(t, common("checkpoints", "gc", "--dry-run", "--checkpoints", checkpoints, "--checkpoints-keep", "1", "--checkpoints-keep-for", "1m")...); code != 0 || !strings.Contains(out, "would be removed") {
		t.Errorf("gc: %s%s", out, stderr)
	}
	list, code, stderr := run(t, "checkpoints", "list", "--json", "--checkpoints", checkpoints)
	var manifests []struct{ Version string }
	if err := json.Unmarshal([]byte(list), &manifests); err != nil || code != 0 || len(manifests) == 0 {
		t.Errorf("list: %v, %s%s", err, list, stderr)
	} else if first := manifests[0].Version; len(manifests) > 1 {
		if out, code, stderr := run(t, "checkpoints", "diff", first, manifests[len(manifests)-1].Version, "--checkpoints", checkpoints); code != 0 || !strings.Contains(out, "decoder.safetensors") {
			t.Errorf("diff: %s%s", out, stderr)
		}
	}
}

// historyTools uses the snapshots as an analyst, an operator and a researcher would.
func historyTools(t *testing.T, common func(...string) []string, files, checkpoints string) {
	t.Helper()
	tokens := filepath.Join(t.TempDir(), "tokens.arrow")
	for _, tt := range []struct {
		args []string
		want string // of the output
	}{
		{[]string{"snapshot", "files", "--snapshots", files}, "sessions/date=2026-"},
		{[]string{"snapshot", "files", "--snapshots", files, "--table", "dead_letters", "--json"}, `"rows": `},
		{[]string{"snapshot", "compact", "--snapshots", files, "--quiet", "0s"}, "dead_letters"},
		{common("snapshot", "refresh", "--snapshots", files, "--checkpoints", checkpoints), " training steps"},
		{[]string{"snapshot", "verify", "--snapshots", files}, "training_steps"},
		{[]string{"snapshot", "verify", "--snapshots", files, "--from", "2026-01-01", "--json"}, `"faults": []`},
		{[]string{"snapshot", "sql", "--snapshots", files}, "create or replace view recommendations"},
		{[]string{"snapshot", "export", "--snapshots", files, "--checkpoints", checkpoints, "--arrow", tokens, "--loss"}, "nats a token"},
		{[]string{"snapshot", "columns", "--json"}, `"name": "sessions"`},
		// History under another model's name, and then the stream, which holds no more.
		{append(common("train", "--once", "--model", "fresh", "--from-snapshots", files, "--checkpoints", checkpoints, "--bootstrap-sessions", "50", "--replay-ratio", "1"), "--log-level", "info"), ""},
	} {
		out, code, stderr := run(t, tt.args...)
		if code != 0 || !strings.Contains(out, tt.want) {
			t.Errorf("%v: code %d, %s%s", tt.args, code, out, stderr)
		}
		if tt.args[0] == "train" && (!strings.Contains(stderr, "learned from snapshots") || !strings.Contains(stderr, "published candidate")) {
			t.Errorf("train: %s", stderr)
		}
	}
	if out, code, stderr := run(t, "snapshot", "files", "--snapshots", files, "--from", "yesterday"); code == 0 || !strings.Contains(stderr, "is no day") {
		t.Errorf("a day that is none: %s%s", out, stderr)
	}
	// A file that is damaged is named.
	var damaged string
	if err := filepath.WalkDir(filepath.Join(files, "dead_letters"), func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.Contains(filepath.Base(path), "c-") && strings.HasSuffix(path, ".parquet") {
			damaged = path
			return os.Truncate(path, 10)
		}
		return err
	}); err != nil || damaged == "" {
		t.Fatalf("%q, %v", damaged, err)
	}
	if out, code, stderr := run(t, "snapshot", "verify", "--snapshots", files); code == 0 || !strings.Contains(stderr, filepath.Base(damaged)) {
		t.Errorf("verify: %s%s", out, stderr)
	}
}

// TestSemanticID builds a codebook from a file, looks at it, gives new items IDs and
// exports it, as a researcher would.
func TestSemanticID(t *testing.T) {
	dir := t.TempDir()
	old, all := new(semanticid.Embeddings), new(semanticid.Embeddings)
	for i := range 300 {
		x := []float32{float32(i%7) + 1, float32(i%11) - 5, float32(i) / 100, 1}
		if err := all.Add(fmt.Sprint("item", i), x); err != nil {
			t.Fatal(err)
		}
		if i < 280 {
			if err := old.Add(fmt.Sprint("item", i), x); err != nil {
				t.Fatal(err)
			}
		}
	}
	write := func(e *semanticid.Embeddings, name, format string) string {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := e.Write(f, format); err != nil {
			t.Fatal(err)
		}
		return f.Name()
	}
	first, second := write(old, "old.parquet", "parquet"), write(all, "all.arrow", "arrow")
	codebook, longer := filepath.Join(dir, "codebook"), filepath.Join(dir, "longer")
	b, err := stream.StartEmbedded("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	broker := b.Brokers()[0]
	if _, code, stderr := run(t, "topics", "create", "--brokers", broker, "--partitions", "2"); code != 0 {
		t.Fatal(stderr)
	}
	sequences := filepath.Join(dir, "sequences.txt")
	if err := os.WriteFile(sequences, []byte("u1 item1 item3 item4\nu2 item3 item4\nu3 item1 item5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	attributes := filepath.Join(dir, "attributes.json")
	if err := os.WriteFile(attributes, []byte(`{"item1": ["a", 2], "item2": ["a"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{"semanticid", "build", "--embeddings", first, "--out", codebook, "--codes", "20"}, 0, []string{"280 items, 3 levels of 20 codes", "VARIANCE LEFT"}},
		{[]string{"semanticid", "inspect", "--codebook", codebook, "--embeddings", second, "--json"}, 0, []string{`"smallest": 14`, `"largest": 14`, `"prefixes": 280`}},
		{[]string{"semanticid", "inspect", "--codebook", codebook, "--embeddings", second, "--attributes", attributes}, 0, []string{"commonest attribute of their first 2 codes", "of random IDs"}},
		{[]string{"semanticid", "inspect", "--codebook", codebook, "--embeddings", second, "--attributes", first}, 1, []string{"read attributes", `{"item": [attribute, ...]}`}},
		{[]string{"semanticid", "assign", "--codebook", codebook, "--embeddings", second, "--out", longer}, 0, []string{"20 new items of 300"}},
		{[]string{"semanticid", "inspect", "--codebook", codebook, "--embeddings", second, "--item", "item7", "--neighbours", "2"}, 0, []string{"CODES IN COMMON", "item7 "}},
		{[]string{"semanticid", "inspect", "--codebook", codebook, "--embeddings", second, "--item", "nobody"}, 1, []string{`"nobody" has no ID`}},
		{[]string{"semanticid", "build", "--embeddings", second, "--out", filepath.Join(dir, "new"), "--codes", "20", "--warm", codebook}, 0, []string{"300 items", "have the code at level 1 that they had", "have the same ID"}},
		{[]string{"semanticid", "build", "--embeddings", second, "--out", filepath.Join(dir, "small"), "--codes", "6", "--headroom", "2"}, 1, []string{"headroom for 600 more", "use at least"}},
		{[]string{"semanticid", "export", "--codebook", longer, "--format", "parquet", "--out", filepath.Join(dir, "out.parquet")}, 0, nil},
		{[]string{"semanticid", "export", "--codebook", longer, "--format", "csv"}, 1, []string{"neither json nor parquet"}},
		{[]string{"semanticid", "export", "--codebook", longer}, 0, []string{`{"item_id":"item299","semantic_id":[`}},
		{[]string{"semanticid", "inspect", "--codebook", longer, "--embeddings", first}, 1, []string{"20 of the codebook's 300 items have no embedding"}},
		{[]string{"semanticid", "build", "--embeddings", dir, "--out", codebook}, 1, []string{"extension"}},
		{[]string{"semanticid", "build"}, 1, []string{"out"}},
		{[]string{"semanticid", "build", "--out", codebook}, 1, []string{"embeddings", "items-topic"}},
		{[]string{"semanticid", "embed", "--sequences", sequences, "--width", "4", "--attributes", attributes, "--out", filepath.Join(dir, "learned.arrow")}, 0, []string{"5 items of width 4 from 3 sequences"}},
		{[]string{"semanticid", "embed", "--sequences", sequences, "--previous", filepath.Join(dir, "learned.arrow"), "--out", filepath.Join(dir, "again.parquet"), "--json"}, 0, []string{`"previous_items": 5`, `"width": 4`}},
		{[]string{"items", "put", "--embeddings", first, "--attributes", attributes, "--brokers", broker}, 0, []string{"280 items are on topic items"}},
		{[]string{"semanticid", "build", "--items-topic", "--brokers", broker, "--out", filepath.Join(dir, "topic"), "--codes", "20"}, 0, []string{"280 items, 3 levels of 20 codes"}},
		{[]string{"semanticid", "inspect", "--items-topic", "--brokers", broker, "--codebook", filepath.Join(dir, "topic")}, 0, []string{"commonest attribute", "NEIGHBOUR"}},
		{[]string{"semanticid", "embed", "--sessions-topic", "--items-topic", "--brokers", broker, "--out", filepath.Join(dir, "x.parquet")}, 0, []string{"2 items of width 128 from 0 sequences"}},
	} {
		out, code, stderr := run(t, tt.args...)
		if code != tt.code {
			t.Errorf("%v: code %d, want %d: %s", tt.args, code, tt.code, stderr)
		}
		for _, want := range tt.want {
			if !strings.Contains(out+stderr, want) {
				t.Errorf("%v: %q is missing in:\n%.2000s%s", tt.args, want, out, stderr)
			}
		}
	}
}

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "onerec.yaml")
	if err := os.WriteFile(file, []byte("session-gap: 10m\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	views := filepath.Join(dir, "views.csv")
	if err := os.WriteFile(views, []byte("user_id,video_id,time_ms,play_time_ms,duration_ms,is_like,is_hate\n1,5,1700000000000,9000,12000,1,0\n1,6,1700000009000,900,12000,0,1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	wrong := filepath.Join(dir, "wrong.yaml")
	if err := os.WriteFile(wrong, []byte("session-gap: 10m\nsesion-lateness: 1m\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{"--help"}, 0, []string{"ingest", "sessionize", "filter", "snapshot", "train", "reward", "serve", "demo", "replay", "topics", "semanticid", "checkpoints", "version", "config"}},
		{[]string{"train", "--help"}, 0, []string{"--learning-rate", "--brokers", "1e-07 to 1", "SIGTERM"}},
		{[]string{"version"}, 0, []string{"onerec", "go1."}},
		{[]string{"config", "--config", file}, 0, []string{"session-gap: 10m", `default "30m0s", from ` + file + " line 1"}},
		{[]string{"config", "--config", wrong}, 1, []string{"line 2", "sesion-lateness"}},
		{[]string{"topics", "list", "--json"}, 0, []string{`"name": "views.raw"`}},
		{[]string{"nonsense"}, 1, []string{"unknown command", "nonsense"}},
		{[]string{"topics", "nonsense"}, 1, []string{"unknown command", "nonsense"}},
		{[]string{"ingest", "views.csv"}, 1, []string{"unknown command", "views.csv"}},
		{[]string{"demo", "--views", dir, "--dir", filepath.Join(dir, "x")}, 1, []string{dir, "directory"}},
		{[]string{"train", "--levels", "1"}, 1, []string{"levels", "2 to 8"}},
		{[]string{"reward", "--align-loss", "ppo"}, 1, []string{"align-loss", "simpo"}},
		{[]string{"simulate", "loop", "--rounds", "3,1"}, 1, []string{"--rounds", "rising"}},
		{[]string{"simulate", "loop", "--users", "0"}, 1, []string{"users is 0"}},
		{[]string{"simulate", "compare", dir}, 1, []string{dir, "directory"}},
		{[]string{"simulate", "compare", views}, 0, []string{"SIMULATED", "REAL", "watch time"}},
		{[]string{"checkpoints", "show", "1", "--checkpoints", dir}, 1, []string{"not found"}},
	} {
		out, code, stderr := run(t, tt.args...)
		if code != tt.code {
			t.Errorf("%v: code %d, want %d: %s", tt.args, code, tt.code, stderr)
		}
		for _, want := range tt.want {
			if !strings.Contains(out+stderr, want) {
				t.Errorf("%v: %q is missing in:\n%s%s", tt.args, want, out, stderr)
			}
		}
	}
}
