package telemetry

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"onerec/internal/access"
)

func TestEndpoints(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	probe := new(Probe)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, Handler(NewRegistry(), probe, nil)) }()
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

// TestFromElsewhere: what a process tells of itself is for this machine and for who has a token; health is for all.
func TestFromElsewhere(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(file, []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens, err := access.ReadTokens(file)
	if err != nil {
		t.Fatal(err)
	}
	h := Handler(NewRegistry(), new(Probe), tokens)
	for _, c := range []struct {
		path, from, host, token string
		want                    int
	}{
		{"/metrics", "127.0.0.1:5", "localhost:9464", "", 200},
		{"/metrics", "[::1]:5", "127.0.0.1:9464", "", 200},
		{"/metrics", "127.0.0.1:5", "rebound.example:9464", "", 401},
		{"/metrics", "10.0.0.7:5", "onerec:9464", "", 401},
		{"/metrics", "10.0.0.7:5", "127.0.0.1:9464", "", 401},
		{"/metrics", "10.0.0.7:5", "onerec:9464", "0123456789abcdef", 200},
		{"/metrics", "10.0.0.7:5", "onerec:9464", "0123456789abcdeX", 401},
		{"/debug/pprof/", "10.0.0.7:5", "onerec:9464", "", 401},
		{"/debug/pprof/heap", "10.0.0.7:5", "onerec:9464", "0123456789abcdef", 200},
		{"/debug/pprof/cmdline", "127.0.0.1:5", "127.0.0.1:9464", "", 200},
		{"/healthz", "10.0.0.7:5", "onerec:9464", "", 200},
		{"/readyz", "10.0.0.7:5", "onerec:9464", "", 503},
		{"/nothing", "127.0.0.1:5", "127.0.0.1:9464", "", 404},
	} {
		r := httptest.NewRequest(http.MethodGet, c.path, nil)
		r.RemoteAddr, r.Host = c.from, c.host
		if c.token != "" {
			r.Header.Set("Authorization", "Bearer "+c.token)
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		if rec.Code != c.want {
			t.Errorf("%+v: %d", c, rec.Code)
		}
	}
}
