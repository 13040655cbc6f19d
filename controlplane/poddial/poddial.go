package poddial

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
)

const (
	// index of the pods by address.
	index = "coracle-pod-ip"
	// maxRefusal bounds what a node says of why it doesn't connect, in bytes.
	maxRefusal = 4096
	// timeout is for all of it: the tunnel's own is 15 s, a handshake over a
	// satellite and the node's connecting come besides.
	timeout = 30 * time.Second
)

var (
	// ErrNotReady is returned before the pods are known.
	ErrNotReady = errors.New("the API server doesn't know the pods yet")
	// ErrAmbiguous is returned when pods of several nodes have the address.
	ErrAmbiguous = errors.New("pods on several nodes have this address")
	// ErrRefused is returned when the pod's node doesn't connect to it.
	ErrRefused = errors.New("the pod's node didn't connect to it")
)

// Config of a Dialer. Stream and TLS are required.
type Config struct {
	// Stream opens a stream to a node for a purpose; see controlplane/tunnel.
	Stream func(ctx context.Context, node, purpose string) (net.Conn, error)
	// TLS shows the API server's certificate to nodes and has the roots that theirs
	// lead to. The server's name is set here.
	TLS func() *tls.Config
	// Direct are the addresses that this machine reaches by itself.
	Direct []netip.Prefix
	Logger *slog.Logger
}

// Dialer dials pods.
type Dialer struct {
	cfg  Config
	pods atomic.Pointer[known]
}

type known struct {
	indexer cache.Indexer
	synced  cache.InformerSynced
}

// New returns a Dialer that refuses to dial addresses until Use.
func New(cfg Config) *Dialer {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Dialer{cfg: cfg}
}

// Use tells the dialer where pods are known. The informer must not run yet.
func (d *Dialer) Use(pods cache.SharedIndexInformer) error {
	if err := pods.AddIndexers(cache.Indexers{index: addresses}); err != nil {
		return err
	}
	d.pods.Store(&known{pods.GetIndexer(), pods.HasSynced})
	return nil
}

// addresses are those under which a pod may be dialed.
func addresses(obj any) ([]string, error) {
	pod, ok := obj.(*v1.Pod)
	if !ok || pod.Spec.NodeName == "" || pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed {
		return nil, nil
	}
	var out []string
	for _, ip := range append([]v1.PodIP{{IP: pod.Status.PodIP}}, pod.Status.PodIPs...) {
		if a, err := netip.ParseAddr(ip.IP); err == nil && !slices.Contains(out, a.Unmap().String()) {
			out = append(out, a.Unmap().String())
		}
	}
	return out, nil
}

// Host is under which DialContext reaches the pod that has an address on a node:
// the address, unless pods of other nodes have it as well.
func (d *Dialer) Host(ip, node string) string {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return ip
	}
	pods, err := d.podsAt(addr.Unmap())
	if err != nil || len(nodesOf(pods)) < 2 {
		return ip
	}
	return hostOn(addr.Unmap(), node)
}

// podDomain is of hosts that name an address on a node. They exist inside this
// process only; no node can be called so, and no resolver is asked for them.
const podDomain = ".pods.coracle.internal"

func hostOn(addr netip.Addr, node string) string {
	return strings.NewReplacer(".", "-", ":", "-").Replace(addr.String()) + "." + node + podDomain
}

// parseHost is the inverse of hostOn.
func parseHost(host string) (addr netip.Addr, node string, ok bool) {
	host, ok = strings.CutSuffix(host, podDomain)
	if !ok {
		return netip.Addr{}, "", false
	}
	dashed, node, ok := strings.Cut(host, ".")
	if !ok || enrollment.CheckNodeName(node) != nil {
		return netip.Addr{}, "", false
	}
	// Four decimal numbers are an IPv4 address: IPv6 has eight, or an empty one.
	addr, err := netip.ParseAddr(strings.ReplaceAll(dashed, "-", "."))
	if err != nil {
		addr, err = netip.ParseAddr(strings.ReplaceAll(dashed, "-", ":"))
	}
	return addr, node, err == nil && addr.Zone() == ""
}

// DialContext has the form of net.Dialer's. Errors name the pod's node.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if !strings.HasPrefix(network, "tcp") {
		return (&net.Dialer{Timeout: timeout}).DialContext(ctx, network, address)
	}
	target, node, err := d.find(address)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	if node == "" {
		return (&net.Dialer{Timeout: timeout}).DialContext(ctx, network, address)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := d.through(ctx, node, target)
	if err != nil {
		d.cfg.Logger.Debug("dial pod", "address", target, "node", node, "err", err)
		return nil, fmt.Errorf("dial %s on node %q: %w", target, node, err)
	}
	return conn, nil
}

// find says which pod's port an address is, and on which node; on none, if it is to
// be dialed as it is.
func (d *Dialer) find(address string) (netip.AddrPort, string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, "", nil // the dialer says what is wrong
	}
	if addr, node, ok := parseHost(host); ok {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return netip.AddrPort{}, "", fmt.Errorf("port %.20q: ports are 1 to 65535", port)
		}
		return netip.AddrPortFrom(addr, uint16(n)), node, nil
	}
	target, err := netip.ParseAddrPort(address)
	if err != nil || d.direct(target.Addr()) {
		return netip.AddrPort{}, "", nil
	}
	target = netip.AddrPortFrom(target.Addr().Unmap(), target.Port())
	node, err := d.nodeOf(target)
	return target, node, err
}

func (d *Dialer) direct(a netip.Addr) bool {
	return slices.ContainsFunc(d.cfg.Direct, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) })
}

// nodeOf finds the node whose pod has the address; "" if it is no pod's.
func (d *Dialer) nodeOf(target netip.AddrPort) (string, error) {
	pods, err := d.podsAt(target.Addr())
	if err != nil {
		return "", err
	}
	nodes := nodesOf(pods)
	if len(nodes) > 1 {
		// Nodes may have one address behind a NAT, or one pod network each: whose port is it?
		nodes = nodesOf(slices.DeleteFunc(pods, func(p *v1.Pod) bool { return !declares(p, target.Port()) }))
	}
	switch len(nodes) {
	case 0:
		return "", nil
	case 1:
		return nodes[0], nil
	}
	slices.Sort(nodes)
	return "", fmt.Errorf("%w: %s; name the pod or a Service of it, or give the nodes pod networks of their own", ErrAmbiguous, strings.Join(nodes, ", "))
}

// podsAt returns the pods, not ended, that have an address.
func (d *Dialer) podsAt(addr netip.Addr) ([]*v1.Pod, error) {
	k := d.pods.Load()
	if k == nil || !k.synced() {
		return nil, ErrNotReady
	}
	objects, err := k.indexer.ByIndex(index, addr.String())
	if err != nil {
		return nil, err
	}
	var pods []*v1.Pod
	for _, o := range objects {
		if p, ok := o.(*v1.Pod); ok {
			pods = append(pods, p)
		}
	}
	return pods, nil
}

func nodesOf(pods []*v1.Pod) []string {
	var nodes []string
	for _, p := range pods {
		if !slices.Contains(nodes, p.Spec.NodeName) {
			nodes = append(nodes, p.Spec.NodeName)
		}
	}
	return nodes
}

func declares(pod *v1.Pod, port uint16) bool {
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			for _, p := range list[i].Ports {
				if p.ContainerPort == int32(port) || p.HostPort == int32(port) {
					return true
				}
			}
		}
	}
	return false
}

// through connects by the node's tunnel.
func (d *Dialer) through(ctx context.Context, node string, target netip.AddrPort) (net.Conn, error) {
	raw, err := d.cfg.Stream(ctx, node, enrollment.PurposeDial)
	if err != nil {
		return nil, err
	}
	config := d.cfg.TLS().Clone()
	config.ServerName, config.NextProtos = node, []string{"http/1.1"}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS with the node: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	stream, err := ask(conn, node, target)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return stream, nil
}

// ask has the node connect.
func ask(conn net.Conn, node string, target netip.AddrPort) (net.Conn, error) {
	if _, err := fmt.Fprintf(conn, "GET %s?address=%s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n",
		enrollment.DialPath, url.QueryEscape(target.String()), node, enrollment.TunnelProtocol); err != nil {
		return nil, err
	}
	response, reader, err := enrollment.ReadAnswer(conn, http.MethodGet)
	if err != nil {
		return nil, fmt.Errorf("the node's answer: %w", err)
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		defer response.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(response.Body, maxRefusal))
		return nil, fmt.Errorf("%w: %s", ErrRefused, strings.TrimSpace(string(text)+" ("+strconv.Itoa(response.StatusCode)+")"))
	}
	if !strings.EqualFold(response.Header.Get("Upgrade"), enrollment.TunnelProtocol) {
		return nil, fmt.Errorf("%w: it upgrades to %.64q", ErrRefused, response.Header.Get("Upgrade"))
	}
	return &early{Conn: conn, reader: reader}, nil
}

// early is a connection of which some bytes may have been read already.
type early struct {
	net.Conn
	reader *bufio.Reader
}

func (e *early) Read(b []byte) (int, error) {
	if n := e.reader.Buffered(); n > 0 {
		return e.reader.Read(b[:min(len(b), n)])
	}
	return e.Conn.Read(b)
}
