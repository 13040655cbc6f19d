package up

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/crishim/network"
)

// board is the namespaces of one node, from its power on to its power off: a
// first process that holds them, linked to the LAN. When that process ends, the
// kernel ends all others inside, and mounts and interfaces with them.
type board struct {
	layout Layout
	name   string
	init   *exec.Cmd
	done   chan struct{} // closed when init has ended
}

// bootTimeout is how long the first process may take to arrange its namespaces.
const bootTimeout = 30 * time.Second

// boot makes the namespaces of the board of a number, which begins at 1.
func (n *lan) boot(ctx context.Context, o Options, number int, name string) (*board, error) {
	log, err := os.OpenFile(n.layout.Log("namespaces-"+name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	ready, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	b := &board{layout: n.layout, name: name, done: make(chan struct{})}
	b.init = exec.Command(filepath.Join(o.BinDir, "coracle"), InitCommand, name, n.layout.Node(name))
	b.init.Stdout, b.init.Stderr, b.init.ExtraFiles = log, log, []*os.File{theirs}
	b.init.SysProcAttr = &syscall.SysProcAttr{Setsid: true,
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	err = b.init.Start()
	_ = theirs.Close()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCannotIsolate, err)
	}
	go func() {
		_ = b.init.Wait()
		close(b.done)
	}()
	pid := fmt.Sprintf("%d %s\n", b.init.Process.Pid, startTime(b.init.Process.Pid))
	if err = writeFile(n.layout.pidFile("namespaces-"+name), []byte(pid), 0o644); err == nil {
		err = b.awaitReady(ctx, ready)
	}
	if err == nil {
		err = n.plug(b, number, o.Nodes)
	}
	if err != nil {
		b.off()
		return nil, fmt.Errorf("namespaces of %s: %w", name, err)
	}
	return b, nil
}

func (b *board) awaitReady(ctx context.Context, ready *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) })
	defer stop()
	said, err := io.ReadAll(ready)
	switch {
	case err != nil:
		return fmt.Errorf("its first process says nothing: %w", err)
	case string(said) != initReady:
		return errors.New(tail(b.layout.Log("namespaces-"+b.name), 3))
	}
	return nil
}

// off ends all processes of the board. It returns when none is left.
func (b *board) off() {
	_ = b.init.Process.Kill()
	<-b.done
	_ = os.Remove(b.layout.pidFile("namespaces-" + b.name))
}

// start starts a command inside.
func (b *board) start(cmd *exec.Cmd) error {
	return onOwnThread(func() error {
		// A thread that shares its root and working directory can't leave its mounts.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		var namespaces []*os.File
		defer func() {
			for _, f := range namespaces {
				_ = f.Close()
			}
		}()
		for _, kind := range []string{"ipc", "uts", "net", "pid", "mnt"} {
			f, err := os.Open(filepath.Join("/proc", strconv.Itoa(b.init.Process.Pid), "ns", kind))
			if err != nil {
				return fmt.Errorf("%s has ended: %w", b.name, err)
			}
			namespaces = append(namespaces, f)
		}
		for _, f := range namespaces {
			if err := unix.Setns(int(f.Fd()), 0); err != nil {
				return fmt.Errorf("%s: %w", f.Name(), err)
			}
		}
		return cmd.Start()
	})
}

// onOwnThread runs f on a thread that ends with it, whatever f has done to it.
// The process's first thread can't end, so it is not taken.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// While this one is held, the next is on another.
			done <- onOwnThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f() // still locked: the thread ends
	}()
	return <-done
}

// plug gives the board its cable, address and routes: this machine is its
// gateway, and the other boards have their pods behind their addresses.
func (n *lan) plug(b *board, number, boards int) error {
	ns, err := netns.GetFromPid(b.init.Process.Pid)
	if err != nil {
		return err
	}
	defer ns.Close()
	bridge, err := netlink.LinkByName(n.device)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex, attrs.Flags = boardPrefix(n.layout)+strconv.Itoa(number), bridge.Attrs().Index, net.FlagUp
	if old, err := netlink.LinkByName(attrs.Name); err == nil {
		_ = netlink.LinkDel(old) // of namespaces that are about to vanish
	}
	address := n.address(number)
	cable := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns)),
		PeerHardwareAddr: append(net.HardwareAddr{0x0a, 0x58}, address.AsSlice()...)} // as before, in everybody's ARP cache
	if err := netlink.LinkAdd(cable); err != nil {
		return fmt.Errorf("interface %s: %w", attrs.Name, err)
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := h.AddrAdd(eth0, &netlink.Addr{IPNet: &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(n.subnet.Bits(), 32)}}); err != nil {
		return fmt.Errorf("address %s: %w", address, err)
	}
	if err := h.LinkSetUp(eth0); err != nil {
		return err
	}
	route := func(to netip.Prefix, via netip.Addr) error {
		dst := &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), 32)}
		if err := h.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: dst, Gw: via.AsSlice()}); err != nil {
			return fmt.Errorf("route to %s by %s: %w", to, via, err)
		}
		return nil
	}
	if err := route(netip.PrefixFrom(netip.IPv4Unspecified(), 0), n.host()); err != nil {
		return err
	}
	// Of boards that aren't there yet, too: nobody has to be told when they come.
	for other := 1; other <= boards; other++ {
		if other != number {
			if err := route(n.pods(other), n.address(other)); err != nil {
				return err
			}
		}
	}
	// Pods are themselves to other pods, and their node to the rest of the world.
	masquerade := exec.Command("iptables", "-w", "5", "-t", "nat", "-A", "POSTROUTING", "-s", n.pods(number).String(), "!", "-d", podPool.String(), "-j", "MASQUERADE")
	return tool(masquerade, b.start)
}

// network of the board's pods: the CNI configuration below dir.
func (n *lan) network(dir string, number int) network.Private {
	return network.Private{Name: "coracle", Dir: dir, ConfDir: filepath.Join(dir, "cni"), Subnet: n.pods(number)}
}

// cgroup is the root of the board's pods.
func (l Layout) cgroup(node string) string { return l.cgroups() + "/" + node }

// cgroups is the one that those of all boards lie in.
func (l Layout) cgroups() string { return "/coracle-" + l.ID() }

// removeCgroups removes those of boards that are off.
func (l Layout) removeCgroups() error {
	var err error
	for _, pattern := range []string{"/sys/fs/cgroup" + l.cgroups(), "/sys/fs/cgroup/*" + l.cgroups()} {
		roots, globErr := filepath.Glob(pattern)
		err = errors.Join(err, globErr)
		for _, root := range roots {
			err = errors.Join(err, removeTree(root))
		}
	}
	return err
}

// removeTree removes a cgroup after those in it.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, removeTree(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(err, os.Remove(dir))
}
