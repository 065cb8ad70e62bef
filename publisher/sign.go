package publisher

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
)

// ErrUntrusted says that a version is not signed by a key that is trusted.
var ErrUntrusted = errors.New("checkpoint is not signed by a trusted key")

// signature is the file beside a manifest.
type signature struct {
	Key       string `json:"key"` // see KeyID
	Signature []byte `json:"signature"`
}

// KeyID is a short name of a key: 16 hex digits of its hash.
func KeyID(k ed25519.PublicKey) string {
	sum := sha256.Sum256(k)
	return hex.EncodeToString(sum[:8])
}

func sign(key ed25519.PrivateKey, manifest []byte) []byte {
	text, err := json.Marshal(signature{KeyID(key.Public().(ed25519.PublicKey)), ed25519.Sign(key, manifest)})
	if err != nil {
		panic(err) // strings and bytes
	}
	return text
}

// trusted checks a manifest's signature, if the store trusts keys.
func (s *Store) trusted(ctx context.Context, version string, manifest []byte) error {
	if len(s.Trust) == 0 {
		return nil
	}
	const most = 4 << 10
	text, err := s.read(ctx, version, fmt.Sprintf(fileSignature, hashOf(manifest)), most)
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%w: %s in %s is not signed at all", ErrUntrusted, version, s.bucket.URL)
	}
	if err != nil {
		return err
	}
	var sig signature
	if err := json.Unmarshal(text, &sig); err != nil {
		return fmt.Errorf("%w: the signature of %s in %s: %w", ErrUntrusted, version, s.bucket.URL, err)
	}
	for _, k := range s.Trust {
		if KeyID(k) == sig.Key && ed25519.Verify(k, manifest, sig.Signature) {
			return nil
		}
	}
	return fmt.Errorf("%w: %s in %s says that key %q signed it", ErrUntrusted, version, s.bucket.URL, sig.Key)
}

// NewKey makes a pair of keys as PEM: the private one is PKCS #8, the public one PKIX.
func NewKey() (private, public []byte, err error) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	p, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	q, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p}), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: q}), nil
}

// ReadPrivateKey reads a private ed25519 key, PKCS #8 in PEM, as NewKey and OpenSSL make them.
func ReadPrivateKey(file string) (ed25519.PrivateKey, error) {
	block, err := readPEM(file)
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s is no private key in PKCS #8: %w", file, err)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds a %T, want an ed25519 key; \"onerec checkpoints keygen\" makes one", file, k)
	}
	return key, nil
}

// ReadPublicKey reads a public ed25519 key, PKIX in PEM.
func ReadPublicKey(file string) (ed25519.PublicKey, error) {
	block, err := readPEM(file)
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s is no public key in PKIX: %w", file, err)
	}
	key, ok := k.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%s holds a %T, want an ed25519 key; \"onerec checkpoints keygen\" makes one", file, k)
	}
	return key, nil
}

func readPEM(file string) (*pem.Block, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read a key: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no key in PEM", file)
	}
	return block, nil
}
