// Package access decides who may ask a service over HTTP: bearer tokens, certificates, and what
// goes without either on loopback.
package access

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

// MinToken is the least length of a token in bytes.
const MinToken = 16

// Tokens are bearer tokens, as hashes. No token is one of nil.
type Tokens [][sha256.Size]byte

// ReadTokens reads a file of tokens, one a line; lines that begin with # are comments. Without a file
// there are none.
func ReadTokens(file string) (Tokens, error) {
	if file == "" {
		return nil, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	var tokens Tokens
	lines := bufio.NewScanner(bytes.NewReader(data))
	for number := 1; lines.Scan(); number++ {
		token := strings.TrimSpace(lines.Text())
		if token == "" || strings.HasPrefix(token, "#") {
			continue
		}
		if len(token) < MinToken {
			return nil, fmt.Errorf("tokens: line %d of %s has %d bytes, a token needs %d or more", number, file, len(token), MinToken)
		}
		tokens = append(tokens, sha256.Sum256([]byte(token)))
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("tokens: %s: %w", file, err)
	}
	if len(tokens) == 0 {
		return nil, fmt.Errorf("tokens: %s holds none", file)
	}
	return tokens, nil
}

// Has reports whether a token is one of them. The time that it takes tells nothing of which.
func (t Tokens) Has(token string) bool {
	hash, good := sha256.Sum256([]byte(token)), 0
	for _, want := range t {
		good |= subtle.ConstantTimeCompare(hash[:], want[:])
	}
	return good != 0
}

// Bearer returns the token that a request carries.
func Bearer(r *http.Request) (token string, ok bool) {
	return strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
}

// Certificates are a server's, in PEM.
type Certificates struct {
	CertFile, KeyFile string // the server's certificate and key: TLS; empty: none
	ClientCA          string // CA certificates: clients must have a certificate from one of them
}

// Check says whether the files that are named belong together.
func (c Certificates) Check() error {
	switch {
	case (c.CertFile == "") != (c.KeyFile == ""):
		return errors.New("a certificate needs its key and the key its certificate")
	case c.ClientCA != "" && c.CertFile == "":
		return errors.New("client certificates need TLS: a certificate and a key of the server")
	}
	return nil
}

// TLS returns the server's TLS configuration; nil: none.
func (c Certificates) TLS() (*tls.Config, error) {
	if c.CertFile == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("the server's certificate: %w", err)
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}}
	if c.ClientCA != "" {
		pem, err := os.ReadFile(c.ClientCA)
		if err != nil {
			return nil, fmt.Errorf("the clients' CA: %w", err)
		}
		out.ClientCAs, out.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if !out.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("the clients' CA: %s holds no certificate in PEM", c.ClientCA)
		}
	}
	return out, nil
}

// Loopback reports whether a host, with a port or without, is this machine: localhost or a loopback
// address. Other names are not, wherever they resolve to.
func Loopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
