package streams

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
)

// dialTimeout bounds connecting to a pod, which is near.
const dialTimeout = 10 * time.Second

var (
	// ErrNotOurs is returned for an address that no pod of this node has: the node
	// is no way to anything else.
	ErrNotOurs = errors.New("no pod of this node has this address")
	// ErrPort is returned for a port of the node's own address that no running
	// container on the node's network declares.
	ErrPort = errors.New("no running container on this node's own network declares this port")
)

// Dial serves enrollment.DialPath: connections to ports of this node's pods, for
// webhooks, aggregated APIs and the proxies of the API server (D12). podsAt returns
// the pods, not ended, that have an address.
//
// A pod with a network of its own may be reached at every port, as it is by any
// neighbour. On the node's own network only what a pod declares is a pod's; the
// rest is the host's: ssh, a router's web page.
func (s *Server) Dial(podsAt func(netip.Addr) ([]*v1.Pod, error)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+enrollment.DialPath, func(w http.ResponseWriter, r *http.Request) {
		address, err := parseDial(r.URL.Query())
		if err != nil {
			fail(w, http.StatusBadRequest, err.Error())
			return
		}
		if r.Header.Get("Upgrade") != enrollment.TunnelProtocol || !upgrades(r.Header) {
			fail(w, http.StatusUpgradeRequired, "this path is for an Upgrade to "+enrollment.TunnelProtocol)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), dialTimeout)
		to, err := s.dialPod(ctx, podsAt, address)
		cancel()
		if err != nil {
			s.cfg.Logger.Debug("dial", "address", address, "err", err)
			status := http.StatusBadGateway
			if errors.Is(err, ErrNotOurs) || errors.Is(err, ErrPort) {
				status = http.StatusForbidden
			}
			fail(w, status, err.Error())
			return
		}
		defer to.Close()
		if err := s.become(w, r, to); err != nil {
			s.cfg.Logger.Debug("dial", "address", address, "err", err)
		}
	})
	return mux
}

// parseDial reads the one address of the query, in numbers.
func parseDial(q url.Values) (netip.AddrPort, error) {
	text := q.Get("address")
	a, err := netip.ParseAddrPort(text)
	if err != nil || len(q["address"]) != 1 || a.Port() == 0 || a.Addr().Zone() != "" || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
		return netip.AddrPort{}, fmt.Errorf("query parameter \"address\" is one IP:PORT of a pod, not %.80q", text)
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), nil
}

func (s *Server) dialPod(ctx context.Context, podsAt func(netip.Addr) ([]*v1.Pod, error), address netip.AddrPort) (net.Conn, error) {
	pods, err := podsAt(address.Addr())
	if err != nil {
		return nil, err
	}
	if len(pods) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrNotOurs, address.Addr())
	}
	for _, pod := range pods {
		shared := sharesNode(pod, address.Addr())
		if shared && !declares(pod, address.Port()) {
			continue
		}
		if shared && !pod.Spec.HostNetwork {
			// A Wasm pod where there is no pod network: the runtime knows which of the
			// node's ports stands for the pod's.
			return s.dialSandbox(ctx, pod, int32(address.Port()))
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", address.String())
	}
	return nil, fmt.Errorf("%w: %s, declare it in spec.containers[].ports", ErrPort, address)
}

func (s *Server) dialSandbox(ctx context.Context, pod *v1.Pod, port int32) (net.Conn, error) {
	id, err := s.sandbox(ctx, pod)
	if err != nil {
		return nil, err
	}
	if s.cfg.InProcess == nil {
		return nil, fmt.Errorf("pod %s/%s has the node's address and isn't on its network: this runtime doesn't say how its ports are reached", pod.Namespace, pod.Name)
	}
	return s.cfg.InProcess.DialPod(ctx, id, port)
}

// sharesNode says whether an address of the pod's is the node's, too.
func sharesNode(pod *v1.Pod, addr netip.Addr) bool {
	if pod.Spec.HostNetwork {
		return true
	}
	hosts := []string{pod.Status.HostIP}
	for _, h := range pod.Status.HostIPs {
		hosts = append(hosts, h.IP)
	}
	for _, text := range hosts {
		if host, err := netip.ParseAddr(text); err == nil && host.Unmap() == addr {
			return true
		}
	}
	return addr.IsLoopback()
}

// declares says whether a running container of the pod declares a TCP port. One
// that doesn't run listens nowhere: what does may be the host's.
func declares(pod *v1.Pod, port uint16) bool {
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			for _, p := range list[i].Ports {
				tcp := p.Protocol == "" || p.Protocol == v1.ProtocolTCP
				if tcp && (p.ContainerPort == int32(port) || p.HostPort == int32(port)) && runs(pod, list[i].Name) {
					return true
				}
			}
		}
	}
	return false
}

func runs(pod *v1.Pod, name string) bool {
	for _, list := range [][]v1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses} {
		for i := range list {
			if list[i].Name == name && list[i].State.Running != nil {
				return true
			}
		}
	}
	return false
}

// become says 101 and makes the request's connection the one to the pod.
func (s *Server) become(w http.ResponseWriter, r *http.Request, to net.Conn) error {
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		fail(w, http.StatusInternalServerError, "this connection can't be a stream")
		return err
	}
	defer client.Close()
	if _, err := fmt.Fprintf(client, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", enrollment.TunnelProtocol); err != nil {
		return fmt.Errorf("the client is gone: %w", err)
	}
	return splice(r.Context(), withEarly(client, buffered.Reader), to, s.cfg.Idle)
}
