package pods

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kindOCI and kindWasm are the values of [AnnotationSandbox].
const (
	kindOCI  = "oci"
	kindWasm = "wasm"
)

// logDir is where a pod's logs lie, as under /var/log/pods.
func (m *Manager) logDir(namespace, name, uid string) string {
	return filepath.Join(m.cfg.LogsDir, namespace+"_"+name+"_"+uid)
}

// sandboxConfig translates a pod into CRI. kind may be empty: then the runtime
// handler alone decides.
func (m *Manager) sandboxConfig(pod *v1.Pod, attempt uint32, kind string) (*runtimeapi.PodSandboxConfig, error) {
	c := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: pod.Name, Namespace: pod.Namespace,
			Uid: string(pod.UID), Attempt: attempt},
		Labels:       sandboxLabels(pod),
		Annotations:  maps.Clone(pod.Annotations),
		LogDirectory: m.logDir(pod.Namespace, pod.Name, string(pod.UID)),
	}
	if kind != "" {
		if c.Annotations == nil {
			c.Annotations = map[string]string{}
		}
		c.Annotations[AnnotationSandbox] = kind
	}
	dns, err := m.dns(pod)
	if err != nil {
		return nil, err
	}
	c.DnsConfig = dns
	if !pod.Spec.HostNetwork {
		hostname, domain := m.hostname(pod)
		if pod.Spec.SetHostnameAsFQDN != nil && *pod.Spec.SetHostnameAsFQDN && domain != "" {
			hostname += "." + domain
		}
		if len(hostname) > 64 {
			return nil, fmt.Errorf("hostname %q of pod %s/%s is longer than the kernel's 64 bytes", hostname, pod.Namespace, pod.Name)
		}
		c.Hostname = hostname
	}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if isInit(pod, list[i].Name) && !isSidecar(&list[i]) {
				continue
			}
			for _, p := range list[i].Ports {
				c.PortMappings = append(c.PortMappings, &runtimeapi.PortMapping{HostIp: p.HostIP, HostPort: p.HostPort,
					ContainerPort: p.ContainerPort, Protocol: protocol(p.Protocol)})
			}
		}
	}
	if !deref(pod.Spec.HostUsers, true) {
		// Without this the pod would run as the node's users, which is what it must not.
		return nil, errUserNamespace
	}
	c.Linux = m.linuxSandbox(pod)
	return c, nil
}

// errUserNamespace refuses what would otherwise be ignored.
var errUserNamespace = errors.New("hostUsers: false: this node gives pods no user namespaces; leave hostUsers out, or use another node")

func protocol(p v1.Protocol) runtimeapi.Protocol {
	switch p {
	case v1.ProtocolUDP:
		return runtimeapi.Protocol_UDP
	case v1.ProtocolSCTP:
		return runtimeapi.Protocol_SCTP
	}
	return runtimeapi.Protocol_TCP
}

func (m *Manager) linuxSandbox(pod *v1.Pod) *runtimeapi.LinuxPodSandboxConfig {
	sc := &runtimeapi.LinuxSandboxSecurityContext{
		Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
		NamespaceOptions: namespaces(pod),
	}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if s := list[i].SecurityContext; s != nil && s.Privileged != nil && *s.Privileged {
				sc.Privileged = true
			}
		}
	}
	l := &runtimeapi.LinuxPodSandboxConfig{CgroupParent: m.cgroups.parent(pod), SecurityContext: sc}
	if p := pod.Spec.SecurityContext; p != nil {
		if p.RunAsUser != nil {
			sc.RunAsUser = &runtimeapi.Int64Value{Value: *p.RunAsUser}
		}
		if p.RunAsGroup != nil {
			sc.RunAsGroup = &runtimeapi.Int64Value{Value: *p.RunAsGroup}
		}
		sc.SupplementalGroups, sc.SupplementalGroupsPolicy = groups(p)
		sc.SelinuxOptions = selinux(p.SELinuxOptions)
		for _, s := range p.Sysctls {
			if l.Sysctls == nil {
				l.Sysctls = map[string]string{}
			}
			l.Sysctls[strings.ReplaceAll(s.Name, "/", ".")] = s.Value
		}
	}
	l.Resources = podResources(pod)
	l.Overhead = overhead(pod)
	return l
}

// overhead is what the pod's runtime takes beside its containers, nil if nothing.
func overhead(pod *v1.Pod) *runtimeapi.LinuxContainerResources {
	o := pod.Spec.Overhead
	if o == nil {
		return nil
	}
	return linuxResources(o.Cpu(), o.Cpu(), o.Memory())
}

func namespaces(pod *v1.Pod) *runtimeapi.NamespaceOption {
	o := &runtimeapi.NamespaceOption{
		Network: runtimeapi.NamespaceMode_POD,
		Pid:     runtimeapi.NamespaceMode_CONTAINER,
		Ipc:     runtimeapi.NamespaceMode_POD,
	}
	if pod.Spec.HostNetwork {
		o.Network = runtimeapi.NamespaceMode_NODE
	}
	if pod.Spec.HostIPC {
		o.Ipc = runtimeapi.NamespaceMode_NODE
	}
	switch {
	case pod.Spec.HostPID:
		o.Pid = runtimeapi.NamespaceMode_NODE
	case pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace:
		o.Pid = runtimeapi.NamespaceMode_POD
	}
	return o
}

// hostname is what the pod is called, and its domain.
func (m *Manager) hostname(pod *v1.Pod) (hostname, domain string) {
	if o := pod.Spec.HostnameOverride; o != nil && *o != "" {
		return *o, ""
	}
	hostname = pod.Name
	if pod.Spec.Hostname != "" {
		hostname = pod.Spec.Hostname
	}
	if len(hostname) > 63 {
		hostname = strings.TrimRight(hostname[:63], "-.")
	}
	if pod.Spec.Subdomain != "" {
		domain = fmt.Sprintf("%s.%s.svc.%s", pod.Spec.Subdomain, pod.Namespace, m.cfg.ClusterDomain)
	}
	return hostname, domain
}

// Limits that libc sets to a resolv.conf, as a kubelet applies them.
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchChars = 2048
)

// dns is the pod's resolver configuration: the node's, or the cluster's if
// there is one on this node, with what the pod adds.
func (m *Manager) dns(pod *v1.Pod) (*runtimeapi.DNSConfig, error) {
	policy := pod.Spec.DNSPolicy
	if policy == v1.DNSClusterFirst && pod.Spec.HostNetwork {
		policy = v1.DNSDefault
	}
	if policy == v1.DNSClusterFirstWithHostNet {
		policy = v1.DNSClusterFirst
	}
	node, err := readResolvConf(m.cfg.ResolvConf)
	if err != nil {
		return nil, fmt.Errorf("reading the node's resolver configuration: %w", err)
	}
	c := &runtimeapi.DNSConfig{}
	switch {
	case policy == v1.DNSNone:
	case policy == v1.DNSClusterFirst && len(m.cfg.ClusterDNS) > 0:
		domain := m.cfg.ClusterDomain
		c.Servers = slices.Clone(m.cfg.ClusterDNS)
		c.Searches = append([]string{pod.Namespace + ".svc." + domain, "svc." + domain, domain}, node.Searches...)
		c.Options = []string{"ndots:5"}
	default:
		c = node
	}
	if d := pod.Spec.DNSConfig; d != nil {
		c.Servers = unique(append(c.Servers, d.Nameservers...))
		c.Searches = unique(append(c.Searches, d.Searches...))
		for _, o := range d.Options {
			c.Options = slices.DeleteFunc(c.Options, func(have string) bool {
				name, _, _ := strings.Cut(have, ":")
				return name == o.Name
			})
			if o.Value != nil && *o.Value != "" {
				c.Options = append(c.Options, o.Name+":"+*o.Value)
			} else {
				c.Options = append(c.Options, o.Name)
			}
		}
	}
	c.Servers = c.Servers[:min(len(c.Servers), maxNameservers)]
	c.Searches = c.Searches[:min(len(c.Searches), maxSearches)]
	for len(strings.Join(c.Searches, " ")) > maxSearchChars {
		c.Searches = c.Searches[:len(c.Searches)-1]
	}
	return c, nil
}

func unique(in []string) []string {
	var out []string
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func readResolvConf(path string) (*runtimeapi.DNSConfig, error) {
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return &runtimeapi.DNSConfig{}, nil // a board without names still runs pods
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseResolvConf(f)
}

func parseResolvConf(r io.Reader) (*runtimeapi.DNSConfig, error) {
	c := &runtimeapi.DNSConfig{}
	s := bufio.NewScanner(io.LimitReader(r, 1<<20))
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			c.Servers = append(c.Servers, fields[1])
		case "search": // the last one counts
			c.Searches = nil
			for _, d := range fields[1:] {
				if d = strings.TrimSuffix(d, "."); d != "" {
					c.Searches = append(c.Searches, d)
				}
			}
		case "options":
			c.Options = append(c.Options, fields[1:]...)
		}
	}
	return c, s.Err()
}

const hostsHeader = "# Kubernetes-managed hosts file.\n"

// writeHosts writes the pod's /etc/hosts and returns its path.
func (m *Manager) writeHosts(pod *v1.Pod, ips []string) (string, error) {
	var b strings.Builder
	if pod.Spec.HostNetwork {
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		node, err := os.ReadFile("/etc/hosts")
		if err != nil && !os.IsNotExist(err) {
			return "", err
		}
		b.Write(node)
	} else {
		b.WriteString(hostsHeader + "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		hostname, domain := m.hostname(pod)
		for _, ip := range ips {
			if domain != "" {
				fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", ip, hostname, domain, hostname)
			} else {
				fmt.Fprintf(&b, "%s\t%s\n", ip, hostname)
			}
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	// In a folder of its own: a guest of another user opens it through that one,
	// and nothing else of the pod's.
	path := filepath.Join(m.podDir(string(pod.UID)), "etc", "hosts")
	if have, err := os.ReadFile(path); err == nil && string(have) == b.String() {
		return path, nil
	}
	if err := passable(filepath.Dir(path)); err != nil {
		return "", err
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		return "", err
	}
	return path, os.Chmod(path, 0o644)
}

// passable makes a folder through which a container's user reaches files that it
// knows. Those above stay closed: who mounts the files has opened the folder before.
func passable(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	return os.Chmod(dir, 0o711)
}
