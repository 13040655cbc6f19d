package identity

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/join/permissions"
	"github.com/coracle-edge/coracle/edgelet/identity"
	"github.com/coracle-edge/coracle/edgelet/state"
)

// The fleet endpoint's lines of the table: as that node, as another, as a revoked
// one, with what was really ordered to one of them.
func TestTheTableOfPermissionsHoldsAtTheFleetEndpoint(t *testing.T) {
	p := newPlane(t)
	rules, err := permissions.Table()
	if err != nil {
		t.Fatal(err)
	}
	b := newBoard(t, "pi-1")
	b.join(p.line("pi-1", false))
	p.ready("pi-1", corev1.ConditionTrue)
	big, err := p.client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "big", Namespace: "default"},
		Data: map[string]string{"x": strings.Repeat("0123456789abcdef", 8<<10)}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "uses", Namespace: "default"}, Spec: corev1.PodSpec{NodeName: "pi-1",
		Containers: []corev1.Container{{Name: "c", Image: "registry.invalid/none:1", ImagePullPolicy: corev1.PullNever}},
		Volumes:    []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "big"}}}}}}}
	eventually(t, 20*time.Second, "the pod is created", func() error {
		_, err := p.client.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{})
		return err
	})
	// Its hash is on the board.
	var path string
	eventually(t, 60*time.Second, "the large object is on the board", func() error {
		b.stop(syscall.SIGTERM)
		s, err := state.Open(filepath.Join(b.dir, "state.db"), state.Options{})
		if err != nil {
			return err
		}
		set, _ := s.Set()
		if err := s.Close(); err != nil {
			return err
		}
		hash, ok := set[string(big.UID)]
		path = fmt.Sprintf("%s%x?uid=%s", enrollment.ObjectsPath, hash[:], big.UID)
		b.start()
		b.live()
		if !ok {
			return errors.New("not yet")
		}
		return nil
	})
	own := b.identity()
	other := joined(t, p, "pi-2")

	ask := func(id *identity.Identity, what string) bool {
		switch what {
		case "GET /v1/objects/HASH":
			code, _ := p.fleetGet(t, id, path)
			return code == http.StatusOK
		case "POST /v1/renew": // of pi-1's certificate, with one's own key
			return p.renew(t, id.SigningKey, "pi-1")
		case "POST /v1/join": // as pi-1, with a token that is for another
			line, err := enrollment.ParseLine(p.line("pi-4", false))
			if err != nil {
				t.Fatal(err)
			}
			line.Node = "pi-1"
			_, err = identity.Join(t.Context(), identity.JoinOptions{Options: identity.Options{Dir: t.TempDir()}, Line: line})
			return err == nil
		}
		t.Fatalf("the table has %q, which no test walks", what)
		return false
	}
	walked := 0
	for _, r := range rules {
		// Tunnels are walked where their ids are known, in controlplane/tunnel.
		if r.Door != permissions.Fleet || r.What == "GET /v1/tunnel/ID" {
			continue
		}
		walked++
		if got := ask(own, r.What); got != r.Own {
			t.Errorf("%s as that node: %v, the table says %v", r.What, got, r.Own)
		}
		if got := ask(other, r.What); got != r.Others {
			t.Errorf("%s as another node: %v, the table says %v", r.What, got, r.Others)
		}
	}
	if walked < 3 {
		t.Errorf("the table has %d lines for the fleet endpoint", walked)
	}
	// And once it is revoked, nothing.
	p.must("node", "revoke", "pi-1")
	eventually(t, 10*time.Second, "the revocation has come everywhere", func() error {
		if code, body := p.fleetGet(t, own, path); code != http.StatusForbidden {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	for _, r := range rules {
		if r.Door == permissions.Fleet && r.What != "GET /v1/tunnel/ID" && ask(own, r.What) {
			t.Errorf("%s as a revoked node is allowed", r.What)
		}
	}
}

// renew asks for a node's certificate with this key.
func (p *plane) renew(t *testing.T, key ed25519.PrivateKey, node string) bool {
	t.Helper()
	u, err := url.Parse(p.run.Fleet)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", u.Host, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body, err := json.Marshal(enrollment.RenewRequest{Node: node, SigningKey: key.Public().(ed25519.PublicKey)})
	if err != nil {
		t.Fatal(err)
	}
	state := conn.ConnectionState()
	text, err := enrollment.ProofText(enrollment.RenewPath, &state, body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.run.Fleet+enrollment.RenewPath, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(enrollment.ProofHeader, base64.StdEncoding.EncodeToString(ed25519.Sign(key, text)))
	transport := &http.Transport{DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }, DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// joined makes a node without an agent.
func joined(t *testing.T, p *plane, node string) *identity.Identity {
	t.Helper()
	line, err := enrollment.ParseLine(p.line(node, false))
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.Join(t.Context(), identity.JoinOptions{Options: identity.Options{Dir: t.TempDir()}, Line: line})
	if err != nil {
		t.Fatal(err)
	}
	return id
}
