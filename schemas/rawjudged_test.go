package schemas

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"onerec/schemas/onerecv1"
)

// FuzzRawJudged: whatever the bytes are, Scan finds what the Protobuf library finds, where that can read them.
func FuzzRawJudged(f *testing.F) {
	for _, j := range []*onerecv1.JudgedSession{
		{},
		{Session: &onerecv1.Session{UserId: "u", StartMs: 5, EndMs: 1 << 40, Views: []*onerecv1.View{{ItemId: "i"}}}, Verdict: &onerecv1.Verdict{Good: true, RulesVersion: "r"}},
		{Session: &onerecv1.Session{EndMs: -1}, Verdict: &onerecv1.Verdict{FailedRules: []string{"a", "b"}}},
	} {
		b, err := proto.Marshal(j)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0x0a, 0x02, 0x10, 0x01, 0x0a, 0x04, 0x18, 0x02, 0x12, 0x00}) // user_id of another kind; two parts of a session
	for _, bad := range [][]byte{nil, {0xff}, {0x0a, 0x05, 1}, {0x12, 0}} {
		f.Add(bad)
	}
	got := &RawJudged{FailedRules: [][]byte{[]byte("of the one before")}}
	f.Fuzz(func(t *testing.T, b []byte) {
		err := got.Scan(b)
		want := new(onerecv1.JudgedSession)
		if proto.Unmarshal(b, want) != nil {
			return // it may be read as far as it is scanned, or not
		}
		if (err != nil) != (want.Session == nil) {
			t.Fatalf("error %v for %v", err, want)
		}
		if err != nil {
			return
		}
		failed := make([]string, len(got.FailedRules))
		for i, rule := range got.FailedRules {
			failed[i] = string(rule)
		}
		s, v := want.GetSession(), want.GetVerdict()
		if string(got.UserID) != s.GetUserId() || got.StartMs != s.GetStartMs() || got.EndMs != s.GetEndMs() ||
			got.Good != v.GetGood() || string(got.RulesVersion) != v.GetRulesVersion() || !slices.Equal(failed, v.GetFailedRules()) {
			t.Fatalf("got %s, want %v", fmt.Sprintf("%+v", got), want)
		}
	})
}
