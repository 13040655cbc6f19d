package wasm

import (
	"encoding/json"
	"fmt"
	"net"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim/images"
	"github.com/coracle-edge/coracle/wasmruntime"
)

// Annotations of a container that are read here.
const (
	// AnnotationListen lists the sockets that a guest gets as fd 3, 4, ...:
	// "0.0.0.0:8080/tcp,[::]:9090/tcp". Empty: none.
	AnnotationListen = "coracle.dev/listen"

	// AnnotationNotifyTerm set to "true" lets a guest end by itself on
	// SIGTERM (wasmruntime.Spec.NotifyTerm).
	AnnotationNotifyTerm = "coracle.dev/notify-term"

	// AnnotationSockets set to "outbound", on the container or on its pod, lets a
	// guest connect to others and look up names (wasmruntime.Spec.Outbound).
	AnnotationSockets = "coracle.dev/wasm-sockets"

	// annotationPorts is where the kubelet puts a container's ports, as JSON.
	annotationPorts = "io.kubernetes.container.ports"
	// annotationHash is on every container of a kubelet's.
	annotationHash = "io.kubernetes.container.hash"
)

// Nonroot is who a guest is when neither pod nor image says; distroless calls
// that user so.
const Nonroot = 65532

// makeSpec says in wasmruntime's words what a CRI container is.
func (m *Manager) makeSpec(id string, p *pod, cfg *runtimeapi.ContainerConfig, img *images.Image) (wasmruntime.Spec, error) {
	if cfg.GetTty() {
		return wasmruntime.Spec{}, fmt.Errorf("%w: a terminal (tty): WASI has none", ErrUnsupported)
	}
	if d := cfg.GetDevices(); len(d) > 0 {
		return wasmruntime.Spec{}, fmt.Errorf("%w: device %s: WASI has no call for device nodes, give it a folder or a socket", ErrUnsupported, d[0].GetContainerPath())
	}
	spec := wasmruntime.Spec{
		Dir: filepath.Join(m.containerDir(id), bundleDir), ID: cfg.GetMetadata().GetName(),
		Module: img.Module.Path, Digest: img.Module.Digest.String(), Name: img.Module.Name,
		WorkingDir: first(cfg.GetWorkingDir(), img.WorkingDir), NetNS: p.netns,
		Stdin:      cfg.GetStdin(),
		StdinOnce:  cfg.GetStdin() && cfg.GetStdinOnce(),
		NotifyTerm: cfg.GetAnnotations()[AnnotationNotifyTerm] == "true",
	}
	if m.cgroups {
		spec.Cgroup = path.Join(p.cgroup, id)
	}
	setEnv(&spec, p, cfg, img)
	setArgs(&spec, cfg, img)
	if err := setMounts(&spec, cfg, img, m.opts.Image); err != nil {
		return spec, err
	}
	if err := setUser(&spec, cfg.GetLinux().GetSecurityContext(), img); err != nil {
		return spec, err
	}
	res := cfg.GetLinux().GetResources()
	spec.Resources = mergeResources(wasmruntime.Resources{}, res)
	if res != nil {
		adj := int(res.GetOomScoreAdj())
		spec.OOMScoreAdj = &adj
	}
	if err := setOutbound(&spec, p, cfg); err != nil {
		return spec, err
	}
	p.taken = m.listening(p.id)
	return spec, setListen(&spec, p, cfg)
}

// setOutbound gives a guest sockets of its own if its pod asks for them, and
// names by the pod's servers and hosts file.
func setOutbound(spec *wasmruntime.Spec, p *pod, cfg *runtimeapi.ContainerConfig) error {
	switch v := first(cfg.GetAnnotations()[AnnotationSockets], p.config.GetAnnotations()[AnnotationSockets]); v {
	case "", "none":
		return nil
	case "outbound":
	default:
		return fmt.Errorf("annotation %s: %w: %q, want outbound or none", AnnotationSockets, ErrInvalid, v)
	}
	dns := p.config.GetDnsConfig()
	o := &wasmruntime.Outbound{Servers: dns.GetServers(), Searches: dns.GetSearches()}
	for _, option := range dns.GetOptions() {
		if n, ok := strings.CutPrefix(option, "ndots:"); ok {
			ndots, err := strconv.Atoi(n)
			if err != nil || ndots < 0 {
				return fmt.Errorf("DNS option %q: %w: not a number of dots", option, ErrInvalid)
			}
			o.Ndots = ndots
		}
	}
	if len(o.Servers) == 0 {
		o.ResolvConf = "/etc/resolv.conf" // as other runtimes do
	}
	for _, mnt := range spec.Mounts {
		if mnt.Guest == "/etc/hosts" {
			o.Hosts = mnt.Host
		}
	}
	spec.Outbound = o
	return nil
}

// setArgs: command replaces the image's entrypoint and arguments, args the
// arguments only, as for any container. argv[0] is the entrypoint, or the
// module's name where the image names none. In an image with a root file
// system the command may be another module of it, by its path or found in PATH.
func setArgs(spec *wasmruntime.Spec, cfg *runtimeapi.ContainerConfig, img *images.Image) {
	entry, args := img.Entrypoint, cfg.GetArgs()
	switch {
	case len(cfg.GetCommand()) > 0:
		entry = cfg.GetCommand()
	case len(args) == 0:
		args = img.Cmd
	}
	if len(entry) == 0 && (img.Shape != images.ShapeCompat || len(img.Cmd) == 0) {
		entry = []string{img.Module.Name}
	}
	spec.Args = append(append([]string{}, entry...), args...)
	if len(cfg.GetCommand()) == 0 {
		return
	}
	file, ok := findProgram(img, spec.Env, cfg.GetCommand()[0])
	if !ok {
		// One that is no module is refused as such.
		file, ok = findFile(img, cfg.GetCommand()[0], false)
	}
	if ok && file != spec.Module {
		spec.Module, spec.Digest, spec.Name = file, "", path.Base(file)
	}
}

// setEnv: the image's, the pod's host name, the container's; the last wins.
func setEnv(spec *wasmruntime.Spec, p *pod, cfg *runtimeapi.ContainerConfig, img *images.Image) {
	at := map[string]int{}
	set := func(key, value string) {
		if i, ok := at[key]; ok {
			spec.Env[i] = key + "=" + value
			return
		}
		at[key] = len(spec.Env)
		spec.Env = append(spec.Env, key+"="+value)
	}
	for _, kv := range img.Env {
		if k, v, ok := strings.Cut(kv, "="); ok {
			set(k, v)
		}
	}
	if h := p.config.GetHostname(); h != "" {
		set("HOSTNAME", h)
	}
	for _, kv := range cfg.GetEnvs() {
		set(kv.GetKey(), string(kv.GetValue()))
	}
}

// setMounts makes preopens of volumes and of an image's root. A read-only one is so
// with all that is mounted below it, asked for or not.
func setMounts(spec *wasmruntime.Spec, cfg *runtimeapi.ContainerConfig, img *images.Image, lookup func(string) (*images.Image, error)) error {
	if img.Rootfs != "" {
		spec.Mounts = append(spec.Mounts, wasmruntime.Mount{Host: img.Rootfs, Guest: "/", ReadOnly: true})
	}
	for _, mnt := range cfg.GetMounts() {
		switch {
		case !path.IsAbs(mnt.GetContainerPath()):
			return fmt.Errorf("mount %q: %w: the path in the container isn't absolute", mnt.GetContainerPath(), ErrInvalid)
		case mnt.GetImage().GetImage() != "":
			volume, err := imageVolume(mnt, lookup)
			if err != nil {
				return err
			}
			spec.Mounts = append(spec.Mounts, volume)
			continue
		case !filepath.IsAbs(mnt.GetHostPath()):
			return fmt.Errorf("mount %s: %w: host path %q isn't absolute", mnt.GetContainerPath(), ErrInvalid, mnt.GetHostPath())
		case mnt.GetRecursiveReadOnly() && !mnt.GetReadonly():
			return fmt.Errorf("mount %s: %w: recursive_read_only without readonly", mnt.GetContainerPath(), ErrInvalid)
		case mnt.GetRecursiveReadOnly() && mnt.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
			return fmt.Errorf("mount %s: %w: recursive_read_only with propagation %s, it has to be private", mnt.GetContainerPath(), ErrInvalid, mnt.GetPropagation())
		}
		host, err := filepath.EvalSymlinks(mnt.GetHostPath())
		if err != nil {
			return fmt.Errorf("mount %s: %w: %w", mnt.GetContainerPath(), ErrInvalid, err)
		}
		spec.Mounts = append(spec.Mounts, wasmruntime.Mount{Host: host, Guest: path.Clean(mnt.GetContainerPath()), ReadOnly: mnt.GetReadonly()})
	}
	return nil
}

// mergeResources puts what a request says over what there was; zero means
// unchanged, as in CRI.
func mergeResources(res wasmruntime.Resources, in *runtimeapi.LinuxContainerResources) wasmruntime.Resources {
	for _, f := range []struct {
		v  int64
		to *int64
	}{
		{in.GetMemoryLimitInBytes(), &res.MemoryBytes}, {in.GetMemorySwapLimitInBytes(), &res.SwapBytes},
		{in.GetCpuShares(), &res.CPUShares}, {in.GetCpuQuota(), &res.CPUQuota}, {in.GetCpuPeriod(), &res.CPUPeriod},
	} {
		if f.v != 0 {
			*f.to = f.v
		}
	}
	res.CPUSet = first(in.GetCpusetCpus(), res.CPUSet)
	res.MemorySet = first(in.GetCpusetMems(), res.MemorySet)
	return res
}

func resourcesStatus(r wasmruntime.Resources) *runtimeapi.LinuxContainerResources {
	return &runtimeapi.LinuxContainerResources{
		MemoryLimitInBytes: r.MemoryBytes, MemorySwapLimitInBytes: r.SwapBytes, CpuShares: r.CPUShares,
		CpuQuota: r.CPUQuota, CpuPeriod: r.CPUPeriod, CpusetCpus: r.CPUSet, CpusetMems: r.MemorySet,
	}
}

// setListen finds the sockets of a container: our annotation, else the
// kubelet's, which has none for a container without ports, else all ports of the
// pod that no other container of it has (a caller that isn't a kubelet doesn't say
// whose they are; of several containers it is the first).
// Without a network of its own the pod's hostPort is the one that is opened.
func setListen(spec *wasmruntime.Spec, p *pod, cfg *runtimeapi.ContainerConfig) error {
	add := func(host string, port int32) {
		port = openedPort(p.network, p.config, port)
		spec.Listen = append(spec.Listen, wasmruntime.Listen{Network: "tcp", Address: net.JoinHostPort(host, strconv.Itoa(int(port)))})
	}
	if list, ok := cfg.GetAnnotations()[AnnotationListen]; ok {
		for item := range strings.SplitSeq(list, ",") {
			item = strings.TrimSpace(item)
			if item == "" {
				continue
			}
			addr, proto, _ := strings.Cut(item, "/")
			host, port, err := net.SplitHostPort(addr)
			n, perr := strconv.ParseUint(port, 10, 16)
			if err != nil || perr != nil || proto != "" && proto != "tcp" {
				return fmt.Errorf("annotation %s: %w: %q, want HOST:PORT/tcp", AnnotationListen, ErrInvalid, item)
			}
			add(host, int32(n))
		}
		return nil
	}
	if raw, ok := cfg.GetAnnotations()[annotationPorts]; ok {
		var ports []struct {
			ContainerPort int32
			Protocol      string
			HostIP        string
		}
		if err := json.Unmarshal([]byte(raw), &ports); err != nil {
			return fmt.Errorf("annotation %s: %w: %w", annotationPorts, ErrInvalid, err)
		}
		for _, port := range ports {
			if port.Protocol == "" || port.Protocol == "TCP" {
				add("0.0.0.0", port.ContainerPort)
			}
		}
		return nil
	}
	if _, ok := cfg.GetAnnotations()[annotationHash]; ok {
		return nil // a kubelet's container that names no ports: the pod's are another's
	}
	for _, pm := range p.config.GetPortMappings() {
		if pm.GetProtocol() == runtimeapi.Protocol_TCP && pm.GetContainerPort() > 0 {
			add("0.0.0.0", pm.GetContainerPort())
		}
	}
	spec.Listen = slices.DeleteFunc(spec.Listen, func(l wasmruntime.Listen) bool { return p.taken[l.Address] })
	return nil
}

// openedPort is the port that is opened for a container's port.
func openedPort(network string, cfg *runtimeapi.PodSandboxConfig, port int32) int32 {
	if network != netNone {
		return port
	}
	for _, pm := range cfg.GetPortMappings() {
		if pm.GetContainerPort() == port && pm.GetHostPort() != 0 {
			return pm.GetHostPort()
		}
	}
	return port
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
