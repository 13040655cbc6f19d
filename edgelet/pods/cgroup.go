package pods

import (
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// cgroups names pod cgroups as a kubelet does: one level per QoS class below a
// root, so that what asked for nothing is weighed and killed first.
type cgroups struct {
	root    string // such as "/kubepods"; empty: the runtime chooses
	systemd bool
}

// parent is the cgroup parent of a pod's containers, in the driver's notation.
func (c cgroups) parent(pod *v1.Pod) string {
	if c.root == "" {
		return ""
	}
	class := ""
	switch qosClass(pod) {
	case v1.PodQOSBestEffort:
		class = "besteffort"
	case v1.PodQOSBurstable:
		class = "burstable"
	}
	uid := "pod" + string(pod.UID)
	if !c.systemd {
		return path.Join("/", c.root, class, uid)
	}
	// systemd: each level repeats its parents, dashes separate, so a UID has none.
	name := strings.ReplaceAll(strings.Trim(c.root, "/"), "/", "-")
	dir := "/" + name + ".slice"
	for _, level := range []string{class, strings.ReplaceAll(uid, "-", "_")} {
		if level != "" {
			name += "-" + level
			dir += "/" + name + ".slice"
		}
	}
	return dir
}

// remove removes the pod's cgroup from every hierarchy. It can only be empty
// ones that go: a cgroup with processes refuses.
func (c cgroups) remove(pod *v1.Pod) {
	parent := c.parent(pod)
	if parent == "" {
		return
	}
	for _, pattern := range []string{"/sys/fs/cgroup" + parent, "/sys/fs/cgroup/*" + parent} {
		dirs, _ := filepath.Glob(pattern)
		for _, dir := range dirs {
			removeTree(dir, 3)
		}
	}
}

func removeTree(dir string, depth int) {
	if entries, err := os.ReadDir(dir); err == nil && depth > 0 {
		for _, e := range entries {
			if e.IsDir() {
				removeTree(filepath.Join(dir, e.Name()), depth-1)
			}
		}
	}
	_ = os.Remove(dir)
}
