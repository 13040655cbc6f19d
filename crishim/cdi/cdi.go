// Package cdi puts CDI devices (Container Device Interface, tags.cncf.io) into the
// configuration of a container, for runtimes that don't do it themselves: containerd
// before 2.0, whose CRI doesn't know them or is told by its configuration not to look,
// and Wasm containers.
//
// What CRI has words for is put in: variables, mounts, device nodes, groups. What it
// has none for is refused by name, never left out: hooks, network devices, Intel RDT,
// and properties of mounts and device nodes.
//
// crishim calls it. Nothing is read, watched or kept but while a container with such
// devices is made.
package cdi

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	specs "tags.cncf.io/container-device-interface/specs-go"
)

var (
	// ErrUnknown is returned for a device that no file describes.
	ErrUnknown = errors.New("unresolvable CDI device")
	// ErrFile is returned for a file that can't be what describes devices.
	ErrFile = errors.New("unusable file of CDI devices")
	// ErrUnsupported is returned for what a device needs and can't be had here.
	ErrUnsupported = errors.New("can't be had here")
)

// DefaultDirs are where files that describe devices lie; the later ones count more.
func DefaultDirs() []string { return slices.Clone(cdi.DefaultSpecDirs) }

// Bounds of the devices of one container, and of the files that describe devices.
const (
	maxDevices = 512
	maxBytes   = 4 << 20
)

// Apply replaces the CDI devices of a container by what they are. wasm says that it
// is a Wasm container, which has no device nodes, and to which most properties of
// mounts mean nothing.
func Apply(cfg *runtimeapi.ContainerConfig, dirs []string, wasm bool) error {
	if len(cfg.GetCDIDevices()) == 0 {
		return nil
	}
	if n := len(cfg.CDIDevices); n > maxDevices {
		return fmt.Errorf("%d CDI devices: %w: %d is all there may be", n, ErrUnsupported, maxDevices)
	}
	if len(dirs) == 0 {
		dirs = DefaultDirs()
	}
	cache, err := read(dirs)
	if err != nil {
		return err
	}
	a := application{cfg: cfg, wasm: wasm}
	seen := map[*cdi.Spec]bool{}
	done := map[string]bool{}
	for _, d := range cfg.CDIDevices {
		name := d.GetName()
		if done[name] {
			continue
		}
		done[name] = true
		device := cache.GetDevice(name)
		if device == nil {
			return unknown(name, dirs, cache.GetErrors())
		}
		if spec := device.GetSpec(); !seen[spec] {
			seen[spec] = true
			if err := a.apply(name, &spec.ContainerEdits); err != nil {
				return err
			}
		}
		if err := a.apply(name, &device.ContainerEdits); err != nil {
			return err
		}
	}
	cfg.CDIDevices = nil
	return nil
}

// read reads the files anew: a driver has just written one. The library panics at some
// that drivers shouldn't write (a device node that is null), which must not end the
// agent.
func read(dirs []string) (cache *cdi.Cache, err error) {
	if err := bounded(dirs); err != nil {
		return nil, err
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: in one of %s: %v", ErrFile, strings.Join(dirs, ", "), p)
		}
	}()
	if cache, err = cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false)); err != nil {
		return nil, fmt.Errorf("CDI devices: %w", err)
	}
	return cache, nil
}

// bounded refuses what the library would read whole, or wait for. A folder that can't
// be read has no devices, as the library says.
func bounded(dirs []string) error {
	var total int64
	for _, dir := range dirs {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if ext := filepath.Ext(path); e.IsDir() || ext != ".json" && ext != ".yaml" {
				continue
			}
			info, err := os.Stat(path)
			if err != nil {
				continue // it went
			}
			if total += info.Size(); !info.Mode().IsRegular() || total > maxBytes {
				return fmt.Errorf("%w: %s, which has to be a regular file, and all of them at most %d bytes", ErrFile, path, maxBytes)
			}
		}
	}
	return nil
}

// unknown says of a device that isn't described what is wrong with the files that are
// there.
func unknown(name string, dirs []string, errs map[string][]error) error {
	err := fmt.Errorf("%w %s: no file in %s describes it", ErrUnknown, name, strings.Join(dirs, ", "))
	for _, path := range slices.Sorted(maps.Keys(errs)) {
		err = fmt.Errorf("%w; %s: %w", err, path, errors.Join(errs[path]...))
	}
	return err
}

// application is one container's.
type application struct {
	cfg  *runtimeapi.ContainerConfig
	wasm bool
}

func (a *application) apply(device string, e *specs.ContainerEdits) error {
	no := func(what string) error {
		if a.wasm {
			return fmt.Errorf("CDI device %s: %s %w: the container is a Wasm module; use an OCI image", device, what, ErrUnsupported)
		}
		return fmt.Errorf("CDI device %s: %s %w: this containerd doesn't know CDI, and its CRI has no word for that; use containerd 2, or enable_cdi in the configuration of 1.7", device, what, ErrUnsupported)
	}
	switch {
	case len(e.Hooks) > 0:
		return no(fmt.Sprintf("its %s hook %s", e.Hooks[0].HookName, e.Hooks[0].Path))
	case len(e.NetDevices) > 0:
		return no("its network device " + e.NetDevices[0].HostInterfaceName)
	case e.IntelRdt != nil:
		return no("its Intel RDT class")
	case a.wasm && len(e.DeviceNodes) > 0:
		return fmt.Errorf("CDI device %s: its device node %s %w: the container is a Wasm module, and WASI has no call for device nodes; a driver that gives a socket or a folder works, or use an OCI image",
			device, e.DeviceNodes[0].Path, ErrUnsupported)
	}
	for _, env := range e.Env {
		a.setEnv(env)
	}
	for _, m := range e.Mounts { // the library has checked that none is null
		mount, bad := a.mount(m)
		if bad != "" {
			return no(fmt.Sprintf("%s of its mount %s", bad, m.ContainerPath))
		}
		a.cfg.Mounts = append(slices.DeleteFunc(a.cfg.Mounts, func(o *runtimeapi.Mount) bool { return o.ContainerPath == m.ContainerPath }), mount)
	}
	for _, d := range e.DeviceNodes {
		node, bad, err := deviceNode(d)
		if err != nil {
			return fmt.Errorf("CDI device %s: %w", device, err)
		}
		if bad != "" {
			return no(fmt.Sprintf("%s of its device node %s", bad, d.Path))
		}
		a.cfg.Devices = append(slices.DeleteFunc(a.cfg.Devices, func(o *runtimeapi.Device) bool { return o.ContainerPath == d.Path }), node)
	}
	a.addGroups(e.AdditionalGIDs)
	return nil
}

// setEnv replaces a variable, as runtimes that know CDI do.
func (a *application) setEnv(env string) {
	key, value, _ := strings.Cut(env, "=")
	a.cfg.Envs = slices.DeleteFunc(a.cfg.Envs, func(o *runtimeapi.KeyValue) bool { return o.Key == key })
	a.cfg.Envs = append(a.cfg.Envs, &runtimeapi.KeyValue{Key: key, Value: []byte(value)})
}

// addGroups leaves out 0, as the library does.
func (a *application) addGroups(gids []uint32) {
	for _, gid := range gids {
		if gid == 0 {
			continue
		}
		if a.cfg.Linux == nil {
			a.cfg.Linux = &runtimeapi.LinuxContainerConfig{}
		}
		if a.cfg.Linux.SecurityContext == nil {
			a.cfg.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{}
		}
		sc := a.cfg.Linux.SecurityContext
		if !slices.Contains(sc.SupplementalGroups, int64(gid)) {
			sc.SupplementalGroups = append(sc.SupplementalGroups, int64(gid))
		}
	}
}

// mount says in CRI's words what a mount is, or what of it can't be said.
func (a *application) mount(m *specs.Mount) (_ *runtimeapi.Mount, bad string) {
	if m.Type != "" && m.Type != "bind" && m.Type != "none" {
		return nil, "the type " + m.Type
	}
	out := &runtimeapi.Mount{HostPath: m.HostPath, ContainerPath: m.ContainerPath}
	for _, option := range m.Options {
		switch option {
		case "bind", "rbind", "rw", "private", "rprivate":
		case "ro":
			out.Readonly = true
		case "slave", "rslave":
			out.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		case "shared", "rshared":
			out.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
		case "nodev", "nosuid", "noexec", "relatime", "noatime", "nodiratime", "strictatime":
			// A guest's file system has neither devices nor set-user-ID nor programs.
			if !a.wasm {
				return nil, "the option " + option
			}
		default:
			return nil, "the option " + option
		}
	}
	return out, ""
}

// deviceNode says in CRI's words what a device node is: one of the host's, with the
// host's properties.
func deviceNode(d *specs.DeviceNode) (_ *runtimeapi.Device, bad string, _ error) {
	host := d.HostPath
	if host == "" {
		host = d.Path
	}
	var st unix.Stat_t
	if err := unix.Stat(host, &st); err != nil {
		return nil, "", &os.PathError{Op: "stat", Path: host, Err: err}
	}
	kind := map[uint32]string{syscall.S_IFCHR: "c", syscall.S_IFBLK: "b", syscall.S_IFIFO: "p"}[st.Mode&syscall.S_IFMT]
	permissions := d.Permissions
	switch {
	case kind == "":
		return nil, "", fmt.Errorf("%s is no device node", host)
	case d.Type != "" && d.Type != kind && !(d.Type == "u" && kind == "c"):
		return nil, "the type " + d.Type, nil
	case (d.Major != 0 || d.Minor != 0) && (int64(unix.Major(uint64(st.Rdev))) != d.Major || int64(unix.Minor(uint64(st.Rdev))) != d.Minor):
		return nil, fmt.Sprintf("the number %d:%d", d.Major, d.Minor), nil
	case d.FileMode != nil && uint32(d.FileMode.Perm()) != st.Mode&0o777:
		return nil, fmt.Sprintf("the mode %#o", d.FileMode.Perm()), nil
	case d.UID != nil && *d.UID != st.Uid:
		return nil, fmt.Sprintf("the user %d", *d.UID), nil
	case d.GID != nil && *d.GID != st.Gid:
		return nil, fmt.Sprintf("the group %d", *d.GID), nil
	case permissions == "":
		permissions = "rwm"
	case permissions == cdi.NoPermissions:
		return nil, "no permission at all", nil
	}
	return &runtimeapi.Device{ContainerPath: d.Path, HostPath: host, Permissions: permissions}, "", nil
}
