// Package cloudtest has object stores' servers that others wrote, sound and in trouble, for tests of what writes to buckets.
package cloudtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"gocloud.dev/blob"
	_ "gocloud.dev/blob/azureblob"
	_ "gocloud.dev/blob/gcsblob"
	_ "gocloud.dev/blob/s3blob"
)

// bucketName is that of every server's one bucket.
const bucketName = "onerec"

// Server is a running server.
type Server struct {
	address string // host:port
	url     func(t *testing.T, address string) string
	create  func(ctx context.Context, t *testing.T, s *Server) error // the bucket; an error: try again
}

// kind is a program that serves a provider's API.
type kind struct {
	provider, program, install string
	args                       func(port string) []string
	racy                       bool // a condition of a write is looked at first, and the write done later
	Server
}

var kinds = []kind{
	{
		provider: "s3", program: "moto_server", install: "pip install 'moto[server]'", racy: true,
		args: func(port string) []string { return []string{"-H", "127.0.0.1", "-p", port} },
		Server: Server{
			url: func(t *testing.T, address string) string {
				t.Setenv("AWS_ACCESS_KEY_ID", "test")
				t.Setenv("AWS_SECRET_ACCESS_KEY", "test")
				return fmt.Sprintf("s3://%s?region=us-east-1&use_path_style=true&endpoint=http://%s", bucketName, address)
			},
			create: func(ctx context.Context, _ *testing.T, s *Server) error {
				return request(ctx, http.MethodPut, "http://"+s.address+"/"+bucketName, "")
			},
		},
	},
	{
		provider: "gcs", program: "fake-gcs-server", install: "go install github.com/fsouza/fake-gcs-server@latest",
		args: func(port string) []string {
			return []string{"-scheme", "http", "-host", "127.0.0.1", "-port", port, "-public-host", "127.0.0.1:" + port, "-backend", "memory", "-log-level", "error"}
		},
		Server: Server{
			url: func(t *testing.T, address string) string {
				t.Setenv("STORAGE_EMULATOR_HOST", address)
				return "gs://" + bucketName + "?anonymous=true"
			},
			create: func(ctx context.Context, _ *testing.T, s *Server) error {
				return request(ctx, http.MethodPost, "http://"+s.address+"/storage/v1/b?project=test", fmt.Sprintf(`{"name":%q}`, bucketName))
			},
		},
	},
	{
		provider: "azure", program: "azurite-blob", install: "npm install azurite",
		args: func(port string) []string {
			return []string{"--blobHost", "127.0.0.1", "--blobPort", port, "--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"}
		},
		Server: Server{
			url: func(t *testing.T, address string) string {
				// The emulator's account, which everybody knows.
				t.Setenv("AZURE_STORAGE_ACCOUNT", "devstoreaccount1")
				t.Setenv("AZURE_STORAGE_KEY", "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==")
				return fmt.Sprintf("azblob://%s?protocol=http&localemu=true&domain=%s", bucketName, address)
			},
			create: func(ctx context.Context, t *testing.T, s *Server) error {
				b, err := blob.OpenBucket(ctx, s.URL(t, ""))
				if err != nil {
					return err
				}
				defer b.Close()
				var c *container.Client
				if !b.As(&c) {
					return errors.New("the bucket is no container")
				}
				if _, err := c.Create(ctx, nil); err != nil && !bloberror.HasCode(err, bloberror.ContainerAlreadyExists) {
					return err
				}
				return nil
			},
		},
	},
}

// Each calls test with an empty bucket of every provider whose server is installed, or named by
// ONEREC_S3_SERVER, ONEREC_GCS_SERVER or ONEREC_AZURE_SERVER. What is missing is skipped, or fails where
// ONEREC_NEED_CLOUDS names the provider.
func Each(t *testing.T, test func(t *testing.T, s *Server)) {
	for _, k := range kinds {
		t.Run(k.provider, func(t *testing.T) { test(t, k.start(t)) })
	}
}

func (k kind) start(t *testing.T) *Server {
	t.Helper()
	setting := "ONEREC_" + strings.ToUpper(k.provider) + "_SERVER"
	name := os.Getenv(setting)
	if name == "" {
		name = k.program
	}
	path, err := exec.LookPath(name)
	if err != nil {
		if strings.Contains(os.Getenv("ONEREC_NEED_CLOUDS"), k.provider) {
			t.Fatal(err)
		}
		t.Skipf("no server of %s: install %s (%s), or set %s to it: %v", k.provider, k.program, k.install, setting, err)
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := k.Server
	s.address = l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(s.address, ":")
	program := exec.CommandContext(context.WithoutCancel(t.Context()), path, k.args(port)...)
	program.Dir = t.TempDir()
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = program.Process.Kill()
		_ = program.Wait()
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		err := s.create(ctx, t, &s)
		cancel()
		if err == nil {
			if k.racy && filepath.Base(path) == k.program {
				s.inTurn(t)
			}
			return &s
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer: %v", path, err)
		}
	}
}

func request(ctx context.Context, method, url, body string) error {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}

// URL returns that of the bucket, or of the part of it with a prefix, for what is opened next: credentials and
// some of the address are in the environment.
func (s *Server) URL(t *testing.T, prefix string) string {
	t.Helper()
	out := s.url(t, s.address)
	if prefix != "" {
		out += "&prefix=" + prefix
	}
	return out
}

// proxy passes requests on to the server.
func (s *Server) proxy() *httputil.ReverseProxy {
	target := &url.URL{Scheme: "http", Host: s.address}
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			if strings.Contains(r.In.Header.Get("Authorization"), "AWS4") {
				r.Out.Host = r.In.Host // it is signed
			}
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
}

// inTurn puts a proxy before the server that lets conditional writes through one after the other. moto finds no
// object and writes one in two steps (5.1): of a thousand objects that four created at a time, nineteen had two
// creators when its threads took turns often. S3 itself promises that one of them succeeds.
func (s *Server) inTurn(t *testing.T) {
	proxy := s.proxy()
	var turn sync.Mutex
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-None-Match") != "" || r.Header.Get("If-Match") != "" {
			turn.Lock()
			defer turn.Unlock()
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s.address = strings.TrimPrefix(server.URL, "http://")
}

// Troubled returns the server behind a proxy, which makes a share of the requests, in percent, slow, answers
// them with 500, or hangs up on them before or after they had their effect.
func (s *Server) Troubled(t *testing.T, share *atomic.Int64, seed uint64) *Server {
	t.Helper()
	proxy := s.proxy()
	var n atomic.Uint64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
	t.Cleanup(server.Close)
	troubled := *s
	troubled.address = strings.TrimPrefix(server.URL, "http://")
	return &troubled
}
