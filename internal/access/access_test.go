package access

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTokens(t *testing.T) {
	write := func(text string) string {
		file := filepath.Join(t.TempDir(), "tokens")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	tokens, err := ReadTokens(write("# of the dashboards\n0123456789abcdef\n\n  fedcba9876543210  \n"))
	if err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]bool{"0123456789abcdef": true, "fedcba9876543210": true, "": false, "0123456789abcdeg": false, "# of the dashboards": false} {
		if tokens.Has(token) != want || Tokens(nil).Has(token) {
			t.Errorf("token %q: %v", token, !want)
		}
	}
	for text, want := range map[string]string{"": "holds none", "# none\n": "holds none", "0123456789abcdef\nshort\n": "line 2", strings.Repeat("x", 1<<17): "too long"} {
		if _, err := ReadTokens(write(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
	if tokens, err := ReadTokens(""); tokens != nil || err != nil {
		t.Error(tokens, err)
	}
	r, _ := http.NewRequest(http.MethodGet, "/", nil)
	if _, ok := Bearer(r); ok {
		t.Error("a token where there is none")
	}
	r.Header.Set("Authorization", "Bearer x")
	if token, ok := Bearer(r); !ok || token != "x" {
		t.Error(token, ok)
	}
}

func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1:80": true, "localhost": true, "localhost:1": true, "[::1]:80": true, "[::1]": true, "127.8.8.8": true,
		":80": false, "0.0.0.0:80": false, "10.0.0.1:80": false, "localhost.evil.example:80": false, "127.0.0.1.evil.example": false, "": false, "[::]:80": false,
	} {
		if Loopback(host) != want {
			t.Errorf("%q: %v", host, !want)
		}
	}
}
