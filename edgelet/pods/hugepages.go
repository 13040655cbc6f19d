package pods

import (
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hugepageLimits bounds a container's huge pages, of every size that the node
// has: what it doesn't ask for it can't take from those who do. The container's
// limit comes before the pod's.
func hugepageLimits(pod *v1.Pod, c *v1.Container, node v1.ResourceList) []*runtimeapi.HugepageLimit {
	var out []*runtimeapi.HugepageLimit
	for name := range node {
		size, ok := hugepageSize(name)
		if !ok {
			continue
		}
		limit, has := c.Resources.Limits[name]
		if !has && pod.Spec.Resources != nil {
			limit = pod.Spec.Resources.Limits[name]
		}
		out = append(out, &runtimeapi.HugepageLimit{PageSize: size, Limit: uint64(max(limit.Value(), 0))})
	}
	slices.SortFunc(out, func(a, b *runtimeapi.HugepageLimit) int { return strings.Compare(a.PageSize, b.PageSize) })
	return out
}

// hugepageSizes are the amounts of huge pages in a list, by the kernel's name of
// their size.
func hugepageSizes(list v1.ResourceList) map[string]int64 {
	var out map[string]int64
	for name, q := range list {
		if size, ok := hugepageSize(name); ok {
			if out == nil {
				out = map[string]int64{}
			}
			out[size] += q.Value()
		}
	}
	return out
}

// hugepageSize is the page size of a resource as the CRI and the kernel's cgroups
// write it: hugepages-2Mi is "2MB".
func hugepageSize(name v1.ResourceName) (string, bool) {
	text, ok := strings.CutPrefix(string(name), v1.ResourceHugePagesPrefix)
	if !ok {
		return "", false
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() <= 0 {
		return "", false
	}
	n, unit := q.Value(), 0
	units := []string{"B", "KB", "MB", "GB", "TB", "PB"}
	for n%1024 == 0 && unit+1 < len(units) {
		n /= 1024
		unit++
	}
	return strconv.FormatInt(n, 10) + units[unit], true
}
