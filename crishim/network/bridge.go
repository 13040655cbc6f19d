package network

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// bridge is a network of the plugins bridge and host-local, IPv4, as far as
// this package does their work. Fields are named as in the plugins' manual
// (cni.dev/plugins/current/main/bridge).
type bridge struct {
	network string
	device  string
	mtu     int
	gateway bool
	masq    bool
	hairpin bool
	pool    *hostLocal
	routes  []routeConf
}

type routeConf struct {
	Dst netip.Prefix `json:"dst"`
	GW  netip.Addr   `json:"gw"` // the range's gateway if there is none
}

// parseBridge reads a configuration list. It is nil if that asks for anything
// that isn't done here, or is wrong: the plugins then say so.
func parseBridge(raw []byte) *bridge {
	var list struct {
		Name    string            `json:"name"`
		Plugins []json.RawMessage `json:"plugins"`
	}
	if json.Unmarshal(raw, &list) != nil || list.Name == "" || len(list.Plugins) == 0 {
		return nil
	}
	for _, p := range list.Plugins[1:] {
		// Has nothing to do for pods without host ports.
		var other struct {
			Type         string          `json:"type"`
			Capabilities map[string]bool `json:"capabilities"`
			SNAT         bool            `json:"snat"`
		}
		if !strict(p, &other) || other.Type != "portmap" {
			return nil
		}
	}
	var conf struct {
		Type             string          `json:"type"`
		Bridge           string          `json:"bridge"`
		IsGateway        bool            `json:"isGateway"`
		IsDefaultGateway bool            `json:"isDefaultGateway"`
		IPMasq           bool            `json:"ipMasq"`
		HairpinMode      bool            `json:"hairpinMode"`
		MTU              int             `json:"mtu"`
		IPAM             json.RawMessage `json:"ipam"`
	}
	var ipam struct {
		Type    string        `json:"type"`
		Ranges  [][]rangeConf `json:"ranges"`
		Routes  []routeConf   `json:"routes"`
		DataDir string        `json:"dataDir"`
		rangeConf
	}
	if !strict(list.Plugins[0], &conf) || conf.Type != "bridge" || conf.MTU < 0 || !strict(conf.IPAM, &ipam) || ipam.Type != "host-local" {
		return nil
	}
	if ipam.Subnet.IsValid() { // the older form
		ipam.Ranges = append(ipam.Ranges, []rangeConf{ipam.rangeConf})
	}
	if len(ipam.Ranges) != 1 || len(ipam.Ranges[0]) != 1 {
		return nil
	}
	pool, ok := newHostLocal(ipam.DataDir, list.Name, ipam.Ranges[0][0])
	if !ok || conf.IPMasq && !haveIPTables() {
		return nil
	}
	b := &bridge{
		network: list.Name, device: conf.Bridge, mtu: conf.MTU, gateway: conf.IsGateway || conf.IsDefaultGateway,
		masq: conf.IPMasq, hairpin: conf.HairpinMode, pool: pool, routes: ipam.Routes,
	}
	if b.device == "" {
		b.device = "cni0"
	}
	everywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	for _, r := range b.routes {
		if !r.Dst.Addr().Is4() || r.GW.IsValid() && !r.GW.Is4() || conf.IsDefaultGateway && r.Dst == everywhere {
			return nil
		}
	}
	if conf.IsDefaultGateway {
		b.routes = append(b.routes, routeConf{Dst: everywhere})
	}
	return b
}

// strict decodes what has no field that v hasn't.
func strict(raw []byte, v any) bool {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	return d.Decode(v) == nil
}

// attach makes the pod's interface, with an address. After an error nothing is
// left.
func (b *bridge) attach(id, netnsPath string, masqueraded *subnets) (_ string, err error) {
	fail := func(what string, err error) (string, error) {
		return "", fmt.Errorf("network %s: %s: %w", b.network, what, err)
	}
	given, err := b.pool.get(id)
	if err != nil {
		return fail("address", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeLink(vethName(id)), b.pool.release(id))
		}
	}()
	if b.masq {
		if err := b.masquerade(masqueraded); err != nil {
			return fail("masquerading", err)
		}
	}
	br, err := b.ensure()
	if err != nil {
		return fail("bridge "+b.device, err)
	}
	ns, err := netns.GetFromPath(netnsPath)
	if err != nil {
		return fail("namespace "+netnsPath, err)
	}
	defer ns.Close()
	if err := b.plug(br, vethName(id), given, ns); err != nil {
		return fail("interface", err)
	}
	if err := b.configure(given, ns); err != nil {
		return fail("interface in the pod", err)
	}
	return given.String(), nil
}

// detach removes the interface and gives the address back. It can be repeated,
// and serves pods that a plugin attached, too: their interface goes with their
// namespace.
func (b *bridge) detach(id string) error {
	if err := removeLink(vethName(id)); err != nil {
		return fmt.Errorf("network %s: interface: %w", b.network, err)
	}
	if err := b.pool.release(id); err != nil {
		return fmt.Errorf("network %s: address: %w", b.network, err)
	}
	return nil
}

// vethName is the host's end of a pod's interface. It follows from the ID, so
// that it is found again whatever became of the pod's namespace.
func vethName(id string) string {
	sum := sha256.Sum256([]byte(id))
	return "veth" + hex.EncodeToString(sum[:5])
}

func removeLink(name string) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if errors.As(err, new(netlink.LinkNotFoundError)) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// ensure makes the bridge and gives it the gateway's address.
func (b *bridge) ensure() (*netlink.Bridge, error) {
	br, err := b.find()
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = b.device, b.mtu
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, err
		}
		if br, err = b.find(); err == nil {
			// Else it takes the lowest of its ports', which come and go.
			err = netlink.LinkSetHardwareAddr(br, br.HardwareAddr)
		}
	}
	if err != nil {
		return nil, err
	}
	if br.Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(br); err != nil {
			return nil, err
		}
	}
	if !b.gateway {
		return br, nil
	}
	gateway := b.inSubnet(b.pool.gateway)
	has, err := netlink.AddrList(br, netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	for _, a := range has {
		if a.IPNet.String() == gateway.String() {
			return br, enableForwarding()
		}
	}
	if len(has) > 0 {
		return nil, fmt.Errorf("it has the address %s already, the network's gateway is %s: remove the bridge, or configure another", has[0].IPNet, gateway)
	}
	if err := netlink.AddrAdd(br, &netlink.Addr{IPNet: gateway}); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	return br, enableForwarding()
}

// inSubnet is an address with the subnet's mask.
func (b *bridge) inSubnet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(b.pool.subnet.Bits(), 32)}
}

func (b *bridge) find() (*netlink.Bridge, error) {
	l, err := netlink.LinkByName(b.device)
	if err != nil {
		return nil, err
	}
	br, ok := l.(*netlink.Bridge)
	if !ok {
		return nil, fmt.Errorf("there is a %s of this name", l.Type())
	}
	return br, nil
}

func enableForwarding() error {
	const file = "/proc/sys/net/ipv4/ip_forward"
	if raw, err := os.ReadFile(file); err == nil && bytes.HasPrefix(raw, []byte("1")) {
		return nil
	}
	return os.WriteFile(file, []byte("1"), 0o644)
}

// plug makes the pair of interfaces and puts the host's end into the bridge.
func (b *bridge) plug(br *netlink.Bridge, name string, ip netip.Addr, ns netns.NsHandle) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex, attrs.Flags = name, b.mtu, br.Index, net.FlagUp
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: ifName, PeerNamespace: netlink.NsFd(int(ns)),
		// Made of the address, so that nobody's ARP cache is ever wrong.
		PeerHardwareAddr: append(net.HardwareAddr{0x0a, 0x58}, ip.AsSlice()...),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	if b.hairpin {
		return netlink.LinkSetHairpin(veth, true)
	}
	return nil
}

// configure gives the pod's end its address and routes.
func (b *bridge) configure(address netip.Addr, ns netns.NsHandle) error {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(ifName)
	if err != nil {
		return err
	}
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: b.inSubnet(address)}); err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	for _, r := range b.routes {
		gw := r.GW
		if !gw.IsValid() {
			gw = b.pool.gateway
		}
		dst := &net.IPNet{IP: r.Dst.Masked().Addr().AsSlice(), Mask: net.CIDRMask(r.Dst.Bits(), 32)}
		if err := h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Gw: gw.AsSlice()}); err != nil {
			return fmt.Errorf("route to %s by %s: %w", r.Dst, gw, err)
		}
	}
	return nil
}

// subnets are those whose rules are known to be there.
type subnets struct {
	mu  sync.Mutex
	has map[string]bool
}

// masquerade lets pods out under the node's address: one rule per subnet, where
// the plugin has a chain per pod. It stays, as the bridge does.
func (b *bridge) masquerade(done *subnets) error {
	done.mu.Lock() // or two pods find no rule and both add one
	defer done.mu.Unlock()
	subnet := b.pool.subnet.String()
	if done.has[subnet] {
		return nil
	}
	if chain := b.chain(); iptables("-n", "-L", chain) != nil {
		if err := iptables("-N", chain); err != nil {
			return err
		}
	}
	for _, rule := range b.rules() {
		if iptables(append([]string{"-C"}, rule...)...) == nil {
			continue
		}
		if err := iptables(append([]string{"-A"}, rule...)...); err != nil {
			return err
		}
	}
	if done.has == nil {
		done.has = map[string]bool{}
	}
	done.has[subnet] = true
	return nil
}

// unmasquerade takes the rules away.
func (b *bridge) unmasquerade() error {
	chain := b.chain()
	if iptables("-n", "-L", chain) != nil {
		return nil
	}
	rules := b.rules()
	for last := rules[len(rules)-1]; iptables(append([]string{"-C"}, last...)...) == nil; {
		if err := iptables(append([]string{"-D"}, last...)...); err != nil {
			return err
		}
	}
	if err := iptables("-F", chain); err != nil {
		return err
	}
	return iptables("-X", chain)
}

// chain is the network's own in the nat table.
func (b *bridge) chain() string {
	sum := sha256.Sum256([]byte(b.network + " " + b.pool.subnet.String()))
	return "CNI-NET-" + hex.EncodeToString(sum[:8])
}

// rules of the nat table: the chain's, and last the one that leads there.
func (b *bridge) rules() [][]string {
	chain, subnet := b.chain(), b.pool.subnet.String()
	return [][]string{
		{chain, "-d", subnet, "-j", "ACCEPT"},
		{chain, "!", "-d", "224.0.0.0/4", "-j", "MASQUERADE"},
		{"POSTROUTING", "-s", subnet, "-j", chain},
	}
}

func haveIPTables() bool {
	_, err := exec.LookPath("iptables")
	return err == nil
}

// iptables changes the nat table, and waits up to five seconds for others that do.
func iptables(args ...string) error {
	out, err := exec.Command("iptables", append([]string{"-w", "5", "-t", "nat"}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("iptables %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
