package pods

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/controlplane/api/features"
	"github.com/coracle-edge/coracle/edgelet/claims"
)

// refusal is why a pod isn't taken, in a kubelet's words; nil takes it.
type refusal struct {
	reason, message string
	// short are the resources that don't suffice and by how much, if nothing else
	// is wrong: a critical pod makes room.
	short []shortage
}

// admit decides whether this node takes a pod it has not taken before. A pod
// that was admitted stays so: after a reboot nothing is decided anew. Reasons
// and messages are a kubelet's. It may take as long as a device plugin takes to
// answer, or pods to end that make room for a critical one; ctx ends it.
func (m *Manager) admit(ctx context.Context, w *worker, pod *v1.Pod) (reason, message string, ok bool) {
	for _, gate := range m.cfg.Gates {
		if reason, message := gate(pod); reason != "" {
			return reason, message, false
		}
	}
	// Where the runtime doesn't say, its sandbox waits until it does.
	if err := m.strictGroups(ctx, pod, ""); errors.Is(err, errStrictGroups) {
		return reasonStrictGroups, err.Error(), false
	}
	if reason, message := m.give(ctx, pod); reason != "" {
		return reason, message, false
	}
	r := m.decide(w, pod)
	if r != nil && len(r.short) > 0 && critical(w, pod) {
		if err := m.makeRoom(ctx, w, pod, r.short); err != nil {
			r = &refusal{reason: "UnexpectedAdmissionError", message: fmt.Sprintf("Unexpected error while attempting to recover from admission failure: %v", err)}
		} else {
			r = m.decide(w, pod)
		}
	}
	if r == nil {
		return "", "", true
	}
	if err := errors.Join(w.freeProcessors(), w.freeDevices()); err != nil {
		m.log.Error("devices or processors of a refused pod stay taken for now", "pod", w.namespace+"/"+w.name, "err", err)
	}
	return r.reason, r.message, false
}

// decide looks at everything but devices and processors of its own, and claims what
// the pod asks for if nothing speaks against it.
func (m *Manager) decide(w *worker, pod *v1.Pod) *refusal {
	m.admission.Lock()
	defer m.admission.Unlock()
	if pod.Spec.OS != nil && string(pod.Spec.OS.Name) != runtime.GOOS {
		return &refusal{reason: "PodOSNotSupported", message: "Failed to admit pod as the OS field doesn't match node OS"}
	}
	if os, has := pod.Labels[v1.LabelOSStable]; has && os != runtime.GOOS {
		return &refusal{reason: "PodOSSelectorNodeLabelDoesNotMatch", message: "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"}
	}
	if missing := features.Missing(needs(pod), m.cfg.Node.DeclaredFeatures()); len(missing) > 0 {
		return &refusal{reason: "PodFeatureUnsupported", message: "Pod requires node features that are not available: " + strings.Join(missing, ", ")}
	}
	if reason, message := m.forbidden(pod); reason != "" {
		return &refusal{reason: reason, message: message}
	}
	short := m.shortages(w, pod)
	var r *refusal
	if len(short) > 0 {
		s := short[0]
		r = &refusal{reason: "OutOf" + string(s.name), short: short,
			message: fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", s.name, s.requested, s.used, s.capacity)}
	}
	other := func(reason, message string) {
		if r == nil {
			r = &refusal{reason: reason, message: message}
		}
		r.short = nil // room alone doesn't help
	}
	if !matchesNode(pod, m.cfg.Node.Name(), m.cfg.Node.Labels(), w.isStatic()) {
		other("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector")
	}
	if host, taken := m.hostPortTaken(w, pod); taken {
		other("NodePorts", fmt.Sprintf("Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports (%s)", host))
	}
	if m.cfg.Claims == nil && claims.Has(pod) {
		other("UnexpectedAdmissionError", noClaims)
	}
	if r == nil {
		w.claim(pod)
	}
	return r
}

// Features that follow from a pod's spec: the part of upstream's list
// (k8s.io/component-helpers/nodedeclaredfeatures) that concerns pods which are
// new to a node. Without a refusal they would run as something else than what
// was asked for.
const (
	featureRestartAll      = "RestartAllContainersOnContainerExits"
	featureHostNetworkUser = "UserNamespacesHostNetworkSupport"
)

// needs are the features that a pod's node must have.
func needs(pod *v1.Pod) []string {
	need := features.Needed(pod.Annotations)
	if pod.Spec.HostNetwork && pod.Spec.HostUsers != nil && !*pod.Spec.HostUsers {
		need = append(need, featureHostNetworkUser)
	}
	if couldRestartAll(pod) {
		need = append(need, featureRestartAll)
	}
	return need
}

// claimed is what an admitted pod holds of the node.
type claimed struct {
	requests v1.ResourceList
	ports    []string
}

func (w *worker) claim(pod *v1.Pod) {
	c := &claimed{requests: requests(pod), ports: hostPorts(pod)}
	w.mu.Lock()
	w.claims = c
	w.mu.Unlock()
}

// holds returns what the pod holds, nil if nothing: it isn't admitted or is over.
func (w *worker) holds() *claimed {
	if s := w.reported.Load(); s != nil && (s.Phase == v1.PodFailed || s.Phase == v1.PodSucceeded) {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.claims
}

// shortage is a resource of which the node has too little for a pod. CPU is in
// thousandths.
type shortage struct {
	name                      v1.ResourceName
	requested, used, capacity int64
}

// amount of a resource; CPU in thousandths.
func amount(list v1.ResourceList, name v1.ResourceName) int64 {
	q := list[name]
	if name == v1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}

// shortages compares with allocatable what the pods here and this one ask for.
func (m *Manager) shortages(w *worker, pod *v1.Pod) []shortage {
	have, want := m.cfg.Node.Allocatable(), requests(pod)
	var out []shortage
	m.mu.Lock()
	defer m.mu.Unlock()
	pods := int64(0)
	sum := map[v1.ResourceName]int64{}
	for _, other := range m.workers {
		c := other.holds()
		if other == w || c == nil {
			continue
		}
		pods++
		for n := range c.requests {
			sum[n] += amount(c.requests, n)
		}
	}
	if limit, has := have[v1.ResourcePods]; has && pods+1 > limit.Value() {
		out = append(out, shortage{v1.ResourcePods, 1, pods, limit.Value()})
	}
	names := []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage}
	for _, n := range slices.Sorted(maps.Keys(want)) {
		// Extended resources that the node doesn't have at all are the cluster's own.
		if _, has := have[n]; has && n != v1.ResourcePods && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	for _, n := range names {
		if a := amount(want, n); a > 0 && sum[n]+a > amount(have, n) {
			out = append(out, shortage{n, a, sum[n], amount(have, n)})
		}
	}
	return out
}

func hostPorts(pod *v1.Pod) []string {
	var out []string
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			for _, p := range list[i].Ports {
				if p.HostPort != 0 {
					out = append(out, fmt.Sprintf("%s:%d/%s", p.HostIP, p.HostPort, p.Protocol))
				}
			}
		}
	}
	return out
}

func (m *Manager) hostPortTaken(w *worker, pod *v1.Pod) (string, bool) {
	want := hostPorts(pod)
	if len(want) == 0 {
		return "", false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, other := range m.workers {
		c := other.holds()
		if other == w || c == nil {
			continue
		}
		for _, p := range want {
			if slices.ContainsFunc(c.ports, func(have string) bool { return portsConflict(p, have) }) {
				return p, true
			}
		}
	}
	return "", false
}

// portsConflict compares IP:PORT/PROTOCOL; an empty IP is all of them.
func portsConflict(a, b string) bool {
	ipA, portA := a[:strings.LastIndexByte(a, ':')], a[strings.LastIndexByte(a, ':'):]
	ipB, portB := b[:strings.LastIndexByte(b, ':')], b[strings.LastIndexByte(b, ':'):]
	any := func(ip string) bool { return ip == "" || ip == "0.0.0.0" || ip == "::" }
	return portA == portB && (ipA == ipB || any(ipA) || any(ipB))
}

// matchesNode evaluates nodeSelector and required node affinity against the
// labels that the node gave itself. Labels that an administrator gave it are known
// to the control plane only, which looked at them when it bound the pod; so what
// is asked of any other label is taken to be so, unless the pod is the node's own.
func matchesNode(pod *v1.Pod, name string, labels map[string]string, static bool) bool {
	for k, v := range pod.Spec.NodeSelector {
		if have, ok := labels[k]; (ok || static) && (!ok || have != v) {
			return false
		}
	}
	a := pod.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return true
	}
	return slices.ContainsFunc(a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms,
		func(t v1.NodeSelectorTerm) bool { return matchesTerm(&t, name, labels, static) })
}

func matchesTerm(t *v1.NodeSelectorTerm, name string, labels map[string]string, static bool) bool {
	if len(t.MatchExpressions)+len(t.MatchFields) == 0 {
		return false
	}
	for i := range t.MatchExpressions {
		if _, known := labels[t.MatchExpressions[i].Key]; !known && !static {
			continue
		}
		if !matchesRequirement(&t.MatchExpressions[i], labels) {
			return false
		}
	}
	for i := range t.MatchFields {
		if !matchesRequirement(&t.MatchFields[i], map[string]string{"metadata.name": name}) {
			return false
		}
	}
	return true
}

func matchesRequirement(r *v1.NodeSelectorRequirement, labels map[string]string) bool {
	have, ok := labels[r.Key]
	switch r.Operator {
	case v1.NodeSelectorOpIn:
		return ok && slices.Contains(r.Values, have)
	case v1.NodeSelectorOpNotIn:
		return !ok || !slices.Contains(r.Values, have)
	case v1.NodeSelectorOpExists:
		return ok
	case v1.NodeSelectorOpDoesNotExist:
		return !ok
	case v1.NodeSelectorOpGt, v1.NodeSelectorOpLt:
		if !ok || len(r.Values) != 1 {
			return false
		}
		a, errA := strconv.ParseInt(have, 10, 64)
		b, errB := strconv.ParseInt(r.Values[0], 10, 64)
		if errA != nil || errB != nil {
			return false
		}
		return (r.Operator == v1.NodeSelectorOpGt) == (a > b) && a != b
	}
	return false
}
