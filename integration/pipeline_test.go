package integration

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"onerec/recommender"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
	"onerec/snapshots"
)

// realViews is where the real views are, if they are anywhere.
const realViews = "../../shared/data/kuairand/views.tsv.gz"

// TestFromViewsToRecommendations runs every service in its container: raw views in,
// checkpoints out, recommendations over HTTP; then clients that are not ours read what
// is there.
func TestFromViewsToRecommendations(t *testing.T) {
	c := start(t, 1)
	c.tool("topics", "create", "--partitions", "4")
	if out := c.tool("topics", "check"); !strings.Contains(out, "as the contract says") {
		t.Errorf("topics check: %s", out)
	}
	checkpoints, files := filepath.Join(c.mount, "checkpoints"), filepath.Join(c.mount, "snapshots")
	learn := []string{"--checkpoints", checkpoints, "--batch-tokens", "1024", "--holdout-percent", "20"}
	with := func(args ...string) []string { return append(args, learn...) }
	all := []*service{
		c.launch("ingest"), c.launch("sessionize", "--idle-timeout", "24h"), c.launch("filter"),
		c.launch("snapshot", "--snapshots", files, "--snapshot-age", "500ms"),
	}
	replay := []string{"replay", "--finish", "--sim-users", "80", "--sim-items", "150", "--sim-days", "5"}
	if _, err := os.Stat(realViews); err == nil {
		replay = []string{"replay", "--finish", realViews}
	} else {
		t.Logf("the real views are not at %s: the simulator's instead", realViews)
	}
	for _, s := range all {
		s.ready()
	}
	t.Log(strings.TrimSpace(c.tool(replay...)))

	serve := c.launch("serve", "--checkpoints", checkpoints)
	train := c.launch(with("train", "--bootstrap-sessions", "50", "--train-history", "8", "--replay-ratio", "1")...)
	var answer recommender.Answer
	eventually(t, "a model answers", func() (err error) {
		answer, err = modelAnswer(t, serve.api, `{"user_id":"u1","history":[],"n":3}`)
		return err
	})
	if len(answer.Items) != 3 || answer.CheckpointVersion == "" {
		t.Errorf("answer %+v", answer)
	}
	// More users come, and wait for a model that has learned from them.
	t.Log(strings.TrimSpace(c.tool("replay", "--finish", "--sim-users", "80", "--sim-items", "150", "--sim-days", "5")))
	eventually(t, "a model serves that knows the new sessions", func() error {
		_, text := get(t, serve.http, "/metrics")
		var found []string
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "onerec_serve_session_to_serving_seconds{") {
				found = append(found, strings.TrimSpace(line))
			}
		}
		if len(found) == 0 {
			return errors.New("not yet")
		}
		t.Log(strings.Join(found, "\n"))
		return nil
	})
	reward := c.launch(with("reward", "--reward-every", "1s", "--align-users", "10", "--candidates", "8", "--candidate-items", "3", "--reward-epochs", "1")...)
	eventually(t, "a round is recorded", func() error {
		n := 0
		if err := c.stream().ReadTopic(t.Context(), schemas.TopicRounds, func(*kgo.Record) error { n++; return nil }); err != nil {
			return err
		}
		if n == 0 {
			return errors.New("none yet")
		}
		return nil
	})
	for _, s := range append(all, train, reward, serve) {
		s.stop()
	}
	if out, err := command(t.Context(), t, "checkpoints", "verify", "--checkpoints", checkpoints).CombinedOutput(); err != nil {
		t.Errorf("checkpoints verify: %v\n%s", err, out)
	}
	rows, views := 0, 0
	if err := snapshots.ReadAll(t.Context(), files, func(s snapshots.Session) error {
		rows++
		views += len(s.Views)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	committed := 0
	if err := c.stream().ReadTopic(t.Context(), schemas.TopicJudgedSessions, func(*kgo.Record) error { committed++; return nil }); err != nil {
		t.Fatal(err)
	}
	if rows != committed || rows == 0 {
		t.Errorf("%d sessions in the snapshots, %d on the topic", rows, committed)
	}
	t.Run("DuckDB", func(t *testing.T) {
		python(t, "duckdb")
		out := runPython(t, `import duckdb, sys
print(*duckdb.sql(f"select count(*), sum(len(views)) from read_parquet('{sys.argv[1]}/sessions/**/*.parquet')").fetchall()[0])`, files)
		if want := fmt.Sprint(rows, " ", views); out != want {
			t.Errorf("DuckDB counts %q, want %q", out, want)
		}
	})
	t.Run("PyArrow", func(t *testing.T) {
		python(t, "pyarrow")
		out := runPython(t, `import pyarrow.dataset as ds, sys
t = ds.dataset(sys.argv[1] + "/sessions", partitioning="hive").to_table()
print(t.num_rows, sum(len(v) for v in t["views"].to_pylist()))`, files)
		if want := fmt.Sprint(rows, " ", views); out != want {
			t.Errorf("PyArrow counts %q, want %q", out, want)
		}
	})
	t.Run("safetensors", func(t *testing.T) {
		python(t, "safetensors", "numpy")
		out := runPython(t, `import glob, sys
from safetensors import safe_open
n = 0
for path in glob.glob(sys.argv[1] + "/**/decoder.safetensors", recursive=True):
    with safe_open(path, "np") as f:
        n += sum(f.get_tensor(k).size for k in f.keys())
print(n > 0)`, checkpoints)
		if out != "True" {
			t.Errorf("safetensors reads %q", out)
		}
	})
	t.Run("console consumer", func(t *testing.T) {
		if c.network == nil {
			t.Skip("it is in the broker's image")
		}
		code, r, err := c.brokers[0].Exec(t.Context(), []string{
			"/opt/kafka/bin/kafka-console-consumer.sh", "--bootstrap-server", "kafka-1:9092", "--topic", schemas.TopicJudgedSessions,
			"--isolation-level", "read_committed", "--from-beginning", "--timeout-ms", "15000", "--property", "print.value=false", "--property", "print.key=true",
		})
		if err != nil {
			t.Fatal(err)
		}
		out, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("Processed a total of %d messages", committed); !strings.Contains(string(out), want) {
			t.Errorf("code %d: want %q: %s", code, want, out[max(0, len(out)-300):])
		}
	})
}

// TestKcat: kcat writes JSON views and reads sessions.
func TestKcat(t *testing.T) {
	path, err := exec.LookPath("kcat")
	if err != nil {
		t.Skipf("kcat is not installed (on Debian: apt-get install kcat): %v", err)
	}
	c := start(t, 1)
	f := newFlow(c, 8, 0)
	var lines strings.Builder
	for i := range 20 {
		e := &onerecv1.ViewEvent{EventId: fmt.Sprint("k", i), UserId: fmt.Sprint("u", i%3), ItemId: "i", EventTimeMs: 1_700_000_000_000 + int64(i)*60_000, WatchMs: 1000}
		value, err := protojson.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&lines, "%s\t%s\n", e.UserId, strings.ReplaceAll(string(value), "\t", " "))
		f.events = append(f.events, e)
	}
	f.fed = len(f.events)
	produce := exec.CommandContext(t.Context(), path, "-b", c.outside, "-P", "-t", schemas.TopicViewsRaw, "-K", "\t", "-H", "content-type=application/json")
	produce.Stdin = strings.NewReader(lines.String())
	if out, err := produce.CombinedOutput(); err != nil {
		t.Fatalf("kcat: %v\n%s", err, out)
	}
	f.check()
	consume := exec.CommandContext(t.Context(), path, "-b", c.outside, "-C", "-t", schemas.TopicSessions, "-e", "-q", "-X", "isolation.level=read_committed", "-f", "%k\n")
	out, err := consume.Output()
	if err != nil {
		t.Fatalf("kcat: %v\n%s", err, out)
	}
	keys := strings.Fields(string(out))
	slices.Sort(keys)
	if fmt.Sprint(keys) != "[u0 u1 u2]" {
		t.Errorf("kcat reads the sessions of %v", keys)
	}
}

// TestContracts: topics have the declared settings, a drifted one is found, and a
// consumer that was built for the first version of a message still reads.
func TestContracts(t *testing.T) {
	c := start(t, 1)
	c.tool("topics", "create", "--partitions", "3")
	adm := kadm.NewClient(c.client())
	for _, topic := range schemas.Topics() {
		configs, err := adm.DescribeTopicConfigs(t.Context(), topic.Name)
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]string{}
		for _, kv := range configs[0].Configs {
			have[kv.Key] = kv.MaybeValue()
		}
		for key, want := range topic.Settings() {
			if have[key] != want {
				t.Errorf("%s: %s is %q, want %q", topic.Name, key, have[key], want)
			}
		}
	}
	drifted := "60000"
	if _, err := adm.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: &drifted}}, schemas.TopicSessions); err != nil {
		t.Fatal(err)
	}
	if out, err := c.tryTool("topics", "check"); err == nil || !strings.Contains(out, `sessions: retention.ms is "60000"`) {
		t.Errorf("topics check of a drifted topic: %v\n%s", err, out)
	}
	previousVersions(t, c)
}

// previousVersions reads what the present code writes as consumers do that were built
// from earlier versions of the schema: the checked-in baseline, and one in which no
// message had its last field yet. A field that a later producer adds they pass over.
func previousVersions(t *testing.T, c *cluster) {
	t.Helper()
	written := &onerecv1.Session{
		SessionId: "s", UserId: "u", StartMs: 1, EndMs: 2, TotalWatchMs: 3, Likes: 1, ClosedBy: onerecv1.ClosedBy_CLOSED_BY_SIZE,
		Views:   []*onerecv1.View{{EventId: "e", ItemId: "i", EventTimeMs: 1, WatchMs: 3, Like: true, CheckpointVersion: "000001-aa"}},
		History: []*onerecv1.HistoryItem{{ItemId: "h", EventTimeMs: 1}},
	}
	value, err := proto.Marshal(written)
	if err != nil {
		t.Fatal(err)
	}
	value = append(value, 0xfa, 0x01, 3, 'n', 'e', 'w') // field 31
	if err := c.client().ProduceSync(t.Context(), &kgo.Record{Topic: schemas.TopicSessions, Value: value}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile("../schemas/baseline.binpb")
	if err != nil {
		t.Fatal(err)
	}
	for _, dropped := range []int{0, 1} {
		var set descriptorpb.FileDescriptorSet // a buf image is one
		if err := proto.Unmarshal(image, &set); err != nil {
			t.Fatal(err)
		}
		for _, file := range set.File {
			for _, m := range file.MessageType {
				m.Field = m.Field[:max(1, len(m.Field)-dropped)]
			}
		}
		files, err := protodesc.NewFiles(&set)
		if err != nil {
			t.Fatal(err)
		}
		d, err := files.FindDescriptorByName("onerec.v1.Session")
		if err != nil {
			t.Fatal(err)
		}
		session := d.(protoreflect.MessageDescriptor)
		got := dynamicpb.NewMessage(session)
		n := 0
		if err := c.stream().ReadTopic(t.Context(), schemas.TopicSessions, func(r *kgo.Record) error {
			n++
			return proto.Unmarshal(r.Value, got)
		}); err != nil {
			t.Fatal(err)
		}
		if n != 1 || len(got.GetUnknown()) == 0 {
			t.Errorf("%d fields fewer: %d sessions, unknown %q", dropped, n, got.GetUnknown())
		}
		for i := range session.Fields().Len() {
			old := session.Fields().Get(i)
			now := written.ProtoReflect().Descriptor().Fields().ByNumber(old.Number())
			if now == nil || now.Name() != old.Name() {
				t.Errorf("field %d, %s, is not there any more", old.Number(), old.Name())
				continue
			}
			if old.IsList() || old.Kind() == protoreflect.MessageKind { // of which the view is looked at below
				if a, b := got.Get(old).List().Len(), written.ProtoReflect().Get(now).List().Len(); a != b {
					t.Errorf("%s has %d entries, want %d", old.Name(), a, b)
				}
				continue
			}
			if a, b := got.Get(old), written.ProtoReflect().Get(now); !a.Equal(b) {
				t.Errorf("%s is %v, want %v", old.Name(), a, b)
			}
		}
		view := got.Get(session.Fields().ByName("views")).List().Get(0).Message()
		if item := view.Get(view.Descriptor().Fields().ByName("item_id")).String(); item != "i" {
			t.Errorf("the view's item is %q", item)
		}
	}
}

// python skips the test where a module is missing.
func python(t *testing.T, modules ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "python3", "-c", "import "+strings.Join(modules, ", ")).CombinedOutput(); err != nil {
		if os.Getenv("ONEREC_NEED_PYTHON") != "" {
			t.Fatalf("python3 with %v is needed: %s", modules, out)
		}
		t.Skipf("needs python3 with %v (pip install %s)", modules, strings.Join(modules, " "))
	}
}

func runPython(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "python3", append([]string{"-c", program}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}
