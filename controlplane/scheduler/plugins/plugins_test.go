package plugins

import (
	"context"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	nodelisters "k8s.io/client-go/listers/node/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-edge/coracle/controlplane/api/features"
	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

type podOption func(*v1.Pod)
type nodeOption func(*v1.Node)

func newPod(name string, opts ...podOption) *v1.Pod {
	p := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)},
		Spec:       v1.PodSpec{Containers: []v1.Container{{Name: "c"}}},
	}
	for _, o := range opts {
		o(p)
	}
	return p
}

func newNode(name string, opts ...nodeOption) *v1.Node {
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1.LabelHostname: name}}}
	n.Status.Allocatable = amounts("cpu", "4", "memory", "4Gi", "pods", "10")
	for _, o := range opts {
		o(n)
	}
	return n
}

func amounts(pairs ...string) v1.ResourceList {
	l := v1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[v1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func asks(pairs ...string) podOption {
	return func(p *v1.Pod) { p.Spec.Containers[0].Resources.Requests = amounts(pairs...) }
}

func has(pairs ...string) nodeOption {
	return func(n *v1.Node) { n.Status.Allocatable = amounts(pairs...) }
}

func nodeLabels(pairs ...string) nodeOption {
	return func(n *v1.Node) {
		for i := 0; i < len(pairs); i += 2 {
			n.Labels[pairs[i]] = pairs[i+1]
		}
	}
}

func podLabels(pairs ...string) podOption {
	return func(p *v1.Pod) {
		p.Labels = map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			p.Labels[pairs[i]] = pairs[i+1]
		}
	}
}

func taint(key, value string, effect v1.TaintEffect) nodeOption {
	return func(n *v1.Node) {
		n.Spec.Taints = append(n.Spec.Taints, v1.Taint{Key: key, Value: value, Effect: effect})
	}
}

func tolerates(key string, effect v1.TaintEffect) podOption {
	return func(p *v1.Pod) {
		p.Spec.Tolerations = append(p.Spec.Tolerations, v1.Toleration{Key: key, Operator: v1.TolerationOpExists, Effect: effect})
	}
}

// ask runs one filter as the scheduler does: prepared first if it wants to be.
func ask(f framework.Filter, pod *v1.Pod, cluster *framework.Cluster, node string) *framework.Status {
	p := framework.NewPod(pod)
	ctx := context.Background()
	if prep, ok := f.(framework.FilterPreparer); ok {
		prepared, status := prep.PrepareFilter(ctx, p, cluster)
		if status != nil || prepared == nil {
			return status
		}
		f = prepared
	}
	return f.Filter(ctx, p, cluster.Get(node))
}

func clusterOf(nodes ...*framework.NodeInfo) *framework.Cluster {
	return framework.NewCluster(nodes, nil)
}

func nodeWith(n *v1.Node, pods ...*v1.Pod) *framework.NodeInfo {
	info := framework.NewNodeInfo(n)
	for _, p := range pods {
		info.Add(framework.NewPod(p))
	}
	return info
}

func reasons(s *framework.Status) string {
	if s == nil {
		return ""
	}
	return strings.Join(s.Reasons, "; ")
}

func classes(t *testing.T, objects ...*nodev1.RuntimeClass) nodelisters.RuntimeClassLister {
	ix := cache.NewIndexer(cache.MetaNamespaceKeyFunc, nil)
	for _, o := range objects {
		if err := ix.Add(o); err != nil {
			t.Fatal(err)
		}
	}
	return nodelisters.NewRuntimeClassLister(ix)
}

// A handler that isn't ours: where one node lists it, it is looked for; where none
// does, the nodes decide, as with upstream's scheduler.
func TestHandlersOfOthersAreLookedForWhereTheyAreListed(t *testing.T) {
	name := "kata"
	pod := newPod("p", func(p *v1.Pod) { p.Spec.RuntimeClassName = &name })
	class := &RuntimeClass{Classes: classes(t, &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Handler: name})}
	with := func(node string, handlers ...string) *framework.NodeInfo {
		return framework.NewNodeInfo(newNode(node, func(n *v1.Node) {
			for _, h := range handlers {
				n.Status.RuntimeHandlers = append(n.Status.RuntimeHandlers, v1.NodeRuntimeHandler{Name: h})
			}
		}))
	}
	nobody := clusterOf(with("a", "", "wasm"), with("b", ""))
	some := clusterOf(with("a", "", "wasm"), with("b", "", "kata"))
	for _, c := range []struct {
		in   *framework.Cluster
		node string
		fits bool
	}{{nobody, "a", true}, {nobody, "b", true}, {some, "a", false}, {some, "b", true}} {
		if got := ask(class, pod, c.in, c.node); got.OK() != c.fits {
			t.Errorf("%s of %d: %v", c.node, len(c.in.Nodes), got)
		}
	}
}

func TestSimpleFilters(t *testing.T) {
	wasm := func(p *v1.Pod) { name := "wasm"; p.Spec.RuntimeClassName = &name }
	handlers := func(names ...string) nodeOption {
		return func(n *v1.Node) {
			for _, h := range names {
				n.Status.RuntimeHandlers = append(n.Status.RuntimeHandlers, v1.NodeRuntimeHandler{Name: h})
			}
		}
	}
	hostPort := func(port int32, ip string, protocol v1.Protocol) podOption {
		return func(p *v1.Pod) {
			p.Spec.Containers[0].Ports = append(p.Spec.Containers[0].Ports, v1.ContainerPort{HostPort: port, HostIP: ip, Protocol: protocol})
		}
	}
	sidecarPort := func(restart bool) podOption {
		return func(p *v1.Pod) {
			c := v1.Container{Name: "i", Ports: []v1.ContainerPort{{HostPort: 80}}}
			if restart {
				always := v1.ContainerRestartPolicyAlways
				c.RestartPolicy = &always
			}
			p.Spec.InitContainers = append(p.Spec.InitContainers, c)
		}
	}
	required := func(key string, op v1.NodeSelectorOperator, values ...string) podOption {
		return func(p *v1.Pod) {
			p.Spec.Affinity = &v1.Affinity{NodeAffinity: &v1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &v1.NodeSelector{
				NodeSelectorTerms: []v1.NodeSelectorTerm{{MatchExpressions: []v1.NodeSelectorRequirement{{Key: key, Operator: op, Values: values}}}}}}}
		}
	}
	initAsks := func(sidecar bool, pairs ...string) podOption {
		return func(p *v1.Pod) {
			c := v1.Container{Name: "i", Resources: v1.ResourceRequirements{Requests: amounts(pairs...)}}
			if sidecar {
				always := v1.ContainerRestartPolicyAlways
				c.RestartPolicy = &always
			}
			p.Spec.InitContainers = append(p.Spec.InitContainers, c)
		}
	}
	overhead := func(pairs ...string) podOption {
		return func(p *v1.Pod) { p.Spec.Overhead = amounts(pairs...) }
	}
	many := func(n int) (pods []*v1.Pod) {
		for i := range n {
			pods = append(pods, newPod(string(rune('a'+i))))
		}
		return pods
	}
	class := &RuntimeClass{Classes: classes(t, &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "wasm"}, Handler: "wasm"})}
	none := &RuntimeClass{Classes: classes(t)}

	const selectorReason = "node(s) didn't match Pod's node affinity/selector"
	const portReason = "node(s) didn't have free ports for the requested pod ports"
	for _, c := range []struct {
		name   string
		filter framework.Filter
		pod    *v1.Pod
		node   *v1.Node
		on     []*v1.Pod // the node already
		want   string
		code   framework.Code
	}{
		{"no name", NodeName{}, newPod("p"), newNode("n"), nil, "", 0},
		{"its name", NodeName{}, newPod("p", func(p *v1.Pod) { p.Spec.NodeName = "n" }), newNode("n"), nil, "", 0},
		{"other name", NodeName{}, newPod("p", func(p *v1.Pod) { p.Spec.NodeName = "m" }), newNode("n"), nil,
			"node(s) didn't match the requested node name", framework.Unresolvable},

		{"cordoned", Unschedulable{}, newPod("p"), newNode("n", func(n *v1.Node) { n.Spec.Unschedulable = true }), nil,
			"node(s) were unschedulable", framework.Unresolvable},
		{"cordon tolerated", Unschedulable{}, newPod("p", tolerates(v1.TaintNodeUnschedulable, "")), newNode("n", func(n *v1.Node) { n.Spec.Unschedulable = true }), nil, "", 0},

		{"no taint", Taints{}, newPod("p"), newNode("n"), nil, "", 0},
		{"taint", Taints{}, newPod("p"), newNode("n", taint("dedicated", "ci", v1.TaintEffectNoSchedule)), nil,
			"node(s) had untolerated taint {dedicated: ci}", framework.Unresolvable},
		{"tolerated", Taints{}, newPod("p", tolerates("dedicated", "")), newNode("n", taint("dedicated", "ci", v1.TaintEffectNoSchedule)), nil, "", 0},
		{"preferred only", Taints{}, newPod("p"), newNode("n", taint("slow", "", v1.TaintEffectPreferNoSchedule)), nil, "", 0},
		// What the admission plugin adds to every pod tolerates NoExecute, so that
		// pods stay on a node that is away; new ones must not go there.
		{"away", Taints{}, newPod("p", tolerates(v1.TaintNodeUnreachable, v1.TaintEffectNoExecute)),
			newNode("n", taint(v1.TaintNodeUnreachable, "", v1.TaintEffectNoSchedule), taint(v1.TaintNodeUnreachable, "", v1.TaintEffectNoExecute)), nil,
			"node(s) had untolerated taint {node.kubernetes.io/unreachable: }", framework.Unresolvable},

		{"selector", NodeAffinity{}, newPod("p", func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "nvme"} }), newNode("n", nodeLabels("disk", "nvme")), nil, "", 0},
		{"selector fails", NodeAffinity{}, newPod("p", func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "nvme"} }), newNode("n", nodeLabels("disk", "sd")), nil, selectorReason, framework.Unresolvable},
		{"affinity", NodeAffinity{}, newPod("p", required("disk", v1.NodeSelectorOpIn, "nvme", "ssd")), newNode("n", nodeLabels("disk", "ssd")), nil, "", 0},
		{"affinity fails", NodeAffinity{}, newPod("p", required("disk", v1.NodeSelectorOpNotIn, "ssd")), newNode("n", nodeLabels("disk", "ssd")), nil, selectorReason, framework.Unresolvable},
		{"affinity greater", NodeAffinity{}, newPod("p", required("gpu-mem", v1.NodeSelectorOpGt, "8")), newNode("n", nodeLabels("gpu-mem", "16")), nil, "", 0},

		{"no class", class, newPod("p"), newNode("n", handlers("", "runc")), nil, "", 0},
		{"handler there", class, newPod("p", wasm), newNode("n", handlers("", "wasm")), nil, "", 0},
		{"handler not reported", class, newPod("p", wasm), newNode("n"), nil, "", 0},
		{"handler missing", class, newPod("p", wasm), newNode("n", handlers("", "runc")), nil,
			`node(s) didn't have runtime handler "wasm"`, framework.Unresolvable},
		{"class missing", none, newPod("p", wasm), newNode("n", handlers("", "runc")), nil,
			`runtimeclass "wasm" not found`, framework.Unresolvable},

		{"feature declared", NewFeatures(), newPod("p", func(p *v1.Pod) { p.Annotations = map[string]string{features.Annotation: "GPIO"} }),
			newNode("n", func(n *v1.Node) { n.Status.DeclaredFeatures = []string{"Camera", "GPIO"} }), nil, "", 0},
		{"feature missing", NewFeatures(), newPod("p", func(p *v1.Pod) { p.Annotations = map[string]string{features.Annotation: "GPIO, Camera, I2C"} }),
			newNode("n", func(n *v1.Node) { n.Status.DeclaredFeatures = []string{"Camera"} }), nil,
			"node(s) didn't declare the required feature(s) GPIO, I2C", framework.Unresolvable},
		// As an edgelet declares them, see its features().
		{"feature in small letters", NewFeatures(), newPod("p", func(p *v1.Pod) { p.Annotations = map[string]string{features.Annotation: "wasm"} }),
			newNode("n", func(n *v1.Node) { n.Status.DeclaredFeatures = []string{"Sidecars", "Wasm"} }), nil, "", 0},
		{"node that declares nothing", NewFeatures(), newPod("p", func(p *v1.Pod) { p.Annotations = map[string]string{features.Annotation: "wasm"} }),
			newNode("n"), nil, "node(s) didn't declare the required feature(s) wasm", framework.Unresolvable},
		{"feature follows from the spec", NewFeatures(), newPod("p", func(p *v1.Pod) {
			no := false
			p.Spec.HostUsers, p.Spec.HostNetwork = &no, true
		}), newNode("n"), nil, "node(s) didn't declare the required feature(s) UserNamespacesHostNetworkSupport", framework.Unresolvable},

		{"port free", Ports{}, newPod("p", hostPort(80, "", "")), newNode("n"), []*v1.Pod{newPod("q", hostPort(81, "", ""))}, "", 0},
		{"port taken", Ports{}, newPod("p", hostPort(80, "", "")), newNode("n"), []*v1.Pod{newPod("q", hostPort(80, "", v1.ProtocolTCP))}, portReason, framework.Unschedulable},
		{"other protocol", Ports{}, newPod("p", hostPort(53, "", v1.ProtocolUDP)), newNode("n"), []*v1.Pod{newPod("q", hostPort(53, "", v1.ProtocolTCP))}, "", 0},
		{"other address", Ports{}, newPod("p", hostPort(80, "10.0.0.1", "")), newNode("n"), []*v1.Pod{newPod("q", hostPort(80, "10.0.0.2", ""))}, "", 0},
		{"any address", Ports{}, newPod("p", hostPort(80, "10.0.0.1", "")), newNode("n"), []*v1.Pod{newPod("q", hostPort(80, "0.0.0.0", ""))}, portReason, framework.Unschedulable},
		{"sidecar's port", Ports{}, newPod("p", hostPort(80, "", "")), newNode("n"), []*v1.Pod{newPod("q", sidecarPort(true))}, portReason, framework.Unschedulable},
		{"init container's port", Ports{}, newPod("p", hostPort(80, "", "")), newNode("n"), []*v1.Pod{newPod("q", sidecarPort(false))}, "", 0},

		{"fits", Fit{}, newPod("p", asks("cpu", "4", "memory", "4Gi")), newNode("n"), nil, "", 0},
		{"asks for nothing", Fit{}, newPod("p"), newNode("n"), []*v1.Pod{newPod("q", asks("cpu", "4", "memory", "4Gi"))}, "", 0},
		{"cpu used", Fit{}, newPod("p", asks("cpu", "1")), newNode("n"), []*v1.Pod{newPod("q", asks("cpu", "3500m"))}, "Insufficient cpu", framework.Unschedulable},
		{"never enough", Fit{}, newPod("p", asks("cpu", "5", "memory", "1Gi")), newNode("n"), []*v1.Pod{newPod("q", asks("memory", "3500Mi"))},
			"Insufficient cpu; Insufficient memory", framework.Unresolvable},
		{"ephemeral", Fit{}, newPod("p", asks("ephemeral-storage", "2Gi")), newNode("n", has("pods", "10", "ephemeral-storage", "1Gi")), nil, "Insufficient ephemeral-storage", framework.Unresolvable},
		{"too many", Fit{}, newPod("p"), newNode("n"), many(10), "Too many pods", framework.Unschedulable},
		{"extended", Fit{}, newPod("p", asks("example.com/coral", "1")), newNode("n", has("pods", "10", "example.com/coral", "1")), nil, "", 0},
		{"extended missing", Fit{}, newPod("p", asks("example.com/coral", "1")), newNode("n"), nil, "Insufficient example.com/coral", framework.Unresolvable},
		{"extended missing, of a device class", Fit{Backed: func(name v1.ResourceName) bool { return name == "example.com/coral" }},
			newPod("p", asks("example.com/coral", "1")), newNode("n"), nil, "", 0},
		{"extended missing, another is of a device class", Fit{Backed: func(name v1.ResourceName) bool { return name == "example.com/reef" }},
			newPod("p", asks("example.com/coral", "1")), newNode("n"), nil, "Insufficient example.com/coral", framework.Unresolvable},
		{"extended used, of a device class", Fit{Backed: func(v1.ResourceName) bool { return true }},
			newPod("p", asks("example.com/coral", "1")), newNode("n", has("pods", "10", "example.com/coral", "1")),
			[]*v1.Pod{newPod("q", asks("example.com/coral", "1"))}, "Insufficient example.com/coral", framework.Unschedulable},
		{"extended used", Fit{}, newPod("p", asks("example.com/coral", "1")), newNode("n", has("pods", "10", "example.com/coral", "1")),
			[]*v1.Pod{newPod("q", asks("example.com/coral", "1"))}, "Insufficient example.com/coral", framework.Unschedulable},
		{"init is the largest", Fit{}, newPod("p", asks("cpu", "1"), initAsks(false, "cpu", "5")), newNode("n"), nil, "Insufficient cpu", framework.Unresolvable},
		{"init runs alone", Fit{}, newPod("p", asks("cpu", "3"), initAsks(false, "cpu", "3")), newNode("n"), nil, "", 0},
		{"sidecar runs beside", Fit{}, newPod("p", asks("cpu", "3"), initAsks(true, "cpu", "3")), newNode("n"), nil, "Insufficient cpu", framework.Unresolvable},
		{"overhead", Fit{}, newPod("p", asks("cpu", "4"), overhead("cpu", "10m")), newNode("n"), nil, "Insufficient cpu", framework.Unresolvable},
	} {
		t.Run(c.filter.Name()+"/"+c.name, func(t *testing.T) {
			status := ask(c.filter, c.pod, clusterOf(nodeWith(c.node, c.on...)), c.node.Name)
			if reasons(status) != c.want {
				t.Fatalf("got %q, want %q", reasons(status), c.want)
			}
			if status != nil && status.Code != c.code {
				t.Errorf("code %d, want %d", status.Code, c.code)
			}
		})
	}
}

func TestMayHelp(t *testing.T) {
	tainted := newNode("n", taint("k", "v", v1.TaintEffectNoSchedule))
	small := newNode("n", has("cpu", "1", "memory", "4Gi", "pods", "10"))
	cpu2 := newPod("p", asks("cpu", "2"))
	running := newPod("q", asks("cpu", "1"))
	port := newPod("p", func(p *v1.Pod) { p.Spec.Containers[0].Ports = []v1.ContainerPort{{HostPort: 80}} })
	node := func(before, after *v1.Node) framework.Event {
		return framework.Event{Kind: framework.NodeChanged, OldNode: before, Node: after}
	}
	for _, c := range []struct {
		name   string
		filter framework.Requeuer
		pod    *v1.Pod
		ev     framework.Event
		want   bool
	}{
		{"taint goes", Taints{}, newPod("p"), node(tainted, newNode("n")), true},
		{"taint stays", Taints{}, newPod("p"), node(tainted, tainted), false},
		{"untainted node changes", Taints{}, newPod("p"), node(newNode("n"), newNode("n")), false},
		{"new node", Taints{}, newPod("p"), node(nil, newNode("n")), true},
		{"new node with the taint", Taints{}, newPod("p"), node(nil, tainted), false},
		{"pod leaves, taints don't care", Taints{}, newPod("p"), framework.Event{Kind: framework.PodLeft, Pod: running}, false},
		{"node grows", Fit{}, cpu2, node(small, newNode("n")), true},
		{"node shrinks", Fit{}, cpu2, node(newNode("n"), small), false},
		{"node grows in something else", Fit{}, cpu2, node(newNode("n"), newNode("n", has("cpu", "4", "memory", "8Gi", "pods", "10"))), false},
		{"too small a node is new", Fit{}, cpu2, node(nil, small), false},
		{"pod leaves", Fit{}, cpu2, framework.Event{Kind: framework.PodLeft, Pod: running}, true},
		{"pod shrinks", Fit{}, cpu2, framework.Event{Kind: framework.PodLeft, OldPod: running, Pod: newPod("q", asks("cpu", "500m"))}, true},
		{"pod grows", Fit{}, cpu2, framework.Event{Kind: framework.PodLeft, OldPod: running, Pod: newPod("q", asks("cpu", "2"))}, false},
		{"pod is placed", Fit{}, cpu2, framework.Event{Kind: framework.PodPlaced, Pod: running}, false},
		{"port is freed", Ports{}, port, framework.Event{Kind: framework.PodLeft, Pod: port}, true},
		{"other pod leaves", Ports{}, port, framework.Event{Kind: framework.PodLeft, Pod: running}, false},
	} {
		if got := c.filter.MayHelp(framework.NewPod(c.pod), c.ev); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
