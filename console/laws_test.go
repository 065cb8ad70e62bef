package console

import (
	"bytes"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"onerec/schemas/onerecv1"
)

// TestPages: every element is on one page, in order, and a page that does not exist is the nearest.
func TestPages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(rapid.Int(), 0, 100).Draw(t, "all")
		size := rapid.IntRange(1, 20).Draw(t, "size")
		var together []int
		_, _, pages := paged(all, 1, size)
		for p := 1; p <= pages; p++ {
			part, at, _ := paged(all, p, size)
			if at != p || len(part) > size {
				t.Fatalf("page %d: %d of %d", p, at, len(part))
			}
			together = append(together, part...)
		}
		if !slices.Equal(together, all) {
			t.Fatalf("pages hold %v of %v", together, all)
		}
		if _, at, _ := paged(all, rapid.Int().Draw(t, "page"), size); at < 1 || at > pages {
			t.Fatalf("page %d of %d", at, pages)
		}
	})
}

// TestShares: a share rises from 0 to 100, and is that of the percentile at each of them.
func TestShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		percentiles := rapid.SliceOfNDistinct(rapid.Float64Range(-10, 10), 21, 21, rapid.ID).Draw(t, "percentiles")
		slices.Sort(percentiles)
		got := shares(percentiles, percentiles)
		for i, s := range got {
			if want := 5 * float64(i); s < want-1e-6 || s > want+1e-6 {
				t.Fatalf("share at the %g percentile: %g", want, s)
			}
		}
		x := slices.Sorted(slices.Values(rapid.SliceOf(rapid.Float64Range(-20, 20)).Draw(t, "x")))
		last := 0.0
		for _, s := range shares(percentiles, x) {
			if s < last-1e-9 || s > 100+1e-9 {
				t.Fatalf("shares %v", shares(percentiles, x))
			}
			last = s
		}
	})
}

// FuzzScanJudged: whatever the bytes are, the scan neither panics nor differs from the Protobuf library where that
// can read them.
func FuzzScanJudged(f *testing.F) {
	for _, j := range []*onerecv1.JudgedSession{
		{},
		{Session: &onerecv1.Session{UserId: "u", EndMs: 1 << 40, Views: []*onerecv1.View{{ItemId: "i"}}}, Verdict: &onerecv1.Verdict{Good: true, RulesVersion: "r"}},
		{Session: &onerecv1.Session{EndMs: -1}, Verdict: &onerecv1.Verdict{FailedRules: []string{"a", "b"}}},
	} {
		b, err := proto.Marshal(j)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := scanJudged(b)
		want := new(onerecv1.JudgedSession)
		if proto.Unmarshal(b, want) != nil {
			return // it may be read as far as it is counted, or not
		}
		if err != nil {
			t.Fatalf("can't read what Protobuf can: %v", err)
		}
		// A field of another wire type than it has is unknown to Protobuf; such bytes nobody writes.
		again, err := proto.MarshalOptions{Deterministic: true}.Marshal(want)
		if err != nil || !bytes.Equal(again, b) || len(want.ProtoReflect().GetUnknown()) > 0 || len(want.GetSession().ProtoReflect().GetUnknown()) > 0 || len(want.GetVerdict().ProtoReflect().GetUnknown()) > 0 {
			return
		}
		var failed []string
		for _, rule := range got.failed {
			failed = append(failed, string(rule))
		}
		if string(got.user) != want.GetSession().GetUserId() || got.endMs != want.GetSession().GetEndMs() || got.good != want.GetVerdict().GetGood() || string(got.version) != want.GetVerdict().GetRulesVersion() || !slices.Equal(failed, want.GetVerdict().GetFailedRules()) {
			t.Fatalf("got %+v, want %v", got, want)
		}
	})
}
