package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

var (
	// ErrWrongCA is returned when the endpoint shows another root than the one the join line names.
	ErrWrongCA = errors.New("the endpoint belongs to another cluster than the join line")
	// ErrUntrusted is returned when the other side of a connection isn't who it should be.
	ErrUntrusted = errors.New("the other side of the connection isn't trusted")
)

// ClientTLS is the configuration with which the node dials the control plane's
// server of that name (enrollment.FleetServerName, enrollment.MQTTServerName). It
// shows the node's current certificate at each handshake and trusts the current
// roots; see the package comment for the clock.
func (id *Identity) ClientTLS(serverName string) *tls.Config {
	return &tls.Config{
		ServerName:             serverName,
		MinVersion:             tls.VersionTLS13,
		ClientSessionCache:     nil,
		SessionTicketsDisabled: false,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return id.Certificate(), nil
		},
		Time: id.Now,
		// VerifyConnection does what this turns off, with a time of its own.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return id.verifyPeer(cs, x509.ExtKeyUsageServerAuth, serverName)
		},
	}
}

// ServerTLS is the configuration with which the node serves inside a tunnel: the
// client must have a certificate of the cluster with one of these common names.
func (id *Identity) ServerTLS(allowed ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return id.Certificate(), nil
		},
		Time: id.Now,
		// The certificate is verified below, with a time of our own.
		ClientAuth: tls.RequireAnyClientCert,
		// A resumed session would outlive the certificate and the allowed names.
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if err := id.verifyPeer(cs, x509.ExtKeyUsageClientAuth, ""); err != nil {
				return err
			}
			if name := cs.PeerCertificates[0].Subject.CommonName; !slices.Contains(allowed, name) {
				return fmt.Errorf("%w: %q may not use this node's API; allowed: %q", ErrUntrusted, name, allowed)
			}
			return nil
		},
	}
}

func (id *Identity) verifyPeer(cs tls.ConnectionState, usage x509.ExtKeyUsage, name string) error {
	notBefore, err := verifyChain(cs.PeerCertificates, id.Roots(), id.Now(), usage, name)
	if err != nil {
		return err
	}
	if err := id.raise(notBefore); err != nil {
		// Knowing the time less well is no reason to be cut off.
		id.opts.Logger.Warn("time floor", "err", err)
	}
	return nil
}

// verifyChain verifies certs[0] at the later of now and its own NotBefore, which
// it returns: an authentic certificate that isn't valid yet says that our clock is behind.
func verifyChain(certs []*x509.Certificate, roots *x509.CertPool, now time.Time, usage x509.ExtKeyUsage, name string) (time.Time, error) {
	if len(certs) == 0 {
		return time.Time{}, fmt.Errorf("%w: it showed no certificate", ErrUntrusted)
	}
	leaf := certs[0]
	at := now
	if leaf.NotBefore.After(at) {
		at = leaf.NotBefore
	}
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: at, DNSName: name, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return time.Time{}, fmt.Errorf("%w: the certificate of %q ended at %s, and here it is %s: if that is wrong, set this board's clock",
			ErrUntrusted, leaf.Subject.CommonName, leaf.NotAfter.Format(time.RFC3339), at.Format(time.RFC3339))
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	return leaf.NotBefore, nil
}

// pinned is the configuration for the first contact: the only thing known of the
// endpoint is the hash of its root. seen is called with that root.
func pinned(caHash, serverName string, now func() time.Time, seen func(root *x509.Certificate)) *tls.Config {
	return &tls.Config{
		ServerName:         serverName,
		MinVersion:         tls.VersionTLS13,
		Time:               now,
		InsecureSkipVerify: true, // VerifyConnection does it
		VerifyConnection: func(cs tls.ConnectionState) error {
			var others []string
			for _, c := range cs.PeerCertificates {
				if !c.IsCA {
					continue
				}
				hash := RootHash(c)
				if hash != caHash {
					others = append(others, hash)
					continue
				}
				roots := x509.NewCertPool()
				roots.AddCert(c)
				if _, err := verifyChain(cs.PeerCertificates, roots, now(), x509.ExtKeyUsageServerAuth, serverName); err != nil {
					return err
				}
				seen(c)
				return nil
			}
			if len(others) == 0 {
				return fmt.Errorf("%w: the line names the CA sha256:%s, the endpoint shows none at all; is it a fleet endpoint of Coracle? Check the address in the line",
					ErrWrongCA, caHash)
			}
			return fmt.Errorf("%w: the line names the CA sha256:%s, the endpoint shows sha256:%s. Make a new line with `coracle token create NODE` on the cluster that this board should join; "+
				"if you didn't expect this, someone may be in between: don't join", ErrWrongCA, caHash, others[0])
		},
	}
}
