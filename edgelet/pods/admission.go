package pods

import (
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/controlplane/api/features"
)

// admit decides whether this node takes a pod it has not taken before. A pod
// that was admitted stays so: after a reboot nothing is decided anew. Reasons
// and messages are a kubelet's.
func (m *Manager) admit(w *worker, pod *v1.Pod) (reason, message string, ok bool) {
	if pod.Spec.OS != nil && string(pod.Spec.OS.Name) != runtime.GOOS {
		return "PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS", false
	}
	if missing := features.Missing(needs(pod), m.cfg.Node.DeclaredFeatures()); len(missing) > 0 {
		return "PodFeatureUnsupported", "Pod requires node features that are not available: " + strings.Join(missing, ", "), false
	}
	if name, used, capacity, fits := m.fits(w, pod); !fits {
		want := requests(pod)[name]
		amount := func(n int64) string { return strconv.FormatInt(n, 10) }
		requested := want.Value()
		if name == v1.ResourceCPU {
			requested = want.MilliValue()
		} else if name == v1.ResourcePods {
			requested = 1
		}
		return "OutOf" + string(name), fmt.Sprintf("Node didn't have enough resource: %s, requested: %s, used: %s, capacity: %s",
			name, amount(requested), amount(used), amount(capacity)), false
	}
	if !matchesNode(pod, m.cfg.Node.Name(), m.cfg.Node.Labels()) {
		return "NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector", false
	}
	if host, taken := m.hostPortTaken(w, pod); taken {
		return "NodePorts", fmt.Sprintf("Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports (%s)", host), false
	}
	for i := range pod.Spec.Containers {
		if err := unsupported(&pod.Spec.Containers[i]); err != "" {
			return "UnexpectedAdmissionError", err, false
		}
	}
	w.claim(pod)
	return "", "", true
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
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if slices.ContainsFunc(list[i].RestartPolicyRules, func(r v1.ContainerRestartRule) bool {
				return r.Action == v1.ContainerRestartRuleActionRestartAllContainers
			}) {
				return append(need, featureRestartAll)
			}
		}
	}
	return need
}

// unsupported names what a container asks for that no node of ours has yet.
func unsupported(c *v1.Container) string {
	if len(c.VolumeDevices) > 0 {
		return fmt.Sprintf("container %q asks for volumeDevices, which this node doesn't have", c.Name)
	}
	if len(c.Resources.Claims) > 0 {
		return fmt.Sprintf("container %q asks for resource claims, which this node doesn't have", c.Name)
	}
	return ""
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

// fits compares with allocatable what the pods here and this one ask for. The
// first resource that doesn't suffice is named; CPU is in thousandths.
func (m *Manager) fits(w *worker, pod *v1.Pod) (name v1.ResourceName, used, capacity int64, ok bool) {
	have := m.cfg.Node.Allocatable()
	want := requests(pod)
	m.mu.Lock()
	defer m.mu.Unlock()
	pods := int64(0)
	sum := map[v1.ResourceName]int64{}
	amount := func(list v1.ResourceList, name v1.ResourceName) int64 {
		q := list[name]
		if name == v1.ResourceCPU {
			return q.MilliValue()
		}
		return q.Value()
	}
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
		return v1.ResourcePods, pods, limit.Value(), false
	}
	for _, n := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage} {
		if a := amount(want, n); a > 0 && sum[n]+a > amount(have, n) {
			return n, sum[n], amount(have, n), false
		}
	}
	for n := range want {
		// Extended resources that the node doesn't have at all are the cluster's own.
		if _, has := have[n]; has && amount(want, n) > 0 && sum[n]+amount(want, n) > amount(have, n) {
			return n, sum[n], amount(have, n), false
		}
	}
	return "", 0, 0, true
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

// matchesNode evaluates nodeSelector and required node affinity.
func matchesNode(pod *v1.Pod, name string, labels map[string]string) bool {
	for k, v := range pod.Spec.NodeSelector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	a := pod.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return true
	}
	return slices.ContainsFunc(a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms,
		func(t v1.NodeSelectorTerm) bool { return matchesTerm(&t, name, labels) })
}

func matchesTerm(t *v1.NodeSelectorTerm, name string, labels map[string]string) bool {
	if len(t.MatchExpressions)+len(t.MatchFields) == 0 {
		return false
	}
	for i := range t.MatchExpressions {
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
