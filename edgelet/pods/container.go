package pods

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/images"
	"github.com/coracle-edge/coracle/edgelet/volumes"
)

const etcHosts = "/etc/hosts"

// containerConfig translates a container into CRI. ips are the pod's.
func (m *Manager) containerConfig(ctx context.Context, pod *v1.Pod, c *v1.Container, img images.Image, mounted volumes.Mounted, ips []string, restartCount int32) (*runtimeapi.ContainerConfig, error) {
	env, err := m.environment(pod, c, mounted)
	if err != nil {
		return nil, err
	}
	sc, err := securityContext(pod, c, img, m.cfg.SeccompDir)
	if err != nil {
		return nil, err
	}
	cfg := &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: uint32(restartCount)},
		Image:       &runtimeapi.ImageSpec{Image: img.Ref, UserSpecifiedImage: c.Image},
		Command:     expandAll(c.Command, env),
		Args:        expandAll(c.Args, env),
		WorkingDir:  c.WorkingDir,
		Envs:        keyValues(env),
		Labels:      containerLabels(pod, c),
		Annotations: containerAnnotations(pod, c, restartCount),
		LogPath:     filepath.Join(c.Name, strconv.Itoa(int(restartCount))+".log"),
		Stdin:       c.Stdin, StdinOnce: c.StdinOnce, Tty: c.TTY,
		StopSignal: stopSignal(c),
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       m.containerResources(pod, c),
			SecurityContext: sc,
		},
	}
	if img.Kind == images.KindWasm {
		if l := listens(c); l != "" {
			cfg.Annotations[AnnotationListen] = l
		}
	}
	if cfg.Mounts, err = m.mounts(ctx, pod, c, img.Kind, mounted, env, ips); err != nil {
		return nil, err
	}
	if cfg.Devices, err = blockDevices(c, mounted); err != nil {
		return nil, err
	}
	sc.SupplementalGroups = append(sc.SupplementalGroups, mounted.Groups...)
	if err := m.addDevices(ctx, pod, c, img, cfg); err != nil {
		return nil, err
	}
	if err := m.addClaims(pod, c, cfg); err != nil {
		return nil, err
	}
	dir := filepath.Join(m.logDir(pod.Namespace, pod.Name, string(pod.UID)), c.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("create container log directory for container %s failed: %w", c.Name, err)
	}
	return cfg, nil
}

// listens are the sockets a Wasm container is handed: WASI lets it accept, not
// bind. Its ports' order is their order.
func listens(c *v1.Container) string {
	var out []string
	for _, p := range c.Ports {
		proto := strings.ToLower(string(p.Protocol))
		if proto == "" {
			proto = "tcp"
		}
		if proto == "tcp" {
			out = append(out, net.JoinHostPort("0.0.0.0", strconv.Itoa(int(p.ContainerPort)))+"/"+proto)
		}
	}
	return strings.Join(out, ",")
}

func stopSignal(c *v1.Container) runtimeapi.Signal {
	if c.Lifecycle == nil || c.Lifecycle.StopSignal == nil {
		return runtimeapi.Signal_RUNTIME_DEFAULT
	}
	// The API's names are CRI's, but for the real-time ones.
	name := strings.NewReplacer("RTMIN+", "RTMINPLUS", "RTMAX-", "RTMAXMINUS").Replace(string(*c.Lifecycle.StopSignal))
	return runtimeapi.Signal(runtimeapi.Signal_value[name])
}

// expandStrict is expand for paths: what isn't defined is an error, because it
// would become part of a name.
func expandStrict(in string, env map[string]string) (string, error) {
	var missing []string
	out := expand(in, func(name string) (string, bool) {
		v, ok := env[name]
		if !ok {
			missing = append(missing, name)
		}
		return v, ok
	})
	if len(missing) > 0 {
		return "", fmt.Errorf("%w: missing value for %s", ErrEnv, strings.Join(missing, ", "))
	}
	return out, nil
}

// terminationLog makes a file of its own for each run of a container, writable
// to whatever user it runs as, and removes those of runs long past.
func (m *Manager) terminationLog(pod *v1.Pod, c *v1.Container) (string, error) {
	dir := filepath.Join(m.podDir(string(pod.UID)), "containers", c.Name)
	if err := passable(dir); err != nil {
		return "", err
	}
	if old, err := os.ReadDir(dir); err == nil && len(old) > 4 {
		pruneOldest(dir, old, 4)
	}
	var id [4]byte
	if _, err := rand.Read(id[:]); err != nil {
		return "", err
	}
	path := filepath.Join(dir, hex.EncodeToString(id[:]))
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		return "", err
	}
	return path, os.Chmod(path, 0o666)
}

func pruneOldest(dir string, entries []os.DirEntry, keep int) {
	type aged struct {
		name string
		at   int64
	}
	var files []aged
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			files = append(files, aged{e.Name(), info.ModTime().UnixNano()})
		}
	}
	for len(files) > keep {
		oldest := 0
		for i := range files {
			if files[i].at < files[oldest].at {
				oldest = i
			}
		}
		_ = os.Remove(filepath.Join(dir, files[oldest].name))
		files = append(files[:oldest], files[oldest+1:]...)
	}
}
