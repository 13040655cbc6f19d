package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const plugins = "/usr/lib/cni"

// conflist is what `coracle up` writes, less the portmap plugin.
func conflist(dir, extra string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":"net-test","plugins":[{"type":"bridge","bridge":"cor-test","isGateway":true,
		"ipMasq":true,"hairpinMode":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.231.7.0/28"}]],
		"routes":[{"dst":"0.0.0.0/0"}],"dataDir":%q}}%s]}`, dir+"/ipam", extra)
}

// TestMain runs the tests in a network namespace of their own: plugins are run
// from any thread.
func TestMain(m *testing.M) {
	const inside = "CORACLE_TEST_NETNS"
	if os.Geteuid() != 0 || os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// lab is a CNI configuration and, when the test ends, a host without its bridge.
type lab struct {
	*CNI
	dir string
}

func newLab(tb testing.TB) *lab {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: makes network namespaces")
	}
	if _, err := os.Stat(plugins + "/bridge"); err != nil {
		tb.Skip("needs the CNI plugins (package containernetworking-plugins)")
	}
	l := &lab{dir: tb.TempDir()}
	tb.Cleanup(func() {
		if err := removeLink("cor-test"); err != nil {
			tb.Error(err)
		}
	})
	l.CNI = &CNI{ConfDir: l.dir + "/cni", BinDirs: []string{plugins}}
	if err := os.Mkdir(l.ConfDir, 0o755); err != nil {
		tb.Fatal(err)
	}
	l.write(tb, conflist(l.dir, ""))
	return l
}

func (l *lab) write(tb testing.TB, conf string) {
	tb.Helper()
	if err := os.WriteFile(l.ConfDir+"/10-test.conflist", []byte(conf), 0o600); err != nil {
		tb.Fatal(err)
	}
}

// pod makes a namespace, held by a bind mount as the shim's.
func (l *lab) pod(tb testing.TB, name string) string {
	tb.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		tb.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			if err := netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}); err != nil {
				return err
			}
			return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
		}()
	}()
	if err := <-done; err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

// in runs f in a namespace.
func in(path string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			ns, err := netns.GetFromPath(path)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := netns.Set(ns); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-done
}

// byPlugins attaches as containerd does.
func (l *lab) byPlugins(ctx context.Context, id, ns string) error {
	n, err := l.load()
	if err != nil {
		return err
	}
	_, err = n.Setup(ctx, id, ns)
	return err
}

func podConfig(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name}}
}

func addressOf(t *testing.T, ns string) string {
	t.Helper()
	var found []string
	if err := in(ns, func() error {
		h, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		l, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		list, err := h.AddrList(l, netlink.FAMILY_V4)
		for _, a := range list {
			found = append(found, a.IPNet.String())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return strings.Join(found, " ")
}

// reach connects from one namespace to an address in another.
func reach(from, to, ip string) error {
	listening := make(chan string, 1)
	served := make(chan error, 1)
	go func() {
		served <- in(to, func() error {
			l, err := net.Listen("tcp4", "0.0.0.0:0")
			if err != nil {
				listening <- ""
				return err
			}
			defer l.Close()
			listening <- fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
			l.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second))
			c, err := l.Accept()
			if err == nil {
				c.Close()
			}
			return err
		})
	}()
	port := <-listening
	if err := in(from, func() error {
		// A dialer looks up nothing and needs no second thread.
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 5000); err != nil {
			return err
		}
		var n int
		fmt.Sscan(port, &n)
		sa := &unix.SockaddrInet4{Port: n}
		copy(sa.Addr[:], net.ParseIP(ip).To4())
		return unix.Connect(fd, sa)
	}); err != nil {
		return err
	}
	return <-served
}

func TestBuiltInBridgeAndPluginsShareANetwork(t *testing.T) {
	l := newLab(t)
	if l.builtIn(podConfig("a")) == nil {
		t.Fatal("the configuration isn't done here")
	}
	a, b := l.pod(t, "a"), l.pod(t, "b")
	ips, err := l.Attach(t.Context(), "id-a", a, podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	if got := addressOf(t, a); got != "10.231.7.2/28" || ips[0] != "10.231.7.2" {
		t.Fatalf("address in the pod %s, told %v", got, ips)
	}
	if err := l.byPlugins(t.Context(), "id-b", b); err != nil {
		t.Fatal(err)
	}
	if got := addressOf(t, b); got != "10.231.7.3/28" {
		t.Fatalf("the plugins gave %s", got)
	}
	for _, way := range []struct{ from, to, ip string }{{a, b, "10.231.7.3"}, {b, a, "10.231.7.2"}, {a, a, "10.231.7.2"}} {
		if err := reach(way.from, way.to, way.ip); err != nil {
			t.Errorf("to %s: %v", way.ip, err)
		}
	}
	if _, err := l.Attach(t.Context(), "id-a", a, podConfig("a")); err == nil || !strings.Contains(err.Error(), "has the address 10.231.7.2 already") {
		t.Errorf("attached twice: %v", err)
	}
	// The second attachment's failure took nothing from the first.
	if err := reach(b, a, "10.231.7.2"); err != nil {
		t.Errorf("after a second attachment: %v", err)
	}
	for range 2 { // can be repeated
		for _, id := range []string{"id-a", "id-b"} {
			if err := l.Detach(t.Context(), id, "", podConfig(id)); err != nil {
				t.Fatal(err)
			}
		}
	}
	left, err := filepath.Glob(l.dir + "/ipam/net-test/10.*")
	if err != nil || len(left) != 0 {
		t.Errorf("addresses left: %v, %v", left, err)
	}
	if _, err := netlink.LinkByName(vethName("id-a")); err == nil {
		t.Error("the host's end is left")
	}
}

func TestAddressesAreUsedUpAndGivenBack(t *testing.T) {
	l := newLab(t)
	ns := l.pod(t, "pod")
	var last error
	n := 0
	for ; n < 20 && last == nil; n++ {
		if _, last = l.Attach(t.Context(), fmt.Sprint("id-", n), ns, podConfig("p")); last == nil {
			// One namespace serves all: the interface goes, the address stays.
			if err := removeLink(vethName(fmt.Sprint("id-", n))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n != 14 || last == nil || !strings.Contains(last.Error(), "all addresses from 10.231.7.1 to 10.231.7.14 are in use") {
		t.Fatalf("after %d pods: %v", n, last)
	}
	if err := l.Detach(t.Context(), "id-4", "", podConfig("p")); err != nil {
		t.Fatal(err)
	}
	if ips, err := l.Attach(t.Context(), "again", ns, podConfig("p")); err != nil || ips[0] != "10.231.7.6" {
		t.Errorf("the address given back: %v, %v", ips, err)
	}
}

func TestFailedAttachmentLeavesNothing(t *testing.T) {
	l := newLab(t)
	if _, err := l.Attach(t.Context(), "id", l.dir+"/nowhere", podConfig("p")); err == nil || !strings.Contains(err.Error(), "network net-test: namespace") {
		t.Errorf("a namespace that isn't there: %v", err)
	}
	if left, _ := filepath.Glob(l.dir + "/ipam/net-test/10.*"); len(left) != 0 {
		t.Errorf("addresses left: %v", left)
	}
	br, err := netlink.LinkByName("cor-test")
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := netlink.ParseAddr("10.231.7.1/28")
	if err := netlink.AddrDel(br, addr); err != nil {
		t.Fatal(err)
	}
	other, _ := netlink.ParseAddr("10.99.0.1/24")
	if err := netlink.AddrAdd(br, other); err != nil {
		t.Fatal(err)
	}
	_, err = l.Attach(t.Context(), "id", l.pod(t, "p"), podConfig("p"))
	if err == nil || !strings.Contains(err.Error(), "bridge cor-test: it has the address 10.99.0.1/24 already") {
		t.Errorf("a bridge of somebody else: %v", err)
	}
}

func TestWhatIsLeftToThePlugins(t *testing.T) {
	dir := t.TempDir()
	base := conflist(dir, `,{"type":"portmap","capabilities":{"portMappings":true}}`)
	if parseBridge([]byte(base)) == nil {
		t.Fatal("the usual configuration isn't done here")
	}
	for what, conf := range map[string]string{
		"another plugin":       strings.Replace(base, `"type":"bridge"`, `"type":"macvlan"`, 1),
		"a VLAN":               strings.Replace(base, `"isGateway":true`, `"isGateway":true,"vlan":7`, 1),
		"other IPAM":           strings.Replace(base, "host-local", "dhcp", 1),
		"IPv6":                 strings.Replace(base, "10.231.7.0/28", "fd00::/64", 1),
		"two sets of ranges":   strings.Replace(base, `]],`, `],[{"subnet":"10.9.0.0/24"}]],`, 1),
		"a chained plugin":     strings.Replace(base, "portmap", "bandwidth", 1),
		"no name":              strings.Replace(base, "net-test", "", 1),
		"a wrong subnet":       strings.Replace(base, "10.231.7.0/28", "10.231.7.0/99", 1),
		"a default route more": strings.Replace(base, `"isGateway"`, `"isDefaultGateway"`, 1),
		"no JSON":              base[:40],
	} {
		if conf == base {
			t.Errorf("%s: the case changes nothing", what)
		}
		if parseBridge([]byte(conf)) != nil {
			t.Errorf("%s is done here", what)
		}
	}
	c := &CNI{ConfDir: dir}
	if err := os.WriteFile(dir+"/1.conflist", []byte(base), 0o600); err != nil {
		t.Fatal(err)
	}
	pod := podConfig("p")
	if c.builtIn(pod) == nil {
		t.Error("an ordinary pod is left to the plugins")
	}
	pod.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 8080}}
	if c.builtIn(pod) != nil {
		t.Error("host ports are done here")
	}
}

func FuzzParseBridge(f *testing.F) {
	f.Add([]byte(conflist("/tmp", "")))
	f.Add([]byte(conflist("/tmp", `,{"type":"portmap","snat":true}`)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if b := parseBridge(raw); b != nil && (b.network == "" || b.pool == nil) {
			t.Errorf("accepted: %+v", b)
		}
	})
}

// BenchmarkAttach prints what attaching and detaching a pod costs by the
// plugins and in this process.
func BenchmarkAttach(b *testing.B) {
	l := newLab(b)
	b.Run("plugins", func(b *testing.B) {
		n, err := l.load()
		if err != nil {
			b.Fatal(err)
		}
		for i := range b.N {
			id := fmt.Sprint("p", i)
			ns := l.pod(b, fmt.Sprint("plugins", b.N, "-", i))
			if _, err := n.Setup(b.Context(), id, ns); err != nil {
				b.Fatal(err)
			}
			if err := n.Remove(b.Context(), id, ns); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("built-in", func(b *testing.B) {
		for i := range b.N {
			id := fmt.Sprint("b", i)
			ns := l.pod(b, fmt.Sprint("builtin", b.N, "-", i))
			if _, err := l.Attach(b.Context(), id, ns, podConfig(id)); err != nil {
				b.Fatal(err)
			}
			if err := l.Detach(b.Context(), id, ns, podConfig(id)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// private is a node's network in a folder of its own, ready for pods.
func private(t *testing.T, pool string) (Private, *CNI) {
	t.Helper()
	dir := t.TempDir()
	p := Private{Name: "net-test", Dir: dir, ConfDir: dir, Pool: netip.MustParsePrefix(pool)}
	t.Cleanup(func() {
		if err := p.Remove(); err != nil {
			t.Error(err)
		}
	})
	return p, &CNI{ConfDir: dir, BinDirs: []string{plugins}}
}

func TestPrivateNetworksShareAMachine(t *testing.T) {
	l := newLab(t)
	// Room for two: each finds the other's bridge, whoever made it.
	const pool = "10.231.8.0/23"
	var given []string
	var first Private
	for i := range 2 {
		p, c := private(t, pool)
		if err := p.Write(); err != nil {
			t.Fatal(err)
		}
		ip, err := c.Attach(t.Context(), fmt.Sprint("pod", i), l.pod(t, fmt.Sprint("pod", i)), podConfig("pod"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Detach(context.Background(), fmt.Sprint("pod", i), "", podConfig("pod")); err != nil {
				t.Error(err)
			}
		})
		given = append(given, ip[0])
		if i == 0 {
			first = p
		}
	}
	a, b := netip.MustParseAddr(given[0]), netip.MustParseAddr(given[1])
	if pa, _ := a.Prefix(24); pa.Contains(b) {
		t.Errorf("two nodes have one subnet: %s and %s", a, b)
	}
	third, _ := private(t, pool)
	if err := third.Write(); err == nil || !strings.Contains(err.Error(), "all 2 subnets of 10.231.8.0/23 are taken") {
		t.Errorf("err = %v, want one that says that nothing is free", err)
	}
	// Written again it is the same: its pods have their addresses.
	had, err := os.ReadFile(first.file())
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Write(); err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(first.file()); err != nil || string(now) != string(had) {
		t.Errorf("%v: another network than before:\n%s\n%s", err, had, now)
	}
}

func TestPrivateNetworkIsRemovedWithItsLastPod(t *testing.T) {
	l := newLab(t)
	nat := func() string {
		out, err := exec.Command("iptables", "-t", "nat", "-S").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	before := nat()
	p, c := private(t, "10.231.9.0/24")
	if err := p.Remove(); err != nil {
		t.Errorf("nothing was there: %v", err)
	}
	if err := p.Write(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Attach(t.Context(), "pod", l.pod(t, "pod"), podConfig("pod")); err != nil {
		t.Fatal(err)
	}
	for _, attached := range []bool{true, false} {
		if !attached {
			if err := c.Detach(t.Context(), "pod", "", podConfig("pod")); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Remove(); err != nil {
			t.Fatal(err)
		}
		if _, err := netlink.LinkByName(p.device()); (err == nil) != attached {
			t.Errorf("a pod is attached: %v; the bridge: %v", attached, err)
		}
		if changed := nat() != before; changed != attached {
			t.Errorf("a pod is attached: %v; the rules:\n%s", attached, nat())
		}
	}
}
