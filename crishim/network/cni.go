package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/containerd/go-cni"
	"github.com/containernetworking/cni/libcni"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CNI attaches pods by the first configuration of a folder, which is read
// again for each pod. Where that asks for nothing but what this package can do
// itself, no plugin is run: see bridge.
type CNI struct {
	ConfDir string
	BinDirs []string

	masqueraded subnets
}

// ifName is the pod's interface, as go-cni and so containerd name it.
const ifName = "eth0"

// Configured says whether the folder holds a configuration.
func (c *CNI) Configured() bool {
	for _, pattern := range []string{"*.conflist", "*.conf", "*.json"} {
		if m, _ := filepath.Glob(filepath.Join(c.ConfDir, pattern)); len(m) > 0 {
			return true
		}
	}
	return false
}

// Check reads the configuration and says what is wrong with it, nil if it can be
// used.
func (c *CNI) Check() error {
	if !c.Configured() {
		return fmt.Errorf("there is no CNI configuration in %s", c.ConfDir)
	}
	if c.builtIn(nil) != nil {
		return nil
	}
	n, err := c.load()
	if err != nil {
		return err
	}
	if err := n.Status(); err != nil {
		return fmt.Errorf("CNI: %w", err)
	}
	return nil
}

func (c *CNI) load() (cni.CNI, error) {
	n, err := cni.New(cni.WithPluginConfDir(c.ConfDir), cni.WithPluginDir(c.BinDirs), cni.WithMinNetworkCount(1), cni.WithInterfacePrefix("eth"))
	if err != nil {
		return nil, fmt.Errorf("CNI: %w", err)
	}
	if err := n.Load(cni.WithDefaultConf); err != nil {
		return nil, fmt.Errorf("CNI configuration in %s: %w", c.ConfDir, err)
	}
	return n, nil
}

// builtIn is the bridge that serves this pod, nil if plugins must.
func (c *CNI) builtIn(cfg *runtimeapi.PodSandboxConfig) *bridge {
	if len(portMappings(cfg)) > 0 {
		return nil
	}
	files, err := libcni.ConfFiles(c.ConfDir, []string{".conf", ".conflist", ".json"})
	if err != nil || len(files) == 0 {
		return nil
	}
	sort.Strings(files)
	raw, err := os.ReadFile(files[0])
	if err != nil {
		return nil
	}
	return parseBridge(raw)
}

// Attach gives the pod its interface and returns its addresses.
func (c *CNI) Attach(ctx context.Context, id, netns string, cfg *runtimeapi.PodSandboxConfig) ([]string, error) {
	if b := c.builtIn(cfg); b != nil {
		ip, err := b.attach(id, netns, &c.masqueraded)
		if err != nil {
			return nil, err
		}
		return []string{ip}, nil
	}
	n, err := c.load()
	if err != nil {
		return nil, err
	}
	res, err := setup(ctx, n, id, netns, c.options(id, cfg))
	if err != nil {
		return nil, fmt.Errorf("CNI: %w", err)
	}
	var names, ips []string
	for name := range res.Interfaces {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		ifc := res.Interfaces[name]
		if name == "lo" || ifc.Sandbox == "" {
			continue
		}
		for _, ip := range ifc.IPConfigs {
			a, ok := netip.AddrFromSlice(ip.IP)
			if !ok {
				return nil, fmt.Errorf("CNI: %w: the address of interface %s is %q", errResult, name, ip.IP)
			}
			ips = append(ips, a.Unmap().String())
		}
	}
	if len(ips) == 0 {
		return nil, errors.New("CNI gave the pod no address")
	}
	// IPv4 first, as containerd prefers by default.
	sort.SliceStable(ips, func(i, j int) bool { return isIPv4(ips[i]) && !isIPv4(ips[j]) })
	return ips, nil
}

// errResult is returned when what a plugin says of its work can't be.
var errResult = errors.New("the plugin's result is malformed: see to the plugin that the configuration names")

// setup runs the plugins in this goroutine, so that go-cni and libcni, which believe
// what a plugin prints (a list's null, the index of an interface that it doesn't
// list), can't take the agent down with them.
func setup(ctx context.Context, n cni.CNI, id, netns string, opts []cni.NamespaceOpts) (res *cni.Result, err error) {
	defer malformed(&err)
	return n.SetupSerially(ctx, id, netns, opts...)
}

// malformed makes a panic of the libraries an error. It is deferred.
func malformed(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%w (%v)", errResult, p)
	}
}

func isIPv4(s string) bool { return net.ParseIP(s).To4() != nil }

// Detach takes back what Attach gave, and can be repeated. An empty netns is
// one that is gone.
func (c *CNI) Detach(ctx context.Context, id, netns string, cfg *runtimeapi.PodSandboxConfig) error {
	if b := c.builtIn(cfg); b != nil {
		return b.detach(id)
	}
	n, err := c.load()
	if err != nil {
		return err
	}
	if err := remove(ctx, n, id, netns, c.options(id, cfg)); err != nil {
		return fmt.Errorf("CNI: %w", err)
	}
	return nil
}

// remove reads what setup's plugins said out of libcni's cache again.
func remove(ctx context.Context, n cni.CNI, id, netns string, opts []cni.NamespaceOpts) (err error) {
	defer malformed(&err)
	return n.Remove(ctx, id, netns, opts...)
}

func (c *CNI) options(id string, cfg *runtimeapi.PodSandboxConfig) []cni.NamespaceOpts {
	md := cfg.GetMetadata()
	opts := []cni.NamespaceOpts{cni.WithLabels(map[string]string{
		"K8S_POD_NAMESPACE": md.GetNamespace(), "K8S_POD_NAME": md.GetName(), "K8S_POD_UID": md.GetUid(),
		"K8S_POD_INFRA_CONTAINER_ID": id, "IgnoreUnknown": "1",
	}), cni.WithCapability("io.kubernetes.cri.pod-annotations", cfg.GetAnnotations())}
	if ports := portMappings(cfg); len(ports) > 0 {
		opts = append(opts, cni.WithCapabilityPortMap(ports))
	}
	if dns := cfg.GetDnsConfig(); dns != nil {
		opts = append(opts, cni.WithCapabilityDNS(cni.DNS{Servers: dns.GetServers(), Searches: dns.GetSearches(), Options: dns.GetOptions()}))
	}
	return opts
}

// portMappings are those of the pod that concern the host.
func portMappings(cfg *runtimeapi.PodSandboxConfig) []cni.PortMapping {
	var ports []cni.PortMapping
	for _, pm := range cfg.GetPortMappings() {
		if pm.GetHostPort() <= 0 {
			continue
		}
		ports = append(ports, cni.PortMapping{
			HostPort: pm.GetHostPort(), ContainerPort: pm.GetContainerPort(),
			Protocol: strings.ToLower(pm.GetProtocol().String()), HostIP: pm.GetHostIp(),
		})
	}
	return ports
}
