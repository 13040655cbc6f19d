package pki

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/coracle-edge/coracle/internal/durable"
)

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func certPEM(der []byte) []byte { return pemBlock("CERTIFICATE", der) }

func keyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pemBlock("PRIVATE KEY", der), nil
}

func writeKey(path string, key crypto.Signer) error {
	data, err := keyPEM(key)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return durable.WriteFile(path, data, 0o600)
}

// readCert reads the one certificate of a file.
func readCert(path string) (*x509.Certificate, error) {
	der, err := readPEM(path, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %v. %s", ErrCorrupt, path, err, remedy(path))
	}
	return cert, nil
}

func readKey(path string) (crypto.Signer, error) {
	der, err := readPEM(path, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %v. %s", ErrCorrupt, path, err, remedy(path))
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%w: %s holds a %T, which can't sign. %s", ErrCorrupt, path, key, remedy(path))
	}
	return signer, nil
}

func readPEM(path, kind string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s. %s", ErrIncomplete, path, remedy(path))
	}
	if err != nil {
		return nil, fmt.Errorf("PKI: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%w: %s (%d bytes) has no PEM block. %s", ErrCorrupt, path, len(data), remedy(path))
	}
	if block.Type != kind {
		return nil, fmt.Errorf("%w: %s holds a %q, want %q. %s", ErrCorrupt, path, block.Type, kind, remedy(path))
	}
	return block.Bytes, nil
}

// remedy says what the operator does about a bad file.
func remedy(path string) string {
	name := filepath.Base(path)
	for _, once := range append([]string{"ca.crt", "ca.key", rootsFile}, onceOnly...) {
		if name == once || strings.HasPrefix(name, "ca-") {
			return "Restore it from a backup of the PKI folder: it can't be made again without losing every node and token"
		}
	}
	return "Remove it together with its .key or .crt: both are made again at the next start"
}

func samePublic(a, b crypto.PublicKey) bool {
	e, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && e.Equal(b)
}

func pool(certs ...*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

func parseIPs(texts []string) ([]net.IP, error) {
	var ips []net.IP
	for _, s := range texts {
		ip := net.ParseIP(s)
		if ip == nil {
			return nil, fmt.Errorf("%q isn't an IP address", s)
		}
		ips = append(ips, ip)
	}
	return ips, nil
}

func parseOIDs(texts []string) ([]asn1.ObjectIdentifier, error) {
	var oids []asn1.ObjectIdentifier
	for _, s := range texts {
		var oid asn1.ObjectIdentifier
		for part := range strings.SplitSeq(s, ".") {
			n, err := strconv.Atoi(part)
			if err != nil {
				return nil, fmt.Errorf("%q isn't an object identifier: %w", s, err)
			}
			oid = append(oid, n)
		}
		oids = append(oids, oid)
	}
	return oids, nil
}
