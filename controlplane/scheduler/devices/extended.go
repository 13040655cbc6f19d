package devices

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// extended is what a pod asks for in its containers' resources and a device class
// stands behind (KEP-5004). On a node that doesn't offer such a resource itself, a
// claim of the scheduler's own is made for it.
type extended struct {
	scalars map[v1.ResourceName]int64 // what the pod asks for
	// left is the claim of an earlier try, whose pod wasn't bound. It may have been
	// made for another node: it has to go before another one is made.
	left *resourceapi.ResourceClaim
}

// ownClaim is the scheduler's claim as a node needs it.
type ownClaim struct {
	claim    *resourceapi.ResourceClaim // without a name before it is created
	mappings []v1.ContainerExtendedResourceRequest
}

// isExtended is upstream's IsDRAExtendedResourceName: a resource outside of
// Kubernetes' own domain, or one that names a device class.
func isExtended(name v1.ResourceName) bool {
	if strings.HasPrefix(string(name), resourceapi.ResourceDeviceClassPrefix) {
		return true
	}
	return strings.Contains(string(name), "/") && !strings.Contains(string(name), v1.ResourceDefaultNamespacePrefix) &&
		!strings.HasPrefix(string(name), v1.DefaultResourceRequestsPrefix) &&
		len(validation.IsQualifiedName(v1.DefaultResourceRequestsPrefix+string(name))) == 0
}

func asksExtended(pod *framework.Pod) bool {
	for name, n := range pod.Requests.Scalar {
		if n > 0 && isExtended(name) {
			return true
		}
	}
	return false
}

func asksBacked(pod *framework.Pod, kinds *classes) bool {
	for name, n := range pod.Requests.Scalar {
		if n > 0 && isExtended(name) && kinds.byResource.GetDeviceClass(name) != nil {
			return true
		}
	}
	return false
}

// asks says whether a pod may have devices.
func asks(pod *framework.Pod) bool { return len(pod.Spec.ResourceClaims) > 0 || asksExtended(pod) }

// newExtended looks for the claim of an earlier try among all claims.
func newExtended(pod *framework.Pod, all []*resourceapi.ResourceClaim) *extended {
	e := &extended{scalars: pod.Requests.Scalar}
	for _, c := range all {
		if c.Namespace == pod.Namespace && c.Annotations[resourceapi.ExtendedResourceClaimAnnotation] == "true" && metav1.IsControlledBy(c, pod) {
			e.left = c
		}
	}
	return e
}

// on returns the claim that the pod needs on the node; nil if the node offers
// everything itself.
func (e *extended) on(pod *framework.Pod, node *framework.NodeInfo, kinds *classes) (*ownClaim, *framework.Status) {
	if e.left != nil {
		return nil, framework.Exclude("cannot schedule extended resource claim")
	}
	var names []v1.ResourceName
	for name, n := range e.scalars {
		if n == 0 || !isExtended(name) {
			continue
		}
		offered, listed := node.Allocatable.Scalar[name]
		switch {
		case offered == 0 && kinds.byResource.GetDeviceClass(name) != nil:
			names = append(names, name)
		case !listed:
			return nil, framework.Exclude("cannot fit resource")
		}
	}
	if len(names) == 0 {
		return nil, nil
	}
	slices.Sort(names)
	own := &ownClaim{claim: &resourceapi.ResourceClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, GenerateName: pod.Name + "-extended-resources-",
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID, Controller: new(true)}},
			Annotations:     map[string]string{resourceapi.ExtendedResourceClaimAnnotation: "true"},
		},
	}}
	containers := containersOf(pod.Pod)
	for _, name := range names {
		requests, mappings := requestsFor(containers, name, kinds.byResource.GetDeviceClass(name).Name)
		own.claim.Spec.Devices.Requests = append(own.claim.Spec.Devices.Requests, requests...)
		own.mappings = append(own.mappings, mappings...)
	}
	slices.SortFunc(own.claim.Spec.Devices.Requests, func(a, b resourceapi.DeviceRequest) int { return cmp.Compare(a.Name, b.Name) })
	return own, nil
}

// user is a container as it uses devices.
type user struct {
	*v1.Container
	place int // among the pod's init containers and containers
	// ends: an init container that has ended before those after it run.
	ends bool
}

func containersOf(pod *v1.Pod) (list []user) {
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		stays := c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
		list = append(list, user{c, len(list), !stays})
	}
	for i := range pod.Spec.Containers {
		list = append(list, user{&pod.Spec.Containers[i], len(list), false})
	}
	return list
}

// requestsFor returns the requests of all containers for one resource. Each container
// that stays has its own. One that ends uses those of the containers after it, and
// what it needs beyond them is shared by all that end: one runs at a time. Names
// and sharing are upstream's, since quota counts by them.
func requestsFor(containers []user, name v1.ResourceName, class string) (requests []resourceapi.DeviceRequest, mappings []v1.ContainerExtendedResourceRequest) {
	mapping := func(c user, request string) v1.ContainerExtendedResourceRequest {
		return v1.ContainerExtendedResourceRequest{ContainerName: c.Name, ResourceName: string(name), RequestName: request}
	}
	stay := make([]*resourceapi.DeviceRequest, len(containers))
	for i, c := range containers {
		if n := c.wants(name); n > 0 && !c.ends {
			stay[i] = c.request(name, class, n)
			mappings = append(mappings, mapping(c, stay[i].Name))
		}
	}
	var extra *resourceapi.DeviceRequest // the largest of those that end
	var sharers []int                    // mappings to it
	for i, c := range containers {
		n := c.wants(name)
		if n == 0 || !c.ends {
			continue
		}
		for _, later := range stay[i:] {
			if n > 0 && later != nil {
				mappings = append(mappings, mapping(c, later.Name))
				n -= later.Exactly.Count
			}
		}
		if n > 0 {
			sharers = append(sharers, len(mappings))
			mappings = append(mappings, mapping(c, ""))
			if extra == nil || n > extra.Exactly.Count {
				extra = c.request(name, class, n)
			}
		}
	}
	for _, i := range sharers {
		mappings[i].RequestName = extra.Name
	}
	if extra != nil {
		requests = append(requests, *extra)
	}
	for _, r := range stay {
		if r != nil {
			requests = append(requests, *r)
		}
	}
	return requests, mappings
}

func (c user) wants(name v1.ResourceName) int64 {
	q, ok := c.Resources.Requests[name]
	if !ok {
		return 0
	}
	n, _ := q.AsInt64()
	return n
}

func (c user) request(name v1.ResourceName, class string, n int64) *resourceapi.DeviceRequest {
	names := make([]string, 0, len(c.Resources.Requests))
	for other := range c.Resources.Requests {
		names = append(names, string(other))
	}
	slices.Sort(names)
	return &resourceapi.DeviceRequest{
		Name: fmt.Sprintf("container-%d-request-%d", c.place, slices.Index(names, string(name))),
		Exactly: &resourceapi.ExactDeviceRequest{
			DeviceClassName: class, AllocationMode: resourceapi.DeviceAllocationModeExactCount, Count: n,
		},
	}
}
