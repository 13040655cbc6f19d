package framework

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/sets"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
)

// Pod is a pod as the scheduler sees it: the object, which is shared with the
// informer and must not be changed, and what is computed from it once.
type Pod struct {
	*v1.Pod
	Requests Resources // what it asks for
	Scored   Resources // what it is taken to use when scoring
	Priority int32
	Ports    []v1.ContainerPort // those with a host port

	Affinity              []Term // required
	AntiAffinity          []Term // required
	PreferredAffinity     []WeightedTerm
	PreferredAntiAffinity []WeightedTerm
	// AffinityErr is set if a selector of a term can't be parsed; such a pod
	// fits nowhere.
	AffinityErr error
}

// Term is one parsed term of pod affinity.
type Term struct {
	Namespaces        sets.Set[string]
	Selector          labels.Selector
	NamespaceSelector labels.Selector
	TopologyKey       string
}

// WeightedTerm is a preferred [Term].
type WeightedTerm struct {
	Term
	Weight int64
}

// NewPod computes what the scheduler wants to know of pod.
func NewPod(pod *v1.Pod) *Pod {
	p := &Pod{Pod: pod, Priority: corev1helpers.PodPriority(pod), Ports: hostPorts(pod)}
	p.Requests, p.Scored = requestsOf(pod)
	a := pod.Spec.Affinity
	if a == nil {
		return p
	}
	if pa := a.PodAffinity; pa != nil {
		p.Affinity = p.terms(pa.RequiredDuringSchedulingIgnoredDuringExecution)
		p.PreferredAffinity = p.weighted(pa.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if pa := a.PodAntiAffinity; pa != nil {
		p.AntiAffinity = p.terms(pa.RequiredDuringSchedulingIgnoredDuringExecution)
		p.PreferredAntiAffinity = p.weighted(pa.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	return p
}

// Key is namespace/name.
func (p *Pod) Key() string { return p.Namespace + "/" + p.Name }

// HasAffinity says whether the pod has any term of pod (anti-)affinity.
func (p *Pod) HasAffinity() bool {
	return len(p.Affinity)+len(p.AntiAffinity)+len(p.PreferredAffinity)+len(p.PreferredAntiAffinity) > 0
}

// Matches says whether the term selects pod, whose namespace has nsLabels.
func (t *Term) Matches(pod *v1.Pod, nsLabels labels.Set) bool {
	if !t.Namespaces.Has(pod.Namespace) && !t.NamespaceSelector.Matches(nsLabels) {
		return false
	}
	return t.Selector.Matches(labels.Set(pod.Labels))
}

func (p *Pod) terms(in []v1.PodAffinityTerm) []Term {
	out := make([]Term, 0, len(in))
	for i := range in {
		out = append(out, p.term(&in[i]))
	}
	return out
}

func (p *Pod) weighted(in []v1.WeightedPodAffinityTerm) []WeightedTerm {
	out := make([]WeightedTerm, 0, len(in))
	for i := range in {
		out = append(out, WeightedTerm{p.term(&in[i].PodAffinityTerm), int64(in[i].Weight)})
	}
	return out
}

func (p *Pod) term(in *v1.PodAffinityTerm) Term {
	t := Term{TopologyKey: in.TopologyKey, Namespaces: sets.New(in.Namespaces...)}
	if len(in.Namespaces) == 0 && in.NamespaceSelector == nil {
		t.Namespaces.Insert(p.Namespace)
	}
	t.Selector = p.selector(in.LabelSelector)
	t.NamespaceSelector = p.selector(in.NamespaceSelector)
	return t
}

func (p *Pod) selector(in *metav1.LabelSelector) labels.Selector {
	s, err := metav1.LabelSelectorAsSelector(in) // nil selects nothing
	if err != nil {
		p.AffinityErr = fmt.Errorf("pod %s: affinity term: %w", p.Key(), err)
		return labels.Nothing()
	}
	return s
}

func hostPorts(pod *v1.Pod) []v1.ContainerPort {
	var ports []v1.ContainerPort
	add := func(c *v1.Container) {
		for _, p := range c.Ports {
			if p.HostPort > 0 {
				ports = append(ports, p)
			}
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		// Init containers end before the pod's ports matter; sidecars stay.
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	return ports
}
