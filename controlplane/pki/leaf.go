package pki

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/internal/durable"
)

// Leaf is one certificate of ours with its key, in files and in memory. Run
// renews it; the key stays the same, so replacing the certificate is one atomic
// step, also for readers of the files.
type Leaf struct {
	a       *Authority
	name    string
	want    request
	ed25519 bool
	key     crypto.Signer
	current atomic.Pointer[tls.Certificate]
}

// CertFile and KeyFile are for the parts of upstream that read (and watch) files.
func (l *Leaf) CertFile() string { return l.a.path(l.name + ".crt") }
func (l *Leaf) KeyFile() string  { return l.a.path(l.name + ".key") }

// Current is the certificate as of now, its Leaf field parsed. Don't keep it.
func (l *Leaf) Current() *tls.Certificate { return l.current.Load() }

// Signer is the leaf's private key.
func (l *Leaf) Signer() crypto.Signer { return l.key }

// GetCertificate fits tls.Config.GetCertificate of a server.
func (l *Leaf) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return l.Current(), nil
}

// GetClientCertificate fits tls.Config.GetClientCertificate of a client.
func (l *Leaf) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return l.Current(), nil
}

// Serving returns the serving certificate `name`, issuing it if there is none,
// if it is about to expire, or if it doesn't say all of hosts (IP addresses and
// DNS names). 127.0.0.1, ::1 and localhost are always in it.
func (a *Authority) Serving(name string, hosts ...string) (*Leaf, error) {
	dns, ips := splitHosts(append([]string{"localhost", "127.0.0.1", "::1"}, hosts...))
	return a.leaf(name, false, request{
		subject: pkix.Name{CommonName: name},
		life:    leafLife,
		dns:     dns,
		ips:     ips,
		usages:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

// APIServer is the API server's serving certificate: the names of the
// `kubernetes` Service, its cluster IP, and hosts.
func (a *Authority) APIServer(hosts ...string) (*Leaf, error) {
	return a.Serving("apiserver", append([]string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
	}, hosts...)...)
}

// Fleet is the fleet endpoint's serving certificate. Nodes look for
// enrollment.FleetServerName in it, whatever address they dialed.
func (a *Authority) Fleet(hosts ...string) (*Leaf, error) {
	return a.Serving("fleet", append([]string{enrollment.FleetServerName}, hosts...)...)
}

// Broker is the MQTT broker's serving certificate. Nodes look for enrollment.MQTTServerName in it.
func (a *Authority) Broker(hosts ...string) (*Leaf, error) {
	return a.Serving("broker", append([]string{enrollment.MQTTServerName}, hosts...)...)
}

// Client returns a client certificate for user and groups. name is that of the file.
func (a *Authority) Client(name, user string, groups ...string) (*Leaf, error) {
	return a.client(false, name, user, groups...)
}

// Admin is the administrator: coracle:admin of system:masters.
func (a *Authority) Admin() (*Leaf, error) {
	return a.Client("admin", "coracle:admin", "system:masters")
}

// KubeletClient is what the API server shows to nodes, inside tunnels.
func (a *Authority) KubeletClient() (*Leaf, error) {
	return a.Client("kube-apiserver-kubelet-client", enrollment.KubeletClientName)
}

// FrontProxyClient is what the API server shows to aggregated API servers. It
// chains to FrontProxyCAFile, not to the root.
func (a *Authority) FrontProxyClient() (*Leaf, error) {
	return a.client(true, "front-proxy-client", "front-proxy-client")
}

// Hub is the hub's signing identity, an Ed25519 key. Its certificate carries a
// usage that nothing else can be given (enrollment.VerifyHub asks for it), so no
// certificate signing request in the API can make a second hub.
func (a *Authority) Hub() (*Leaf, error) {
	return a.leaf("hub", true, request{
		subject:      pkix.Name{CommonName: enrollment.HubName},
		life:         hubLife,
		usages:       []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		customUsages: []string{enrollment.HubUsage},
	})
}

// reloadEvery is how soon a rotation by another process is taken over.
const reloadEvery = 3 * time.Second

// Run renews leaves long before they expire, and takes over what `coracle ca`
// makes of the roots, until ctx ends.
func (a *Authority) Run(ctx context.Context) error {
	tick, look := time.NewTicker(time.Hour), time.NewTicker(reloadEvery)
	defer tick.Stop()
	defer look.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			_, err := a.Reload()
			if err != nil && err.Error() != said {
				a.logger.Error("take over the cluster's roots", "err", err)
			}
			said = fmt.Sprint(err)
		case <-tick.C:
			if err := a.Renew(); err != nil {
				// The old certificate still has a third of its life: try again in an hour.
				a.logger.Error("renew certificates", "err", err)
			}
		}
	}
}

// Renew issues anew every leaf of which less than a third of its life is left.
func (a *Authority) Renew() error {
	a.mu.Lock()
	leaves := slices.Clone(a.leaves)
	a.mu.Unlock()
	var errs []error
	for _, l := range leaves {
		if reason := l.stale(l.Current().Leaf); reason != "" {
			errs = append(errs, l.renew(reason))
		}
	}
	return errors.Join(errs...)
}

func (a *Authority) client(frontProxy bool, name, user string, groups ...string) (*Leaf, error) {
	return a.leaf(name, false, request{
		frontProxy: frontProxy,
		subject:    pkix.Name{CommonName: user, Organization: groups},
		life:       leafLife,
		usages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

func (a *Authority) leaf(name string, useEd25519 bool, want request) (*Leaf, error) {
	l := &Leaf{a: a, name: name, want: want, ed25519: useEd25519}
	if err := l.loadKey(); err != nil {
		return nil, fmt.Errorf("certificate %q: %w", name, err)
	}
	l.want.public = l.key.Public()
	cert, err := readCert(l.CertFile())
	reason := ""
	switch {
	case errors.Is(err, ErrIncomplete):
		reason = "there was none"
	case err != nil:
		return nil, fmt.Errorf("certificate %q: %w", name, err)
	case !samePublic(cert.PublicKey, l.key.Public()):
		return nil, fmt.Errorf("certificate %q: %w: %s isn't the key of %s. %s", name, ErrMismatch, l.KeyFile(), l.CertFile(), remedy(l.KeyFile()))
	default:
		reason = l.stale(cert)
	}
	if reason == "" {
		l.set(cert)
	} else if err := l.renew(reason); err != nil {
		return nil, err
	}
	a.mu.Lock()
	a.leaves = append(a.leaves, l)
	a.mu.Unlock()
	return l, nil
}

func (l *Leaf) loadKey() (err error) {
	l.key, err = readKey(l.KeyFile())
	if !errors.Is(err, ErrIncomplete) {
		return err
	}
	if l.ed25519 {
		_, l.key, err = ed25519.GenerateKey(rand.Reader)
	} else {
		l.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return err
	}
	// A certificate without its key is of no use to anyone and would not match the new one.
	if err := os.Remove(l.CertFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return writeKey(l.KeyFile(), l.key)
}

// stale says why cert has to be issued again, or "".
func (l *Leaf) stale(cert *x509.Certificate) string {
	now, by := l.a.Now(), l.a.by(l.want)
	left := cert.NotAfter.Sub(now)
	switch {
	case cert.CheckSignatureFrom(by.cert) != nil:
		return "it was signed by another root"
	case left < cert.NotAfter.Sub(cert.NotBefore)/3 && cert.NotAfter.Before(by.cert.NotAfter):
		return "it ends at " + cert.NotAfter.Format(time.RFC3339)
	case now.Before(cert.NotBefore):
		return "it begins at " + cert.NotBefore.Format(time.RFC3339)
	case cert.Subject.CommonName != l.want.subject.CommonName || !sameSet(cert.Subject.Organization, l.want.subject.Organization):
		return "it names " + cert.Subject.String()
	case !containsAll(cert.DNSNames, l.want.dns) || !containsAll(ipTexts(cert.IPAddresses), l.want.ips):
		return "it lacks a host"
	}
	return ""
}

func (l *Leaf) renew(reason string) error {
	der, err := l.a.issue(l.want)
	if err != nil {
		return fmt.Errorf("certificate %q: %w", l.name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("certificate %q: %w", l.name, err)
	}
	var text []byte
	for _, c := range l.chain(der) {
		text = append(text, certPEM(c)...)
	}
	if err := durable.WriteFile(l.CertFile(), text, 0o600); err != nil {
		return fmt.Errorf("certificate %q: %w", l.name, err)
	}
	l.a.logger.Info("certificate issued", "name", l.name, "because", reason, "until", cert.NotAfter)
	l.set(cert)
	return nil
}

func (l *Leaf) set(cert *x509.Certificate) {
	l.current.Store(&tls.Certificate{Certificate: l.chain(cert.Raw), PrivateKey: l.key, Leaf: cert})
}

// chain is what is shown: those who know an earlier root follow it to that.
func (l *Leaf) chain(der []byte) [][]byte {
	if l.want.frontProxy {
		return [][]byte{der}
	}
	return l.a.Chain(der)
}

func splitHosts(hosts []string) (dns, ips []string) {
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			ips = append(ips, ip.String())
		} else if h != "" {
			dns = append(dns, h)
		}
	}
	slices.Sort(dns)
	slices.Sort(ips)
	return slices.Compact(dns), slices.Compact(ips)
}

func ipTexts(ips []net.IP) []string {
	var out []string
	for _, ip := range ips {
		out = append(out, ip.String())
	}
	return out
}

func containsAll(have, want []string) bool {
	for _, w := range want {
		if !slices.Contains(have, w) {
			return false
		}
	}
	return true
}

func sameSet(a, b []string) bool { return containsAll(a, b) && containsAll(b, a) }
