package publisher

import (
	"context"
	"errors"
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

	_ "gocloud.dev/blob/s3blob"
)

// s3 starts an S3 server (moto, https://docs.getmoto.org) and returns its address.
func s3(t *testing.T) string {
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
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	server := exec.Command(path, "-H", "127.0.0.1", "-p", fmt.Sprint(port))
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
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, address+"/models", nil)
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

// troubled puts a proxy before a server, which makes a share of the requests slow, answers them with 500,
// or hangs up on them before or after they had their effect.
func troubled(t *testing.T, address string, share *atomic.Int64, seed uint64) string {
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

// TestS3: against an S3 server that we did not write, sound and in trouble. What Publish says is
// published loads, what it does not say never loads as something else, and a collection leaves nothing
// behind.
func TestS3(t *testing.T) {
	address := s3(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "test")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "test")
	bucket := func(endpoint, prefix string) *Store {
		s, err := Open(t.Context(), fmt.Sprintf("s3://models?region=us-east-1&use_path_style=true&endpoint=%s&prefix=%s", endpoint, prefix), Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	files := func(i int) map[string][]byte {
		big := make([]byte, 6<<20) // more than one part of an upload
		for j := range big {
			big[j] = byte(i + j*j)
		}
		return map[string][]byte{"big": big, "small": fmt.Append(nil, i), "empty": nil}
	}
	check := func(t *testing.T, s *Store, m *Manifest, hash string, i int) {
		t.Helper()
		_, got, err := s.Load(t.Context(), m.Version, hash)
		if err != nil {
			t.Errorf("%s does not load: %v", m.Version, err)
			return
		}
		for name, want := range files(i) {
			if string(got[name]) != string(want) {
				t.Errorf("%s of %s differs", name, m.Version)
			}
		}
	}

	t.Run("sound", func(t *testing.T) {
		s := bucket(address, "sound/")
		for i := range 3 {
			m := &Manifest{Model: "m"}
			hash, err := s.Publish(t.Context(), m, files(i))
			if err != nil {
				t.Fatal(err)
			}
			check(t, s, m, hash, i)
		}
		if _, _, err := s.Load(t.Context(), "000009-aa", ""); !errors.Is(err, ErrNotFound) {
			t.Errorf("a version that is not there: %v", err)
		}
		c, err := s.Collect(t.Context(), GC{Keep: 1}, time.Now().Add(time.Minute))
		if err != nil || len(c.Versions) != 2 {
			t.Fatalf("%+v, %v", c, err)
		}
		// Two writers: S3's conditional puts share the numbers out.
		done := make(chan error, 4)
		for i := range 4 {
			go func() {
				_, err := s.Publish(context.WithoutCancel(t.Context()), &Manifest{Model: "m"}, map[string][]byte{"a": fmt.Append(nil, "writer ", i)})
				done <- err
			}()
		}
		for range 4 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		versions, err := s.List(t.Context())
		if err != nil || len(versions) != 5 {
			t.Fatalf("%v, %v", versions, err)
		}
		for i, v := range versions {
			if n, _ := sequence(v); n != 3+i {
				t.Errorf("numbers of %v", versions)
			}
		}
	})

	t.Run("in trouble", func(t *testing.T) {
		var share atomic.Int64
		s := bucket(troubled(t, address, &share, 1), "trouble/")
		published, failed := 0, 0
		for i := range 6 {
			share.Store([]int64{20, 60, 95}[i%3])
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			m := &Manifest{Model: "m"}
			hash, err := s.Publish(ctx, m, files(i))
			cancel()
			share.Store(0)
			if err != nil {
				failed++
			} else {
				published++
				check(t, s, m, hash, i)
			}
			versions, err := s.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range versions {
				if _, _, err := s.Load(t.Context(), v, ""); err != nil {
					t.Errorf("%s is there and does not load: %v", v, err)
				}
			}
		}
		t.Logf("%d published, %d failed", published, failed)
		if published == 0 || failed == 0 {
			t.Errorf("%d published, %d failed: the trouble is none, or too much", published, failed)
		}
		last := &Manifest{Model: "m"}
		hash, err := s.Publish(t.Context(), last, files(99))
		if err != nil {
			t.Fatalf("after the trouble: %v", err)
		}
		check(t, s, last, hash, 99)
		if _, err := s.Collect(t.Context(), GC{Keep: 1}, time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		folders, err := s.folders(t.Context())
		if err != nil || len(folders) != 1 || len(folders[last.Version]) != 4 {
			t.Errorf("after the collection: %v, %v", folders, err)
		}
	})
}
