// Package replay reads files of views and plays them into views.raw in the order
// of event time, as fast as the broker takes them.
//
// Formats, told apart by the first line, gzipped or not:
//
//   - KuaiRand's logs (Gao et al., arXiv 2208.08696): a header, then comma or tab
//     separated numbers; likes and dislikes in is_like and is_hate, or in label
//     (1 and 0). Columns are found by name, those not needed are ignored.
//   - JSON lines: one ViewEvent a line, as on views.raw.
//
// A row that can't be read is played too, byte for byte: it is ingest's business
// to refuse it, and the dead-letter topic's to keep it.
package replay

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/internal/stream"
	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// Limits of a file; it is sorted in memory.
const (
	maxRows = 10_000_000
	maxLine = 1 << 20 // bytes
)

// contentTypeLine marks a row that could not be read; ingest knows no such type.
const contentTypeLine = "text/plain"

// Event is a record for views.raw.
type Event struct {
	TimeMs      int64
	User        string
	ContentType string // empty: Protobuf
	Value       []byte
}

// File is a file of views, read and sorted.
type File struct {
	Format string // for people
	Events []Event
}

// Read reads a file. The error says what is wrong with it and what would be
// right.
func Read(path string) (*File, error) {
	f, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("read views from %s: %w", path, err)
	}
	return f, nil
}

func read(path string) (*File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, unwrapPath(err)
	}
	if info.IsDir() {
		return nil, errors.New("it is a directory; name a file")
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file; write what it gives to a file first, since views are sorted by time before they are played")
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, unwrapPath(err)
	}
	defer file.Close()
	return Parse(file)
}

// unwrapPath leaves the path out, which the caller names.
func unwrapPath(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// Parse reads what a file holds.
func Parse(r io.Reader) (*File, error) {
	in := bufio.NewReaderSize(r, 1<<16)
	f := new(File)
	if magic, _ := in.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		gz, err := gzip.NewReader(in)
		if err != nil {
			return nil, fmt.Errorf("it begins like gzip but is not: %w", err)
		}
		in = bufio.NewReaderSize(gz, 1<<16)
		f.Format = ", gzipped"
	}
	lines := &lineReader{in: in}
	first, err := lines.next()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("it is empty; expected KuaiRand's log format or JSON lines of ViewEvents")
	}
	if err != nil {
		return nil, err
	}
	var parse func([]byte) Event
	if bytes.HasPrefix(bytes.TrimSpace(first), []byte("{")) {
		f.Format = "JSON lines of ViewEvents" + f.Format
		parse = parseJSON
		f.Events = append(f.Events, parse(first))
	} else {
		k, err := newKuaiRand(string(first))
		if err != nil {
			return nil, err
		}
		f.Format = k.format + f.Format
		parse = k.parse
	}
	for {
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("after %d rows: %w", len(f.Events), err)
		}
		if len(f.Events) == maxRows {
			return nil, fmt.Errorf("it has more than %d rows, which is more than are sorted in memory; split it by date and replay the parts in order", maxRows)
		}
		e := parse(line)
		if e.ContentType == contentTypeLine && len(f.Events) > 0 {
			e.TimeMs = f.Events[len(f.Events)-1].TimeMs // keeps its place
		}
		f.Events = append(f.Events, e)
	}
	if len(f.Events) == 0 {
		return nil, errors.New("it holds a header but no rows")
	}
	slices.SortStableFunc(f.Events, func(a, b Event) int {
		switch {
		case a.TimeMs < b.TimeMs:
			return -1
		case a.TimeMs > b.TimeMs:
			return 1
		}
		return 0
	})
	return f, nil
}

// lineReader reads lines; blank ones are left out.
type lineReader struct{ in *bufio.Reader }

func (l *lineReader) next() ([]byte, error) {
	for {
		var line []byte
		for {
			part, err := l.in.ReadSlice('\n')
			line = append(line, part...)
			if len(line) > maxLine {
				return nil, fmt.Errorf("a line has more than %d bytes; this is no file of views", maxLine)
			}
			if errors.Is(err, bufio.ErrBufferFull) {
				continue
			}
			if err != nil && (!errors.Is(err, io.EOF) || len(line) == 0) {
				return nil, err
			}
			break
		}
		if line = bytes.TrimRight(line, "\r\n"); len(bytes.TrimSpace(line)) > 0 {
			return line, nil
		}
	}
}

func parseJSON(line []byte) Event {
	e := Event{ContentType: schemas.ContentTypeJSON, Value: line}
	if v, err := schemas.DecodeViewEvent(schemas.ContentTypeJSON, line); err == nil {
		e.TimeMs, e.User = v.EventTimeMs, v.UserId
	}
	return e
}

// kuaiRand reads rows of KuaiRand's logs.
type kuaiRand struct {
	format string
	sep    string
	column map[string]int
}

func newKuaiRand(header string) (*kuaiRand, error) {
	k := &kuaiRand{sep: ",", format: "KuaiRand log, comma separated", column: make(map[string]int)}
	if strings.Contains(header, "\t") {
		k.sep, k.format = "\t", "KuaiRand log, tab separated"
	}
	for i, name := range strings.Split(strings.TrimPrefix(header, "\ufeff"), k.sep) {
		k.column[strings.TrimSpace(name)] = i
	}
	var missing []string
	for _, name := range []string{"user_id", "video_id", "time_ms", "play_time_ms", "duration_ms"} {
		if _, ok := k.column[name]; !ok {
			missing = append(missing, name)
		}
	}
	_, label := k.column["label"]
	_, like := k.column["is_like"]
	if !label && !like {
		missing = append(missing, "is_like or label")
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("it is neither JSON lines of ViewEvents nor a KuaiRand log: the first line has no column %s", strings.Join(missing, ", "))
	}
	return k, nil
}

func (k *kuaiRand) parse(line []byte) Event {
	fields := strings.Split(string(line), k.sep)
	text := func(name string) string {
		if i, ok := k.column[name]; ok && i < len(fields) {
			return strings.TrimSpace(fields[i])
		}
		return ""
	}
	bad := Event{User: text("user_id"), ContentType: contentTypeLine, Value: line}
	number := func(name string) (int64, bool) {
		v, err := strconv.ParseInt(text(name), 10, 64)
		return v, err == nil
	}
	at, okTime := number("time_ms")
	watch, okWatch := number("play_time_ms")
	duration, okDuration := number("duration_ms")
	if !okTime || !okWatch || !okDuration {
		return bad
	}
	v := &onerecv1.ViewEvent{
		// Derived, so that a doubled row is a duplicate.
		EventId: fmt.Sprintf("kuairand/%s/%s/%d", text("user_id"), text("video_id"), at),
		UserId:  text("user_id"), ItemId: text("video_id"), EventTimeMs: at, WatchMs: watch, DurationMs: duration,
		Follow: text("is_follow") == "1", Comment: text("is_comment") == "1", Share: text("is_forward") == "1",
		Like: text("is_like") == "1" || text("label") == "1", Dislike: text("is_hate") == "1" || text("label") == "0",
	}
	if tab := text("tab"); tab != "" {
		v.Surface = "tab-" + tab
	}
	return event(v)
}

func event(v *onerecv1.ViewEvent) Event {
	value, err := proto.Marshal(v) // fails only on invalid UTF-8
	if err != nil {
		return Event{TimeMs: v.EventTimeMs, User: strings.ToValidUTF8(v.UserId, ""), ContentType: contentTypeLine, Value: fmt.Append(nil, v)}
	}
	return Event{TimeMs: v.EventTimeMs, User: v.UserId, Value: value}
}

// Encode turns ViewEvents into Events.
func Encode(views iter.Seq[*onerecv1.ViewEvent]) iter.Seq[Event] {
	return func(yield func(Event) bool) {
		for v := range views {
			if !yield(event(v)) {
				return
			}
		}
	}
}

// Play produces events to views.raw and returns how many there were and the
// latest time that ingest's default rules let pass. progress, if not nil, is told how
// many are done.
func Play(ctx context.Context, c stream.Cluster, events iter.Seq[Event], progress func(done int)) (n int, latestMs int64, err error) {
	cl, err := c.Client(kgo.DefaultProduceTopic(schemas.TopicViewsRaw), kgo.ProducerLinger(5*time.Millisecond), kgo.MaxBufferedRecords(20_000))
	if err != nil {
		return 0, 0, err
	}
	defer cl.Close()
	var mu sync.Mutex
	var failed error
	failure := func() error {
		mu.Lock()
		defer mu.Unlock()
		return failed
	}
	notAfter := time.Now().Add(schemas.DefaultBounds().MaxFuture).UnixMilli()
	for e := range events {
		r := &kgo.Record{Key: []byte(e.User), Value: e.Value}
		if e.ContentType != "" {
			r.Headers = []kgo.RecordHeader{{Key: schemas.HeaderContentType, Value: []byte(e.ContentType)}}
		}
		if e.ContentType != contentTypeLine && e.TimeMs <= notAfter {
			latestMs = max(latestMs, e.TimeMs)
		}
		cl.Produce(ctx, r, func(_ *kgo.Record, err error) {
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = errors.Join(failed, err)
			}
		})
		if n++; n%1000 == 0 {
			if progress != nil {
				progress(n)
			}
			if err := failure(); err != nil {
				break
			}
		}
	}
	if err := errors.Join(failure(), cl.Flush(ctx)); err != nil {
		return n, latestMs, fmt.Errorf("produce to topic %s: %w", schemas.TopicViewsRaw, err)
	}
	if progress != nil {
		progress(n)
	}
	return n, latestMs, nil
}

// Finish waits until the ingest group has taken everything on views.raw, then
// promises on every partition of views that no view before watermarkMs follows,
// so that the sessions before it close.
func Finish(ctx context.Context, c stream.Cluster, ingestGroup string, watermarkMs int64) error {
	cl, err := c.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return err
	}
	defer cl.Close()
	if err := stream.WaitCaughtUp(ctx, cl, ingestGroup, schemas.TopicViewsRaw); err != nil {
		return err
	}
	spans, err := c.Spans(ctx, schemas.TopicViews)
	if err != nil {
		return err
	}
	for p := range spans {
		r := &kgo.Record{Topic: schemas.TopicViews, Partition: p, Headers: []kgo.RecordHeader{
			{Key: schemas.HeaderWatermark, Value: []byte(strconv.FormatInt(watermarkMs, 10))},
		}}
		if err := cl.ProduceSync(ctx, r).FirstErr(); err != nil {
			return fmt.Errorf("write the watermark to topic %s partition %d: %w", r.Topic, p, err)
		}
	}
	return nil
}
