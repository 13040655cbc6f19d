package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/internal/durable"
)

var (
	// ErrRotating is returned by Rotate when the last rotation isn't finished.
	ErrRotating = errors.New("the cluster's root is being rotated")
	// ErrNotRotating is returned by Retire when there is no former root to retire.
	ErrNotRotating = errors.New("there is no former root")
	// ErrBusy is returned when another process rotates or retires.
	ErrBusy = errors.New("another process changes the cluster's root")
)

// Rotate makes a new root, certified by the one before, and lets it sign from now
// on; both are trusted until Retire. The control plane that runs on this folder
// takes it over by Reload. Everything that was issued before stays valid.
func (a *Authority) Rotate() error {
	return a.exclusively(func(now generations) error {
		if len(now.Trusted) > 1 {
			return fmt.Errorf("%w: roots %v are trusted; retire the former one first", ErrRotating, now.Trusted)
		}
		if now.Active == maxGenerations {
			return fmt.Errorf("%w: this is root %d, and nobody who knows the first would follow a longer chain", ErrRotating, now.Active)
		}
		next := generations{Active: now.Active + 1, Trusted: []int{now.Active + 1, now.Active}}
		// Left over from a rotation that was cut off, they are written again: they
		// don't count before roots.json names them.
		if err := a.createRoot(a.dir, rootName(next.Active), "coracle-root"); err != nil {
			return err
		}
		young, err := a.loadRoot(rootName(next.Active))
		if err != nil {
			return err
		}
		old, err := a.loadRoot(rootName(now.Active))
		if err != nil {
			return err
		}
		cross, err := crossSign(young.cert, old)
		if err != nil {
			return err
		}
		if err := durable.WriteFile(a.path(crossName(next.Active)), certPEM(cross), 0o600); err != nil {
			return err
		}
		return a.writeGenerations(next)
	})
}

// Retire ends trust in all roots but the active one, and destroys their keys. Who
// pinned one of them still follows the chain to the active one.
func (a *Authority) Retire() error {
	return a.exclusively(func(now generations) error {
		if len(now.Trusted) == 1 {
			return fmt.Errorf("%w: root %d is the only one that is trusted", ErrNotRotating, now.Active)
		}
		if err := a.writeGenerations(generations{Active: now.Active, Trusted: []int{now.Active}}); err != nil {
			return err
		}
		return a.destroyFormer(now.Active)
	})
}

// destroyFormer removes the keys of roots that are no longer trusted.
func (a *Authority) destroyFormer(active int) error {
	for n := 1; n < active; n++ {
		if err := os.Remove(a.path(rootName(n) + ".key")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return durable.SyncDir(a.dir)
}

// exclusively changes the generations, one process at a time.
func (a *Authority) exclusively(change func(now generations) error) error {
	lock, err := os.OpenFile(a.path("rotate.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrBusy, lock.Name(), err)
	}
	now, err := a.readGenerations()
	if err != nil {
		return err
	}
	if err := change(now); err != nil {
		return err
	}
	_, err = a.Reload()
	return err
}

// crossSign certifies the key and name of young by old.
func crossSign(young *x509.Certificate, old *ca) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               young.Subject,
		RawSubject:            young.RawSubject,
		NotBefore:             young.NotBefore,
		NotAfter:              young.NotAfter,
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              young.KeyUsage,
		SubjectKeyId:          young.SubjectKeyId,
	}
	if template.NotAfter.After(old.cert.NotAfter) {
		template.NotAfter = old.cert.NotAfter
	}
	return x509.CreateCertificate(rand.Reader, template, old.cert, young.PublicKey, old.key)
}

func (a *Authority) createRoot(dir, file, name string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := newSerial()
	if err != nil {
		return err
	}
	now := a.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(rootLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	// The serial in the name tells the roots of two clusters, and of two generations,
	// apart where only names are shown.
	template.Subject.CommonName = name + "-" + hex.EncodeToString(serial.Bytes()[:4])
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	if err := writeKey(filepath.Join(dir, file+".key"), key); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, file+".crt"), certPEM(der), 0o600)
}

// Generation is one root, for people.
type Generation struct {
	Number          int
	Hash            string
	Active, Trusted bool
	From, Until     time.Time
}

// Generations lists all roots that the cluster had.
func (a *Authority) Generations() ([]Generation, error) {
	r := a.roots.Load()
	var out []Generation
	for n := 1; n <= r.Active; n++ {
		cert, err := readCert(a.path(rootName(n) + ".crt"))
		if err != nil {
			return nil, err
		}
		g := Generation{Number: n, Hash: hash(cert), Active: n == r.Active, From: cert.NotBefore, Until: cert.NotAfter}
		for _, t := range r.Trusted {
			g.Trusted = g.Trusted || t == n
		}
		out = append(out, g)
	}
	return out, nil
}

// SignedByActive says whether a certificate (DER) was signed by the active root.
func (a *Authority) SignedByActive(der []byte) bool {
	cert, err := x509.ParseCertificate(der)
	return err == nil && cert.CheckSignatureFrom(a.roots.Load().active.cert) == nil
}
