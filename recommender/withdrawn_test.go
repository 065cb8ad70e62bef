package recommender

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
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

	// A process that starts later, and has much to read: from its first answer by a model on.
	var many []*kgo.Record
	for i := range 30_000 {
		value, err := proto.Marshal(&onerecv1.Item{ItemId: fmt.Sprint("other", i)})
		if err != nil {
			t.Fatal(err)
		}
		many = append(many, &kgo.Record{Topic: schemas.TopicItems, Key: []byte("other"), Value: value})
	}
	if err := w.client.ProduceSync(t.Context(), many...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	w.item(t, "i5", &onerecv1.Item{ItemId: "i5", Withdrawn: true})
	later := service()
	later.CanaryPercent = w.svc.CanaryPercent
	ready := w.begin(t, later)
	eventually(t, "it has a model", func() bool { return later.loaded.Load() != nil })
	if holds(later, fmt.Sprintf(asked[0], publisher.ChannelReleased), "i5") {
		t.Error("a process that starts later recommends what is withdrawn")
	}
	<-ready
	w.item(t, "i5", &onerecv1.Item{ItemId: "i5"})
	w.item(t, "i3", &onerecv1.Item{ItemId: "i3"})
	w.item(t, "i4", nil)
	for _, svc := range []*Service{w.svc, later} {
		for _, item := range []string{"i3", "i4"} {
			eventually(t, item+" is back", func() bool { all, _ := everywhere(svc, item); return all })
		}
	}
}

// TestWithdrawnUnderLoad: while models are swapped and items come and go, no answer holds an item that was withdrawn
// from before its request until after its answer.
func TestWithdrawnUnderLoad(t *testing.T) {
	w := start(t)
	w.publish(t, publisher.ChannelReleased, 1)
	eventually(t, "a model serves", func() bool { return w.svc.Ready() == nil })
	var mu sync.Mutex
	stable := make(map[string]bool) // withdrawn for certain
	restored := 0
	look := func() (map[string]bool, int) {
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(stable), restored
	}
	var checked, ended atomic.Int64
	var g errgroup.Group
	h := w.svc.Handler()
	for i := range 4 {
		body := fmt.Sprintf(`{"user_id": "u%d", "n": 6, "mode": %q}`, i, []string{"next", "list"}[i%2])
		g.Go(func() error {
			for ended.Load() == 0 {
				gone, before := look()
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/v1/recommendations", strings.NewReader(body)))
				if _, after := look(); after != before || rec.Code == http.StatusServiceUnavailable {
					continue
				}
				a := new(Answer)
				if err := json.Unmarshal(rec.Body.Bytes(), a); err != nil || rec.Code != http.StatusOK {
					return fmt.Errorf("%d: %s", rec.Code, rec.Body)
				}
				for _, item := range a.Items {
					if gone[item.ItemID] {
						return fmt.Errorf("%s was withdrawn, and is recommended", item.ItemID)
					}
				}
				checked.Add(int64(len(gone)))
			}
			return nil
		})
	}
	for i := range 40 {
		id := fmt.Sprint("i", i%10)
		if i%5 == 4 {
			w.publish(t, publisher.ChannelReleased, uint64(2+i))
		}
		gone, _ := look()
		if gone[id] {
			mu.Lock()
			delete(stable, id)
			restored++
			mu.Unlock()
		}
		w.item(t, id, &onerecv1.Item{ItemId: id, Withdrawn: !gone[id]})
		eventually(t, "the record is read", func() bool { return w.svc.isWithdrawn(id) != gone[id] })
		if !gone[id] {
			mu.Lock()
			stable[id] = true
			mu.Unlock()
		}
	}
	ended.Store(1)
	if err := g.Wait(); err != nil || checked.Load() < 100 {
		t.Fatalf("%d times an item could have been in an answer; %v", checked.Load(), err)
	}
}
