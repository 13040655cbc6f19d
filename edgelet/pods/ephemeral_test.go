package pods

import (
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/fakecri"
)

func withDebugger(pod *v1.Pod, name, image, target string) *v1.Pod {
	p := pod.DeepCopy()
	p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, v1.EphemeralContainer{TargetContainerName: target,
		EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: name, Image: image, ImagePullPolicy: v1.PullIfNotPresent,
			TerminationMessagePolicy: v1.TerminationMessageReadFile}})
	p.Generation++
	return p
}

func TestEphemeralContainer(t *testing.T) {
	on(t, func(b *board) {
		pod := testPod("a", restart(v1.RestartPolicyAlways))
		pod.Spec.Containers[0].Image = "oci:1"
		b.store.put(pod)
		b.settle(time.Second)
		b.rt.Plan("debug", fakecri.Exit(3))
		pod = withDebugger(pod, "debug", "oci:1", "main")
		b.store.put(pod)
		b.settle(10 * time.Minute)
		if got := strings.Count(strings.Join(b.rt.Calls(), "\n"), "StartContainer debug"); got != 1 {
			t.Errorf("started %d times", got)
		}
		s := b.store.status("uid-a")
		if len(s.EphemeralContainerStatuses) != 1 {
			t.Fatalf("%+v", s.EphemeralContainerStatuses)
		}
		e := s.EphemeralContainerStatuses[0]
		if e.State.Terminated == nil || e.State.Terminated.ExitCode != 3 || e.Ready || e.Started != nil {
			t.Errorf("%+v", e)
		}
		if s.Phase != v1.PodRunning || !s.ContainerStatuses[0].Ready || s.ContainerStatuses[0].RestartCount != 0 || s.ObservedGeneration != 2 {
			t.Errorf("the pod: %+v", s)
		}
		o := b.rt.Config("debug").Linux.SecurityContext.NamespaceOptions
		if o.Pid != runtimeapi.NamespaceMode_TARGET || o.TargetId != b.rt.Running("uid-a")["main"] {
			t.Errorf("its processes: %v", o)
		}
		// Nor is it started again after a reboot.
		b.stop()
		b.rt.Reboot(false)
		b.boot()
		b.settle(time.Minute)
		if got := strings.Join(b.rt.Calls(), "\n"); strings.Contains(got, "StartContainer debug") || !strings.Contains(got, "StartContainer main") {
			t.Errorf("after a reboot:\n%s", got)
		}
		if e := b.store.status("uid-a").EphemeralContainerStatuses[0]; e.State.Terminated == nil || e.State.Terminated.ExitCode != 3 {
			t.Errorf("after a reboot: %+v", e)
		}
	})
}

func TestEphemeralContainerThatCannotBe(t *testing.T) {
	for name, c := range map[string]struct{ image, target, reason, message string }{
		"OCI in a sandbox of Wasm": {"oci:1", "", reasonConfig, "this pod has Wasm containers only"},
		"unknown image":            {"none:1", "", "ImagePullBackOff", "not found"},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, func(b *board) {
				pod := testPod("a")
				b.store.put(pod)
				b.settle(time.Second)
				b.store.put(withDebugger(pod, "debug", c.image, c.target))
				b.settle(time.Minute)
				s := b.store.status("uid-a")
				w := s.EphemeralContainerStatuses[0].State.Waiting
				if w == nil || w.Reason != c.reason || !strings.Contains(w.Message, c.message) {
					t.Errorf("%+v", w)
				}
				if !s.ContainerStatuses[0].Ready || s.ContainerStatuses[0].RestartCount != 0 {
					t.Errorf("the pod: %+v", s.ContainerStatuses)
				}
			})
		})
	}
}
