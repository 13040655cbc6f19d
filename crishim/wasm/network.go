package wasm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sort"
	"strings"

	"github.com/containerd/go-cni"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Network attaches pods to a network. CNI implements it.
type Network interface {
	// Configured says whether there is a network to attach to.
	Configured() bool
	// Attach returns the pod's addresses, the first of them its primary one.
	Attach(ctx context.Context, id, netns string, cfg *runtimeapi.PodSandboxConfig) ([]string, error)
	// Detach can be repeated; an empty netns is one that is gone.
	Detach(ctx context.Context, id, netns string, cfg *runtimeapi.PodSandboxConfig) error
}

// CNI attaches pods by the first configuration of a folder, which is read
// again for each pod.
type CNI struct {
	ConfDir string
	BinDirs []string
	Logger  *slog.Logger
}

// Configured says whether the folder holds a configuration.
func (c *CNI) Configured() bool {
	for _, pattern := range []string{"*.conflist", "*.conf", "*.json"} {
		if m, _ := filepath.Glob(filepath.Join(c.ConfDir, pattern)); len(m) > 0 {
			return true
		}
	}
	return false
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

// Attach runs the plugins' ADD.
func (c *CNI) Attach(ctx context.Context, id, netns string, cfg *runtimeapi.PodSandboxConfig) ([]string, error) {
	n, err := c.load()
	if err != nil {
		return nil, err
	}
	res, err := n.Setup(ctx, id, netns, c.options(id, cfg)...)
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
			ips = append(ips, ip.IP.String())
		}
	}
	if len(ips) == 0 {
		return nil, errors.New("CNI gave the pod no address")
	}
	// IPv4 first, as containerd prefers by default.
	sort.SliceStable(ips, func(i, j int) bool { return isIPv4(ips[i]) && !isIPv4(ips[j]) })
	return ips, nil
}

func isIPv4(s string) bool { return net.ParseIP(s).To4() != nil }

// Detach runs the plugins' DEL.
func (c *CNI) Detach(ctx context.Context, id, netns string, cfg *runtimeapi.PodSandboxConfig) error {
	n, err := c.load()
	if err != nil {
		return err
	}
	if err := n.Remove(ctx, id, netns, c.options(id, cfg)...); err != nil {
		return fmt.Errorf("CNI: %w", err)
	}
	return nil
}

func (c *CNI) options(id string, cfg *runtimeapi.PodSandboxConfig) []cni.NamespaceOpts {
	md := cfg.GetMetadata()
	opts := []cni.NamespaceOpts{cni.WithLabels(map[string]string{
		"K8S_POD_NAMESPACE": md.GetNamespace(), "K8S_POD_NAME": md.GetName(), "K8S_POD_UID": md.GetUid(),
		"K8S_POD_INFRA_CONTAINER_ID": id, "IgnoreUnknown": "1",
	}), cni.WithCapability("io.kubernetes.cri.pod-annotations", cfg.GetAnnotations())}
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
	if len(ports) > 0 {
		opts = append(opts, cni.WithCapabilityPortMap(ports))
	}
	if dns := cfg.GetDnsConfig(); dns != nil {
		opts = append(opts, cni.WithCapabilityDNS(cni.DNS{Servers: dns.GetServers(), Searches: dns.GetSearches(), Options: dns.GetOptions()}))
	}
	return opts
}
