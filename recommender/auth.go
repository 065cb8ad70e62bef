package recommender

import (
	"fmt"
	"net/http"

	"onerec/internal/access"
)

// Auth says who may ask. Without tokens and without a client CA anyone may; that is for loopback.
type Auth struct {
	TokenFile string // bearer tokens, one a line; lines that begin with # are comments
	access.Certificates
}

// Check says whether the API may listen at an address as it is protected.
func (a Auth) Check(address string) error {
	if err := a.Certificates.Check(); err != nil {
		return fmt.Errorf("%w: set --listen-tls-cert and --listen-tls-key", err)
	}
	if a.TokenFile != "" || a.ClientCA != "" || access.Loopback(address) {
		return nil
	}
	return fmt.Errorf("anyone who reaches %q could ask: set --listen-tokens or --listen-client-ca, or listen on 127.0.0.1", address)
}

// Protect lets through to h who has a token. Health and readiness are for everybody.
func (a Auth) Protect(h http.Handler) (http.Handler, error) {
	tokens, err := access.ReadTokens(a.TokenFile)
	if err != nil || tokens == nil {
		return h, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" || r.URL.Path == "/readyz" {
			h.ServeHTTP(w, r)
			return
		}
		if token, ok := access.Bearer(r); !ok || !tokens.Has(token) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="onerec"`)
			refuse(w, &problem{Title: "Unauthorized", Status: http.StatusUnauthorized, Detail: "a bearer token is needed, and the one that was sent, if any, is not known"})
			return
		}
		h.ServeHTTP(w, r)
	}), nil
}
