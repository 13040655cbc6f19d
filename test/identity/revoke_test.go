package identity

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/edgelet/identity"
	"github.com/coracle-edge/coracle/edgelet/standing"
)

// identity of the board, as whoever holds its card has it.
func (b *board) identity() *identity.Identity {
	b.t.Helper()
	id, err := identity.Load(identity.Options{Dir: filepath.Join(b.dir, "identity")})
	if err != nil {
		b.t.Fatal(err)
	}
	return id
}

// asNode is an HTTP client with the board's certificate.
func (p *plane) asNode(id *identity.Identity) *http.Client {
	conf := &tls.Config{RootCAs: id.Roots(), GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return id.Certificate(), nil }}
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}}
}

// get returns the status and the body of a request.
func get(t *testing.T, c *http.Client, url, token string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

// fleetGet asks the fleet endpoint as the board.
func (p *plane) fleetGet(t *testing.T, id *identity.Identity, path string) (int, string) {
	t.Helper()
	c := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: id.ClientTLS(enrollment.FleetServerName), DisableKeepAlives: true}}
	return get(t, c, p.run.Fleet+path, "")
}

// mqttConnects says whether the broker lets the board in.
func (p *plane) mqttConnects(id *identity.Identity) error {
	u, err := url.Parse(p.run.MQTT)
	if err != nil {
		return err
	}
	o := paho.NewClientOptions().AddBroker("ssl://" + u.Host).SetClientID(fleet.NodeUserPrefix + id.NodeName).
		SetTLSConfig(id.ClientTLS(enrollment.MQTTServerName)).SetProtocolVersion(4).SetAutoReconnect(false).SetKeepAlive(30 * time.Second)
	c := paho.NewClient(o)
	token := c.Connect()
	if !token.WaitTimeout(10 * time.Second) {
		return errors.New("no answer")
	}
	if token.Error() == nil {
		c.Disconnect(10)
	}
	return token.Error()
}

// podToken is what the node signs for its pod.
func podToken(t *testing.T, id *identity.Identity, pod *corev1.Pod) string {
	t.Helper()
	token, _, err := id.PodToken(identity.PodTokenRequest{Namespace: pod.Namespace, PodName: pod.Name, PodUID: string(pod.UID), ServiceAccount: "default"})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// The whole of a revocation: what ends, what goes on, who is told, and the way back.
func TestARevokedNodeIsRefusedToldSoAndKeepsItsPods(t *testing.T) {
	p := newPlane(t)
	b := newBoard(t, "pi-1")
	b.join(p.line("pi-1", false))
	p.ready("pi-1", corev1.ConditionTrue)
	pod := p.hello("hello", "pi-1")
	guests := b.guests()
	if len(guests) != 1 {
		t.Fatalf("guests %v", guests)
	}
	id := b.identity()
	node := p.asNode(id)
	self := p.run.API + "/api/v1/nodes/pi-1"
	token := podToken(t, id, pod)
	// What a thief asks the cluster itself for, with the board's key.
	stolen, err := p.client.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", tokenRequest(pod), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	anyone := p.asNode(id)
	anyone.Transport.(*http.Transport).TLSClientConfig.GetClientCertificate = nil
	for what, bearer := range map[string]string{"signed by the node": token, "signed by the cluster": stolen.Status.Token} {
		// Known, and allowed nothing: 403.
		if code, body := get(t, anyone, p.run.API+"/api/v1/nodes", bearer); code != 403 {
			t.Fatalf("a token %s: %d %s", what, code, body)
		}
	}
	if code, body := get(t, node, self, ""); code != 200 {
		t.Fatalf("the node itself: %d %s", code, body)
	}
	if err := p.mqttConnects(id); err != nil {
		t.Fatal(err)
	}
	b.live() // it was pushed aside for a moment
	watch := watchSelf(t, p, id)

	p.must("node", "revoke", "pi-1", "--because", "stolen from the hall")

	said := b.stands("Revoked")
	if !strings.Contains(said.Message, "stolen from the hall") || !strings.Contains(said.Message, "coracle node readmit pi-1") || said.Since.IsZero() {
		t.Errorf("the board says %+v", said)
	}
	if log := b.log.String(); !strings.Contains(log, "the cluster refuses this node") || !strings.Contains(log, "stolen from the hall") {
		t.Error("the board's log doesn't say why")
	}
	select {
	case err := <-watch:
		if err == nil {
			t.Error("the watch ended with an object")
		}
	case <-time.After(10 * time.Second):
		t.Error("a watch goes on after the revocation")
	}
	for what, c := range map[string]struct {
		client *http.Client
		token  string
	}{"certificate": {node, ""}, "token of the node": {anyone, token}, "token of the cluster": {anyone, stolen.Status.Token}} {
		if code, body := get(t, c.client, self, c.token); code != 401 {
			t.Errorf("API by %s: %d %s", what, code, body)
		}
	}
	for _, path := range []string{enrollment.ObjectsPath + "00", enrollment.TunnelPath + "x"} {
		if code, body := p.fleetGet(t, id, path); code != 403 || !strings.Contains(body, "Revoked") {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	if err := p.mqttConnects(id); err == nil {
		t.Error("the broker let it in")
	}
	eventually(t, 10*time.Second, "the Node says so", func() error {
		n := p.node("pi-1")
		ready, refused := condition(n, corev1.NodeReady), condition(n, fleethub.ConditionRefused)
		if ready == nil || ready.Status != corev1.ConditionUnknown || refused == nil || refused.Reason != "Revoked" || !strings.Contains(refused.Message, "stolen from the hall") {
			return errors.New("conditions")
		}
		return nil
	})
	p.event(t, "pi-1", "Revoked", "stolen from the hall")
	if list := p.must("node", "list"); !strings.Contains(list, "pi-1  revoked   Unknown") || !strings.Contains(list, "stolen from the hall") {
		t.Errorf("coracle node list:\n%s", list)
	}
	if now := b.guests(); !maps.Equal(now, guests) {
		t.Errorf("guests %v, before %v", now, guests)
	}

	// It says so also when it starts again and can reach nobody.
	p.stop()
	b.restart()
	if s, err := b.status(); err != nil || s.Standing.State != "Revoked" || !s.Standing.Since.Equal(said.Since) {
		t.Errorf("after a start without a network: %+v, %v", s, err)
	}
	if now := b.guests(); !maps.Equal(now, guests) {
		t.Errorf("guests %v, before %v", now, guests)
	}
	// And a control plane that starts again refuses it as before.
	p.start()
	eventually(t, 20*time.Second, "the broker is there, and refuses", func() error {
		if err := p.mqttConnects(id); err == nil || !strings.Contains(err.Error(), "not Authorized") {
			return errors.New("not refused as not authorized: " + errText(err))
		}
		return nil
	})

	if out := p.must("node", "readmit", "pi-1"); !strings.Contains(out, "stolen from the hall") {
		t.Errorf("readmit: %s", out)
	}
	b.restart()
	b.stands(standing.Good)
	p.ready("pi-1", corev1.ConditionTrue)
	eventually(t, 10*time.Second, "the condition goes", func() error {
		if c := condition(p.node("pi-1"), fleethub.ConditionRefused); c != nil {
			return errors.New(c.Message)
		}
		return nil
	})
	if code, body := get(t, p.asNode(id), self, ""); code != 200 {
		t.Errorf("after readmission: %d %s", code, body)
	}
	if now := b.guests(); !maps.Equal(now, guests) {
		t.Errorf("guests %v, before %v", now, guests)
	}
	if out := p.must("node", "readmit", "pi-1"); !strings.Contains(out, "already") {
		t.Errorf("readmit of a good node: %s", out)
	}
	if _, err := p.coracle("node", "revoke", "nobody"); err == nil || !strings.Contains(err.Error(), `no such node: "nobody"`) {
		t.Errorf("revoke of an unknown node: %v", err)
	}
}

func errText(err error) string {
	if err == nil {
		return "none"
	}
	return err.Error()
}

// watchSelf opens a watch as the node; the channel gets what ends it.
func watchSelf(t *testing.T, p *plane, id *identity.Identity) <-chan error {
	t.Helper()
	c := p.asNode(id)
	c.Timeout = 0
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.run.API+"/api/v1/services?watch=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("watch: %v %v", resp, err)
	}
	done := make(chan error, 1)
	go func() {
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
		}
		err := lines.Err()
		if err == nil {
			err = io.EOF
		}
		done <- err
	}()
	return done
}

func (p *plane) event(t *testing.T, node, reason, words string) {
	t.Helper()
	eventually(t, 10*time.Second, "an event of "+node+" says "+reason, func() error {
		list, err := p.client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + node + ",reason=" + reason})
		if err != nil {
			return err
		}
		for _, e := range list.Items {
			if strings.Contains(e.Message, words) {
				return nil
			}
		}
		return errors.New("there is none with " + words)
	})
}

// A deleted Node stops its pods, stays out whatever its agent says, and comes back
// when it is readmitted, without a touch on the board.
func TestADeletedNodeStopsItsPodsAndStaysOut(t *testing.T) {
	p := newPlane(t)
	b := newBoard(t, "pi-1")
	b.join(p.line("pi-1", false))
	p.ready("pi-1", corev1.ConditionTrue)
	p.hello("hello", "pi-1")
	id := b.identity()
	before := p.node("pi-1")

	// It is away when it happens, and the control plane isn't looking either.
	b.stop(syscall.SIGKILL)
	if len(b.guests()) != 1 {
		t.Fatal("no guest outlived its agent")
	}
	if err := p.client.CoreV1().Nodes().Delete(t.Context(), "pi-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the removal is noted", func() error {
		if list := p.must("node", "list"); !strings.Contains(list, "pi-1  removed   -") {
			return errors.New(list)
		}
		return nil
	})
	p.stop()
	p.start()
	b.start()
	eventually(t, 40*time.Second, "its pods are stopped", func() error {
		if g := b.guests(); len(g) > 0 {
			return errors.New("they run")
		}
		return nil
	})
	if s := b.stands("Removed"); !strings.Contains(s.Message, "coracle node readmit pi-1") {
		t.Errorf("the board says %+v", s)
	}
	b.live()
	if code, body := get(t, p.asNode(id), p.run.API+"/api/v1/services", ""); code != 401 {
		t.Errorf("API: %d %s", code, body)
	}
	b.restart() // and reports itself anew
	b.live()
	b.stands("Removed")
	if n := p.node("pi-1"); n != nil {
		t.Errorf("the Node was made again: %s", n.UID)
	}
	// One that somebody else makes is not taken for readmission.
	if _, err := p.client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "pi-1"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	b.restart()
	b.live()
	b.stands("Removed")
	if err := p.client.CoreV1().Nodes().Delete(t.Context(), "pi-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}

	p.must("node", "readmit", "pi-1")
	b.stands(standing.Good)
	p.ready("pi-1", corev1.ConditionTrue)
	if n := p.node("pi-1"); n.UID == before.UID {
		t.Error("the Node was never deleted")
	}
	p.hello("again", "pi-1")
	// Deleted once more, now while it is there.
	if err := p.client.CoreV1().Nodes().Delete(t.Context(), "pi-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.stands("Removed")
	eventually(t, 30*time.Second, "its pods are stopped", func() error {
		if g := b.guests(); len(g) > 0 {
			return errors.New("they run")
		}
		return nil
	})
}

func tokenRequest(pod *corev1.Pod) *authenticationv1.TokenRequest {
	year := int64(365 * 24 * 3600)
	return &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &year,
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}}}
}
