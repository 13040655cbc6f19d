package proxy

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
)

// Config of a Proxy; all but Run and Lookup is required.
type Config struct {
	// Service is the raw default/kubernetes; nil if this node doesn't have it.
	Service func() []byte
	// Changed has a signal when Service may return something else.
	Changed <-chan struct{}
	// API are the URLs of the control planes' APIs, the best first.
	API func() []string
	Log *slog.Logger
	// Run runs iptables on the nat table; nil: the program.
	Run func(args ...string) error
	// Lookup resolves names of control planes; nil: the resolver.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
}

// Proxy keeps the rules.
type Proxy struct {
	c    Config
	kick chan struct{}

	mu      sync.Mutex
	written bool
	has     []forward // what the rules say, once they were written
}

// forward is one port of the Service and where it leads.
type forward struct {
	protocol string // tcp
	from, to netip.AddrPort
}

const (
	// chain holds the rules; it is the agent's alone.
	chain = "CORACLE-API"
	// A name that isn't resolved, or a rule that isn't taken, is tried again.
	firstPause, lastPause = 2 * time.Second, 5 * time.Minute
	lookupTimeout         = 10 * time.Second
)

// ErrNoTools is returned when this machine has no iptables.
var ErrNoTools = errors.New("pods don't reach the kubernetes Service: iptables isn't installed (apt-get install iptables)")

// New checks what is needed.
func New(c Config) (*Proxy, error) {
	if c.Run == nil {
		if _, err := exec.LookPath("iptables"); err != nil {
			return nil, ErrNoTools
		}
		c.Run = iptables
	}
	if c.Lookup == nil {
		c.Lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip4", host)
		}
	}
	return &Proxy{c: c, kick: make(chan struct{}, 1)}, nil
}

// AddressesChanged has the rules made anew if API returns something else.
func (p *Proxy) AddressesChanged() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// Run keeps the rules until ctx ends. They stay then, because pods may outlive
// the agent; see Close.
func (p *Proxy) Run(ctx context.Context) error {
	pause := firstPause
	for {
		var again <-chan time.Time
		if err := p.reconcile(ctx); err != nil && ctx.Err() == nil {
			p.c.Log.Warn("pods don't reach the kubernetes Service", "err", err, "again after", pause)
			again = time.After(pause)
			pause = min(2*pause, lastPause)
		} else {
			pause = firstPause
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.c.Changed:
		case <-p.kick:
		case <-again:
		}
	}
}

// reconcile makes the rules say what they should.
func (p *Proxy) reconcile(ctx context.Context) error {
	want, err := p.want(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.Equal(p.has, want) {
		return nil
	}
	if err := p.write(want); err != nil {
		return err
	}
	p.has, p.written = want, true
	for _, f := range want {
		p.c.Log.Info("pods reach the API by its Service", "service", f.from, "api", f.to)
	}
	return nil
}

// want is nil without an address that a pod can reach. A Service that this node
// doesn't have any more is one that no pod here uses now: the rules stay for the next
// pod, so that one which comes and goes doesn't have them written twice.
func (p *Proxy) want(ctx context.Context) ([]forward, error) {
	raw := p.c.Service()
	if len(raw) == 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.has, nil
	}
	service, err := kubeobj.Service(raw)
	if err != nil {
		return nil, fmt.Errorf("service default/kubernetes: %w", err)
	}
	ip, err := netip.ParseAddr(service.Spec.ClusterIP)
	if err != nil || !ip.Is4() {
		return nil, nil // headless or IPv6
	}
	api, err := p.api(ctx)
	if err != nil || !api.IsValid() {
		return nil, err
	}
	var out []forward
	for _, port := range service.Spec.Ports {
		if port.Protocol == v1.ProtocolTCP || port.Protocol == "" {
			out = append(out, forward{"tcp", netip.AddrPortFrom(ip, uint16(port.Port)), api})
		}
	}
	return out, nil
}

// api is where the API is: the first address that isn't a loopback's, which would
// be the pod's own.
func (p *Proxy) api(ctx context.Context) (netip.AddrPort, error) {
	var failed error
	for _, text := range p.c.API() {
		u, err := url.Parse(text)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		port, err := strconv.ParseUint(cmp.Or(u.Port(), "443"), 10, 16)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", text, err))
			continue
		}
		addresses := []netip.Addr{}
		if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
			addresses = append(addresses, ip)
		} else {
			lookup, cancel := context.WithTimeout(ctx, lookupTimeout)
			addresses, err = p.c.Lookup(lookup, u.Hostname())
			cancel()
			if err != nil {
				failed = errors.Join(failed, fmt.Errorf("%s: %w", text, err))
				continue
			}
		}
		for _, a := range addresses {
			if a = a.Unmap(); a.Is4() && !a.IsLoopback() && !a.IsUnspecified() {
				return netip.AddrPortFrom(a, uint16(port)), nil
			}
		}
	}
	return netip.AddrPort{}, failed
}

// hooks are where the chain is asked: for what pods send, and the node itself.
var hooks = [...]string{"PREROUTING", "OUTPUT"}

// write replaces the rules. Connections that are open keep their way.
func (p *Proxy) write(want []forward) error {
	if p.c.Run("-n", "-L", chain) != nil {
		if err := p.c.Run("-N", chain); err != nil {
			return err
		}
	}
	if err := p.c.Run("-F", chain); err != nil {
		return err
	}
	for _, f := range want {
		if err := p.c.Run("-A", chain, "-d", f.from.Addr().String()+"/32", "-p", f.protocol, "--dport", strconv.Itoa(int(f.from.Port())),
			"-j", "DNAT", "--to-destination", f.to.String()); err != nil {
			return err
		}
	}
	for _, hook := range hooks {
		if p.c.Run("-C", hook, "-j", chain) == nil {
			continue
		}
		if err := p.c.Run("-A", hook, "-j", chain); err != nil {
			return err
		}
	}
	return nil
}

// Close takes the rules away. No Run may be under way.
func (p *Proxy) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.written {
		return nil
	}
	p.has, p.written = nil, false
	var err error
	for _, hook := range hooks {
		err = errors.Join(err, p.c.Run("-D", hook, "-j", chain))
	}
	return errors.Join(err, p.c.Run("-F", chain), p.c.Run("-X", chain))
}

// iptables changes the nat table, and waits up to five seconds for others that do.
func iptables(args ...string) error {
	out, err := exec.Command("iptables", append([]string{"-w", "5", "-t", "nat"}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("iptables %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
