package fuzz

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"onerec/internal/history"
	"onerec/publisher"
	"onerec/recommender"
)

// FuzzRequest: no body makes the recommender fail.
func FuzzRequest(f *testing.F) {
	s := &recommender.Service{Model: "m", Policy: history.DefaultPolicy(), Beams: 8, MaxUsers: 100, MaxItems: 100, Log: slog.New(slog.DiscardHandler)}
	s.Open()
	h := s.Handler()
	f.Add(`{"user_id":"u","n":5,"history":["a"],"mode":"next","include_seen":true,"exclude":["b"],"surface":"feed","channel":""}`)
	f.Add(`{"user_id":1}`)
	f.Fuzz(func(t *testing.T, body string) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/v1/recommendations", strings.NewReader(body)))
		if rec.Code >= 500 {
			t.Fatalf("%d: %s", rec.Code, rec.Body)
		}
	})
}

// FuzzManifest: whatever the bytes of a manifest and of its signature are, reading the version gives an error or a
// manifest of that version, never a panic, and nothing that nobody signed is trusted.
func FuzzManifest(f *testing.F) {
	const version = "000001-aa"
	f.Add([]byte(`{"schema":1,"version":"000001-aa","files":[{"name":"a","bytes":1,"sha256":"00"}]}`), []byte(`{"key":"k","signature":"AA=="}`))
	f.Add([]byte(`{"schema":1,"version":"000001-aa","files":[{"name":"../../a","bytes":-1}]}`), []byte(`{}`))
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, manifest, signature []byte) {
		dir := t.TempDir()
		folder := filepath.Join(dir, "versions", version)
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{
			"manifest.json": manifest, fmt.Sprintf("manifest.%.16x.sig", sha256.Sum256(manifest)): signature, "a": []byte("x"),
		} {
			if err := os.WriteFile(filepath.Join(folder, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		open := func(o publisher.Options) *publisher.Store {
			s, err := publisher.Open(t.Context(), dir, o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			return s
		}
		s := open(publisher.Options{})
		m, _, err := s.Load(t.Context(), version, "")
		if err == nil && m.Version != version {
			t.Errorf("loaded %+v", m)
		}
		if _, _, err := open(publisher.Options{Trust: []ed25519.PublicKey{public}}).Load(t.Context(), version, ""); err == nil {
			t.Error("loaded with a signature of nobody")
		}
		// What another version of onerec may have written is not collected; what is damaged is.
		if _, err := s.Collect(t.Context(), publisher.GC{Keep: 1}, time.Now()); err != nil && !strings.Contains(err.Error(), "upgrade") {
			t.Errorf("collect: %v", err)
		}
	})
}
