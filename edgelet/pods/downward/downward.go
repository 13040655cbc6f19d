package downward

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

var (
	// ErrField is returned when a fieldPath isn't one the downward API has.
	ErrField = errors.New("unsupported fieldPath")
	// ErrResource is returned when a resourceFieldRef names no resource of the
	// downward API, or a container the pod doesn't have.
	ErrResource = errors.New("unsupported container resource")
)

// Field returns the value of a fieldPath. Addresses are taken from pod.Status,
// which the caller fills in; everything else from metadata and spec.
func Field(pod *v1.Pod, path string) (string, error) {
	if base, key, ok := subscript(path); ok {
		switch base {
		case "metadata.annotations":
			return pod.Annotations[key], nil
		case "metadata.labels":
			return pod.Labels[key], nil
		}
		return "", fmt.Errorf("%w %q: only metadata.annotations and metadata.labels take a subscript", ErrField, path)
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return formatMap(pod.Labels), nil
	case "metadata.annotations":
		return formatMap(pod.Annotations), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return pod.Status.HostIP, nil
	case "status.hostIPs":
		ips := make([]string, len(pod.Status.HostIPs))
		for i, ip := range pod.Status.HostIPs {
			ips[i] = ip.IP
		}
		return strings.Join(ips, ","), nil
	case "status.podIP":
		return pod.Status.PodIP, nil
	case "status.podIPs":
		ips := make([]string, len(pod.Status.PodIPs))
		for i, ip := range pod.Status.PodIPs {
			ips[i] = ip.IP
		}
		return strings.Join(ips, ","), nil
	}
	return "", fmt.Errorf("%w %q", ErrField, path)
}

// subscript splits "metadata.labels['key']".
func subscript(path string) (base, key string, ok bool) {
	if !strings.HasSuffix(path, "']") {
		return "", "", false
	}
	base, key, ok = strings.Cut(strings.TrimSuffix(path, "']"), "['")
	return base, key, ok && base != ""
}

// formatMap writes one key="value" per line, sorted.
func formatMap(m map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s=%q", k, m[k])
	}
	return b.String()
}

// Resource returns the value of a resourceFieldRef. self is the container that
// asks, used when ref names none; a limit that isn't set is the pod's own, or else
// the node's allocatable, as a kubelet answers (kubelet_resources.go).
func Resource(pod *v1.Pod, self string, ref *v1.ResourceFieldSelector, allocatable v1.ResourceList) (string, error) {
	name := ref.ContainerName
	if name == "" {
		name = self
	}
	c := container(pod, name)
	if c == nil {
		return "", fmt.Errorf("%w: container %q not found in pod %s/%s", ErrResource, name, pod.Namespace, pod.Name)
	}
	kind, what, _ := strings.Cut(ref.Resource, ".")
	var q resource.Quantity
	found := false
	switch kind {
	case "limits":
		q, found = c.Resources.Limits[v1.ResourceName(what)]
		if !found {
			q = podLimit(pod, v1.ResourceName(what), allocatable)
		}
	case "requests":
		q, found = c.Resources.Requests[v1.ResourceName(what)]
		if !found {
			q = c.Resources.Limits[v1.ResourceName(what)]
		}
	default:
		return "", fmt.Errorf("%w: %q", ErrResource, ref.Resource)
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	switch {
	case what == "cpu":
		return strconv.FormatInt(int64(math.Ceil(float64(q.MilliValue())/float64(divisor.MilliValue()))), 10), nil
	case what == "memory", what == "ephemeral-storage", strings.HasPrefix(what, "hugepages-"):
		return strconv.FormatInt(int64(math.Ceil(float64(q.Value())/float64(divisor.Value()))), 10), nil
	}
	return "", fmt.Errorf("%w: %q", ErrResource, ref.Resource)
}

func podLimit(pod *v1.Pod, name v1.ResourceName, allocatable v1.ResourceList) resource.Quantity {
	if pod.Spec.Resources != nil && (name == v1.ResourceCPU || name == v1.ResourceMemory) {
		if q := pod.Spec.Resources.Limits[name]; !q.IsZero() {
			return q
		}
	}
	return allocatable[name]
}

func container(pod *v1.Pod, name string) *v1.Container {
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}
