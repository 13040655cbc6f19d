package pods

import (
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/fakecri"
)

// A pod that wants no groups of its image doesn't run where it would have them.
func TestStrictSupplementalGroups(t *testing.T) {
	strict := func(p *v1.Pod) {
		p.Spec.SecurityContext = &v1.PodSecurityContext{SupplementalGroupsPolicy: new(v1.SupplementalGroupsPolicyStrict)}
		p.Spec.Containers[0].Image = "oci:1"
	}
	wasm := func(p *v1.Pod) { p.Spec.Containers[0].Image, p.Spec.RuntimeClassName = "wasm:1", new("wasm") }
	oci := func(ready bool) *runtimeapi.RuntimeCondition {
		return &runtimeapi.RuntimeCondition{Type: conditionOCI, Status: ready, Message: "containerd is down"}
	}
	able, unable := &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true}, &runtimeapi.RuntimeFeatures{}
	on(t, func(b *board) {
		b.rt.Plan("main", fakecri.Forever())
		phase := func(name string) *v1.PodStatus { b.settle(time.Minute); return b.store.status("uid-" + name) }

		b.rt.Say(able, oci(true))
		b.store.put(testPod("able", strict))
		if s := phase("able"); s.Phase != v1.PodRunning {
			t.Errorf("%+v", s)
		}
		b.rt.Say(unable, oci(true))
		b.store.put(testPod("unable", strict))
		b.store.put(testPod("merges"))
		b.store.put(testPod("wasm", strict, wasm))
		if s := phase("unable"); s.Phase != v1.PodFailed || s.Reason != "SupplementalGroupsPolicyNotSupported" ||
			s.Message != "Pod was rejected: SupplementalGroupsPolicy=Strict is not supported in this node" {
			t.Errorf("%+v", s)
		}
		for _, name := range []string{"merges", "wasm"} {
			if s := phase(name); s.Phase != v1.PodRunning {
				t.Errorf("%s: %+v", name, s)
			}
		}
		// While nobody can say, it neither fails nor runs.
		b.rt.Say(unable, oci(false))
		b.store.put(testPod("waits", strict))
		if s := phase("waits"); s.Phase != v1.PodPending || !strings.Contains(s.ContainerStatuses[0].State.Waiting.Message, "containerd is down") {
			t.Errorf("%+v", s)
		}
		b.rt.Say(able, oci(true))
		if s := phase("waits"); s.Phase != v1.PodRunning {
			t.Errorf("%+v", s)
		}
	})
}
