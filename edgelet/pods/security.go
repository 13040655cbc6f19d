package pods

import (
	"errors"
	"fmt"
	"path/filepath"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/images"
)

// ErrNonRoot is returned when a container that must not run as root would.
var ErrNonRoot = errors.New("container must not run as root")

// maskedPaths and readonlyPaths are hidden from containers unless procMount says
// otherwise.
func maskedPaths() []string {
	return []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// securityContext is what applies to a container: its own context over the pod's.
func securityContext(pod *v1.Pod, c *v1.Container, img images.Image, seccompDir string) (*runtimeapi.LinuxContainerSecurityContext, error) {
	p, own := pod.Spec.SecurityContext, c.SecurityContext
	if p == nil {
		p = &v1.PodSecurityContext{}
	}
	if own == nil {
		own = &v1.SecurityContext{}
	}
	sc := &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: namespaces(pod),
		Privileged:       deref(own.Privileged, false),
		ReadonlyRootfs:   deref(own.ReadOnlyRootFilesystem, false),
		NoNewPrivs:       own.AllowPrivilegeEscalation != nil && !*own.AllowPrivilegeEscalation,
		SelinuxOptions:   selinux(or(own.SELinuxOptions, p.SELinuxOptions)),
	}
	var err error
	if sc.Seccomp, err = seccomp(or(own.SeccompProfile, p.SeccompProfile), seccompDir); err != nil {
		return nil, err
	}
	if own.Capabilities != nil {
		sc.Capabilities = &runtimeapi.Capability{}
		for _, v := range own.Capabilities.Add {
			sc.Capabilities.AddCapabilities = append(sc.Capabilities.AddCapabilities, string(v))
		}
		for _, v := range own.Capabilities.Drop {
			sc.Capabilities.DropCapabilities = append(sc.Capabilities.DropCapabilities, string(v))
		}
	}
	user := or(own.RunAsUser, p.RunAsUser)
	switch {
	case user != nil:
		sc.RunAsUser = &runtimeapi.Int64Value{Value: *user}
	case img.UID != nil:
		sc.RunAsUser = &runtimeapi.Int64Value{Value: *img.UID}
	default:
		sc.RunAsUsername = img.Username
	}
	if group := or(own.RunAsGroup, p.RunAsGroup); group != nil {
		sc.RunAsGroup = &runtimeapi.Int64Value{Value: *group}
		if sc.RunAsUser == nil && sc.RunAsUsername == "" {
			sc.RunAsUser = &runtimeapi.Int64Value{Value: 0} // CRI refuses a group without a user
		}
	}
	sc.SupplementalGroups, sc.SupplementalGroupsPolicy = groups(p)
	sc.Apparmor = apparmor(or(own.AppArmorProfile, p.AppArmorProfile))
	if own.ProcMount == nil || *own.ProcMount == v1.DefaultProcMount {
		sc.MaskedPaths, sc.ReadonlyPaths = maskedPaths(), readonlyPaths()
	}
	if nonRoot := or(own.RunAsNonRoot, p.RunAsNonRoot); nonRoot != nil && *nonRoot {
		if err := verifyNonRoot(pod, c, user, img); err != nil {
			return nil, err
		}
	}
	return sc, nil
}

// verifyNonRoot words its errors as a kubelet does. A Wasm module has no user of
// its own: its runner is never root unless the pod says so.
func verifyNonRoot(pod *v1.Pod, c *v1.Container, user *int64, img images.Image) error {
	where := fmt.Sprintf("(pod: %q, container: %s)", describe(pod), c.Name)
	switch {
	case user != nil && *user == 0:
		return fmt.Errorf("container's runAsUser breaks non-root policy %s: %w", where, ErrNonRoot)
	case user != nil, img.Kind == images.KindWasm:
		return nil
	case img.UID != nil && *img.UID == 0:
		return fmt.Errorf("container has runAsNonRoot and image will run as root %s: %w", where, ErrNonRoot)
	case img.UID == nil && img.Username != "":
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root %s: %w", img.Username, where, ErrNonRoot)
	case img.UID == nil:
		return fmt.Errorf("container has runAsNonRoot and image will run as root %s: %w", where, ErrNonRoot)
	}
	return nil
}

func groups(p *v1.PodSecurityContext) ([]int64, runtimeapi.SupplementalGroupsPolicy) {
	var out []int64
	if p.FSGroup != nil {
		out = append(out, *p.FSGroup)
	}
	out = append(out, p.SupplementalGroups...)
	policy := runtimeapi.SupplementalGroupsPolicy_Merge
	if p.SupplementalGroupsPolicy != nil && *p.SupplementalGroupsPolicy == v1.SupplementalGroupsPolicyStrict {
		policy = runtimeapi.SupplementalGroupsPolicy_Strict
	}
	return out, policy
}

func selinux(o *v1.SELinuxOptions) *runtimeapi.SELinuxOption {
	if o == nil {
		return nil
	}
	return &runtimeapi.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

// seccomp finds a profile of type Localhost below dir.
func seccomp(p *v1.SeccompProfile, dir string) (*runtimeapi.SecurityProfile, error) {
	switch {
	case p == nil:
	case p.Type == v1.SeccompProfileTypeRuntimeDefault:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case p.Type == v1.SeccompProfileTypeLocalhost:
		name := deref(p.LocalhostProfile, "")
		if name == "" {
			return nil, errors.New("localhostProfile must be set if seccompProfile type is Localhost.")
		}
		if !filepath.IsLocal(name) {
			return nil, fmt.Errorf("localhostProfile %q is not below %s", name, dir)
		}
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: filepath.Join(dir, name)}, nil
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
}

func apparmor(p *v1.AppArmorProfile) *runtimeapi.SecurityProfile {
	if p == nil {
		return nil
	}
	switch p.Type {
	case v1.AppArmorProfileTypeRuntimeDefault:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	case v1.AppArmorProfileTypeLocalhost:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: deref(p.LocalhostProfile, "")}
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
}

func deref[T any](p *T, def T) T {
	if p == nil {
		return def
	}
	return *p
}

func or[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}
