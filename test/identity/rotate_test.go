package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-edge/coracle/controlplane/pki"
)

// roots are the hashes of those that a board trusts, as on its disk.
func (b *board) trust() string { return fmt.Sprintf("%x", b.identity().TrustID()) }

func clientOf(t *testing.T, kubeconfig string) *kubernetes.Clientset {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// logs go through the tunnel: the API server and the node verify each other.
func (p *plane) logs(t *testing.T, pod string) {
	t.Helper()
	eventually(t, 40*time.Second, "logs of "+pod, func() error {
		raw, err := p.client.CoreV1().Pods("default").GetLogs(pod, &corev1.PodLogOptions{}).DoRaw(t.Context())
		if err == nil && !strings.Contains(string(raw), "Hello from WebAssembly") {
			err = fmt.Errorf("they are %q", raw)
		}
		return err
	})
}

// The whole of a rotation with real processes: nothing restarts, nobody is locked
// out who isn't meant to be, and a node that slept through it comes back.
func TestTheRootIsRotatedUnderRunningNodes(t *testing.T) {
	p := newPlane(t)
	there, away := newBoard(t, "there"), newBoard(t, "away")
	for _, b := range []*board{there, away} {
		b.join(p.line(b.name, false))
		p.ready(b.name, corev1.ConditionTrue)
	}
	p.hello("hello", "there")
	p.hello("sleeper", "away")
	away.stop(syscall.SIGKILL)
	guests, slept := there.guests(), away.guests()
	before := there.trust()
	boot, err := there.status()
	if err != nil {
		t.Fatal(err)
	}
	// A copy that somebody took home.
	taken := filepath.Join(t.TempDir(), "kubeconfig")
	raw, err := os.ReadFile(p.kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(taken, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	pid := p.proc.cmd.Process.Pid

	if _, err := p.coracle("ca", "rotate", "--pki-dir", filepath.Join(p.dir, "nowhere")); err == nil || !strings.Contains(err.Error(), "no cluster's keys in") {
		t.Errorf("rotate without a cluster: %v", err)
	}
	if out := p.must("ca", "rotate", "--pki-dir", p.pki()); !strings.Contains(out, "active") || !strings.Contains(out, "trusted") {
		t.Errorf("rotate says %q", out)
	}
	eventually(t, 40*time.Second, "the node that is there has the new root", func() error {
		if there.trust() == before {
			return errors.New("not yet")
		}
		return nil
	})
	if out, err := p.coracle("ca", "rotate", "--pki-dir", p.pki()); err == nil || !strings.Contains(err.Error(), "is being rotated") {
		t.Errorf("a second rotation: %v %s", err, out)
	}
	if out := p.must("ca", "status", "--pki-dir", p.pki()); !strings.Contains(out, "1 of 2 nodes have a certificate of the active root; not yet: away") {
		t.Errorf("status says %q", out)
	}
	// Everybody goes on: the old kubeconfig, pods' trust, logs, the broker.
	for what, file := range map[string]string{"taken": taken, "new": p.kubeconfig()} {
		if _, err := clientOf(t, file).CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); err != nil {
			t.Errorf("with the kubeconfig that is %s: %v", what, err)
		}
	}
	eventually(t, 30*time.Second, "pods trust both roots", func() error {
		m, err := p.client.CoreV1().ConfigMaps("default").Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if certs, err := pki.ParseCertificates([]byte(m.Data["ca.crt"])); err != nil || len(certs) != 2 {
			return fmt.Errorf("%d certificates, %v", len(certs), err)
		}
		return nil
	})
	p.logs(t, "hello")
	there.pushedAside(t, p) // and comes back, resuming its TLS session of before
	p.logs(t, "hello")

	if _, err := p.coracle("ca", "retire", "--pki-dir", p.pki()); err == nil || !strings.Contains(err.Error(), "away") || !strings.Contains(err.Error(), "--force") {
		t.Errorf("retire while a node has the former root's certificate: %v", err)
	}
	rotated := there.trust()
	p.must("ca", "retire", "--pki-dir", p.pki(), "--force")
	eventually(t, 40*time.Second, "the node trusts the new root alone", func() error {
		if there.trust() == rotated {
			return errors.New("not yet")
		}
		return nil
	})
	eventually(t, 90*time.Second, "the former kubeconfig is refused", func() error {
		if _, err := clientOf(t, taken).CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); err == nil {
			return errors.New("it is taken")
		}
		return nil
	})
	p.client = clientOf(t, p.kubeconfig())
	if _, err := p.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("with the new kubeconfig: %v", err)
	}
	there.pushedAside(t, p) // its resumed session would be of a root that it no longer trusts
	p.logs(t, "hello")

	away.start()
	p.ready("away", corev1.ConditionTrue)
	away.live()
	p.logs(t, "sleeper")
	if a, b := away.trust(), there.trust(); a != b {
		t.Errorf("the node that was away trusts %s, the other one %s", a, b)
	}
	if now := away.guests(); !maps.Equal(now, slept) {
		t.Errorf("guests of the node that was away: %v, before %v", now, slept)
	}
	if now := there.guests(); !maps.Equal(now, guests) {
		t.Errorf("guests: %v, before %v", now, guests)
	}
	if s, err := there.status(); err != nil || s.Boot != boot.Boot || p.proc.cmd.Process.Pid != pid {
		t.Errorf("something was restarted: %+v, %v", s, err)
	}
	if out := p.must("ca", "status", "--pki-dir", p.pki()); !strings.Contains(out, "retired") || !strings.Contains(out, "2 of 2 nodes") {
		t.Errorf("status says %q", out)
	}
	// A control plane that starts anew finds all as it was.
	p.stop()
	p.start()
	there.live()
	away.live()
	p.logs(t, "hello")
	if openssl, err := exec.LookPath("openssl"); err == nil {
		first := filepath.Join(p.pki(), "ca.crt")
		fleet := filepath.Join(p.pki(), "fleet.crt")
		if out, err := exec.Command(openssl, "verify", "-CAfile", first, "-untrusted", fleet, fleet).CombinedOutput(); err != nil {
			t.Errorf("who knows the first root only: %v %s", err, out)
		}
	}
	if leaf := there.identity().Certificate().Leaf; leaf.CheckSignatureFrom(active(t, p)) != nil {
		t.Error("the node's certificate isn't the active root's")
	}
}

func active(t *testing.T, p *plane) *x509.Certificate {
	t.Helper()
	a, err := pki.Open(pki.Options{Dir: p.pki()})
	if err != nil {
		t.Fatal(err)
	}
	return a.Root()
}

// pushedAside breaks the board's connection to the broker as its own identity may,
// and waits until it is live again.
func (b *board) pushedAside(t *testing.T, p *plane) {
	t.Helper()
	if err := p.mqttConnects(b.identity()); err != nil {
		t.Errorf("the board's identity at the broker: %v", err)
	}
	eventually(t, 40*time.Second, "the link is live again", func() error {
		s, err := b.status()
		if err == nil && !s.Link.Live {
			err = errors.New("it isn't")
		}
		return err
	})
}
