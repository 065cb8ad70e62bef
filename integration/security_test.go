package integration

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"onerec/internal/kafkatest"
	"onerec/schemas"
)

const admin = "admin"

// secure is a cluster that speaks SASL/SCRAM over TLS only and allows nothing that no
// ACL allows.
type secure struct {
	*cluster
	adm *kadm.Client
	dir string // certificates and passwords
}

func startSecure(t *testing.T) *secure {
	t.Helper()
	dir := t.TempDir()
	ca, keystore := certificates(t)
	write(t, filepath.Join(dir, "ca.pem"), ca)
	write(t, filepath.Join(dir, admin), []byte(password(admin)))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	jaas := fmt.Sprintf(`org.apache.kafka.common.security.scram.ScramLoginModule required username="%s" password="%s";`, admin, password(admin))
	c := startWith(t, 1, setup{
		properties: []string{
			"listener.security.protocol.map=INSIDE:SASL_SSL,OUTSIDE:SASL_SSL,CONTROLLER:PLAINTEXT",
			"sasl.enabled.mechanisms=SCRAM-SHA-512",
			"sasl.mechanism.inter.broker.protocol=SCRAM-SHA-512",
			"listener.name.inside.scram-sha-512.sasl.jaas.config=" + jaas,
			"listener.name.outside.scram-sha-512.sasl.jaas.config=" + jaas,
			"ssl.keystore.type=PEM", "ssl.keystore.location=/tmp/keystore.pem",
			"ssl.truststore.type=PEM", "ssl.truststore.location=/tmp/ca.pem",
			"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
			"super.users=User:" + admin + ";User:ANONYMOUS", // the controller's own listener has no users
		},
		files: []testcontainers.ContainerFile{
			{Reader: bytes.NewReader(ca), ContainerFilePath: "/tmp/ca.pem", FileMode: 0o644},
			{Reader: bytes.NewReader(keystore), ContainerFilePath: "/tmp/keystore.pem", FileMode: 0o644},
		},
		format: fmt.Sprintf("--add-scram 'SCRAM-SHA-512=[name=%s,password=%s]'", admin, password(admin)),
		client: []kgo.Opt{
			kgo.DialTLSConfig(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}),
			kgo.SASL(scram.Auth{User: admin, Pass: password(admin)}.AsSha512Mechanism()),
		},
		tool: signIn(dir, admin), mount: dir,
	})
	s := &secure{c, kadm.NewClient(c.client()), dir}
	for _, user := range schemas.Services() {
		write(t, filepath.Join(dir, user), []byte(password(user)))
		if _, err := s.adm.AlterUserSCRAMs(t.Context(), nil, []kadm.UpsertSCRAM{{User: user, Mechanism: kadm.ScramSha512, Iterations: 4096, Password: password(user)}}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func password(user string) string { return user + "-secret" }

// signIn returns the settings with which a service signs in.
func signIn(dir, user string) []string {
	return []string{"--tls", "--tls-ca", filepath.Join(dir, "ca.pem"), "--sasl", "scram-sha-512", "--sasl-user", user, "--sasl-password-file", filepath.Join(dir, user)}
}

// acl returns the ACL of a right.
func acl(r schemas.Right, op kmsg.ACLOperation) *kadm.ACLBuilder {
	b := kadm.NewACLs().Allow("User:" + r.Service).AllowHosts("*").Operations(op)
	switch r.Resource {
	case schemas.ResourceTopic:
		return b.Topics(r.Name).ResourcePatternType(kadm.ACLPatternLiteral)
	case schemas.ResourceGroup:
		return b.Groups(r.Name).ResourcePatternType(kadm.ACLPatternLiteral)
	default:
		return b.TransactionalIDs(r.Name).ResourcePatternType(kadm.ACLPatternPrefixed)
	}
}

func operation(t *testing.T, name string) kmsg.ACLOperation {
	t.Helper()
	op, err := kmsg.ParseACLOperation(name)
	if err != nil {
		t.Fatal(err)
	}
	return op
}

func (s *secure) allow(r schemas.Right, operations ...string) {
	s.t.Helper()
	for _, name := range operations {
		results, err := s.adm.CreateACLs(s.t.Context(), acl(r, operation(s.t, name)))
		if err == nil {
			err = results[0].Err
		}
		if err != nil {
			s.t.Fatalf("allow %+v: %v", r, err)
		}
	}
}

func (s *secure) forbid(r schemas.Right, name string) {
	s.t.Helper()
	results, err := s.adm.DeleteACLs(s.t.Context(), acl(r, operation(s.t, name)))
	if err == nil {
		err = results[0].Err
	}
	if err != nil || len(results[0].Deleted) != 1 {
		s.t.Fatalf("forbid %s of %+v: %v, %d deleted", name, r, err, len(results[0].Deleted))
	}
}

// TestSecurity: over SASL/SCRAM and TLS, each service does its work with exactly the
// rights of schemas.Rights, and without one of them it ends with an error that names
// what it may not do.
func TestSecurity(t *testing.T) {
	s := startSecure(t)
	s.tool("topics", "create", "--partitions", "4")
	for _, r := range schemas.Rights() {
		s.allow(r, r.Operations...)
	}
	f := newFlowOn(s.cluster, 9, 4000, func(name string) []string { return signIn(s.dir, name) })
	f.check()
	checkpoints := []string{"--checkpoints", filepath.Join(s.mount, "checkpoints")}
	with := func(name string, more ...string) []string {
		return append(append([]string{name}, append(checkpoints, more...)...), signIn(s.dir, name)...)
	}
	train := s.service(with("train", "--bootstrap-sessions", "50", "--publish-every", "1s", "--train-history", "8", "--batch-tokens", "1024")...)
	serve := s.service(with("serve")...)
	reward := s.service(with("reward", "--reward-every", "1s", "--align-users", "10", "--candidates", "4", "--candidate-items", "3", "--reward-epochs", "1", "--batch-tokens", "1024")...)
	eventually(t, "a version is announced", func() error {
		n := 0
		f.read(schemas.TopicCheckpoints, func([]byte) error { n++; return nil })
		if n == 0 {
			return fmt.Errorf("none yet")
		}
		return nil
	})
	for _, p := range []*service{train, serve, reward, f.stages[ingest], f.stages[sessions], f.stages[filter], f.stages[snapshot]} {
		p.stop()
	}

	// One right less. There is input for every stage again: the groups start over.
	f.startOver()
	for _, r := range schemas.Rights() {
		for _, op := range r.Operations {
			if !needed(r, op) {
				continue
			}
			t.Run(fmt.Sprintf("%s without %s of %s %s", r.Service, op, r.Resource, r.Name), func(t *testing.T) {
				s.forbid(r, op)
				defer s.allow(r, op)
				out := s.fails(t, r.Service)
				if !strings.Contains(strings.ToLower(out), "authori") {
					t.Errorf("the error does not say what is not allowed:\n%s", out)
				}
			})
		}
	}
}

// needed reports whether a service meets a right's absence at once: it writes to its
// side outputs (dead letters, late views) and the rest of training only when there is
// something to write.
func needed(r schemas.Right, op string) bool {
	switch {
	case op == "DESCRIBE":
		return false // implied by the others; alone it is for the look at the start
	case r.Service == "train" || r.Service == "reward":
		return r.Resource == schemas.ResourceGroup
	case op == "WRITE" && slices.Contains([]string{schemas.TopicDeadLetters, schemas.TopicLateViews, schemas.TopicGoodSessions, schemas.TopicSessions}, r.Name):
		return false // the sessionizer's state knows that the sessions were written
	}
	return true
}

// fails runs a service on this machine until it ends, as it must, with an error, and
// returns what it said.
func (s *secure) fails(t *testing.T, name string) string {
	t.Helper()
	args := []string{name, "--brokers", s.outside, "--http", "", "--log-format", "text"}
	switch name {
	case "ingest", "sessionize", "filter":
		args = append(args, "--instance", "forbidden")
	case "snapshot":
		args = append(args, "--snapshots", t.TempDir())
	default:
		args = append(args, "--checkpoints", t.TempDir())
	}
	if name == "serve" {
		args = append(args, "--listen", kafkatest.FreeAddress(t))
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience/4)
	defer cancel()
	out, err := command(ctx, t, append(args, signIn(s.dir, name)...)...).CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("%s did not end:\n%s", name, out)
	}
	if err == nil {
		t.Fatalf("%s ended without an error:\n%s", name, out)
	}
	return string(out)
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// certificates makes a CA and a broker's key and certificate, as PEM.
func certificates(t *testing.T) (ca, keystore []byte) {
	t.Helper()
	template := func(serial int64, name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	caCert := template(1, "onerec integration")
	caCert.IsCA, caCert.BasicConstraintsValid, caCert.KeyUsage = true, true, x509.KeyUsageCertSign
	caDER, err := x509.CreateCertificate(rand.Reader, caCert, caCert, &caKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := template(2, "kafka-1")
	cert.DNSNames, cert.IPAddresses = []string{"kafka-1", "localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	cert.KeyUsage, cert.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	certDER, err := x509.CreateCertificate(rand.Reader, cert, caCert, &key.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	keystore = append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certDER})...)
	return ca, append(keystore, ca...)
}
