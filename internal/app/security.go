package app

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// Mechanisms of SASL.
const (
	saslNone  = "none"
	saslPlain = "plain"
	scram256  = "scram-sha-256"
	scram512  = "scram-sha-512"
)

// Security says how to reach brokers that ask who one is.
type Security struct {
	TLS               bool
	CAFile            string
	CertFile, KeyFile string
	SASL              string
	User              string
	PasswordFile      string
}

// options returns the client's options, or what is wrong with the settings.
func (s Security) options() ([]kgo.Opt, error) {
	var opts []kgo.Opt
	if s.TLS {
		cfg, err := s.tlsConfig()
		if err != nil {
			return nil, err
		}
		opts = append(opts, kgo.DialTLSConfig(cfg), kgo.DialTimeout(10*time.Second))
	} else if s.CAFile != "" || s.CertFile != "" || s.KeyFile != "" {
		return nil, errors.New("--tls-ca, --tls-cert and --tls-key need --tls")
	}
	if s.SASL == saslNone {
		if s.User != "" || s.PasswordFile != "" {
			return nil, errors.New("--sasl-user and --sasl-password-file need --sasl, e.g. --sasl scram-sha-512")
		}
		return opts, nil
	}
	if s.User == "" || s.PasswordFile == "" {
		return nil, fmt.Errorf("--sasl %s needs --sasl-user and --sasl-password-file", s.SASL)
	}
	text, err := os.ReadFile(s.PasswordFile)
	if err != nil {
		return nil, fmt.Errorf("read the password of %q: %w", s.User, err)
	}
	password := strings.TrimRight(string(text), "\r\n")
	if password == "" {
		return nil, fmt.Errorf("%s holds no password", s.PasswordFile)
	}
	auth := scram.Auth{User: s.User, Pass: password}
	switch s.SASL {
	case scram256:
		opts = append(opts, kgo.SASL(auth.AsSha256Mechanism()))
	case scram512:
		opts = append(opts, kgo.SASL(auth.AsSha512Mechanism()))
	case saslPlain:
		if !s.TLS {
			return nil, errors.New("--sasl plain sends the password as it is; it needs --tls")
		}
		opts = append(opts, kgo.SASL(plain.Auth{User: s.User, Pass: password}.AsMechanism()))
	}
	return opts, nil
}

func (s Security) tlsConfig() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the certificates of --tls-ca: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", s.CAFile)
		}
	}
	if (s.CertFile == "") != (s.KeyFile == "") {
		return nil, errors.New("--tls-cert and --tls-key belong together")
	}
	if s.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("the client's certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg, nil
}
