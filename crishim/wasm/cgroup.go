package wasm

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cgroupParent is where a pod's containers have their cgroups.
func (m *Manager) cgroupParent(cfg *runtimeapi.PodSandboxConfig) string {
	parent := expandSlice(cfg.GetLinux().GetCgroupParent())
	if parent == "" {
		uid := cfg.GetMetadata().GetUid()
		return path.Join("/", m.opts.CgroupParent, "pod"+strings.ReplaceAll(uid, "/", "_"))
	}
	return parent
}

// expandSlice makes the path of a systemd slice, which a kubelet with the
// systemd cgroup driver passes by its name: a-b.slice is a.slice/a-b.slice.
func expandSlice(parent string) string {
	base := path.Base(parent)
	if !strings.HasSuffix(base, ".slice") || strings.Count(strings.Trim(parent, "/"), "/") > 0 {
		return parent
	}
	var out, prefix string
	for part := range strings.SplitSeq(strings.TrimSuffix(base, ".slice"), "-") {
		if prefix != "" {
			prefix += "-"
		}
		prefix += part
		out = path.Join(out, prefix+".slice")
	}
	return "/" + out
}

// hierarchies are the mount points of cgroup v2, or of v1's controllers.
func (m *Manager) hierarchies() []string {
	root := m.opts.CgroupRoot
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		return []string{root}
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, filepath.Join(root, e.Name()))
		}
	}
	return out
}

// canMakeCgroups says whether this user may make cgroups for guests: root may,
// others below what was delegated to them.
func (m *Manager) canMakeCgroups() bool {
	if os.Geteuid() == 0 {
		return true
	}
	for _, h := range m.hierarchies() {
		for dir := path.Join("/", m.opts.CgroupParent); ; dir = path.Dir(dir) {
			at := filepath.Join(h, dir)
			if _, err := os.Stat(at); err == nil {
				if unix.Access(at, unix.W_OK) == nil {
					return true
				}
				break
			}
			if dir == "/" {
				break
			}
		}
	}
	return false
}

func (m *Manager) cgroupExists(cg string) bool {
	for _, h := range m.hierarchies() {
		if _, err := os.Stat(filepath.Join(h, cg)); err == nil {
			return true
		}
	}
	return false
}

// removeExecCgroups removes what executions that a former process didn't live to
// clean up left below a container's cgroup. A busy one refuses.
func (m *Manager) removeExecCgroups(cg string) {
	if cg == "" || path.Clean(cg) == "/" {
		return
	}
	for _, h := range m.hierarchies() {
		children, _ := filepath.Glob(filepath.Join(h, cg, "*", "cgroup.procs"))
		for _, procs := range children {
			_ = os.Remove(filepath.Dir(procs))
		}
	}
}

// removeCgroup removes a pod's cgroup that wasn't there before the pod, and
// those of its containers. A guest that was cut off in its start by the death of
// an earlier process may take a moment to end.
func (m *Manager) removeCgroup(cg string) {
	if cg == "" || path.Clean(cg) == "/" {
		return
	}
	for range 50 {
		busy := false
		for _, h := range m.hierarchies() {
			pod := filepath.Join(h, cg)
			children, _ := filepath.Glob(filepath.Join(pod, "*", "cgroup.procs"))
			for _, procs := range children {
				_ = os.Remove(filepath.Dir(procs)) // rmdir, which refuses a busy one
			}
			if err := os.Remove(pod); err != nil && !errors.Is(err, fs.ErrNotExist) {
				busy = true
			}
		}
		if !busy {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	m.log.Warn("a pod's cgroup is left: something runs in it", "cgroup", cg)
}
