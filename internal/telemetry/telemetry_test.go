package telemetry

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestEndpoints(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	probe := new(Probe)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, Handler(NewRegistry(), probe)) }()
	get := func(path string) (int, string) {
		resp, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	if code, _ := get("/healthz"); code != 200 {
		t.Errorf("healthz: %d", code)
	}
	if code, _ := get("/readyz"); code != 503 {
		t.Errorf("readyz before it is ready: %d", code)
	}
	probe.Ready()
	if code, _ := get("/readyz"); code != 200 {
		t.Errorf("readyz: %d", code)
	}
	if code, body := get("/metrics"); code != 200 || !strings.Contains(body, "go_goroutines") {
		t.Errorf("metrics: %d", code)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := Serve(context.Background(), l, http.NotFoundHandler()); err == nil {
		t.Error("a closed listener was served")
	}
}

func TestLogger(t *testing.T) {
	var b bytes.Buffer
	log := NewLogger(&b, slog.LevelWarn, true)
	log.Info("quiet")
	log.Warn("loud", "n", 1)
	if out := b.String(); strings.Contains(out, "quiet") || !strings.Contains(out, `"msg":"loud","n":1`) {
		t.Errorf("%q", out)
	}
}
