package replay

import (
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

const (
	header = "user_id\tvideo_id\tdate\thourmin\ttime_ms\tis_click\tis_follow\tis_comment\tis_forward\tlong_view\tplay_time_ms\tduration_ms\tlabel\n"
	rowA   = "127\t77493\t20220408\t1900\t1649416955767\t1\t0\t1\t0\t1\t65847\t93633\t1\n"
	rowB   = "9\t5\t20220408\t1800\t1649410000000\t1\t1\t0\t1\t1\t100\t0\t0\n"
)

func gz(t testing.TB, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestFormats(t *testing.T) {
	comma := strings.ReplaceAll(strings.Replace(header, "label", "is_like\tis_hate\ttab", 1), "\t", ",") +
		strings.ReplaceAll(strings.TrimSuffix(rowA, "\t1\n")+"\t1\t0\t4\n"+strings.TrimSuffix(rowB, "\t0\n")+"\t0\t1\t1\n", "\t", ",")
	jsonl := `{"event_id":"x","user_id":"127","item_id":"77493","event_time_ms":"1649416955767","watch_ms":65847}` + "\r\n\n" +
		`{"eventId":"y","userId":"9","itemId":"5","eventTimeMs":1649410000000}`
	for name, tt := range map[string]struct {
		data   []byte
		format string
	}{
		"tabs":          {[]byte(header + rowA + rowB), "KuaiRand log, tab separated"},
		"tabs, gzipped": {gz(t, header+rowA+rowB), "KuaiRand log, tab separated, gzipped"},
		"commas":        {[]byte(comma), "KuaiRand log, comma separated"},
		"JSON lines":    {[]byte(jsonl), "JSON lines of ViewEvents"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := Parse(bytes.NewReader(tt.data))
			if err != nil {
				t.Fatal(err)
			}
			if f.Format != tt.format || len(f.Events) != 2 {
				t.Fatalf("format %q with %d events, want %q with 2", f.Format, len(f.Events), tt.format)
			}
			if f.Events[0].User != "9" || f.Events[1].User != "127" {
				t.Fatalf("not in the order of time: %v", f.Events)
			}
			v, err := schemas.DecodeViewEvent(f.Events[1].ContentType, f.Events[1].Value)
			if err != nil || v.ItemId != "77493" || v.WatchMs != 65847 {
				t.Fatalf("event %v, %v", v, err)
			}
			if strings.Contains(tt.format, "KuaiRand") {
				low, err := schemas.DecodeViewEvent("", f.Events[0].Value)
				if err != nil {
					t.Fatal(err)
				}
				if !v.Like || v.Dislike || !v.Comment || v.DurationMs != 93633 || low.Like || !low.Dislike || !low.Follow || !low.Share {
					t.Fatalf("engagements %v and %v", v, low)
				}
			}
		})
	}
}

// TestDoubledRowsShareAnID: a doubled row must be a duplicate for the
// sessionizer.
func TestDoubledRowsShareAnID(t *testing.T) {
	f, err := Parse(strings.NewReader(header + rowA + rowA))
	if err != nil {
		t.Fatal(err)
	}
	a, b := new(onerecv1.ViewEvent), new(onerecv1.ViewEvent)
	if err := errors.Join(proto.Unmarshal(f.Events[0].Value, a), proto.Unmarshal(f.Events[1].Value, b)); err != nil || a.EventId == "" || a.EventId != b.EventId {
		t.Fatalf("ids %q and %q, %v", a.EventId, b.EventId, err)
	}
}

// TestBadRowsAreKept: a row that can't be read travels byte for byte, in its
// place.
func TestBadRowsAreKept(t *testing.T) {
	for _, bad := range []string{"127\t77493", strings.Replace(rowA, "65847", "", 1), strings.Replace(rowA, "1649416955767", "noon", 1), "\xff\xfe\t"} {
		bad = strings.TrimSuffix(bad, "\n")
		f, err := Parse(strings.NewReader(header + rowA + bad + "\n"))
		if err != nil {
			t.Fatalf("%q: %v", bad, err)
		}
		e := f.Events[1]
		if string(e.Value) != bad || e.TimeMs != f.Events[0].TimeMs {
			t.Fatalf("%q became %+v", bad, e)
		}
		if _, err := schemas.DecodeViewEvent(e.ContentType, e.Value); err == nil {
			t.Fatalf("%q was accepted", bad)
		}
	}
	// Negative numbers can be read; the rules refuse them.
	f, err := Parse(strings.NewReader(header + strings.Replace(rowA, "65847", "-3", 1)))
	if err != nil || f.Events[0].ContentType != "" {
		t.Fatalf("%+v, %v", f, err)
	}
}

func TestBadFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	whole := gz(t, header+strings.Repeat(rowA, 1000))
	tests := map[string]struct{ path, want string }{
		"missing":         {filepath.Join(dir, "none"), "no such file"},
		"directory":       {dir, "directory"},
		"FIFO":            {fifo, "not a regular file"},
		"empty":           {write("empty", nil), "empty"},
		"blank":           {write("blank", []byte("\n\n")), "empty"},
		"header only":     {write("header", []byte(header)), "no rows"},
		"another format":  {write("text", []byte("once upon a time\nthere was\n")), "no column user_id"},
		"a column less":   {write("column", []byte(strings.Replace(header, "time_ms\tis_click", "is_click", 1)+rowA)), "time_ms"},
		"no gzip":         {write("nogz", []byte{0x1f, 0x8b, 1, 2, 3}), "gzip"},
		"truncated gzip":  {write("torn", whole[:len(whole)-8]), "unexpected EOF"},
		"endless line":    {write("line", bytes.Repeat([]byte("x"), maxLine+2)), "bytes"},
		"binary, no line": {write("bin", bytes.Repeat([]byte{0}, 5000)), "no column"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Read(tt.path)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.path) {
				t.Fatalf("error %v, want one that names %s and says %q", err, tt.path, tt.want)
			}
		})
	}
}

// TestMemory: reading is bounded by what the file holds.
func TestMemory(t *testing.T) {
	data := []byte(header + strings.Repeat(rowA, 20_000))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	f, err := Parse(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if per := float64(after.HeapAlloc-before.HeapAlloc) / float64(len(f.Events)); per > 400 {
		t.Fatalf("%.0f bytes an event", per)
	}
	runtime.KeepAlive(f)
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(header + rowA + rowB))
	f.Add(gz(f, header+rowA))
	f.Add([]byte(`{"event_id":"x"}`))
	f.Add([]byte("user_id,video_id,time_ms,play_time_ms,duration_ms,is_like\n1,2,3,4,5,1\n,,,,,\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse(bytes.NewReader(data))
		if err != nil {
			return
		}
		for i, e := range file.Events {
			if i > 0 && e.TimeMs < file.Events[i-1].TimeMs {
				t.Fatal("events are not in the order of time")
			}
			_, _ = schemas.DecodeViewEvent(e.ContentType, e.Value) // must not panic
		}
	})
}

func TestRealFile(t *testing.T) {
	const path = "../../../shared/data/kuairand/views.tsv.gz"
	if _, err := os.Stat(path); err != nil {
		t.Skipf("the real views are not here: %v", err)
	}
	f, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	first := time.UnixMilli(f.Events[0].TimeMs).UTC()
	if len(f.Events) != 34_694 || first.Format(time.DateOnly) != "2022-04-07" {
		t.Fatalf("%d events from %v", len(f.Events), first)
	}
}
