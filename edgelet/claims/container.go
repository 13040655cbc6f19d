package claims

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// serves reports whether a device is for a request of its claim; empty asks for
// every one. A driver may name the subrequest that was chosen, or only its request.
func (d *device) serves(request string) bool {
	if request == "" || len(d.Requests) == 0 {
		return true
	}
	return slices.ContainsFunc(d.Requests, func(r string) bool { return base(r) == base(request) })
}

func base(request string) string {
	name, _, _ := strings.Cut(request, "/")
	return name
}

// CDI are the CDI devices of a container, each once: those of the claims that it
// names, and of the pod's claim for extended resources those of its requests. The
// pod was prepared before.
func (m *Manager) CDI(pod *v1.Pod, c *v1.Container) (ids []string, err error) {
	if !Has(pod) {
		return nil, nil
	}
	refs, err := Of(pod)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	add := func(name, request string) error {
		have := m.claims[pod.Namespace+"/"+name]
		if have == nil || have.Boot != m.Boot || !have.usedBy(string(pod.UID)) {
			return fmt.Errorf("ResourceClaim %s is not prepared for the pod", name)
		}
		for _, driver := range driversOf([]*claim{have}) {
			for _, d := range have.Drivers[driver] {
				if !d.serves(request) {
					continue
				}
				for _, id := range d.CDI {
					if !slices.Contains(ids, id) {
						ids = append(ids, id)
					}
				}
			}
		}
		return nil
	}
	for _, r := range refs {
		for _, want := range c.Resources.Claims {
			if r.Of != "" && want.Name == r.Of {
				if err := add(r.Name, want.Request); err != nil {
					return nil, err
				}
			}
		}
	}
	s := pod.Status.ExtendedResourceClaimStatus
	if s == nil {
		return ids, nil
	}
	for _, r := range s.RequestMappings {
		if q, asks := c.Resources.Requests[v1.ResourceName(r.ResourceName)]; r.ContainerName == c.Name && asks && !q.IsZero() {
			if err := add(s.ResourceClaimName, r.RequestName); err != nil {
				return nil, err
			}
		}
	}
	return ids, nil
}

// Held is a claim that a container uses.
type Held struct {
	Namespace, Name string
	Devices         []HeldDevice
}

// HeldDevice is a device of a claim's. Share tells users of one that is shared.
type HeldDevice struct {
	Driver, Pool, Device, Share string
	CDI                         []string
}

// Holds are the claims that a container uses, with all of their devices, as a kubelet
// tells them to programs on the node (pkg/kubelet/cm/dra, GetContainerClaimInfos).
func (m *Manager) Holds(pod *v1.Pod, c *v1.Container) (out []Held) {
	if !Has(pod) {
		return nil
	}
	refs, _ := Of(pod)
	uses := func(r Reference) bool {
		if r.Of != "" {
			return slices.ContainsFunc(c.Resources.Claims, func(want v1.ResourceClaim) bool { return want.Name == r.Of })
		}
		return slices.ContainsFunc(pod.Status.ExtendedResourceClaimStatus.RequestMappings, func(n v1.ContainerExtendedResourceRequest) bool { return n.ContainerName == c.Name })
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range refs {
		have := m.claims[pod.Namespace+"/"+r.Name]
		if have == nil || !have.usedBy(string(pod.UID)) || !uses(r) {
			continue
		}
		h := Held{Namespace: have.Namespace, Name: have.Name}
		for _, driver := range driversOf([]*claim{have}) {
			for _, d := range have.Drivers[driver] {
				h.Devices = append(h.Devices, HeldDevice{Driver: driver, Pool: d.Pool, Device: d.Device, Share: d.Share, CDI: slices.Clone(d.CDI)})
			}
		}
		out = append(out, h)
	}
	return out
}
