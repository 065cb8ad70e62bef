package recommender

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"

	"onerec/internal/access"
	"onerec/publisher"
)

// TestOpenAPI: the document is sound, and what the handlers take and answer is what it says.
func TestOpenAPI(t *testing.T) {
	doc, err := libopenapi.NewDocument(openAPI)
	if err != nil {
		t.Fatal(err)
	}
	v, errs := validator.NewValidator(doc)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if ok, errs := v.ValidateDocument(); !ok {
		t.Fatalf("the document: %v", errs[0])
	}
	w := start(t)
	h := w.svc.Handler()
	described := make(map[string]bool)
	check := func(method, path, body string, want int, sound bool) {
		t.Helper()
		req := func() *http.Request {
			r := httptest.NewRequest(method, path, strings.NewReader(body))
			if body != "" {
				r.Header.Set("Content-Type", "application/json")
			}
			return r
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, req())
		if rec.Code != want {
			t.Fatalf("%s %s %.60s: %d, want %d: %s", method, path, body, rec.Code, want, rec.Body)
		}
		if ok, _ := v.ValidateHttpRequest(req()); ok != sound {
			t.Errorf("%s %s %.60s: by the document the request is sound: %v, want %v", method, path, body, ok, sound)
		}
		if ok, errs := v.ValidateHttpResponse(req(), rec.Result()); !ok {
			t.Errorf("%s %s %.60s: the answer is not as the document says: %v\n%s", method, path, body, errs[0], rec.Body)
		}
		described[path] = true
	}
	check("POST", "/v1/recommendations", `{"user_id":"u"}`, 200, true) // popular items
	check("GET", "/v1/items/i3", "", 503, true)
	check("GET", "/readyz", "", 503, true)
	check("GET", "/v1/models", "", 200, true)
	w.publish(t, publisher.ChannelReleased, 1)
	eventually(t, "a model serves", func() bool { return w.svc.Ready() == nil })
	for _, body := range []string{
		`{"user_id":"u","n":3,"surface":"feed"}`, `{"history":["i1","i2"],"n":20,"mode":"next"}`, `{"history":["i1","nobody"],"n":2,"mode":"list","include_seen":true,"exclude":["i3","nobody"]}`,
		`{"user_id":"u","n":2,"channel":"released"}`, `{"user_id":"u","history":null,"n":1}`,
	} {
		check("POST", "/v1/recommendations", body, 200, true)
	}
	check("POST", "/v1/recommendations", `{"user_id":"u","channel":"canary"}`, 404, true)
	check("POST", "/v1/recommendations", `{"user_id":"u","n":99}`, 400, true) // more than the model writes, which the document can't know
	for _, body := range []string{`{"user_id":"u","n":101}`, `{"user_id":"u","mode":"all"}`, `{"user_id":7}`, `{"user_id":"u","colour":"red"}`, `[]`, `{"user_id":"u"}{}`, `{`, `{"user_id":"u","exclude":["i1"` + strings.Repeat(`,"i1"`, maxExclude) + `]}`} {
		check("POST", "/v1/recommendations", body, 400, false)
	}
	check("GET", "/v1/items/i3", "", 200, true)
	check("GET", "/v1/items/nobody", "", 404, true)
	check("GET", "/v1/users/i3", "", 200, true)
	check("GET", "/v1/users/nobody", "", 200, true)
	check("GET", "/v1/models", "", 200, true)
	if _, err := publisher.Hold(t.Context(), w.cluster, "m", "likes fell"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "releases are held", func() bool { return w.svc.held.Load() != nil })
	check("GET", "/v1/models", "", 200, true)
	check("GET", "/v1/openapi.json", "", 200, true)
	check("GET", "/healthz", "", 200, true)
	check("GET", "/readyz", "", 200, true)
	for path := range libopenapiPaths(t, doc) {
		if path = strings.ReplaceAll(path, "{id}", "i3"); !described[path] {
			t.Errorf("path %s is described and was not tried", path)
		}
	}
	for path, want := range map[string]int{"/v1/recommendations": 405, "/v2": 404, "/": 404, "/v1/items/": 404} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
		if rec.Code != want || rec.Header().Get("Content-Type") != "application/problem+json" || (want == 405) != (rec.Header().Get("Allow") == "POST") {
			t.Errorf("GET %s: %d %v %s", path, rec.Code, rec.Header(), rec.Body)
		}
	}
}

func libopenapiPaths(t *testing.T, doc libopenapi.Document) map[string]bool {
	t.Helper()
	model, err := doc.BuildV3Model()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]bool)
	for path := range model.Model.Paths.PathItems.FromOldest() {
		out[path] = true
	}
	return out
}

// TestPages: who excludes what earlier answers showed gets other items until there are none: page by page all that the
// user may be shown, from the model and without one.
func TestPages(t *testing.T) {
	w := start(t)
	for i := range 20 {
		w.view(t, "fan", fmt.Sprint("i", i), int64(1000+i))
	}
	w.view(t, "u", "i7", 1000)
	eventually(t, "the views are read", func() bool { return len(w.svc.History("fan")) == 20 && len(w.svc.History("u")) == 1 })
	pages := func(mode, source string) {
		t.Helper()
		shown := map[string]bool{}
		for {
			excluded, err := json.Marshal(slices.Collect(maps.Keys(shown)))
			if err != nil {
				t.Fatal(err)
			}
			code, a, body := ask(t, w.svc.Handler(), fmt.Sprintf(`{"user_id":"u","n":4,"mode":%q,"exclude":%s}`, mode, excluded))
			if code != 200 || a.Source != source {
				t.Fatal(code, body)
			}
			for _, item := range a.Items {
				if shown[item.ItemID] || item.ItemID == "i7" {
					t.Fatalf("%s was shown or seen before", item.ItemID)
				}
				shown[item.ItemID] = true
			}
			if len(a.Items) < 4 {
				break
			}
		}
		if len(shown) != 19 {
			t.Errorf("%s: %d items in all, want 19", mode, len(shown))
		}
	}
	pages("next", "popular")
	w.publish(t, publisher.ChannelReleased, 1)
	eventually(t, "a model serves", func() bool { return w.svc.Ready() == nil })
	pages("next", "model")
	pages("list", "model")
}

// TestCanary: the same share of the users, whoever asks, and none when it is withdrawn.
func TestCanary(t *testing.T) {
	for _, percent := range []float64{0, 1, 20, 100} {
		n := 0
		for i := range 10_000 {
			user := fmt.Sprint("u", i)
			if InCanary(user, percent) {
				n++
				if !InCanary(user, min(2*percent, 100)) {
					t.Fatalf("%s leaves the canary when its share grows", user)
				}
			}
		}
		if want := 100 * percent; math.Abs(float64(n)-want) > 4*math.Sqrt(want*(1-percent/100))+1e-9 {
			t.Errorf("%v %% of 10000 users are %d", percent, n)
		}
	}
	w := startWith(t, func(s *Service) { s.CanaryPercent = 30 })
	h := w.svc.Handler()
	released := w.publish(t, publisher.ChannelReleased, 1)
	canary := w.publish(t, publisher.ChannelCanary, 2)
	eventually(t, "both are loaded", func() bool { return len(w.svc.Models()) == 2 })
	served := make(map[string]int)
	for i := range 200 {
		user := fmt.Sprint("u", i)
		code, a, _ := ask(t, h, `{"user_id":"`+user+`","n":2}`)
		want := released
		if InCanary(user, 30) {
			want = canary
		}
		if code != 200 || a.CheckpointVersion != want {
			t.Fatalf("%s: %d, %s, want %s", user, code, a.CheckpointVersion, want)
		}
		served[a.Channel]++
	}
	if served[publisher.ChannelCanary] == 0 || served[publisher.ChannelReleased] == 0 {
		t.Errorf("served %v", served)
	}
	if _, a, _ := ask(t, h, `{"user_id":"u","n":2,"channel":"canary"}`); a.CheckpointVersion != canary {
		t.Errorf("the canary by name: %s", a.CheckpointVersion)
	}
	if err := publisher.Withdraw(t.Context(), w.cluster, "m", publisher.ChannelCanary); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the canary is gone", func() bool { return len(w.svc.Models()) == 1 })
	for i := range 50 {
		if _, a, _ := ask(t, h, fmt.Sprintf(`{"user_id":"u%d","n":2}`, i)); a.CheckpointVersion != released {
			t.Fatalf("after the withdrawal: %s", a.CheckpointVersion)
		}
	}
}

// TestSwaps: a thousand swaps under load. No request fails, every answer is of one model as a whole,
// and the memory goes back to where it was.
func TestSwaps(t *testing.T) {
	swaps := 1000
	if testing.Short() {
		swaps = 50
	}
	w := start(t)
	var versions []string
	models := make(map[string]*model)
	for seed := range uint64(4) {
		v := w.publish(t, publisher.ChannelCandidate, seed+1)
		m, _, err := w.store.Manifest(t.Context(), v, "")
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is loaded", func() bool { l := w.svc.loaded.Load(); return l != nil && l.ref.Version == v })
		models[v] = w.svc.loaded.Load()
		versions = append(versions, m.Version)
	}
	h := w.svc.Handler()
	want := make(map[string]string) // what each model answers alone
	body := `{"history":["i1","i2","i3"],"n":3}`
	for _, v := range versions {
		w.svc.loaded.Store(models[v])
		_, a, _ := ask(t, h, body)
		want[v] = fmt.Sprint(a.Items)
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	var asked, swapped atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				code, a, reply := ask(t, h, body)
				if code != 200 || fmt.Sprint(a.Items) != want[a.CheckpointVersion] {
					t.Errorf("%d of %s: %s, want %s", code, a.CheckpointVersion, reply, want[a.CheckpointVersion])
					return
				}
				asked.Add(1)
			}
		})
	}
	for i := range swaps {
		ref := models[versions[i%len(versions)]].ref
		w.svc.announced(ctx, publisher.ChannelCandidate, ref)
		if l := w.svc.loaded.Load(); l.ref.Version == ref.Version {
			swapped.Add(1)
		}
	}
	cancel()
	wg.Wait()
	if int(swapped.Load()) != swaps || asked.Load() < int64(swaps)/10 {
		t.Errorf("%d of %d swaps, %d requests", swapped.Load(), swaps, asked.Load())
	}
	if after := heap(); after > before+before/2+(8<<20) {
		t.Errorf("heap of %d bytes before, %d after", before, after)
	}
}

// TestAdmission: as many at the same time as there are slots, a few who wait, and the others turned away at
// once, told when to come back.
func TestAdmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAdmission(2, time.Second)
		search := func() error {
			done, err := a.admit(t.Context(), newcomer)
			if err != nil {
				return err
			}
			time.Sleep(100 * time.Millisecond)
			done()
			return nil
		}
		for range 3 {
			if err := search(); err != nil {
				t.Fatal(err)
			}
		}
		// 2 slots of 10 searches a second, newcomers wait at most three quarters of one: 15 or 16 may wait beside those that search.
		var served, refused atomic.Int64
		var worst atomic.Int64
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				begun := time.Now()
				err := search()
				took := time.Since(begun)
				if err != nil {
					refused.Add(1)
					p := new(problem)
					if !errors.As(err, &p) || p.Status != 503 || p.retryAfter < 1 || took > 2*time.Second {
						t.Errorf("%v after %v", err, took)
					}
					return
				}
				served.Add(1)
				for w := worst.Load(); int64(took) > w && !worst.CompareAndSwap(w, int64(took)); w = worst.Load() {
				}
			})
		}
		wg.Wait()
		if served.Load() < 17 || served.Load() > 19 || served.Load()+refused.Load() != 200 {
			t.Errorf("%d served, %d refused", served.Load(), refused.Load())
		}
		if time.Duration(worst.Load()) > 1000*time.Millisecond {
			t.Errorf("the last one served waited %v", time.Duration(worst.Load()))
		}
		// Nothing is held afterwards.
		if err := search(); err != nil || a.waiting != 0 || len(a.slots) != 0 {
			t.Errorf("afterwards: %v, %d wait, %d search", err, a.waiting, len(a.slots))
		}
		// Who gives up leaves no trace.
		block, err := a.admit(t.Context(), newcomer)
		if err != nil {
			t.Fatal(err)
		}
		other, err := a.admit(t.Context(), newcomer)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := a.admit(ctx, newcomer); err == nil || a.waiting != 0 {
			t.Errorf("gave up: %v, %d wait", err, a.waiting)
		}
		block()
		other()
	})
}

// TestReturningUsersFirst: where newcomers find no place any more, those of whom something is kept do, and now and then
// a newcomer; nobody's wait is longer for it.
func TestReturningUsersFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAdmission(1, time.Second)
		var wg sync.WaitGroup
		ask := func(who visitor) bool {
			asked := make(chan error, 1)
			wg.Go(func() {
				done, err := a.admit(t.Context(), who)
				asked <- err
				if err == nil {
					time.Sleep(100 * time.Millisecond)
					done()
				}
			})
			synctest.Wait()
			select {
			case err := <-asked:
				return err == nil
			default: // it waits
				return true
			}
		}
		most := func(who visitor) (n int) {
			for ask(who) {
				n++
			}
			return n
		}
		ask(newcomer) // alone, to tell how long a search takes
		wg.Wait()
		if n := most(newcomer); n != 1+8 { // one searches, the last one waits for seven before it
			t.Errorf("%d newcomers have a place", n)
		}
		for range everyFew {
			if ask(newcomer) || !ask(returning) {
				t.Error("a newcomer has a place that is for others, or one who returns has none")
			}
		}
		if ask(returning) || ask(newcomer) {
			t.Error("more wait than can be answered in time")
		}
		wg.Wait()
		if n := most(returning); n != 1+11 {
			t.Errorf("%d who return have a place", n)
		}
		time.Sleep(101 * time.Millisecond)
		if !ask(newcomer) || ask(newcomer) || ask(returning) {
			t.Error("after many who returned one newcomer should have the place that is free")
		}
		wg.Wait()
		if len(a.slots) != 0 || a.waiting != 0 {
			t.Errorf("in the end %d search, %d wait", len(a.slots), a.waiting)
		}
	})
}

// TestReady: not before the histories are read, not without a model, not with an old one, unless somebody holds it.
func TestReady(t *testing.T) {
	w := startWith(t, func(s *Service) { s.MaxModelAge = time.Hour })
	if err := w.svc.Ready(); err == nil || !strings.Contains(err.Error(), "no model") {
		t.Errorf("without a model: %v", err)
	}
	w.publish(t, publisher.ChannelReleased, 1)
	eventually(t, "ready", func() bool { return w.svc.Ready() == nil })
	old := *w.svc.loaded.Load()
	manifest := *old.manifest
	manifest.CreatedAt = time.Now().Add(-2 * time.Hour)
	old.manifest = &manifest
	w.svc.loaded.Store(&old)
	if err := w.svc.Ready(); err == nil || !strings.Contains(err.Error(), "older") {
		t.Errorf("with an old model: %v", err)
	}
	for _, why := range []string{"likes fell", ""} {
		if _, err := publisher.Hold(t.Context(), w.cluster, "m", why); err != nil {
			t.Fatal(err)
		}
		eventually(t, "what is held is ready, else not", func() bool { return (w.svc.Ready() == nil) == (why != "") })
		rec := httptest.NewRecorder()
		w.svc.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/v1/models", nil))
		var told struct {
			Held string `json:"releases_held"`
		}
		if err := json.Unmarshal(rec.Body.Bytes(), &told); err != nil || told.Held != why {
			t.Errorf("releases are held because %q, and said is %q, %v", why, told.Held, err)
		}
	}
	if now := w.svc.loaded.Load(); now != &old {
		t.Error("the same version was loaded again")
	}
}

// TestTokens: nobody without a token, health excepted.
func TestTokens(t *testing.T) {
	s := service()
	s.Open()
	file := filepath.Join(t.TempDir(), "tokens")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for text, want := range map[string]string{"": "none", "# only a comment\n": "none", "short\n": "line 1", "# a\nlong enough to be one\nshort": "line 3"} {
		write(text)
		if _, err := (Auth{TokenFile: file}).Protect(s.Handler()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("tokens %q: %v", text, err)
		}
	}
	write("# the app's\n0123456789abcdef\n\nfedcba9876543210\n")
	h, err := Auth{TokenFile: file}.Protect(s.Handler())
	if err != nil {
		t.Fatal(err)
	}
	for header, want := range map[string]int{
		"": 401, "Bearer": 401, "Bearer ": 401, "Bearer 0123456789abcde": 401, "Bearer # the app's": 401, "Basic 0123456789abcdef": 401, "0123456789abcdef": 401,
		"Bearer 0123456789abcdef": 200, "Bearer fedcba9876543210": 200,
	} {
		r := httptest.NewRequest(http.MethodGet, "/v1/models", nil)
		r.Header.Set("Authorization", header)
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		if rec.Code != want || want == 401 && rec.Header().Get("WWW-Authenticate") == "" {
			t.Errorf("authorization %q: %d, want %d", header, rec.Code, want)
		}
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/healthz", nil))
	if rec.Code != 200 {
		t.Errorf("health without a token: %d", rec.Code)
	}
}

// TestWhereToListen: unprotected on loopback only.
func TestWhereToListen(t *testing.T) {
	tokens, mutual := Auth{TokenFile: "f"}, Auth{Certificates: access.Certificates{CertFile: "c", KeyFile: "k", ClientCA: "a"}}
	for _, tt := range []struct {
		auth    Auth
		address string
		ok      bool
	}{
		{Auth{}, "127.0.0.1:8080", true}, {Auth{}, "[::1]:8080", true}, {Auth{}, "localhost:8080", true},
		{Auth{}, ":8080", false}, {Auth{}, "0.0.0.0:8080", false}, {Auth{}, "10.0.0.1:8080", false}, {Auth{}, "example.org:8080", false}, {Auth{}, "8080", false},
		{tokens, ":8080", true}, {mutual, ":8080", true},
		{Auth{Certificates: access.Certificates{CertFile: "c", KeyFile: "k"}}, ":8080", false}, // TLS alone lets anyone in
		{Auth{Certificates: access.Certificates{CertFile: "c"}}, "127.0.0.1:8080", false}, {Auth{Certificates: access.Certificates{ClientCA: "a"}}, "127.0.0.1:8080", false},
	} {
		if err := tt.auth.Check(tt.address); (err == nil) != tt.ok {
			t.Errorf("%+v on %s: %v", tt.auth, tt.address, err)
		}
	}
}

// TestMutualTLS: a client without a certificate of the CA gets no connection.
func TestMutualTLS(t *testing.T) {
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	certificate := func(name string) (cert, key string, pair tls.Certificate) {
		t.Helper()
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		cert, key = write(name+".pem", "CERTIFICATE", der), write(name+".key", "PRIVATE KEY", private)
		if pair, err = tls.LoadX509KeyPair(cert, key); err != nil {
			t.Fatal(err)
		}
		return cert, key, pair
	}
	cert, key, _ := certificate("server")
	ca, _, client := certificate("client")
	_, _, stranger := certificate("stranger")
	c, err := Auth{Certificates: access.Certificates{CertFile: cert, KeyFile: key, ClientCA: ca}}.TLS()
	if err != nil {
		t.Fatal(err)
	}
	s := service()
	s.Open()
	server := httptest.NewUnstartedServer(s.Handler())
	server.TLS, server.Config.ErrorLog = c, nil
	server.StartTLS()
	defer server.Close()
	roots := x509.NewCertPool()
	data, err := os.ReadFile(cert)
	if err != nil || !roots.AppendCertsFromPEM(data) {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		with []tls.Certificate
		ok   bool
	}{"its own": {[]tls.Certificate{client}, true}, "none": {nil, false}, "a stranger's": {[]tls.Certificate{stranger}, false}} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: tt.with, MinVersion: tls.VersionTLS12}}}
		resp, err := client.Get(server.URL + "/healthz")
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		if (err == nil) != tt.ok {
			t.Errorf("with %s certificate: %v", name, err)
		}
		client.CloseIdleConnections()
	}
	if _, err := (Auth{Certificates: access.Certificates{CertFile: cert, KeyFile: key, ClientCA: key}}).TLS(); err == nil {
		t.Error("a key is no CA")
	}
}

// TestHostileRequests: large, slow, deep and broken ones get the right status or no answer, and hold nothing.
func TestHostileRequests(t *testing.T) {
	w := start(t)
	w.publish(t, publisher.ChannelReleased, 1)
	eventually(t, "ready", func() bool { return w.svc.Ready() == nil })
	server := httptest.NewUnstartedServer(w.svc.Handler())
	server.Config.ReadHeaderTimeout, server.Config.ReadTimeout = 200*time.Millisecond, 400*time.Millisecond
	server.Start()
	defer server.Close()
	client := &http.Client{Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	post := func(body io.Reader) (int, error) {
		resp, err := client.Post(server.URL+"/v1/recommendations", "application/json", body)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, err
	}
	for name, tt := range map[string]struct {
		body string
		want int
	}{
		"10 MiB":          {`{"user_id":"` + strings.Repeat("x", 10<<20) + `"}`, 413},
		"deep":            {strings.Repeat(`{"history":[`, 5000), 400},
		"deep, 10 MiB":    {strings.Repeat("[", 10<<20), 400}, // too deep before too long
		"control bytes":   {"\x00\x01\x02", 400},
		"broken UTF-8":    {"{\"user_id\":\"\xff\xfe\",\"n\":1}", 200}, // a user that nobody knows
		"a history of 1k": {`{"history":[` + strings.Repeat(`"i1",`, 999) + `"i1"],"n":1}`, 200},
		"one more":        {`{"history":[` + strings.Repeat(`"i1",`, 1000) + `"i1"],"n":1}`, 400},
	} {
		// A server that stops reading may hang up before the client has read its answer.
		if code, err := post(strings.NewReader(tt.body)); code != tt.want && (err == nil || len(tt.body) < 1<<20) {
			t.Errorf("%s: %d, %v; want %d", name, code, err, tt.want)
		}
	}
	goroutines := runtime.NumGoroutine()
	var conns []net.Conn
	for range 50 { // slowloris: headers that never end
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("POST /v1/recommendations HTTP/1.1\r\nHost: x\r\nX-A: ")); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	slow, writer := io.Pipe() // a body that never ends
	defer writer.Close()
	go func() { _, _ = writer.Write([]byte(`{"user_id":"u`)) }()
	if code, err := post(slow); err == nil && code != http.StatusRequestTimeout {
		t.Errorf("a body that never ends: %d", code)
	}
	if code, err := post(bytes.NewReader([]byte(`{"user_id":"u","n":2}`))); code != 200 {
		t.Errorf("a good request among them: %d, %v", code, err)
	}
	for _, conn := range conns {
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, conn); err != nil { // until the server hangs up
			t.Errorf("a connection without a request is held: %v", err)
		}
	}
	eventually(t, "nothing is held", func() bool { return runtime.NumGoroutine() <= goroutines+5 })
}
