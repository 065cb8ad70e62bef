package snapshots

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"onerec/internal/buckets"
	"onerec/internal/faultybucket"
	"onerec/schemas"
	"onerec/snapshots/delta"
)

// sessionOf returns the row of a session at an offset.
func sessionOf(i int) Session {
	return session(&kgo.Record{Partition: 1, Offset: int64(i)}, judged(i))
}

// newStore returns an empty store in a folder.
func newStore(t *testing.T) (*Store, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, dir
}

// record makes one of sessions.judged.
func record(t *testing.T, i int) *kgo.Record {
	t.Helper()
	value, err := proto.Marshal(judged(i))
	if err != nil {
		t.Fatal(err)
	}
	return &kgo.Record{Topic: schemas.TopicJudgedSessions, Partition: 1, Offset: int64(i), Value: value}
}

// newWriter returns a writer that owns partition 1, without a broker.
func newWriter(t *testing.T, s *Store) *writer {
	t.Helper()
	w := newMember(&Service{Store: s, Size: 1 << 20, Memory: 1 << 30, MaxAge: time.Hour, Log: slog.New(slog.DiscardHandler)})
	if err := w.own(t.Context(), schemas.TopicJudgedSessions, []int32{1}); err != nil {
		t.Fatal(err)
	}
	return w
}

// feed gives a writer sessions and writes them.
func (w *writer) feed(t *testing.T, from, to int) error {
	t.Helper()
	tp := topicPartition{schemas.TopicJudgedSessions, 1}
	for i := from; i < to; i++ {
		if err := w.add(tp, w.parts[tp], record(t, i)); err != nil {
			t.Fatal(err)
		}
	}
	return w.flush(t.Context(), tp)
}

func readSessions(t *testing.T, s *Store) (out []Session) {
	t.Helper()
	if err := Read(t.Context(), s, TableSessions, Range{}, func(rows []Session) error {
		for _, row := range rows {
			row.Views, row.History, row.FailedRules = slices.Clone(row.Views), slices.Clone(row.History), slices.Clone(row.FailedRules)
			out = append(out, row)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRowsHoldEverything(t *testing.T) {
	s, _ := newStore(t)
	w := newWriter(t, s)
	if err := w.feed(t, 0, 3); err != nil {
		t.Fatal(err)
	}
	got := readSessions(t, s)
	if len(got) != 3 || !reflect.DeepEqual(got[1], sessionOf(1)) || got[0].ClosedBy != "gap" || !got[0].Views[0].Like || got[0].History[0].ItemID != "h" {
		t.Fatalf("read back %+v, want %+v", got, sessionOf(1))
	}
	// A reader of few columns, and one of a column that is not there.
	var users []string
	if err := Read(t.Context(), s, TableSessions, Range{}, func(rows []struct {
		UserID string `parquet:"user_id"`
	}) error {
		for _, row := range rows {
			users = append(users, row.UserID)
		}
		return nil
	}); err != nil || !slices.Equal(users, []string{"u0", "u1", "u2"}) {
		t.Errorf("users %v, %v", users, err)
	}
	err := Read(t.Context(), s, TableSessions, Range{}, func([]struct {
		X string `parquet:"nothing"`
	}) error {
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "nothing") {
		t.Errorf("error %v", err)
	}
	if n := len(readDays(t, s, Range{From: "2023-11-15"})) + len(readDays(t, s, Range{To: "2023-11-13"})); n != 0 {
		t.Errorf("%d sessions of other days", n)
	}
	if n := len(readDays(t, s, Range{From: "2023-11-14", To: "2023-11-14"})); n != 3 {
		t.Errorf("%d sessions of the day", n)
	}
}

func readDays(t *testing.T, s *Store, days Range) (out []Session) {
	t.Helper()
	if err := Read(t.Context(), s, TableSessions, days, func(rows []Session) error {
		out = append(out, rows...)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestFenced: who had a partition before can't commit any more, and what it wrote goes.
func TestFenced(t *testing.T) {
	b := faultybucket.New()
	open := func() *Store { return &Store{&buckets.Bucket{Bucket: b.Open(), URL: "faulty://"}} }
	old := newWriter(t, open())
	if err := old.feed(t, 0, 3); err != nil {
		t.Fatal(err)
	}
	newer := newWriter(t, open())
	if at := newer.parts[topicPartition{schemas.TopicJudgedSessions, 1}].committed; at != 3 {
		t.Fatalf("the new owner goes on at %d", at)
	}
	if err := old.feed(t, 3, 6); !errors.Is(err, errFenced) {
		t.Fatalf("error %v", err)
	}
	if err := newer.feed(t, 3, 8); err != nil {
		t.Fatal(err)
	}
	if n := len(readSessions(t, open())); n != 8 {
		t.Errorf("%d sessions", n)
	}
	if v, err := open().Verify(t.Context(), TableSessions, Range{}, nil); err != nil || v.Files != 2 || v.Loose != 0 {
		t.Errorf("verify: %+v, %v", v, err)
	}
}

// TestLayout: within a file sessions are in the order of users and starts, and bloom filters say who and what
// is not in it.
func TestLayout(t *testing.T) {
	s, dir := newStore(t)
	w := newWriter(t, s)
	if err := w.feed(t, 0, 50); err != nil {
		t.Fatal(err)
	}
	files, err := s.Files(t.Context(), TableSessions, Range{})
	if err != nil || len(files) != 1 || !dataFile.MatchString(files[0].Path) || files[0].Rows() != 50 {
		t.Fatalf("files %v, %v", files, err)
	}
	if !strings.Contains(files[0].Stats, `"minValues":{"start":"2023-11-14T22:13:20.000Z","user_id":"u0"}`) {
		t.Errorf("stats %s", files[0].Stats)
	}
	sessions := readSessions(t, s)
	if !slices.IsSortedFunc(sessions, func(a, b Session) int { return strings.Compare(a.UserID, b.UserID) }) {
		t.Error("not in order")
	}
	data, err := os.ReadFile(filepath.Join(dir, TableSessions, files[0].Path))
	if err != nil {
		t.Fatal(err)
	}
	p, err := parquet.OpenFile(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	for column, values := range map[string][2]string{"user_id": {"u6", "u99"}, "views.list.element.item_id": {"v", "i99"}} {
		leaf, ok := p.Schema().Lookup(strings.Split(column, ".")...)
		if !ok {
			t.Fatalf("no column %s", column)
		}
		filter := p.RowGroups()[0].ColumnChunks()[leaf.ColumnIndex].BloomFilter()
		if filter == nil {
			t.Fatalf("no bloom filter of %s", column)
		}
		for i, want := range []bool{true, false} {
			if has, err := filter.Check(parquet.ValueOf(values[i])); err != nil || has != want {
				t.Errorf("%s of %s: %v, %v", values[i], column, has, err)
			}
		}
	}
	if sorting := p.RowGroups()[0].SortingColumns(); len(sorting) != 2 || sorting[0].Path()[0] != "user_id" {
		t.Errorf("sorting columns %v", sorting)
	}
	for key, want := range map[string]string{"onerec.topic": schemas.TopicJudgedSessions, "onerec.partition": "1", "onerec.from": "0", "onerec.next": "50"} {
		if got, _ := p.Lookup(key); got != want {
			t.Errorf("metadata %s is %q, want %q", key, got, want)
		}
	}
}

// TestSplit: rows go to the hour that their session ended in, and an hour that has too many to several files.
func TestSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &writer{Service: &Service{Size: rapid.Int64Range(1, 2000).Draw(t, "size")}, ratio: map[string]float64{"t": 0.5}}
		p := &part{next: 100}
		for i := range rapid.IntRange(1, 100).Draw(t, "rows") {
			p.rows = append(p.rows, held{place{hour: rapid.Int64Range(-2, 3).Draw(t, "hour"), user: "u"}, &kgo.Record{Offset: int64(i), Value: make([]byte, rapid.IntRange(0, 300).Draw(t, "bytes"))}})
		}
		slices.SortFunc(p.rows, inOrder)
		var all []held
		names := make(map[string]bool)
		for _, f := range w.split(topicPartition{"t", 3}, p) {
			dir, _ := folder(f.rows[0].hour)
			size := 0
			for _, r := range f.rows[:len(f.rows)-1] {
				size += len(r.Value)
			}
			if !dataFile.MatchString(f.name) || !strings.HasPrefix(f.name, dir) || names[f.name] || size > 0 && float64(size)*0.5 >= float64(w.Size) {
				t.Fatalf("file %s of %d rows and more than %d bytes, want about %d", f.name, len(f.rows), size/2, w.Size)
			}
			for _, r := range f.rows {
				if r.hour != f.rows[0].hour {
					t.Fatalf("%s holds two hours", f.name)
				}
			}
			names[f.name] = true
			all = append(all, f.rows...)
		}
		if !reflect.DeepEqual(all, p.rows) {
			t.Fatal("rows are lost, doubled or in another order")
		}
	})
}

// TestPlace: what is read of a record without making a message of it is what the message says.
func TestPlace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		j := judged(rapid.IntRange(0, 1000).Draw(t, "session"))
		j.Session.StartMs, j.Session.EndMs = rapid.Int64().Draw(t, "start"), rapid.Int64().Draw(t, "end")
		j.Session.UserId = rapid.StringN(0, 20, -1).Draw(t, "user")
		value, err := proto.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		p, err := sessionPlace(&kgo.Record{Value: value})
		if err != nil || p != (place{hourOf(j.Session.EndMs), j.Session.UserId, j.Session.StartMs}) {
			t.Fatalf("%+v, %v", p, err)
		}
	})
	for _, bad := range [][]byte{nil, {0xff}, {0x0a, 0x05, 1}, {0x12, 0}} {
		if _, err := sessionPlace(&kgo.Record{Value: bad}); err == nil {
			t.Errorf("%v is no session", bad)
		}
	}
}

// FuzzPlace: any bytes have a place or are refused, as the message is.
func FuzzPlace(f *testing.F) {
	value, err := proto.Marshal(judged(3))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(value)
	f.Add([]byte{0x0a, 0x02, 0x12, 0x00})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &kgo.Record{Value: data}
		if _, err := sessionPlace(r); err != nil {
			j := judged(0)
			if unmarshalJudged(r, j) == nil {
				t.Errorf("%v has no place: %v", data, err)
			}
		}
	})
}

// TestDamagedFiles: a reader names the file that it can't read, and verify every one, with what is wrong.
func TestDamagedFiles(t *testing.T) {
	s, dir := newStore(t)
	w := newWriter(t, s)
	if err := w.feed(t, 0, 50); err != nil {
		t.Fatal(err)
	}
	if v, err := s.Verify(t.Context(), TableSessions, Range{}, nil); err != nil || len(v.Faults) != 0 || v.Rows != 50 || v.Files != 1 || v.Loose != 0 {
		t.Fatalf("verify: %+v, %v", v, err)
	}
	files, err := s.Files(t.Context(), TableSessions, Range{})
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, TableSessions, files[0].Path)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	other := func(rows any) []byte {
		var b bytes.Buffer
		var err error
		switch rows := rows.(type) {
		case []DeadLetter:
			err = parquet.Write(&b, rows)
		case []Session:
			err = parquet.Write(&b, rows)
		}
		if err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	flipped := slices.Clone(whole)
	flipped[len(flipped)/3] ^= 0xff
	late := sessionOf(7)
	late.End = late.End.Add(time.Hour)
	for what, data := range map[string][]byte{
		"empty": {}, "a few bytes": []byte("PAR1"), "truncated": whole[:len(whole)/2], "the end": whole[len(whole)/2:],
		"no parquet": bytes.Repeat([]byte("x"), len(whole)), "another table": other([]DeadLetter{{Reason: "x"}}), "a byte is another": flipped,
		"fewer rows": other([]Session{sessionOf(1)}), "another hour": other([]Session{late}), "twice": other([]Session{sessionOf(1), sessionOf(1)}),
		"out of order": other([]Session{sessionOf(2), sessionOf(1)}),
	} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		v, err := s.Verify(t.Context(), TableSessions, Range{}, nil)
		if err != nil || len(v.Faults) != 1 || !strings.Contains(v.Faults[0].File, files[0].Path) || v.Faults[0].What == "" {
			t.Errorf("%s: %+v, %v", what, v.Faults, err)
		}
		err = ReadAll(t.Context(), dir, func(Session) error { return nil })
		if len(data) < 100 && (err == nil || !strings.Contains(err.Error(), files[0].Path)) {
			t.Errorf("%s: error %v", what, err)
		}
		// The same with the size that the log says, so that more than the size is looked at.
		if len(data) < len(whole) && len(data) > 100 {
			f := *files[0]
			f.Size = int64(len(data))
			if _, err := s.verifySessions(t.Context(), &f, true, make(offsets)); err == nil {
				t.Errorf("%s, of the right size: nothing is wrong with it", what)
			}
		}
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := ReadAll(t.Context(), dir, func(Session) error { return nil }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	if err := os.WriteFile(name, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	if err := ReadAll(t.Context(), dir, func(Session) error { return boom }); !errors.Is(err, boom) || err.Error() != "boom" {
		t.Errorf("error %v", err)
	}
}

// TestFirstLayout: files of the first version (testdata/v1) are read as they are, and the service makes them a
// table with the same sessions, once, and goes on where they end.
func TestFirstLayout(t *testing.T) {
	s, dir := newStore(t)
	if err := os.CopyFS(filepath.Join(dir), os.DirFS(filepath.Join("testdata", "v1"))); err != nil {
		t.Fatal(err)
	}
	before := readSessions(t, s)
	if len(before) != 8 || before[0].Views[0].EventID != "e0" || !before[0].Views[0].Time.Equal(time.UnixMilli(1_700_000_000_000)) {
		t.Fatalf("the old files hold %+v", before)
	}
	if v, err := s.Verify(t.Context(), TableSessions, Range{}, nil); err != nil || len(v.Faults) != 0 || v.Rows != 8 {
		t.Errorf("verify: %+v, %v", v, err)
	}
	log := slog.New(slog.DiscardHandler)
	for range 2 { // the second time there is nothing to do
		if err := s.adopt(t.Context(), log); err != nil {
			t.Fatal(err)
		}
	}
	byID := func(a, b Session) int { return strings.Compare(a.SessionID, b.SessionID) }
	after := readSessions(t, s)
	slices.SortFunc(before, byID)
	slices.SortFunc(after, byID)
	if !reflect.DeepEqual(before, after) {
		t.Errorf("before\n%+v, after\n%+v", before, after)
	}
	w := newWriter(t, s)
	if at := w.parts[topicPartition{schemas.TopicJudgedSessions, 1}].committed; at != 5 {
		t.Errorf("the service goes on at %d", at)
	}
	if v, err := s.Verify(t.Context(), TableSessions, Range{}, nil); err != nil || len(v.Faults) != 0 || v.Rows != 8 || v.Loose != 0 {
		t.Errorf("verify: %+v, %v", v, err)
	}
	// What is not ours is not touched.
	s, dir = newStore(t)
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "sessions"), 0o755), os.WriteFile(filepath.Join(dir, "sessions", "mine.parquet"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := s.adopt(t.Context(), log); err == nil || !strings.Contains(err.Error(), "mine.parquet") {
		t.Errorf("error %v", err)
	}
}

// TestMaintain: small files of an hour become one with the same rows in order, days that are over go, and what
// nobody needs any more goes after a while; what is young is left alone.
func TestMaintain(t *testing.T) {
	b := faultybucket.New()
	b.Now = time.Now()
	s := &Store{&buckets.Bucket{Bucket: b.Open(), URL: "faulty://"}}
	w := newWriter(t, s)
	for i := range 10 {
		if err := w.feed(t, i*20, i*20+20); err != nil {
			t.Fatal(err)
		}
	}
	before := readSessions(t, s)
	m := Maintenance{Size: 1 << 20, Quiet: time.Hour, Grace: time.Hour, Now: time.Now()}
	if done, err := s.Maintain(t.Context(), TableSessions, m); err != nil || done != (Maintained{}) {
		t.Fatalf("the hour is young: %+v, %v", done, err)
	}
	m.Now = m.Now.Add(2 * time.Hour)
	b.Objects["sessions/date=2023-11-14/hour=22/p0001-00000000000000000000-00000000000000000001-AAAAAAAAAAAAAAAAAAAAAAAAAA.parquet.123abc.tmp"] = faultybucket.Object{At: b.Now}
	done, err := s.Maintain(t.Context(), TableSessions, m)
	if err != nil || done.Merged != 10 || done.Into != 1 || done.RowsRewritten != 200 || done.Deleted != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	after := readSessions(t, s)
	if !slices.IsSortedFunc(after, func(a, b Session) int { return strings.Compare(a.UserID, b.UserID) }) {
		t.Error("not in order")
	}
	byOffset := func(a, b Session) int { return int(a.Offset - b.Offset) }
	slices.SortFunc(before, byOffset)
	slices.SortFunc(after, byOffset)
	if !reflect.DeepEqual(before, after) {
		t.Error("the rows are others")
	}
	files, err := s.Files(t.Context(), TableSessions, Range{})
	if err != nil || len(files) != 1 || files[0].Rows() != 200 || !strings.Contains(files[0].Stats, `"maxValues":{"start":"2023-11-14T22:13:20.199Z","user_id":"u6"}`) {
		t.Errorf("files %+v, %v", files[0], err)
	}
	if v, err := s.Verify(t.Context(), TableSessions, Range{}, nil); err != nil || len(v.Faults) != 0 || v.Rows != 200 || v.Loose != 10 {
		t.Errorf("verify: %+v, %v", v, err)
	}
	m.Now = m.Now.Add(2 * time.Hour)
	if done, err = s.Maintain(t.Context(), TableSessions, m); err != nil || done.Deleted != 10 || done.Merged != 0 {
		t.Errorf("later: %+v, %v", done, err)
	}
	if n := len(readSessions(t, s)); n != 200 {
		t.Errorf("%d sessions", n)
	}
	m.Keep = 30
	if done, err = s.Maintain(t.Context(), TableSessions, m); err != nil || done.Expired != 1 || len(readSessions(t, s)) != 0 {
		t.Errorf("after 30 days: %+v, %v", done, err)
	}
	if err := w.feed(t, 200, 220); err != nil || len(readSessions(t, s)) != 20 {
		t.Errorf("the service goes on: %d sessions, %v", len(readSessions(t, s)), err)
	}
	if _, err := s.Maintain(t.Context(), "nothing", m); err != nil {
		t.Errorf("an empty table: %v", err)
	}
}

// TestNewColumns: a table that an older version made gets the new columns with the next commit, and its files
// are read and compacted with those that have them.
func TestNewColumns(t *testing.T) {
	s, _ := newStore(t)
	type old struct {
		SessionID string    `parquet:"session_id"`
		UserID    string    `parquet:"user_id,dict"`
		Start     time.Time `parquet:"start,timestamp(millisecond)"`
		End       time.Time `parquet:"end,timestamp(millisecond)"`
		Views     []struct {
			EventID string `parquet:"event_id"`
			ItemID  string `parquet:"item_id,dict"`
		} `parquet:"views,list"`
		TotalWatchMs int64    `parquet:"total_watch_ms"`
		Likes        int32    `parquet:"likes"`
		Follows      int32    `parquet:"follows"`
		Comments     int32    `parquet:"comments"`
		Shares       int32    `parquet:"shares"`
		Dislikes     int32    `parquet:"dislikes"`
		ClosedBy     string   `parquet:"closed_by,dict"`
		History      []string `parquet:"-"`
		Good         bool     `parquet:"good"`
		FailedRules  []string `parquet:"failed_rules,list"`
		RulesVersion string   `parquet:"rules_version,dict"`
		HistoryItems []struct {
			ItemID string `parquet:"item_id,dict"`
		} `parquet:"history,list"`
	}
	at := sessionOf(3)
	dir, values := folder(hourOf(at.End.UnixMilli()))
	name := span{schemas.TopicJudgedSessions, 1, 0, 1}.file(dir)
	size, err := s.put(t.Context(), TableSessions+"/"+name, func(w io.Writer) error {
		pw := parquet.NewGenericWriter[old](w, parquet.SortingWriterConfig(parquet.SortingColumns(parquet.Ascending("user_id"), parquet.Ascending("start"))))
		_, err := pw.Write([]old{{SessionID: "old", UserID: "a", Start: at.Start, End: at.End}})
		return errors.Join(err, pw.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
	table := s.Table(TableSessions)
	if err := table.Commit(t.Context(), "WRITE", func(st *delta.State) ([]delta.Action, error) {
		return append(st.Create("sessions", "", `{"type":"struct","fields":[]}`, []string{"date", "hour"}, time.Now()), delta.Action{Add: &delta.Add{
			Path: name, PartitionValues: values, Size: size,
		}}), nil
	}); err != nil {
		t.Fatal(err)
	}
	w := newWriter(t, s)
	if err := w.feed(t, 1, 5); err != nil {
		t.Fatal(err)
	}
	state, err := table.State(t.Context())
	if err != nil || !strings.Contains(state.Metadata.SchemaString, `"kafka_offset"`) {
		t.Fatalf("schema %s, %v", state.Metadata.SchemaString, err)
	}
	for range 2 {
		rows := readSessions(t, s)
		if len(rows) != 5 || rows[len(rows)-1].Views == nil {
			t.Fatalf("%d rows", len(rows))
		}
		i := slices.IndexFunc(rows, func(r Session) bool { return r.SessionID == "old" })
		if i < 0 || !rows[i].Start.Equal(at.Start) || rows[i].Offset != 0 {
			t.Fatalf("rows %+v", rows)
		}
		if done, err := s.Maintain(t.Context(), TableSessions, Maintenance{Size: 1 << 20, Now: time.Now().Add(time.Second)}); err != nil {
			t.Fatalf("%+v, %v", done, err)
		}
	}
	if files, err := s.Files(t.Context(), TableSessions, Range{}); err != nil || len(files) != 1 || files[0].Rows() != 5 {
		t.Errorf("files %+v, %v", files, err)
	}
}

// TestTopicsThatWentOn: a topic that was made anew is refused, and records that are gone are said to be.
func TestTopicsThatWentOn(t *testing.T) {
	s := newSchedule(t, 1, new(tally))
	defer s.broker.Close()
	defer s.client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	store := s.open()
	w := newWriter(t, store)
	if err := w.feed(t, 0, 5); err != nil {
		t.Fatal(err)
	}
	s.createAndProduce(ctx, 4)
	if err := s.service(0, true).Run(ctx); err == nil || !strings.Contains(err.Error(), "everything before 5") {
		t.Errorf("error %v", err)
	}
}

// TestReplace: a table that is written as a whole is the old one or the new one; versions whose files are gone stay.
func TestReplace(t *testing.T) {
	s, _ := newStore(t)
	metric := func(v float64) []Metric { return []Metric{{"loss", v}, {"more", 1}} }
	for i, versions := range [][]string{{"1", "2"}, {"2", "3"}, {"3"}} {
		var rows []Checkpoint
		var steps []TrainingStep
		for _, v := range versions {
			rows = append(rows, Checkpoint{Version: v, Metrics: metric(float64(i)), Created: time.UnixMilli(1).UTC()})
			steps = append(steps, TrainingStep{Version: v, Step: 7}, TrainingStep{Version: v, Step: 8})
		}
		if err := errors.Join(s.ReplaceCheckpoints(t.Context(), rows), s.ReplaceTrainingSteps(t.Context(), steps), s.ReplaceItems(t.Context(), []Item{{ItemID: fmt.Sprint(i)}})); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	if err := Read(t.Context(), s, TableCheckpoints, Range{}, func(rows []Checkpoint) error {
		for _, r := range rows {
			if len(r.Metrics) != 2 || r.Metrics[1] != (Metric{"more", 1}) {
				t.Errorf("metrics of %s: %v", r.Version, r.Metrics)
			}
			got = append(got, fmt.Sprint(r.Version, "=", r.Metrics[0].Value))
		}
		return nil
	}); err != nil || !slices.Equal(got, []string{"1=0", "2=1", "3=2"}) {
		t.Errorf("checkpoints %v, %v", got, err)
	}
	for table, want := range map[string]int64{TableCheckpoints: 3, TableTrainingSteps: 6, TableItems: 1} {
		v, err := s.Verify(t.Context(), table, Range{}, nil)
		if err != nil || len(v.Faults) != 0 || v.Rows != want || v.Loose != 2 {
			t.Errorf("%s: %+v, %v", table, v, err)
		}
		if done, err := s.Maintain(t.Context(), table, Maintenance{Size: 1 << 20, Keep: 1, Now: time.Now().Add(9 * 24 * time.Hour)}); err != nil || done != (Maintained{Deleted: 2, DeletedBytes: done.DeletedBytes}) {
			t.Errorf("%s: %+v, %v", table, done, err)
		}
	}
}
