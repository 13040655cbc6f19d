package pods

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
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

// logFile is the log of one run of a container.
func (m *Manager) logFile(namespace, name, uid, container string, run int32) string {
	return filepath.Join(m.logDir(namespace, name, uid), container, strconv.Itoa(int(run))+logLinkSuffix)
}

// sandboxConfig translates a pod into CRI. kind may be empty: then the runtime
// handler alone decides. cut is what of the pod's resolver configuration was left out.
func (m *Manager) sandboxConfig(ctx context.Context, pod *v1.Pod, attempt uint32, kind string) (c *runtimeapi.PodSandboxConfig, cut []string, err error) {
	c = &runtimeapi.PodSandboxConfig{
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
	if c.DnsConfig, cut, err = m.dns(pod); err != nil {
		return nil, nil, err
	}
	if !pod.Spec.HostNetwork {
		hostname, domain := m.hostname(pod)
		if pod.Spec.SetHostnameAsFQDN != nil && *pod.Spec.SetHostnameAsFQDN && domain != "" {
			hostname += "." + domain
		}
		if len(hostname) > 64 {
			return nil, nil, fmt.Errorf("hostname %q of pod %s/%s is longer than the kernel's 64 bytes", hostname, pod.Namespace, pod.Name)
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
	if err := m.strictGroups(ctx, pod, kind); err != nil {
		return nil, nil, err
	}
	c.Linux = m.linuxSandbox(pod)
	if c.Linux.SecurityContext.NamespaceOptions.UsernsOptions, err = m.userNamespace(ctx, pod, kind); err != nil {
		return nil, nil, err
	}
	return c, cut, nil
}

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
	l.Resources = m.podResources(pod)
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
