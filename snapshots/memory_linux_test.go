package snapshots

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"onerec/schemas"
	"onerec/schemas/onerecv1"
)

// BenchmarkMemory writes 10 thousand to 10 million sessions of about 2 kB, of 8 partitions, with 64 MiB for what
// waits, and prints the peak of the process's memory. Run with -benchtime 1x.
func BenchmarkMemory(b *testing.B) {
	s := judged(1)
	for i := range 10 {
		s.Session.Views = append(s.Session.Views, &onerecv1.View{EventId: fmt.Sprint("event-", i), ItemId: fmt.Sprint("item-", i), EventTimeMs: s.Session.StartMs, WatchMs: 1000, DurationMs: 2000, Surface: "feed"})
	}
	for i := range 40 {
		s.Session.History = append(s.Session.History, &onerecv1.HistoryItem{ItemId: fmt.Sprint("item-", i), EventTimeMs: s.Session.StartMs})
	}
	for _, n := range []int{10_000, 100_000, 1_000_000, 10_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			store, err := Open(b.Context(), b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			defer store.Close()
			w := newMember(&Service{Store: store, Size: 32 << 20, Memory: 64 << 20, MaxAge: time.Hour, Log: slog.New(slog.DiscardHandler)})
			if err := w.own(b.Context(), schemas.TopicJudgedSessions, []int32{0, 1, 2, 3, 4, 5, 6, 7}); err != nil {
				b.Fatal(err)
			}
			runtime.GC()
			debug.FreeOSMemory()
			if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			for i := range n {
				s.Session.UserId, s.Session.SessionId = fmt.Sprint("user-", i*7919%1000), fmt.Sprintf("session-%032d", i)
				value, err := proto.Marshal(s)
				if err != nil {
					b.Fatal(err)
				}
				r := &kgo.Record{Topic: schemas.TopicJudgedSessions, Partition: int32(i % 8), Offset: int64(i / 8), Value: value}
				var fetches kgo.Fetches
				fetches = append(fetches, kgo.Fetch{Topics: []kgo.FetchTopic{{Topic: r.Topic, Partitions: []kgo.FetchPartition{{Partition: r.Partition, Records: []*kgo.Record{r}}}}}})
				if err := w.take(b.Context(), fetches); err != nil {
					b.Fatal(err)
				}
			}
			if err := w.flushAll(b.Context()); err != nil {
				b.Fatal(err)
			}
			status, err := os.ReadFile("/proc/self/status")
			if err != nil {
				b.Fatal(err)
			}
			_, rest, _ := strings.Cut(string(status), "VmHWM:")
			kib := 0
			if _, err := fmt.Sscan(rest, &kib); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(kib)/1024, "peak-MiB")
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "sessions/s")
		})
	}
}
