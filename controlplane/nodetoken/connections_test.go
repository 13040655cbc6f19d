package nodetoken

import (
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
)

// dialed is a connection that a listener accepted, by both ends.
func dialed(t *testing.T, l net.Listener) (client, server net.Conn) {
	t.Helper()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

func listen(t *testing.T, c *Connections) net.Listener {
	t.Helper()
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	return c.Listener(raw)
}

func open(conn net.Conn) bool {
	_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	_, err := conn.Read(make([]byte, 1))
	return !errors.Is(err, io.EOF)
}

func TestConnectionsEndWithTheirNode(t *testing.T) {
	c := NewConnections()
	l := listen(t, c)
	one, s1 := dialed(t, l)
	two, s2 := dialed(t, l)
	admin, _ := dialed(t, l)
	moved, s4 := dialed(t, l)
	c.note(s1.RemoteAddr().String(), "pi-1")
	c.note(s2.RemoteAddr().String(), "pi-2")
	c.note(s4.RemoteAddr().String(), "pi-1")
	c.note(s4.RemoteAddr().String(), "pi-2") // somebody else came by it since
	c.note("192.0.2.1:1", "pi-1")            // none that we know
	c.End("pi-1")
	if open(one) {
		t.Error("the node's connection goes on")
	}
	for what, conn := range map[string]net.Conn{"another node's": two, "the administrator's": admin, "one that is another's now": moved} {
		if !open(conn) {
			t.Errorf("%s was ended", what)
		}
	}
	c.End("pi-1") // again
	c.End("nobody")
	// What is closed is forgotten.
	s2.Close()
	s2.Close()
	s4.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) != 1 || len(c.node) != 0 || len(c.byNode) != 0 {
		t.Errorf("left: %v, %v, %v", c.open, c.node, c.byNode)
	}
}

// Whatever it came with, a pod's word ends with its node's.
func TestBound(t *testing.T) {
	w := newWorld(t)
	pod := func(node string) user.Info {
		return &user.DefaultInfo{Name: "system:serviceaccount:shop:till", Extra: map[string][]string{"authentication.kubernetes.io/node-name": {node}}}
	}
	c := NewConnections()
	l := listen(t, c)
	_, server := dialed(t, l)
	ask := func(u user.Info) (bool, error) {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.RemoteAddr = server.RemoteAddr().String()
		_, ok, err := Bound(authenticator.RequestFunc(func(*http.Request) (*authenticator.Response, bool, error) {
			return &authenticator.Response{User: u}, u != nil, nil
		}), w, c).AuthenticateRequest(r)
		return ok, err
	}
	everybody := map[string]user.Info{
		"the node": &user.DefaultInfo{Name: "system:node:pi-1"}, "a pod of the node": pod("pi-1"),
		"a pod of a node without a record": pod("kubeadm-1"), "an account without a node": &user.DefaultInfo{Name: "system:serviceaccount:shop:till"},
		"the administrator": &user.DefaultInfo{Name: "coracle:admin"},
		// Only a service account's token says where it is bound.
		"a user with such an extra": &user.DefaultInfo{Name: "alice", Extra: map[string][]string{"authentication.kubernetes.io/node-name": {"pi-1"}}},
	}
	for who, u := range everybody {
		if ok, err := ask(u); !ok || err != nil {
			t.Errorf("%s: %v, %v", who, ok, err)
		}
	}
	for name, change := range map[string]func(){
		"revoked": func() { w.record.RevokedAt = now }, "cloned": func() { w.record.ClonedAt = now }, "removed": func() { w.record.RemovedAt = now },
	} {
		w.record.RevokedAt, w.record.ClonedAt, w.record.RemovedAt = time.Time{}, time.Time{}, time.Time{}
		change()
		for who, u := range everybody {
			ok, err := ask(u)
			if want := who != "the node" && who != "a pod of the node"; ok != want || (err == nil) != want {
				t.Errorf("%s, %s: %v, %v", name, who, ok, err)
			}
			if err != nil && !errors.Is(err, enrollment.ErrRevoked) && !errors.Is(err, enrollment.ErrCloned) && !errors.Is(err, enrollment.ErrRemoved) {
				t.Errorf("%s: refused as %v", name, err)
			}
		}
	}
	// A request that was let in is ended with the node.
	w.record.RevokedAt, w.record.ClonedAt, w.record.RemovedAt = time.Time{}, time.Time{}, time.Time{}
	client, server2 := dialed(t, l)
	server = server2
	if ok, err := ask(pod("pi-1")); !ok || err != nil {
		t.Fatal(err)
	}
	c.End("pi-1")
	if open(client) {
		t.Error("a pod's connection goes on after its node was revoked")
	}
	if ok, err := ask(nil); ok || err != nil {
		t.Errorf("nobody: %v, %v", ok, err)
	}
}
