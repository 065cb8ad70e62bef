package schemas

import (
	"bytes"
	"reflect"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"onerec/schemas/onerecv1"
)

// FuzzRawView: Scan accepts what proto.Unmarshal accepts and finds the same
// values; without the user the bytes are the same view without its user.
func FuzzRawView(f *testing.F) {
	full, err := proto.Marshal(&onerecv1.View{
		EventId: "e", UserId: "u", ItemId: "i", EventTimeMs: 1_500_000_000_000, WatchMs: -1, DurationMs: 7, Like: true, Follow: true,
		Comment: true, Share: true, Dislike: true, Surface: "feed", RecommendationId: "r", CheckpointVersion: "c",
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(full)
	f.Add([]byte{})
	f.Add(append(bytes.Clone(full), full...))                                                                      // the last of each field counts
	f.Add(protowire.AppendString(protowire.AppendTag(bytes.Clone(full), 99, protowire.BytesType), "from later"))   // an unknown field
	f.Add(protowire.AppendVarint(protowire.AppendTag(nil, fieldUserID, protowire.VarintType), 1))                  // the wrong kind
	f.Add(protowire.AppendString(protowire.AppendTag(nil, 3, protowire.BytesType), "\xff"))                        // not UTF-8
	f.Add(protowire.AppendTag(protowire.AppendTag(nil, 20, protowire.StartGroupType), 20, protowire.EndGroupType)) // a group
	f.Add([]byte{0x8a, 0x00, 1, 'e'})                                                                              // a tag in two bytes
	f.Add([]byte{0xf8, 0xff, 0xff, 0xff, 0x3f, 0})                                                                 // a field number too large
	f.Add(full[:len(full)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		want := new(onerecv1.View)
		wantErr := proto.Unmarshal(b, want)
		var got RawView
		if err := got.Scan(b); (err == nil) != (wantErr == nil) {
			t.Fatalf("Scan: %v, Unmarshal: %v", err, wantErr)
		}
		if wantErr != nil {
			return
		}
		w := Raw(want)
		if string(got.EventID) != want.EventId || string(got.UserID) != want.UserId || string(got.ItemID) != want.ItemId {
			t.Fatalf("found %q %q %q in %v", got.EventID, got.UserID, got.ItemID, want)
		}
		rest := new(onerecv1.View)
		encoded := got.AppendWithoutUser(nil)
		if len(encoded) != got.SizeWithoutUser() {
			t.Fatalf("%d bytes without the user, said %d", len(encoded), got.SizeWithoutUser())
		}
		if at := got.ItemWithoutUser(); at >= 0 && string(encoded[at:at+len(got.ItemID)]) != want.ItemId || at < 0 && got.users <= 1 && want.ItemId != "" {
			t.Fatalf("item %q should be at %d of %q", want.ItemId, at, encoded)
		}
		if string(got.Surface) != want.Surface || string(got.RecommendationID) != want.RecommendationId || string(got.CheckpointVersion) != want.CheckpointVersion {
			t.Fatalf("found %q %q %q in %v", got.Surface, got.RecommendationID, got.CheckpointVersion, want)
		}
		got = RawView{ // w's are empty where got's are nil
			EventID: w.EventID, UserID: w.UserID, ItemID: w.ItemID, Surface: w.Surface, RecommendationID: w.RecommendationID, CheckpointVersion: w.CheckpointVersion, EventTimeMs: got.EventTimeMs, WatchMs: got.WatchMs, DurationMs: got.DurationMs, Engagement: got.Engagement,
		}
		if !reflect.DeepEqual(&got, w) {
			t.Fatalf("found %+v, want %+v", got, w)
		}
		if err := proto.Unmarshal(encoded, rest); err != nil {
			t.Fatal(err)
		}
		want.UserId = ""
		// A user_id of the wrong kind is an unknown field and stays.
		if !proto.Equal(rest, want) {
			t.Fatalf("without its user %v, want %v", rest, want)
		}
	})
}

// TestValidUTF8: the short way says what the library says.
func TestValidUTF8(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := []byte(rapid.StringOfN(rapid.RuneFrom([]rune("aä")), 0, 40, 40).Draw(t, "text"))
		if len(b) > 0 && rapid.Bool().Draw(t, "damaged") {
			b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
		}
		if got, want := validUTF8(b), utf8.Valid(b); got != want {
			t.Fatalf("%q: %t, not %t", b, got, want)
		}
	})
	for n := range 40 { // one byte alone, everywhere
		for i := range n {
			b := bytes.Repeat([]byte("a"), n)
			b[i] = 0xff
			if validUTF8(b) {
				t.Errorf("%q is valid", b)
			}
		}
	}
}

// FuzzRawHistoryItem: Scan accepts what the Protobuf library accepts, and finds what it finds.
func FuzzRawHistoryItem(f *testing.F) {
	for _, h := range []*onerecv1.HistoryItem{{}, {ItemId: "i00815", EventTimeMs: 1_500_000_000_000}, {ItemId: "ä", EventTimeMs: -1}} {
		b, err := proto.Marshal(h)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(append(b, 0x0a, 1, 'j', 0x18, 0, 0x80, 1, 0, 0x10, 5)) // the last value counts; a later version's fields
	}
	for _, bad := range [][]byte{{0xff}, {0x0a, 5, 'a'}, {0x0a, 1, 0xff}, {0x0a, 9, 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 0xc0}, {0x10}, {0, 0}, {0x13}} {
		f.Add(bad)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		want := new(onerecv1.HistoryItem)
		wantErr := proto.Unmarshal(b, want)
		var got RawHistoryItem
		if err := got.Scan(b); (err == nil) != (wantErr == nil) {
			t.Fatalf("Scan: %v, Unmarshal: %v", err, wantErr)
		}
		if wantErr == nil && (string(got.ItemID) != want.ItemId || got.EventTimeMs != want.EventTimeMs) {
			t.Fatalf("found %+v, want %v", got, want)
		}
	})
}

func BenchmarkRawView(b *testing.B) {
	value, err := proto.Marshal(&onerecv1.View{
		EventId: "0123456789abcdef", UserId: "user-12345", ItemId: "item-12345", EventTimeMs: 1_500_000_000_000, WatchMs: 12_345, DurationMs: 23_456, Like: true, Surface: "feed",
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("Scan", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := new(RawView).Scan(value); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Unmarshal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := proto.Unmarshal(value, new(onerecv1.View)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
