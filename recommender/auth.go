package recommender

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
)

// Auth says who may ask. Without tokens and without a client CA anyone may; that is for loopback.
type Auth struct {
	TokenFile string // bearer tokens, one a line; lines that begin with # are comments
	CertFile  string // the server's certificate and key in PEM: TLS
	KeyFile   string
	ClientCA  string // CA certificates in PEM: clients must have a certificate from one of them
}

// minToken is the least length of a token in bytes.
const minToken = 16

// Check says whether the API may listen at an address as it is protected.
func (a Auth) Check(address string) error {
	switch {
	case (a.CertFile == "") != (a.KeyFile == ""):
		return errors.New("a certificate needs its key and the key its certificate: set --listen-tls-cert and --listen-tls-key")
	case a.ClientCA != "" && a.CertFile == "":
		return errors.New("client certificates need TLS: set --listen-tls-cert and --listen-tls-key, too")
	case a.TokenFile != "" || a.ClientCA != "":
		return nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("address %q: %w", address, err)
	}
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("anyone who reaches %q could ask: set --listen-tokens or --listen-client-ca, or listen on 127.0.0.1", address)
}

// TLS returns the server's TLS configuration; nil: none.
func (a Auth) TLS() (*tls.Config, error) {
	if a.CertFile == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(a.CertFile, a.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("the API's certificate: %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}}
	if a.ClientCA != "" {
		pem, err := os.ReadFile(a.ClientCA)
		if err != nil {
			return nil, fmt.Errorf("the clients' CA: %w", err)
		}
		c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if !c.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("the clients' CA: %s holds no certificate in PEM", a.ClientCA)
		}
	}
	return c, nil
}

// Protect lets through to h who has a token. Health and readiness are for everybody.
func (a Auth) Protect(h http.Handler) (http.Handler, error) {
	if a.TokenFile == "" {
		return h, nil
	}
	data, err := os.ReadFile(a.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("the API's tokens: %w", err)
	}
	var hashes [][sha256.Size]byte
	for line, number := bufio.NewScanner(bytes.NewReader(data)), 1; line.Scan(); number++ {
		token := strings.TrimSpace(line.Text())
		if token == "" || strings.HasPrefix(token, "#") {
			continue
		}
		if len(token) < minToken {
			return nil, fmt.Errorf("the API's tokens: line %d of %s has %d bytes, a token needs %d or more", number, a.TokenFile, len(token), minToken)
		}
		hashes = append(hashes, sha256.Sum256([]byte(token)))
	}
	if len(hashes) == 0 {
		return nil, fmt.Errorf("the API's tokens: %s holds none", a.TokenFile)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" || r.URL.Path == "/readyz" {
			h.ServeHTTP(w, r)
			return
		}
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		hash, good := sha256.Sum256([]byte(token)), 0
		for _, want := range hashes { // all of them, so that time tells nothing
			good |= subtle.ConstantTimeCompare(hash[:], want[:])
		}
		if !ok || good == 0 {
			w.Header().Set("WWW-Authenticate", `Bearer realm="onerec"`)
			refuse(w, &problem{Title: "Unauthorized", Status: http.StatusUnauthorized, Detail: "a bearer token is needed, and the one that was sent, if any, is not known"})
			return
		}
		h.ServeHTTP(w, r)
	}), nil
}
