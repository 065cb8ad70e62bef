// Package s3test is an S3 server that others wrote, sound and in trouble, for tests of what writes to buckets.
package s3test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"
)

// Start starts an S3 server (moto, https://docs.getmoto.org) with a bucket and returns its address. Without one the
// test is skipped, or fails where ONEREC_NEED_S3 is set.
func Start(t *testing.T, bucket string) string {
	t.Helper()
	name := os.Getenv("ONEREC_S3_SERVER")
	if name == "" {
		name = "moto_server"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("ONEREC_NEED_S3") != "" {
			t.Fatal(err)
		}
		t.Skipf("no S3 server: install moto (pip install 'moto[server]'), or set ONEREC_S3_SERVER to its moto_server: %v", err)
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	server := exec.CommandContext(context.WithoutCancel(t.Context()), path, "-H", "127.0.0.1", "-p", fmt.Sprint(port))
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	address := fmt.Sprintf("http://127.0.0.1:%d", port)
	deadline := time.Now().Add(time.Minute)
	for {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, address+"/"+bucket, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return address
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the S3 server does not answer: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Troubled puts a proxy before a server, which makes a share of the requests slow, answers them with 500,
// or hangs up on them before or after they had their effect.
func Troubled(t *testing.T, address string, share *atomic.Int64, seed uint64) string {
	t.Helper()
	target, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	var n atomic.Uint64
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rng := rand.New(rand.NewPCG(seed, n.Add(1)))
		if rng.Int64N(100) >= share.Load() {
			proxy.ServeHTTP(w, r)
			return
		}
		switch rng.IntN(4) {
		case 0:
			time.Sleep(50 * time.Millisecond)
			proxy.ServeHTTP(w, r)
		case 1:
			w.WriteHeader(http.StatusInternalServerError)
		case 2:
			panic(http.ErrAbortHandler) // hangs up
		case 3:
			proxy.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
	}))
	server.Start()
	t.Cleanup(server.Close)
	return server.URL
}
