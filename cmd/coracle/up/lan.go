package up

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/crishim/network"
)

// lan is the network that this machine and its boards are on: a bridge. Only
// their own addresses are known on it; pods' subnets are routed by the boards
// among themselves, so this machine, and with it the control plane, reaches no
// pod but through the nodes' tunnels.
type lan struct {
	layout Layout
	device string
	subnet netip.Prefix
	// noWayOut is why boards reach nothing beyond this machine; nil if they do.
	noWayOut error
}

// lanFile is what a data folder remembers: nodes know the control plane by its
// address there.
type lanFile struct {
	Subnet netip.Prefix `json:"subnet"`
}

const (
	// firstBoard is the host number of board-1; the bridge's own is 1.
	firstBoard = 11
	// maxBoards is how many addresses are left.
	maxBoards = 240
)

// podPool has the pods of all boards, a /24 each. It is seen on boards only, so
// clusters beside each other have the same.
var podPool = netip.MustParsePrefix("10.42.0.0/16")

func (l Layout) lan() string { return filepath.Join(l.Root, "lan.json") }

// ID tells this data folder's interfaces, chains and cgroups from others'.
func (l Layout) ID() string {
	sum := sha256.Sum256([]byte(l.Root))
	return hex.EncodeToString(sum[:4])
}

func newLAN(l Layout) (*lan, error) {
	n := &lan{layout: l, device: lanDevice(l)}
	var had lanFile
	raw, err := os.ReadFile(l.lan())
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if err := json.Unmarshal(raw, &had); err != nil {
			return nil, fmt.Errorf("%s: %w; remove the file to choose another network", l.lan(), err)
		}
	}
	if n.subnet, err = network.FreeSubnet(podAddresses, l.Root, n.device, had.Subnet); err != nil {
		return nil, fmt.Errorf("the boards' network: %w", err)
	}
	if had.Subnet.IsValid() && n.subnet != had.Subnet {
		return nil, fmt.Errorf("the boards' network %s is taken by another interface of this machine, and nodes know the control plane by its address there: free it, or remove %s to begin anew", had.Subnet, l.Root)
	}
	if raw, err = json.Marshal(lanFile{Subnet: n.subnet}); err != nil {
		return nil, err
	}
	return n, writeFile(l.lan(), raw, 0o644)
}

// boardPrefix begins the names of the boards' interfaces here.
func boardPrefix(l Layout) string { return "cor-" + l.ID()[:7] + "-" }

func lanDevice(l Layout) string { return "cor-lan-" + l.ID()[:7] } // an interface's name has 15 bytes

// host is this machine's address on the bridge.
func (n *lan) host() netip.Addr { return n.subnet.Addr().Next() }

// address is that of the board of a number, which begins at 1.
func (n *lan) address(board int) netip.Addr {
	a := n.subnet.Addr().As4()
	a[3] = byte(firstBoard + board - 1)
	return netip.AddrFrom4(a)
}

// pods is the subnet of a board's pods.
func (n *lan) pods(board int) netip.Prefix {
	a := podPool.Addr().As4()
	a[2] = byte(board)
	return netip.PrefixFrom(netip.AddrFrom4(a), 24)
}

// up makes the bridge and the way out.
func (n *lan) up(noOutbound bool) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.device
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%w: bridge %s: %w", errCannotIsolate, n.device, err)
	}
	link, err := netlink.LinkByName(n.device)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", n.device, err)
	}
	address := &net.IPNet{IP: n.host().AsSlice(), Mask: net.CIDRMask(n.subnet.Bits(), 32)}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: address}); err != nil {
		return fmt.Errorf("bridge %s: address %s: %w", n.device, address, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bridge %s: %w", n.device, err)
	}
	if noOutbound {
		return n.close()
	}
	n.noWayOut = n.open()
	return nil
}

// down takes away all that up made, and can be repeated.
func (n *lan) down() error {
	err := n.close()
	// The kernel takes the boards' ends with their namespaces, but when it likes.
	links, lerr := netlink.LinkList()
	err = errors.Join(err, lerr)
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, boardPrefix(n.layout)) {
			if derr := netlink.LinkDel(l); derr != nil && !errors.As(derr, new(netlink.LinkNotFoundError)) && !errors.Is(derr, unix.ENODEV) {
				err = errors.Join(err, fmt.Errorf("interface %s: %w", l.Attrs().Name, derr))
			}
		}
	}
	link, missing := netlink.LinkByName(n.device)
	if errors.As(missing, new(netlink.LinkNotFoundError)) {
		return err
	}
	if missing == nil {
		missing = netlink.LinkDel(link)
	}
	if missing != nil {
		err = errors.Join(err, fmt.Errorf("bridge %s: %w", n.device, missing))
	}
	return err
}

// chain is the name of this network's own chain in the tables nat and filter.
func (n *lan) chain() string { return "CORACLE-" + n.layout.ID() }

// rules that let boards out under this machine's address, by table; the last of
// a table leads to its chain, before what others have there.
func (n *lan) rules() map[string][][]string {
	chain := n.chain()
	return map[string][][]string{
		"nat": {
			{chain, "!", "-o", n.device, "-j", "MASQUERADE"},
			{"POSTROUTING", "-s", n.subnet.String(), "-j", chain},
		},
		// Others may drop what is forwarded, as Docker does.
		"filter": {
			{chain, "-i", n.device, "-j", "ACCEPT"},
			{chain, "-o", n.device, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"},
			{"FORWARD", "-j", chain},
		},
	}
}

func (n *lan) open() error {
	if err := n.close(); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return err
	}
	for table, rules := range n.rules() {
		if err := iptables(table, "-N", n.chain()); err != nil {
			return err
		}
		for i, rule := range rules {
			action := "-A"
			if i == len(rules)-1 {
				action = "-I"
			}
			if err := iptables(table, append([]string{action}, rule...)...); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *lan) close() error {
	if _, err := exec.LookPath("iptables"); err != nil {
		return nil // then there are no rules either
	}
	for table, rules := range n.rules() {
		if iptables(table, "-n", "-L", n.chain()) != nil {
			continue
		}
		_ = iptables(table, append([]string{"-D"}, rules[len(rules)-1]...)...) // isn't there yet if we were killed
		if err := errors.Join(iptables(table, "-F", n.chain()), iptables(table, "-X", n.chain())); err != nil {
			return err
		}
	}
	return nil
}

// iptables waits up to five seconds for others that change the tables.
func iptables(table string, args ...string) error {
	return tool(exec.Command("iptables", append([]string{"-w", "5", "-t", table}, args...)...), (*exec.Cmd).Start)
}

// tool runs a command to its end; what it printed is in the error.
func tool(cmd *exec.Cmd, start func(*exec.Cmd) error) error {
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	err := start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(out.String()))
	}
	return nil
}
