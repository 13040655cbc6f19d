package aot

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Keys are PEM, as `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout`
// write them.
const (
	privateBlock = "PRIVATE KEY"
	publicBlock  = "PUBLIC KEY"
)

// ErrKey is returned when a file holds no Ed25519 key of the wanted kind.
var ErrKey = errors.New("not an Ed25519 key")

// Generate makes a pair of keys.
func Generate() (private, public []byte, err error) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	p, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		return nil, nil, err
	}
	q, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: privateBlock, Bytes: p}), pem.EncodeToMemory(&pem.Block{Type: publicBlock, Bytes: q}), nil
}

// Private reads a key to sign with.
func Private(file string) (ed25519.PrivateKey, error) {
	der, err := block(file, privateBlock)
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", file, ErrKey, err)
	}
	if priv, ok := k.(ed25519.PrivateKey); ok {
		return priv, nil
	}
	return nil, fmt.Errorf("%s: %w but %T", file, ErrKey, k)
}

// Trusted reads all keys, *.pem, of a folder that only its owner may write. A folder
// that isn't there has none. One key that can't be read takes none of the others
// away: both results count.
func Trusted(dir string) (map[string]ed25519.PublicKey, error) {
	st, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if st.Mode()&0o022 != 0 {
		return nil, fmt.Errorf("folder of trusted keys %s: others than its owner may write it (mode %04o); chmod go-w", dir, st.Mode().Perm())
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.pem"))
	if err != nil {
		return nil, err
	}
	keys, all := map[string]ed25519.PublicKey{}, error(nil)
	for _, f := range files {
		k, err := public(f)
		if err != nil {
			all = errors.Join(all, err)
			continue
		}
		keys[filepath.Base(f)] = k
	}
	return keys, all
}

func public(file string) (ed25519.PublicKey, error) {
	der, err := block(file, publicBlock)
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", file, ErrKey, err)
	}
	if pub, ok := k.(ed25519.PublicKey); ok {
		return pub, nil
	}
	return nil, fmt.Errorf("%s: %w but %T", file, ErrKey, k)
}

func block(file, kind string) ([]byte, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	b, _ := pem.Decode(raw)
	if b == nil || b.Type != kind {
		return nil, fmt.Errorf("%s: %w: no PEM block %q", file, ErrKey, kind)
	}
	return b.Bytes, nil
}
