package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/plugin/kotel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
)

// Tracing follows records from topic to topic by their headers (W3C traceparent).
type Tracing struct{ provider *sdktrace.TracerProvider }

// NewTracing sends spans of a service to an OTLP endpoint by HTTP, e.g. http://collector:4318. Of records that come without
// a trace the share begin gets one; traces that came with a record go on.
func NewTracing(ctx context.Context, endpoint, service string, begin float64) (*Tracing, error) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("traces can't be sent to %q: want a URL as http://collector:4318", endpoint)
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(u.JoinPath("v1/traces").String()))
	if err != nil {
		return nil, fmt.Errorf("traces can't be sent to %q: %w", endpoint, err)
	}
	return newTracing(service, begin, sdktrace.WithBatcher(exporter)), nil
}

func newTracing(service string, begin float64, export sdktrace.TracerProviderOption) *Tracing {
	return &Tracing{sdktrace.NewTracerProvider(export,
		sdktrace.WithResource(resource.NewSchemaless(semconv.ServiceName("onerec-"+service), semconv.ServiceNamespace("onerec"))),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(begin))),
	)}
}

// errNoKey keeps keys out of spans: they are user ids.
var errNoKey = errors.New("keys stay out of traces")

// Hooks are for a Kafka client: they take traces up from the records that it reads, and hand them on with those it writes.
func (t *Tracing) Hooks(group string) []kgo.Hook {
	tracer := kotel.NewTracer(
		kotel.TracerProvider(t.provider), kotel.TracerPropagator(propagation.TraceContext{}), kotel.ConsumerGroup(group),
		kotel.KeyFormatter(func(*kgo.Record) (string, error) { return "", errNoKey }),
	)
	return kotel.NewKotel(kotel.WithTracer(tracer)).Hooks()
}

// Close sends what is left.
func (t *Tracing) Close(ctx context.Context) error { return t.provider.Shutdown(ctx) }
