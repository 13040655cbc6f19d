package volumes

import (
	"errors"
	"fmt"
	"os"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

const hugePagePrefix = "hugepages-"

// emptyDir makes an emptyDir. One that is there is left as the pod has it.
func (m *Manager) emptyDir(pod *v1.Pod, name string, s *v1.EmptyDirVolumeSource) (string, error) {
	dir := m.path(pod, "empty-dir", name)
	var err error
	switch medium := s.Medium; {
	case medium == v1.StorageMediumDefault:
		if _, err := os.Lstat(dir); err == nil {
			return dir, nil
		}
		return dir, m.newFolder(pod, dir)
	case medium == v1.StorageMediumMemory:
		var mounted bool
		if mounted, err = m.Mounts.IsMountPoint(dir); mounted || err != nil {
			return dir, err
		}
		err = m.memoryDir(dir, m.memorySize(pod, s))
	case strings.HasPrefix(string(medium), string(v1.StorageMediumHugePages)):
		var mounted bool
		if mounted, err = m.Mounts.IsMountPoint(dir); mounted || err != nil {
			return dir, err
		}
		err = m.hugePages(pod, dir, medium)
	default:
		return "", fmt.Errorf("%w: emptyDir with medium %q", ErrUnsupported, s.Medium)
	}
	if err != nil {
		return "", err
	}
	return dir, m.everybodys(pod, dir)
}

// newFolder makes a folder that is complete when it appears: a cut on the way
// leaves none that only looks like it.
func (m *Manager) newFolder(pod *v1.Pod, dir string) error {
	tmp := dir + ".new"
	if err := os.RemoveAll(tmp); err != nil { // empty, whoever made it
		return err
	}
	if err := os.MkdirAll(tmp, 0o750); err != nil {
		return err
	}
	err := m.everybodys(pod, tmp)
	if err == nil {
		err = os.Rename(tmp, dir)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

// everybodys opens the root of an emptyDir to all, whatever the umask. A root that is
// open keeps its other bits (upstream: setupDir in emptydir/empty_dir.go).
func (m *Manager) everybodys(pod *v1.Pod, dir string) error {
	st, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if st.Mode().Perm() != 0o777 {
		if err := os.Chmod(dir, 0o777); err != nil {
			return err
		}
	}
	return m.ownershipOf(pod, dir).apply(dir)
}

// memorySize is the bound of a volume in memory in bytes: the smallest of what
// the volume, the pod and the node say (upstream: calculateEmptyDirMemorySize).
func (m *Manager) memorySize(pod *v1.Pod, s *v1.EmptyDirVolumeSource) int64 {
	var size int64
	smaller := func(n int64) {
		if n > 0 && (size == 0 || n < size) {
			size = n
		}
	}
	if m.Allocatable != nil {
		allocatable := m.Allocatable()
		smaller(allocatable.Memory().Value())
	}
	smaller(memoryLimit(pod))
	if s.SizeLimit != nil {
		smaller(s.SizeLimit.Value())
	}
	return size
}

// memoryLimit is what all of a pod may use in bytes, 0 if a container has no limit.
func memoryLimit(pod *v1.Pod) int64 {
	if r := pod.Spec.Resources; r != nil {
		if q, ok := r.Limits[v1.ResourceMemory]; ok {
			return q.Value()
		}
	}
	var sum, sidecars, largest int64
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		q, ok := c.Resources.Limits[v1.ResourceMemory]
		if !ok {
			return 0
		}
		if c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			sidecars += q.Value()
			largest = max(largest, sidecars)
			continue
		}
		largest = max(largest, sidecars+q.Value())
	}
	for i := range pod.Spec.Containers {
		q, ok := pod.Spec.Containers[i].Resources.Limits[v1.ResourceMemory]
		if !ok {
			return 0
		}
		sum += q.Value()
	}
	return max(sum+sidecars, largest)
}

// hugePages mounts a hugetlbfs of the size that the medium names, or else of the
// one size that the pod's containers ask for.
func (m *Manager) hugePages(pod *v1.Pod, dir string, medium v1.StorageMedium) error {
	size, err := pageSize(pod, medium)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	if err := m.Mounts.Mount("nodev", dir, "hugetlbfs", []string{fmt.Sprintf("pagesize=%d", size)}); err != nil {
		return fmt.Errorf("mounting huge pages of %d bytes: %w", size, err)
	}
	return nil
}

func pageSize(pod *v1.Pod, medium v1.StorageMedium) (int64, error) {
	var named int64
	if text, ok := strings.CutPrefix(string(medium), string(v1.StorageMediumHugePages)+"-"); ok {
		q, err := resource.ParseQuantity(text)
		if err != nil || q.Value() <= 0 {
			return 0, fmt.Errorf("%w: emptyDir with medium %q", ErrInvalid, medium)
		}
		named = q.Value()
	} else if medium != v1.StorageMediumHugePages {
		return 0, fmt.Errorf("%w: emptyDir with medium %q", ErrUnsupported, medium)
	}
	lists := []v1.ResourceList{}
	if pod.Spec.Resources != nil {
		lists = append(lists, pod.Spec.Resources.Requests)
	}
	for _, containers := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range containers {
			lists = append(lists, containers[i].Resources.Requests)
		}
	}
	var found int64
	for _, list := range lists {
		for name := range list {
			text, ok := strings.CutPrefix(string(name), hugePagePrefix)
			if !ok {
				continue
			}
			q, err := resource.ParseQuantity(text)
			if err != nil {
				return 0, fmt.Errorf("%w: resource %s", ErrInvalid, name)
			}
			switch size := q.Value(); {
			case named != 0 && size == named:
				return size, nil
			case named == 0 && found != 0 && found != size:
				return 0, fmt.Errorf("%w: medium: %s can't be used if container requests multiple huge page sizes", ErrInvalid, medium)
			case named == 0:
				found = size
			}
		}
	}
	if found == 0 {
		return 0, fmt.Errorf("%w: medium %s: hugePages storage requested, but there is no resource request for huge pages", ErrInvalid, medium)
	}
	return found, nil
}
