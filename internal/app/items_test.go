package app

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"onerec/internal/stream"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// TestWithdrawItems: an item's mark is set and taken away and the rest of its record stays; news of the item from elsewhere
// keep the mark; what changes nothing writes nothing.
func TestWithdrawItems(t *testing.T) {
	broker, err := stream.StartEmbedded("")
	if err != nil {
		t.Fatal(err)
	}
	defer broker.Close()
	a := small(t)
	a.Brokers = broker.Brokers()
	if err := a.createTopics(t.Context()); err != nil {
		t.Fatal(err)
	}
	known := func() *onerecv1.Item {
		return &onerecv1.Item{ItemId: "known", Title: "Bread", DurationMs: 7, CreatedMs: 8, Attributes: []string{"author:17"}, Embedding: []float32{1, 2}}
	}
	if err := a.PutItems(t.Context(), []*onerecv1.Item{known(), {ItemId: "other"}}); err != nil {
		t.Fatal(err)
	}
	set := func(gone bool, want string, ids ...string) {
		t.Helper()
		changed, err := a.WithdrawItems(t.Context(), ids, gone)
		if got := strings.Join(changed, " "); err != nil || got != want {
			t.Fatalf("withdraw %v (%v): changed %q, want %q; %v", ids, gone, got, want, err)
		}
	}
	check := func(want map[string]*onerecv1.Item) {
		t.Helper()
		c, err := a.Catalogue(t.Context())
		if err != nil || c.Len() != len(want) {
			t.Fatalf("%d items, want %d; %v", c.Len(), len(want), err)
		}
		for id, item := range want {
			if got := c.Item(id); !proto.Equal(got, item) {
				t.Errorf("%s is %v, want %v", id, got, item)
			}
		}
	}
	gone := known()
	gone.Withdrawn = true
	set(true, "known new", "new", "known", "new")
	set(true, "", "known")
	set(false, "", "other", "nobody's")
	check(map[string]*onerecv1.Item{"known": gone, "new": {ItemId: "new", Withdrawn: true}, "other": {ItemId: "other"}})

	news := map[string]*onerecv1.Item{"known": known(), "other": {ItemId: "other", Title: "Tea"}, "latest": {ItemId: "latest"}}
	if err := a.KeepWithdrawn(t.Context(), news); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(news["known"], gone) || news["other"].Withdrawn || news["latest"].Withdrawn {
		t.Errorf("news of items: %v", news)
	}
	set(false, "known", "known")
	check(map[string]*onerecv1.Item{"known": known(), "new": {ItemId: "new", Withdrawn: true}, "other": {ItemId: "other"}})

	for _, id := range []string{"", strings.Repeat("x", 10_000)} {
		if _, err := a.WithdrawItems(t.Context(), []string{"known", id}, true); err == nil || !strings.Contains(err.Error(), "an id has 1 to") {
			t.Errorf("an id of %d bytes: %v", len(id), err)
		}
	}
	end, err := a.cluster().Spans(t.Context(), schemas.TopicItems)
	if records := end[0].To; err != nil || records != 5 {
		t.Errorf("%d records, want 5; %v", records, err)
	}
}
