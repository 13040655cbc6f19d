package tunnel_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/poddial"
	"github.com/coracle-edge/coracle/controlplane/tunnel"
	"github.com/coracle-edge/coracle/edgelet/streams"
	nodetunnel "github.com/coracle-edge/coracle/edgelet/tunnel"
)

// noRuntime is asked nothing: a pod's port is dialed without it.
type noRuntime struct {
	streams.Runtime
}

func (noRuntime) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return nil, errors.New("nobody was to ask the runtime")
}

// board is a node with pods on its own network, on loopback.
type board struct {
	name  string
	pods  []*v1.Pod
	asked atomic.Int32
}

func (b *board) podsAt(addr netip.Addr) (out []*v1.Pod, _ error) {
	b.asked.Add(1)
	for _, p := range b.pods {
		if p.Status.PodIP == addr.String() {
			out = append(out, p)
		}
	}
	return out, nil
}

func (b *board) pod(name, ip string, port int32) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: b.name + "-" + name},
		Spec: v1.PodSpec{NodeName: b.name, HostNetwork: true, Containers: []v1.Container{{Name: "main",
			Ports: []v1.ContainerPort{{ContainerPort: port}}}}},
		Status: v1.PodStatus{Phase: v1.PodRunning, PodIP: ip, HostIP: ip, ContainerStatuses: []v1.ContainerStatus{{
			Name: "main", State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}}}}}
	b.pods = append(b.pods, p)
	return p
}

func (f *fleet) board(name string) *board {
	f.t.Helper()
	b := &board{name: name}
	s := check(streams.New(streams.Config{Runtime: noRuntime{}, Pod: func(string, string, string) (*v1.Pod, error) { return nil, streams.ErrNoPod }}))(f.t)
	f.run(name, nodetunnel.New(nodetunnel.Config{Identity: f.identity(name), Dial: s.Dial(b.podsAt),
		Handler: nodetunnel.NewAPI(nodetunnel.APIConfig{Pods: newPods(f.t, "one")})}))
	return b
}

// dialer knows the pods of boards, as the API server does.
func (f *fleet) dialer(stream func(context.Context, string, string) (net.Conn, error), boards ...*board) *poddial.Dialer {
	f.t.Helper()
	cert := check(f.authority.KubeletClient())(f.t)
	d := poddial.New(poddial.Config{Stream: stream, TLS: func() *tls.Config {
		return &tls.Config{RootCAs: f.authority.RootPool(), GetClientCertificate: cert.GetClientCertificate}
	}})
	if _, err := d.DialContext(f.t.Context(), "tcp", "127.0.0.1:1"); !errors.Is(err, poddial.ErrNotReady) {
		f.t.Errorf("before the pods are known: %v", err)
	}
	for _, b := range boards {
		for _, p := range b.pods {
			if _, err := f.client.CoreV1().Pods(p.Namespace).Create(f.t.Context(), p, metav1.CreateOptions{}); err != nil {
				f.t.Fatal(err)
			}
		}
	}
	factory := informers.NewSharedInformerFactory(f.client, 0)
	if err := d.Use(factory.Core().V1().Pods().Informer()); err != nil {
		f.t.Fatal(err)
	}
	factory.Start(f.t.Context().Done())
	factory.WaitForCacheSync(f.t.Context().Done())
	return d
}

// echo serves on a loopback address and says who it is first.
func echo(t *testing.T, host, who string) int32 {
	t.Helper()
	l := check(net.Listen("tcp", host+":0"))(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				fmt.Fprintf(conn, "%s\n", who)
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return int32(l.Addr().(*net.TCPAddr).Port)
}

// talk says a thing and hears who answers, and the thing.
func talk(t *testing.T, d *poddial.Dialer, address string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		return "", err
	}
	var all strings.Builder
	buf := make([]byte, 64)
	for strings.Count(all.String(), "\n") < 2 {
		n, err := conn.Read(buf)
		if err != nil {
			return all.String(), err
		}
		all.Write(buf[:n])
	}
	return all.String(), nil
}

func TestDialPods(t *testing.T) {
	f := start(t, tunnel.Config{Timeout: 5 * time.Second})
	one, two := f.board("pi-1"), f.board("pi-2")
	port := echo(t, "127.0.0.2", "a pod of pi-1")
	hidden := echo(t, "127.0.0.2", "the host's ssh")
	one.pod("web", "127.0.0.2", port)
	ended := one.pod("ended", "127.0.0.3", port)
	ended.Status.Phase = v1.PodSucceeded
	// Both boards have a pod of one address and port.
	shared := echo(t, "127.0.0.4", "whoever asks")
	one.pod("twin", "127.0.0.4", shared)
	two.pod("twin", "127.0.0.4", shared)
	closed := one.pod("closed", "127.0.0.5", 1)
	outside := echo(t, "127.0.0.6", "no pod")
	d := f.dialer(f.tunnels.Dial, one, two)

	at := func(ip string, port int32) string { return net.JoinHostPort(ip, fmt.Sprint(port)) }
	if text, err := talk(t, d, at("127.0.0.2", port)); text != "a pod of pi-1\nhello\n" {
		t.Errorf("%q, %v", text, err)
	}
	if one.asked.Load() == 0 || two.asked.Load() != 0 {
		t.Errorf("%d times through the pod's node, %d through the other", one.asked.Load(), two.asked.Load())
	}
	if text, err := talk(t, d, at("127.0.0.6", outside)); text != "no pod\nhello\n" {
		t.Errorf("an address of no pod is dialed as it is: %q, %v", text, err)
	}
	for address, words := range map[string]string{
		at("127.0.0.2", hidden):                   "declares this port",
		at(closed.Status.PodIP, 1):                "connection refused",
		at("127.0.0.4", shared):                   "pi-1, pi-2",
		"10-9-9-9.pi-1.pods.coracle.internal:80":  "no pod of this node has this address",
		"127-0-0-4.pi-3.pods.coracle.internal:80": "away",
	} {
		if text, err := talk(t, d, address); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %q, %v; want %q", address, text, err, words)
		}
	}
	for _, b := range []*board{one, two} {
		before := b.asked.Load()
		if text, err := talk(t, d, at(d.Host("127.0.0.4", b.name), shared)); text != "whoever asks\nhello\n" || b.asked.Load() != before+1 {
			t.Errorf("the twin on %s: %q, %v", b.name, text, err)
		}
	}
	if host := d.Host("127.0.0.2", "pi-1"); host != "127.0.0.2" {
		t.Errorf("the one pod of an address is called %q", host)
	}
}

// A stream serves its purpose and no other, and another control plane's is the same.
func TestPurposesAreApart(t *testing.T) {
	f := start(t, tunnel.Config{Timeout: 5 * time.Second})
	b := f.board("pi-1")
	port := echo(t, "127.0.0.2", "a pod")
	b.pod("web", "127.0.0.2", port)
	cert := check(f.authority.KubeletClient())(t)
	relayed := func(ctx context.Context, node, purpose string) (net.Conn, error) {
		return tunnel.DialRelay(ctx, []string{f.url}, f.relayTLS(cert), node, purpose)
	}
	if text, err := talk(t, f.dialer(relayed, b), fmt.Sprintf("127.0.0.2:%d", port)); text != "a pod\nhello\n" {
		t.Errorf("through another control plane: %q, %v", text, err)
	}
	if _, err := relayed(t.Context(), "pi-1", "proxy"); err == nil || !strings.Contains(err.Error(), `"proxy"`) {
		t.Errorf("an unknown purpose: %v", err)
	}
	dial := fmt.Sprintf("https://pi-1:10250%s?address=127.0.0.2:%d", enrollment.DialPath, port)
	if status, _ := get(t, f.apiServer(), dial); status != http.StatusNotFound {
		t.Errorf("the stream of the node's API connects: %d", status)
	}
	client := f.apiServer()
	client.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return f.tunnels.Dial(ctx, "pi-1", enrollment.PurposeDial)
	}
	if status, _ := get(t, client, base); status != http.StatusNotFound {
		t.Errorf("the stream to pods serves logs: %d", status)
	}
	// Who asks for an address that isn't a pod's gets nowhere, whoever it is.
	for _, address := range []string{"127.0.0.1:22", "192.0.2.1:80", "[::1]:22"} {
		if status, body := get(t, client, "https://pi-1:10250"+enrollment.DialPath+"?address="+address); status != http.StatusUpgradeRequired {
			t.Errorf("%s: %d %s", address, status, body)
		}
		d := f.dialer(f.tunnels.Dial)
		host, port, _ := net.SplitHostPort(address)
		name := strings.NewReplacer(".", "-", ":", "-").Replace(host) + ".pi-1.pods.coracle.internal"
		if _, err := talk(t, d, net.JoinHostPort(name, port)); !errors.Is(err, poddial.ErrRefused) || !strings.Contains(err.Error(), "no pod of this node") {
			t.Errorf("%s: %v", address, err)
		}
	}
	// And only the API server may ask.
	for name, leaf := range map[string]string{"administrator": "admin", "hub": "hub"} {
		c := check(f.authority.Admin())(t)
		if leaf == "hub" {
			c = check(f.authority.Hub())(t)
		}
		d := poddial.New(poddial.Config{Stream: f.tunnels.Dial, TLS: func() *tls.Config {
			return &tls.Config{RootCAs: f.authority.RootPool(), GetClientCertificate: c.GetClientCertificate}
		}})
		if text, err := talk(t, d, fmt.Sprintf("127-0-0-2.pi-1.pods.coracle.internal:%d", port)); err == nil {
			t.Errorf("%s: %q", name, text)
		}
	}
}
