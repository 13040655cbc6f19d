package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"

	"github.com/coracle-edge/coracle/internal/durable"
)

// WriteKubeconfig writes a kubeconfig for l's identity, with key and
// certificates inside, so that the one file can be copied elsewhere. An
// unchanged file isn't written again.
func (a *Authority) WriteKubeconfig(path, server string, l *Leaf) error {
	key, err := keyPEM(l.key)
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	b64 := base64.StdEncoding.EncodeToString
	var chain []byte
	for _, c := range l.Current().Certificate {
		chain = append(chain, certPEM(c)...)
	}
	data := fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: coracle
  cluster:
    server: %q
    certificate-authority-data: %s
users:
- name: %[3]q
  user:
    client-certificate-data: %[4]s
    client-key-data: %[5]s
contexts:
- name: coracle
  context:
    cluster: coracle
    user: %[3]q
current-context: coracle
preferences: {}
`, server, b64(a.RootPEM()), l.name, b64(chain), b64(key))
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	return durable.WriteFile(path, data, 0o600)
}

// ParseCertificates reads all certificates of a PEM text.
func ParseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a %q among certificates", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("no certificate in %d bytes", len(data))
	}
	return certs, nil
}
