package stream

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are a loop's Prometheus metrics. A nil *Metrics counts nothing.
type Metrics struct {
	transactions *prometheus.CounterVec
	in, out      prometheus.Counter
	restoreTime  prometheus.Histogram
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
	}
	reg.MustRegister(m.transactions, m.in, m.out, m.restoreTime)
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

func (m *Metrics) restore(d time.Duration) {
	if m != nil {
		m.restoreTime.Observe(d.Seconds())
	}
}
