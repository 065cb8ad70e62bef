package ingest

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func good() *onerecv1.ViewEvent {
	return &onerecv1.ViewEvent{EventId: "e", UserId: "u", ItemId: "i", EventTimeMs: now.UnixMilli(), WatchMs: 1000, DurationMs: 2000, Like: true, CheckpointVersion: "c"}
}

func TestEveryRuleRefuses(t *testing.T) {
	broken := map[string]func(*onerecv1.ViewEvent){
		"no_event_id":    func(v *onerecv1.ViewEvent) { v.EventId = "" },
		"no_user":        func(v *onerecv1.ViewEvent) { v.UserId = strings.Repeat("u", schemas.MaxIDBytes+1) },
		"no_item":        func(v *onerecv1.ViewEvent) { v.ItemId = "" },
		"bad_watch_time": func(v *onerecv1.ViewEvent) { v.WatchMs = -1 },
		"bad_duration":   func(v *onerecv1.ViewEvent) { v.DurationMs = 25 * 3600 * 1000 },
		"too_old":        func(v *onerecv1.ViewEvent) { v.EventTimeMs = 5 },
		"in_future":      func(v *onerecv1.ViewEvent) { v.EventTimeMs += 11 * 60 * 1000 },
	}
	core := NewValidator(schemas.DefaultBounds(), nil)
	check := func(v *onerecv1.ViewEvent) (*onerecv1.View, *Rejection) {
		data, err := proto.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		view, _, rejected := core.Check("", data, now)
		return view, rejected
	}
	for _, rule := range schemas.ViewRules(schemas.DefaultBounds()) {
		change, ok := broken[rule.Name]
		if !ok {
			t.Errorf("rule %s has no test", rule.Name)
			continue
		}
		v := good()
		change(v)
		if view, rejected := check(v); view != nil || rejected == nil || rejected.Reason != rule.Name || rejected.Err == "" {
			t.Errorf("rule %s: view %v, rejection %+v", rule.Name, view, rejected)
		}
	}
	view, rejected := check(good())
	if rejected != nil || !view.Like || view.CheckpointVersion != "c" || view.WatchMs != 1000 || view.DurationMs != 2000 || view.EventTimeMs != now.UnixMilli() {
		t.Errorf("a good event became %v, %+v", view, rejected)
	}
}

// TestViewHasEveryField: a field added to ViewEvent must not get lost in ingest.
func TestViewHasEveryField(t *testing.T) {
	event, view := (&onerecv1.ViewEvent{}).ProtoReflect().Descriptor().Fields(), (&onerecv1.View{}).ProtoReflect().Descriptor().Fields()
	v := (&onerecv1.ViewEvent{EventId: "a", UserId: "b", ItemId: "c", EventTimeMs: now.UnixMilli(), WatchMs: 1, DurationMs: 2, Like: true, Follow: true, Comment: true, Share: true, Dislike: true, Surface: "d", RecommendationId: "e", CheckpointVersion: "f"}).ProtoReflect()
	data, err := proto.Marshal(v.Interface())
	if err != nil {
		t.Fatal(err)
	}
	out, _, rejected := NewValidator(schemas.DefaultBounds(), nil).Check("", data, now)
	if rejected != nil {
		t.Fatal(rejected)
	}
	for i := range event.Len() {
		f := event.Get(i)
		g := view.ByNumber(f.Number())
		if g == nil || g.Name() != f.Name() {
			t.Errorf("View has no field %d %s", f.Number(), f.Name())
			continue
		}
		if !v.Has(f) {
			t.Errorf("this test does not set %s", f.Name())
		}
		if !out.ProtoReflect().Get(g).Equal(v.Get(f)) {
			t.Errorf("%s is %v, want %v", f.Name(), out.ProtoReflect().Get(g), v.Get(f))
		}
	}
}

func TestPseudonyms(t *testing.T) {
	data, err := proto.Marshal(good())
	if err != nil {
		t.Fatal(err)
	}
	name := func(key Keys) string {
		view, user, rejected := NewValidator(schemas.DefaultBounds(), key).Check("", data, now)
		if rejected != nil || user != "u" {
			t.Fatalf("user %q, %v", user, rejected)
		}
		return view.UserId
	}
	one, other := Key{Secret: []byte("0123456789abcdef")}, Key{Secret: []byte("another-key-16-b")}
	a, b := name(Keys{one}), name(Keys{other})
	if a != name(Keys{one}) || a == b || len(a) != 32 || strings.Contains(a, "u") || name(nil) != "u" {
		t.Fatalf("pseudonyms %q and %q", a, b)
	}
	// Rotation: by the event's time, whatever the clock says.
	other.FromMs = now.UnixMilli()
	if got := name(Keys{one, other}); got != b {
		t.Errorf("from its time on the new key should hold")
	}
	other.FromMs++
	if got := name(Keys{one, other}); got != a {
		t.Errorf("before its time the new key should not hold")
	}
}

func TestParseKeys(t *testing.T) {
	keys, err := ParseKeys([]byte("# of 2026\n0123456789abcdef\n\n2026-07-01T00:00:00Z fedcba9876543210\n"))
	if err != nil || len(keys) != 2 || keys[1].FromMs != time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC).UnixMilli() {
		t.Fatalf("%v, %v", keys, err)
	}
	for text, want := range map[string]string{
		"":                                      "none",
		"short":                                 "at least 16",
		"0123456789abcdef\n0123456789abcdef":    "line 2",
		"2026-07-01T00:00:00Z 0123456789abcdef": "line 1",
		"0123456789abcdef\nsoon 0123456789abcdef":                                                        "line 2",
		"0123456789abcdef\n2026-07-01T00:00:00Z 0123456789abcdef\n2026-06-01T00:00:00Z 0123456789abcdef": "rise",
	} {
		if _, err := ParseKeys([]byte(text)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "89abcdef") {
			t.Errorf("%q: error %v", text, err)
		}
	}
}

func TestJSON(t *testing.T) {
	core := NewValidator(schemas.DefaultBounds(), nil)
	view, _, rejected := core.Check(schemas.ContentTypeJSON, []byte(`{"event_id":"e","user_id":"u","item_id":"i","event_time_ms":1767323045000,"watch_ms":"7","like":true,"new_field":1}`), now)
	if rejected != nil || view.WatchMs != 7 || !view.Like {
		t.Fatalf("%v, %+v", view, rejected)
	}
	for contentType, value := range map[string]string{schemas.ContentTypeJSON: `{"event_id":`, "text/csv": "a,b", "": "\xff\xff"} {
		if _, _, rejected := core.Check(contentType, []byte(value), now); rejected == nil || rejected.Reason != schemas.ReasonUndecodable {
			t.Errorf("%q %q: %+v", contentType, value, rejected)
		}
	}
}

func FuzzCheck(f *testing.F) {
	data, err := proto.Marshal(good())
	if err != nil {
		f.Fatal(err)
	}
	f.Add("", data)
	f.Add(schemas.ContentTypeJSON, []byte(`{"event_id":"e","user_id":"u"}`))
	core := NewValidator(schemas.DefaultBounds(), Keys{{Secret: []byte("0123456789abcdef")}})
	f.Fuzz(func(t *testing.T, contentType string, value []byte) {
		view, _, rejected := core.Check(contentType, value, now)
		if (view == nil) == (rejected == nil) {
			t.Fatalf("view %v and rejection %v", view, rejected)
		}
		if view != nil {
			if _, err := proto.Marshal(view); err != nil {
				t.Fatalf("an accepted view can't be written: %v", err)
			}
		}
	})
}
