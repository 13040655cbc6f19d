package network

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
)

// Private is the bridge network of one node on a machine that may have others,
// of this cluster and of clusters that nobody here knows. They share the
// machine's routes: of two bridges with one subnet, one can't be reached.
type Private struct {
	// Name of the network.
	Name string
	// Dir is the node's own. It holds the addresses given, and names the bridge.
	Dir string
	// ConfDir gets the configuration.
	ConfDir string
	// Pool is where the node's /24 is taken from: one in which no other interface
	// of the machine has an address. It stays the node's while that is so.
	Pool netip.Prefix
	// Subnet is the node's, instead of one out of Pool, in a cluster that routes
	// it: pods keep their addresses on the way to others, and whoever gave the
	// subnet says where else they have to be masqueraded.
	Subnet netip.Prefix
}

// privateBits is the length of a node's prefix.
const privateBits = 24

func (p Private) file() string { return filepath.Join(p.ConfDir, "10-coracle.conflist") }

func (p Private) device() string {
	sum := sha256.Sum256([]byte(p.Dir))
	return "cor-" + hex.EncodeToString(sum[:4])
}

// Write chooses the subnet and writes the configuration.
func (p Private) Write() error {
	subnet, err := p.subnet()
	if err != nil {
		return err
	}
	conf, err := p.conflist(subnet)
	if err != nil {
		return err
	}
	if had, err := os.ReadFile(p.file()); err == nil && bytes.Equal(had, conf) {
		return nil
	}
	return os.WriteFile(p.file(), conf, 0o600)
}

func (p Private) subnet() (netip.Prefix, error) {
	if p.Subnet.IsValid() {
		return p.Subnet, nil
	}
	if !p.Pool.IsValid() || !p.Pool.Addr().Is4() || p.Pool.Bits() > privateBits {
		return netip.Prefix{}, fmt.Errorf("network %s: the pool %s is no IPv4 prefix of at most %d bits", p.Name, p.Pool, privateBits)
	}
	var former netip.Prefix
	if b := p.former(); b != nil {
		former = b.pool.subnet
	}
	subnet, err := FreeSubnet(p.Pool, p.Dir, p.device(), former)
	if err != nil {
		return subnet, fmt.Errorf("network %s: %w", p.Name, err)
	}
	return subnet, nil
}

// FreeSubnet is a /24 of pool in which no interface of this machine but device
// has an address: former if that is one, else the first that is free, begun at a
// place that seed says.
func FreeSubnet(pool netip.Prefix, seed, device string, former netip.Prefix) (netip.Prefix, error) {
	others, err := others(pool, device)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("the machine's addresses: %w", err)
	}
	return choose(pool, seed, former, others)
}

// others are the networks of all interfaces but device.
func others(pool netip.Prefix, device string) ([]netip.Prefix, error) {
	mine := 0
	if l, err := netlink.LinkByName(device); err == nil {
		mine = l.Attrs().Index
	} else if !errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, err
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	var list []netip.Prefix
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP.To4())
		ones, _ := a.Mask.Size()
		// A machine that has the whole pool for its own network leaves no choice.
		if prefix := netip.PrefixFrom(ip, ones).Masked(); ok && a.LinkIndex != mine && ones > pool.Bits() {
			list = append(list, prefix)
		}
	}
	return list, nil
}

func choose(pool netip.Prefix, seed string, former netip.Prefix, others []netip.Prefix) (netip.Prefix, error) {
	free := func(s netip.Prefix) bool {
		for _, o := range others {
			if o.Overlaps(s) {
				return false
			}
		}
		return true
	}
	if former.IsValid() && former.Bits() == privateBits && pool.Overlaps(former) && free(former) {
		return former, nil
	}
	base := binary.BigEndian.Uint32(pool.Masked().Addr().AsSlice())
	count := uint32(1) << (privateBits - pool.Bits())
	// Begun at a place of the node's own: a cluster that starts at the same
	// moment, and has no interface yet, begins elsewhere.
	sum := sha256.Sum256([]byte(seed))
	start := binary.BigEndian.Uint32(sum[4:])
	for i := range count {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], base+(start+i)%count<<(32-privateBits))
		if s := netip.PrefixFrom(netip.AddrFrom4(a), privateBits); free(s) {
			return s, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("all %d subnets of %s are taken by interfaces of this machine: remove the bridges that nobody uses (ip link delete NAME)", count, pool)
}

// former is the network as written before; nil if there is none.
func (p Private) former() *bridge {
	raw, err := os.ReadFile(p.file())
	if err != nil {
		return nil
	}
	return parseBridge(raw)
}

// conflist is a bridge with addresses out of subnet, and host ports.
func (p Private) conflist(subnet netip.Prefix) ([]byte, error) {
	type m = map[string]any
	return json.MarshalIndent(m{
		"cniVersion": "1.0.0", "name": p.Name,
		"plugins": []m{
			{
				"type": "bridge", "bridge": p.device(), "isGateway": true, "ipMasq": !p.Subnet.IsValid(), "hairpinMode": true,
				"ipam": m{
					"type": "host-local", "ranges": [][]m{{{"subnet": subnet.String()}}},
					"routes": []m{{"dst": "0.0.0.0/0"}}, "dataDir": filepath.Join(p.Dir, "ipam"),
				},
			},
			{"type": "portmap", "capabilities": m{"portMappings": true}},
		},
	}, "", "  ")
}

// Remove takes the bridge and its rules away unless a pod is attached still. It
// can be repeated; Write and the first pod make them again.
func (p Private) Remove() error {
	link, err := netlink.LinkByName(p.device())
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("network %s: bridge %s: %w", p.Name, p.device(), err)
	}
	all, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("network %s: the machine's interfaces: %w", p.Name, err)
	}
	for _, l := range all {
		if l.Attrs().MasterIndex == link.Attrs().Index {
			return nil
		}
	}
	if b := p.former(); b != nil && b.masq {
		if err := b.unmasquerade(); err != nil {
			return fmt.Errorf("network %s: masquerading: %w", p.Name, err)
		}
	}
	if err := netlink.LinkDel(link); err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) {
		return fmt.Errorf("network %s: bridge %s: %w", p.Name, p.device(), err)
	}
	// Whoever is attached next begins with the first address.
	if err := os.RemoveAll(filepath.Join(p.Dir, "ipam")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
