package app

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestSecurity: every mechanism signs in to a broker that wants it, over TLS that it
// wants a certificate for; a wrong password or no certificate doesn't get in.
func TestSecurity(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// One certificate is its own authority, the broker's and the client's.
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "onerec"}, NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	broker, err := kfake.NewCluster(kfake.NumBrokers(1),
		kfake.EnableSASL(), kfake.Superuser("PLAIN", "u", "secret"), kfake.Superuser("SCRAM-SHA-256", "u", "secret"), kfake.Superuser("SCRAM-SHA-512", "u", "secret"),
		kfake.TLS(&tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}))
	if err != nil {
		t.Fatal(err)
	}
	defer broker.Close()
	good := Security{TLS: true, CAFile: write("ca.pem", certPEM), CertFile: write("cert.pem", certPEM), KeyFile: write("key.pem", keyPEM), SASL: scram512, User: "u", PasswordFile: write("password", []byte("secret\n"))}
	ping := func(s Security) error {
		opts, err := s.options()
		if err != nil {
			t.Fatal(err)
		}
		cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(broker.ListenAddrs()...), kgo.RequestRetries(0))...)
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		return cl.Ping(ctx)
	}
	change := func(fn func(*Security)) Security {
		s := good
		fn(&s)
		return s
	}
	for _, mechanism := range []string{saslPlain, scram256, scram512} {
		if err := ping(change(func(s *Security) { s.SASL = mechanism })); err != nil {
			t.Errorf("%s: %v", mechanism, err)
		}
		wrong := write("wrong", []byte("not it"))
		if err := ping(change(func(s *Security) { s.SASL, s.PasswordFile = mechanism, wrong })); err == nil {
			t.Errorf("%s: a wrong password got in", mechanism)
		}
	}
	if err := ping(change(func(s *Security) { s.CertFile, s.KeyFile = "", "" })); err == nil {
		t.Error("got in without a certificate")
	}
	empty := write("empty", nil)
	for want, s := range map[string]Security{
		"--tls-ca, --tls-cert and --tls-key need --tls": change(func(s *Security) { s.TLS = false }),
		"belong together":          change(func(s *Security) { s.KeyFile = "" }),
		"no certificate in PEM":    change(func(s *Security) { s.CAFile = empty }),
		"read the certificates":    change(func(s *Security) { s.CAFile = "missing" }),
		"the client's certificate": change(func(s *Security) { s.CertFile = empty }),
		"need --sasl":              change(func(s *Security) { s.SASL = saslNone }),
		"needs --sasl-user":        change(func(s *Security) { s.User = "" }),
		"holds no password":        change(func(s *Security) { s.PasswordFile = empty }),
		"read the password":        change(func(s *Security) { s.PasswordFile = "missing" }),
		"it needs --tls":           {SASL: saslPlain, User: "u", PasswordFile: good.PasswordFile},
	} {
		if _, err := s.options(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
	if opts, err := (Security{SASL: saslNone}).options(); err != nil || len(opts) != 0 {
		t.Errorf("no security: %d options, %v", len(opts), err)
	}
}
