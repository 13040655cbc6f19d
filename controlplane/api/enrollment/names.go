package enrollment

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Names in certificates.
const (
	// NodeUserPrefix precedes a node's name in its certificate's common name.
	NodeUserPrefix = "system:node:"
	// NodesGroup is the organization of every node's certificate.
	NodesGroup = "system:nodes"
	// HubName is the common name of the hub's certificate.
	HubName = "system:coracle:hub"
	// KubeletClientName is the API server's, towards nodes.
	KubeletClientName = "kube-apiserver-kubelet-client"
	// HubUsage is the extended key usage that only the hub's certificate has. The
	// arc is that of a UUID (ITU-T X.667), cut to what fits an int on 32 bit boards.
	HubUsage = "2.25.1284793641"
)

// MaxNodeName is the longest node name, in bytes: it is also the value of the
// label kubernetes.io/hostname, which holds no more.
const MaxNodeName = 63

var (
	// ErrNodeName is returned when a node's name isn't a DNS-1123 subdomain of at most MaxNodeName bytes.
	ErrNodeName = errors.New("not a node name")
	// ErrNotHub is returned when a certificate isn't that of this cluster's hub.
	ErrNotHub = errors.New("not the hub's certificate")
)

var nodeName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

// CheckNodeName returns ErrNodeName, with what to write instead, unless name can be a node's.
func CheckNodeName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: it is empty", ErrNodeName)
	case len(name) > MaxNodeName:
		return fmt.Errorf("%w: %q has %d bytes; at most %d", ErrNodeName, name, len(name), MaxNodeName)
	case !nodeName.MatchString(name):
		return fmt.Errorf("%w: %q; use lower case letters, digits, '-' and '.', beginning and ending with a letter or digit", ErrNodeName, name)
	case name == reservedDomain || strings.HasSuffix(name, "."+reservedDomain):
		return fmt.Errorf("%w: %q; names under %s are the control plane's own", ErrNodeName, name, reservedDomain)
	}
	return nil
}

// NodeOf is the name of the node whose certificate this is, or "" if it is no node's.
func NodeOf(cert *x509.Certificate) string {
	name, ok := strings.CutPrefix(cert.Subject.CommonName, NodeUserPrefix)
	if !ok || CheckNodeName(name) != nil {
		return ""
	}
	for _, o := range cert.Subject.Organization {
		if o == NodesGroup {
			return name
		}
	}
	return ""
}

// VerifyHub returns the public key orders are signed with, if chain, leaf first,
// is the hub's of the cluster with these roots at the time `at`. A node passes the
// later of its clock and its time floor; a certificate not valid yet is no
// objection, because a board without a clock is always early.
func VerifyHub(chain []*x509.Certificate, roots *x509.CertPool, at time.Time) (ed25519.PublicKey, error) {
	if len(chain) == 0 {
		return nil, fmt.Errorf("%w: there is none", ErrNotHub)
	}
	cert, between := chain[0], x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if cert.NotBefore.After(at) {
		at = cert.NotBefore
	}
	// Verify doesn't know our usage: it is asked for below.
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotHub, err)
	}
	if cert.Subject.CommonName != HubName {
		return nil, fmt.Errorf("%w: it names %q", ErrNotHub, cert.Subject.CommonName)
	}
	for _, usage := range cert.UnknownExtKeyUsage {
		if usage.String() != HubUsage {
			continue
		}
		key, ok := cert.PublicKey.(ed25519.PublicKey)
		if !ok {
			return nil, fmt.Errorf("%w: its key is a %T, want Ed25519", ErrNotHub, cert.PublicKey)
		}
		return key, nil
	}
	return nil, fmt.Errorf("%w: it lacks the usage %s", ErrNotHub, HubUsage)
}

// TrustID names a set of roots in a few bytes, whatever their order. A node whose
// own differs from its control plane's asks for a new grant.
func TrustID(roots []*x509.Certificate) []byte {
	sums := make([][sha256.Size]byte, len(roots))
	for i, c := range roots {
		sums[i] = sha256.Sum256(c.RawSubjectPublicKeyInfo)
	}
	slices.SortFunc(sums, func(a, b [sha256.Size]byte) int { return bytes.Compare(a[:], b[:]) })
	all := sha256.New()
	for _, s := range slices.Compact(sums) {
		all.Write(s[:])
	}
	return all.Sum(nil)[:8]
}
