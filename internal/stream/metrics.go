package stream

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Metrics are a loop's Prometheus metrics. A nil *Metrics counts nothing.
type Metrics struct {
	transactions *prometheus.CounterVec
	in, out      prometheus.Counter
	restoreTime  prometheus.Histogram
	lag          *prometheus.GaugeVec
	age, latency prometheus.Histogram
}

// NewMetrics registers the metrics of the loop of one service.
func NewMetrics(reg prometheus.Registerer, service string) *Metrics {
	labels := prometheus.Labels{"service": service}
	m := &Metrics{
		transactions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "onerec_stream_transactions_total", Help: "Kafka transactions by outcome.", ConstLabels: labels,
		}, []string{"outcome"}),
		in: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "onerec_stream_records_in_total", Help: "Records read, those of aborted transactions included.", ConstLabels: labels,
		}),
		out: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "onerec_stream_records_out_total", Help: "Records written, those of aborted transactions included.", ConstLabels: labels,
		}),
		restoreTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "onerec_stream_restore_seconds", Help: "Time to restore one partition from its changelog.", ConstLabels: labels,
			Buckets: prometheus.ExponentialBuckets(0.01, 4, 8),
		}),
		lag: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "onerec_stream_lag_records", Help: "Records of an owned partition that are not processed yet, as of the last transaction.", ConstLabels: labels,
		}, []string{"partition"}),
		age: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "onerec_stream_record_age_seconds", Help: "From a record's timestamp to the commit of its transaction; the newest record of each partition and transaction.", ConstLabels: labels,
			Buckets: prometheus.ExponentialBuckets(0.01, 3, 12),
		}),
	}
	m.latency = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "onerec_stream_event_latency_seconds", Help: "From the newest event time that a transaction is about to its commit, end to end: the producer's clock, every stage before and this one.", ConstLabels: labels,
		Buckets: prometheus.ExponentialBuckets(0.01, 3, 14),
	})
	reg.MustRegister(m.latency, m.transactions, m.in, m.out, m.restoreTime, m.lag, m.age)
	return m
}

func (m *Metrics) transaction(committed bool, in, out int) {
	if m == nil {
		return
	}
	outcome := "aborted"
	if committed {
		outcome = "committed"
	}
	m.transactions.WithLabelValues(outcome).Inc()
	m.in.Add(float64(in))
	m.out.Add(float64(out))
}

// progress is what a transaction has read.
type progress struct {
	records int
	newest  map[int32]newest // by partition
}

type newest struct {
	left      int64 // records behind it
	timestamp time.Time
}

func (p *progress) note(f kgo.FetchTopicPartition) {
	if len(f.Records) == 0 {
		return
	}
	if p.newest == nil {
		p.newest = make(map[int32]newest)
	}
	last := f.Records[len(f.Records)-1]
	p.newest[f.Partition] = newest{max(0, f.HighWatermark-last.Offset-1), last.Timestamp}
}

// progress notes how far the partitions of a committed transaction are; newestEvent
// is the newest event time that it is about, in ms since the epoch, or 0.
func (m *Metrics) progress(p *progress, newestEvent int64, now time.Time) {
	if m == nil {
		return
	}
	for partition, n := range p.newest {
		m.lag.WithLabelValues(strconv.Itoa(int(partition))).Set(float64(n.left))
		m.age.Observe(max(0, now.Sub(n.timestamp).Seconds()))
	}
	if newestEvent != 0 {
		m.latency.Observe(max(0, now.Sub(time.UnixMilli(newestEvent)).Seconds()))
	}
}

// forget ends the series of a partition that another instance owns now.
func (m *Metrics) forget(partition int32) {
	if m != nil {
		m.lag.DeleteLabelValues(strconv.Itoa(int(partition)))
	}
}

func (m *Metrics) restore(d time.Duration) {
	if m != nil {
		m.restoreTime.Observe(d.Seconds())
	}
}
