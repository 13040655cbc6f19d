package kubelet

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	v1qos "k8s.io/kubernetes/pkg/apis/core/v1/helper/qos"
	"k8s.io/kubernetes/pkg/kubelet/status"
	"k8s.io/kubernetes/pkg/probe"
	httpprobe "k8s.io/kubernetes/pkg/probe/http"

	"github.com/coracle-edge/coracle/edgelet/pods"
	"github.com/coracle-edge/coracle/edgelet/probes"
)

// rounds of generated inputs, from a fixed seed: a failure can be seen again.
const rounds = 20000

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// anyContainer has what decisions depend on.
func anyContainer(r *rand.Rand, name string, init bool) v1.Container {
	c := v1.Container{Name: name}
	always, never, onFailure := v1.ContainerRestartPolicyAlways, v1.ContainerRestartPolicyNever, v1.ContainerRestartPolicyOnFailure
	c.RestartPolicy = pick(r, nil, nil, &always, &never, &onFailure)
	if init && c.RestartPolicy != nil && *c.RestartPolicy != always && r.IntN(2) == 0 {
		c.RestartPolicy = nil
	}
	if c.RestartPolicy != nil && *c.RestartPolicy != always && r.IntN(2) == 0 {
		for range 1 + r.IntN(2) {
			c.RestartPolicyRules = append(c.RestartPolicyRules, v1.ContainerRestartRule{Action: v1.ContainerRestartRuleActionRestart,
				ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: pick(r, v1.ContainerRestartRuleOnExitCodesOpIn, v1.ContainerRestartRuleOnExitCodesOpNotIn),
					Values: []int32{pick[int32](r, 0, 1, 42), pick[int32](r, 1, 2)}}})
		}
	}
	for _, n := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage} {
		set := func(list *v1.ResourceList) {
			if q := pick(r, "", "", "0", "1", "1", "1000m", "2"); q != "" {
				if *list == nil {
					*list = v1.ResourceList{}
				}
				(*list)[n] = resource.MustParse(q)
			}
		}
		set(&c.Resources.Requests)
		set(&c.Resources.Limits)
		if limit, ok := c.Resources.Limits[n]; ok {
			if request, ok := c.Resources.Requests[n]; ok && request.Cmp(limit) > 0 {
				c.Resources.Requests[n] = limit // the API takes no other
			}
		}
	}
	return c
}

func anyPod(r *rand.Rand) *v1.Pod {
	p := &v1.Pod{}
	p.Generation = r.Int64N(3)
	p.Spec.RestartPolicy = pick(r, v1.RestartPolicyAlways, v1.RestartPolicyNever, v1.RestartPolicyOnFailure)
	for i := range r.IntN(3) {
		p.Spec.InitContainers = append(p.Spec.InitContainers, anyContainer(r, fmt.Sprint("i", i), true))
	}
	for i := range 1 + r.IntN(3) {
		p.Spec.Containers = append(p.Spec.Containers, anyContainer(r, fmt.Sprint("c", i), false))
	}
	for i := range r.IntN(3) {
		t := v1.PodConditionType(fmt.Sprint("example.org/gate", i))
		p.Spec.ReadinessGates = append(p.Spec.ReadinessGates, v1.PodReadinessGate{ConditionType: t})
		if s := pick(r, v1.ConditionTrue, v1.ConditionTrue, v1.ConditionFalse, ""); s != "" {
			p.Status.Conditions = append(p.Status.Conditions, v1.PodCondition{Type: t, Status: s})
		}
	}
	return p
}

func anyStatus(r *rand.Rand, name string) v1.ContainerStatus {
	s := v1.ContainerStatus{Name: name, Ready: r.IntN(3) > 0}
	yes := r.IntN(3) > 0
	s.Started = pick(r, nil, &yes)
	switch r.IntN(3) {
	case 0:
		s.State.Running = &v1.ContainerStateRunning{}
	case 1:
		s.State.Terminated = &v1.ContainerStateTerminated{ExitCode: pick[int32](r, 0, 1)}
	default:
		s.State.Waiting = &v1.ContainerStateWaiting{Reason: "ContainerCreating"}
	}
	return s
}

// Restarts after an exit, as the container's rules, its policy and the pod's say.
func TestRestarts(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range rounds {
		p := anyPod(r)
		code := pick[int32](r, 0, 1, 2, 42, 137)
		for i := range p.Spec.Containers {
			c := &p.Spec.Containers[i]
			if ours, theirs := pods.RestartsAfter(p, c, code), podutil.ContainerShouldRestart(*c, p.Spec, code); ours != theirs {
				t.Fatalf("exit %d of %+v in a pod of %s: ours %t, theirs %t", code, c, p.Spec.RestartPolicy, ours, theirs)
			}
		}
	}
}

// Conditions with their reasons and messages.
func TestReadyConditions(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range rounds {
		p := anyPod(r)
		s := &v1.PodStatus{Phase: pick(r, v1.PodRunning, v1.PodRunning, v1.PodPending, v1.PodSucceeded, v1.PodFailed)}
		for _, c := range p.Spec.InitContainers {
			s.InitContainerStatuses = append(s.InitContainerStatuses, anyStatus(r, c.Name))
		}
		for _, c := range p.Spec.Containers {
			s.ContainerStatuses = append(s.ContainerStatuses, anyStatus(r, c.Name))
		}
		all := append(append([]v1.ContainerStatus{}, s.InitContainerStatuses...), s.ContainerStatuses...)
		theirs := []v1.PodCondition{
			status.GeneratePodInitializedCondition(p, &v1.PodStatus{}, all, s.Phase),
			status.GenerateContainersReadyCondition(p, &v1.PodStatus{}, all, s.Phase),
			status.GeneratePodReadyCondition(p, &v1.PodStatus{}, p.Status.Conditions, all, s.Phase),
		}
		if ours := pods.ReadyConditions(p, s); !reflect.DeepEqual(ours, theirs) {
			t.Fatalf("pod %+v\nstatus %+v\nours   %+v\ntheirs %+v", p.Spec, s, ours, theirs)
		}
	}
}

func TestQOSClass(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	seen := map[v1.PodQOSClass]int{}
	for range rounds {
		p := anyPod(r)
		if r.IntN(3) == 0 { // else hardly any is guaranteed
			for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
				for i := range list {
					l := v1.ResourceList{v1.ResourceCPU: resource.MustParse("1"), v1.ResourceMemory: resource.MustParse(pick(r, "1", "1", "1", "2"))}
					list[i].Resources = v1.ResourceRequirements{Limits: l, Requests: pick(r, nil, l, l)}
				}
			}
		}
		if r.IntN(4) == 0 {
			c := anyContainer(r, "", false)
			p.Spec.Resources = &c.Resources
		}
		ours, theirs := pods.QOSClass(p), v1qos.ComputePodQOS(p)
		if ours != theirs {
			t.Fatalf("ours %s, theirs %s: pod %+v\n%+v", ours, theirs, p.Spec.Resources, p.Spec)
		}
		seen[ours]++
	}
	if len(seen) != 3 {
		t.Errorf("not every class was met: %v", seen)
	}
}

// Requests of HTTP probes and hooks, and the ports that they and others name.
func TestProbeRequests(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	c := &v1.Container{Ports: []v1.ContainerPort{{Name: "web", ContainerPort: 8080}, {Name: "zero"}, {Name: "9", ContainerPort: 99}}}
	for range rounds {
		a := &v1.HTTPGetAction{
			Path:   pick(r, "", "/", "/healthz?a=b&c=%20", "healthz", "/a b", "/%zz", "//x/y", "?q", "#f", "http://other/x"),
			Host:   pick(r, "", "", "example.org", "10.1.2.3", "fe80::1"),
			Scheme: pick(r, "", v1.URISchemeHTTP, v1.URISchemeHTTPS),
			Port:   pick(r, intstr.FromInt32(80), intstr.FromInt32(0), intstr.FromInt32(70000), intstr.FromString("web"), intstr.FromString("zero"), intstr.FromString("9"), intstr.FromString("443"), intstr.FromString("none")),
		}
		for range r.IntN(4) {
			a.HTTPHeaders = append(a.HTTPHeaders, v1.HTTPHeader{Name: pick(r, "Host", "host", "Accept", "accept", "User-Agent", "user-agent", "X-A"), Value: pick(r, "", "one", "two")})
		}
		ip, purpose := pick(r, "10.0.0.1", "fd00::1"), pick(r, "probe", "lifecycle")
		ours, err := probes.NewRequest(a, c, ip, purpose)
		theirs, theirErr := httpprobe.NewRequestForHTTPGetAction(a, c, ip, purpose)
		if (err == nil) != (theirErr == nil) {
			t.Fatalf("%+v: ours %v, theirs %v", a, err, theirErr)
		}
		if err == nil {
			// Their build was given no version; ours is that of what we implement.
			for _, h := range []string{"kube-probe/1.36", "kube-lifecycle/1.36"} {
				if ours.Header.Get("User-Agent") == h {
					ours.Header.Del("User-Agent")
					theirs.Header.Del("User-Agent")
				}
			}
			if ours.URL.String() != theirs.URL.String() || ours.Host != theirs.Host || !reflect.DeepEqual(ours.Header, theirs.Header) {
				t.Fatalf("%+v:\nours   %s %s %v\ntheirs %s %s %v", a, ours.URL, ours.Host, ours.Header, theirs.URL, theirs.Host, theirs.Header)
			}
		}
		port, err := probes.ResolvePort(a.Port, c)
		theirPort, theirErr := probe.ResolveContainerPort(a.Port, c)
		if (err == nil) != (theirErr == nil) || err == nil && port != theirPort {
			t.Fatalf("port %v: ours %d %v, theirs %d %v", a.Port, port, err, theirPort, theirErr)
		}
	}
}
