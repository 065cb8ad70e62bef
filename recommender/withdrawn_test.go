package recommender

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/publisher"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// item puts a record onto the items topic; without a value if it is nil.
func (w *world) item(t *testing.T, id string, item *onerecv1.Item) {
	t.Helper()
	var value []byte
	if item != nil {
		var err error
		if value, err = proto.Marshal(item); err != nil {
			t.Fatal(err)
		}
	}
	w.record(t, id, value)
}

func (w *world) record(t *testing.T, id string, value []byte) {
	t.Helper()
	if err := w.client.ProduceSync(t.Context(), &kgo.Record{Topic: schemas.TopicItems, Key: []byte(id), Value: value}).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// TestWithdrawn: an item whose record says so is in no list, among no next items and no popular ones, whichever model
// serves, and from the first answer on of a process that starts later; it is back when a record says so.
func TestWithdrawn(t *testing.T) {
	w := startWith(t, func(s *Service) { s.CanaryPercent = 50 })
	for i := range 5 {
		w.view(t, "fan", fmt.Sprint("i", i), int64(1000+i))
	}
	eventually(t, "the views are read", func() bool { return len(w.svc.History("fan")) == 5 })
	holds := func(svc *Service, what, item string) bool {
		t.Helper()
		code, a, body := ask(t, svc.Handler(), what)
		if code != 200 {
			t.Fatal(code, body)
		}
		return slices.ContainsFunc(a.Items, func(i Item) bool { return i.ItemID == item })
	}
	const popular = `{"user_id": "nobody", "n": 20}`
	if !holds(w.svc, popular, "i3") {
		t.Fatal("i3 is not popular")
	}
	w.item(t, "i3", &onerecv1.Item{ItemId: "i3", Withdrawn: true})
	eventually(t, "i3 is not popular any more", func() bool { return !holds(w.svc, popular, "i3") })

	w.publish(t, publisher.ChannelReleased, 1)
	w.publish(t, publisher.ChannelCanary, 2)
	eventually(t, "both are loaded", func() bool { return len(w.svc.Models()) == 2 })
	// Each asks for all items there are, and so must get what is not withdrawn. A user has a past after the first request.
	asked := []string{`{"user_id": "u1", "n": 20, "mode": "next", "channel": %q}`, `{"user_id": "u1", "n": 8, "channel": %q}`}
	everywhere := func(svc *Service, item string) (all, none bool) {
		t.Helper()
		all, none = true, true
		for _, channel := range []string{publisher.ChannelReleased, publisher.ChannelCanary} {
			next := holds(svc, fmt.Sprintf(asked[0], channel), item)
			list := holds(svc, fmt.Sprintf(asked[1], channel), item)
			all, none = all && next, none && !next && !list
		}
		return all, none
	}
	if _, none := everywhere(w.svc, "i3"); !none {
		t.Error("what was withdrawn before the model came is recommended")
	}
	if all, _ := everywhere(w.svc, "i4"); !all {
		t.Error("what is not withdrawn is missing")
	}
	w.record(t, "i9", []byte("no item")) // is passed over
	w.item(t, "i4", &onerecv1.Item{ItemId: "i4", Withdrawn: true})
	eventually(t, "i4 is recommended by nobody", func() bool { _, none := everywhere(w.svc, "i4"); return none })
	w.publish(t, publisher.ChannelReleased, 3)
	eventually(t, "the next model serves", func() bool { return strings.HasPrefix(w.svc.Models()[0].Version, "000003") })
	if _, none := everywhere(w.svc, "i4"); !none {
		t.Error("the next model recommends what is withdrawn")
	}
	for _, id := range []string{"i4", "i5"} {
		info, err := w.svc.Item(id)
		if err != nil || info.Withdrawn != (id == "i4") {
			t.Errorf("%+v, %v", info, err)
		}
	}

	later := w.again(t)
	if _, none := everywhere(later, "i4"); !none {
		t.Error("a process that starts later recommends what is withdrawn")
	}
	w.item(t, "i3", &onerecv1.Item{ItemId: "i3"})
	w.item(t, "i4", nil)
	for _, svc := range []*Service{w.svc, later} {
		for _, item := range []string{"i3", "i4"} {
			eventually(t, item+" is back", func() bool { all, _ := everywhere(svc, item); return all })
		}
	}
}
