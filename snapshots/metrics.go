package snapshots

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the service's Prometheus metrics. A nil *Metrics counts nothing.
type Metrics struct {
	files, rows, bytes *prometheus.CounterVec
	lost               prometheus.Counter
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	table := []string{"table"}
	m := &Metrics{
		files: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "onerec_snapshot_files_total", Help: "Parquet files written."}, table),
		rows:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "onerec_snapshot_rows_total", Help: "Rows written."}, table),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "onerec_snapshot_bytes_total", Help: "Bytes of Parquet written."}, table),
		lost:  prometheus.NewCounter(prometheus.CounterOpts{Name: "onerec_snapshot_missed_offsets_total", Help: "Offsets that a topic no longer had when they were to be written."}),
	}
	reg.MustRegister(m.files, m.rows, m.bytes, m.lost)
	return m
}

func (m *Metrics) wrote(table string, files, rows int, bytes int64) {
	if m != nil {
		m.files.WithLabelValues(table).Add(float64(files))
		m.rows.WithLabelValues(table).Add(float64(rows))
		m.bytes.WithLabelValues(table).Add(float64(bytes))
	}
}

func (m *Metrics) missed(n int64) {
	if m != nil {
		m.lost.Add(float64(n))
	}
}
