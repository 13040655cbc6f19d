package pods

import (
	"fmt"
	"os"
	"strings"

	v1 "k8s.io/api/core/v1"
	utilsysctl "k8s.io/component-helpers/node/util/sysctl"
)

// safeSysctls are those that a pod may always set: they are its namespaces' own
// and touch no other pod (upstream: pkg/kubelet/sysctl/safe_sysctls.go). All of
// them are namespaced since Linux 4.15.
func safeSysctls() []string {
	return []string{
		"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
		"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time",
		"net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
	}
}

// CheckSysctls reports which of the patterns of --allowed-unsafe-sysctls can't be
// allowed, because it isn't known to be a namespace's own.
func CheckSysctls(patterns []string) error {
	for _, p := range patterns {
		if ns, name, _ := utilsysctl.GetNamespace(p); ns == utilsysctl.UnknownNamespace {
			return fmt.Errorf("the sysctls %q are not known to be namespaced", name)
		}
	}
	return nil
}

// forbidden says why a pod may not have what its security context asks for, as
// upstream's admission handlers do; an empty reason if it may.
func (m *Manager) forbidden(pod *v1.Pod) (reason, message string) {
	if sc := pod.Spec.SecurityContext; sc != nil {
		for _, s := range sc.Sysctls {
			if err := checkSysctl(s.Name, m.cfg.UnsafeSysctls, pod.Spec.HostNetwork, pod.Spec.HostIPC); err != nil {
				return "SysctlForbidden", fmt.Sprintf("forbidden sysctl: %v", err)
			}
		}
	}
	if err := m.checkAppArmor(pod); err != nil {
		return "AppArmor", fmt.Sprintf("Cannot enforce AppArmor: %v", err)
	}
	return "", ""
}

func checkSysctl(name string, unsafe []string, hostNet, hostIPC bool) error {
	name = utilsysctl.NormalizeName(name)
	allowed := false
	var in utilsysctl.Namespace
	for _, list := range [][]string{safeSysctls(), unsafe} {
		for _, pattern := range list {
			ns, match, prefixed := utilsysctl.GetNamespace(pattern)
			if ns != utilsysctl.UnknownNamespace && (name == match && !prefixed || prefixed && strings.HasPrefix(name, match)) {
				allowed, in = true, ns
			}
		}
	}
	switch {
	case !allowed:
		return fmt.Errorf("%q not allowlisted", name)
	case in == utilsysctl.IPCNamespace && hostIPC, in == utilsysctl.NetNamespace && hostNet:
		return fmt.Errorf("%q not allowed with host %s enabled", name, in)
	}
	return nil
}

// checkAppArmor refuses a pod whose profile nobody would enforce.
func (m *Manager) checkAppArmor(pod *v1.Pod) error {
	asks := func(p *v1.AppArmorProfile) bool { return p != nil && p.Type != v1.AppArmorProfileTypeUnconfined }
	required := pod.Spec.SecurityContext != nil && asks(pod.Spec.SecurityContext.AppArmorProfile)
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if s := list[i].SecurityContext; s != nil && asks(s.AppArmorProfile) {
				required = true
			}
		}
	}
	if !required {
		return nil
	}
	if on, err := os.ReadFile(m.cfg.appArmorEnabled); err != nil || !strings.HasPrefix(string(on), "Y") {
		return fmt.Errorf("AppArmor is not enabled on the host")
	}
	return nil
}
