package schemas

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "onerec/schemas/onerecv1"
)

// TestTopics: the contract is complete and refers to what exists.
func TestTopics(t *testing.T) {
	seen := map[string]bool{}
	for _, topic := range Topics() {
		if seen[topic.Name] {
			t.Errorf("%s is there twice", topic.Name)
		}
		seen[topic.Name] = true
		if topic.Key == "" || topic.Owner == "" || topic.Doc == "" || len(topic.Producers) == 0 {
			t.Errorf("%s: key, owner, producers or doc is missing", topic.Name)
		}
		if topic.Compacted == (topic.Retention > 0) {
			t.Errorf("%s must be compacted or have a retention, not both", topic.Name)
		}
		if strings.HasPrefix(topic.Message, "onerec.") {
			if _, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(topic.Message)); err != nil {
				t.Errorf("%s: %v", topic.Name, err)
			}
		}
		if n := topic.Partitions(8); topic.ByUser != (n == 8) || !topic.ByUser && n != 1 {
			t.Errorf("%s has %d partitions", topic.Name, n)
		}
		if got := topic.Settings()["cleanup.policy"]; topic.Compacted != (got == "compact") {
			t.Errorf("%s: cleanup.policy is %s", topic.Name, got)
		}
	}
}

// TestRulesHaveNames: a rule's name is part of the contract of the dead-letter
// topic.
func TestRulesHaveNames(t *testing.T) {
	var names []string
	for _, r := range ViewRules(DefaultBounds()) {
		if r.Why == "" {
			t.Errorf("%s says not why", r.Name)
		}
		names = append(names, r.Name)
	}
	want := []string{"no_event_id", "no_user", "no_item", "bad_watch_time", "bad_duration", "too_old", "in_future"}
	if !slices.Equal(names, want) {
		t.Errorf("rules %v, want %v", names, want)
	}
}

// TestAsyncAPI keeps docs/asyncapi.yaml what the topics say.
func TestAsyncAPI(t *testing.T) {
	got, err := AsyncAPI()
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("../docs/asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/asyncapi.yaml is out of date; run: go run ./cmd/onerec topics asyncapi > docs/asyncapi.yaml")
	}
	for _, topic := range Topics() {
		for _, s := range topic.Consumers {
			if !bytes.Contains(got, []byte(s+"-receive-"+topic.Name+":")) {
				t.Errorf("that %s reads %s is missing", s, topic.Name)
			}
		}
	}
}

func FuzzDecodeViewEvent(f *testing.F) {
	f.Add("", []byte{10, 1, 'e'})
	f.Add(ContentTypeJSON, []byte(`{"event_id":"e","event_time_ms":"5"}`))
	f.Fuzz(func(t *testing.T, contentType string, value []byte) {
		if v, err := DecodeViewEvent(contentType, value); (v == nil) == (err == nil) {
			t.Fatalf("event %v, error %v", v, err)
		}
	})
}

// TestRights keeps the table in docs/rights.md what the rights say.
func TestRights(t *testing.T) {
	doc, err := os.ReadFile("../docs/rights.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(doc), RightsTable()) {
		t.Errorf("docs/rights.md does not hold the table of RightsTable:\n%s", RightsTable())
	}
}
