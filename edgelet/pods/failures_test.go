package pods

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
)

func TestMemoryLimitsThatTheKernelCannotKeepAreSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		b.more = func(c *Config) {
			c.NoMemoryLimits = "the memory controller is off: add cgroup_enable=memory in /boot/firmware/cmdline.txt"
		}
		b.boot()
		b.store.put(testPod("free"))
		limited := testPod("limited")
		limited.Spec.Containers[0].Resources.Limits = v1.ResourceList{"memory": resource.MustParse("64Mi")}
		b.store.put(limited)
		b.settle(time.Minute)
		if got := b.store.reasons("uid-limited"); !strings.Contains(got, "MemoryLimitNotEnforced") ||
			!b.store.said("Container main is limited to 64Mi of memory, but the memory controller is off: add cgroup_enable=memory in /boot/firmware/cmdline.txt") {
			t.Errorf("events %s", got)
		}
		// It is said once in ten minutes, however often the container starts.
		for range 3 {
			if !b.rt.Kill("uid-limited", "main", 1) {
				t.Fatal("it doesn't run")
			}
			b.settle(2 * time.Minute)
		}
		if n := b.store.status("uid-limited").ContainerStatuses[0].RestartCount; n != 3 {
			t.Errorf("%d restarts", n)
		}
		if got := b.store.reasons("uid-limited"); strings.Count(got, "MemoryLimitNotEnforced") != 1 {
			t.Errorf("after three restarts: events %s", got)
		}
		if got := b.store.reasons("uid-free"); strings.Contains(got, "Memory") {
			t.Errorf("it asked for no limit: %s", got)
		}
		b.stop()
	})
}

// A pod whose Secret isn't here waits for it, by name, and starts when it comes.
func TestMissingSecretIsNamedAndItsArrivalStartsThePod(t *testing.T) {
	for name, change := range map[string]func(*v1.Pod){
		"a variable": func(p *v1.Pod) {
			p.Spec.Containers[0].Env = []v1.EnvVar{{Name: "X", ValueFrom: &v1.EnvVarSource{SecretKeyRef: &v1.SecretKeySelector{
				LocalObjectReference: v1.LocalObjectReference{Name: "tls"}, Key: "k"}}}}
		},
		"a volume": func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "tls"}}}}
			p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "v", MountPath: "/v"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, func(b *board) {
				b.store.put(testPod("p", change))
				b.settle(time.Minute)
				s := b.store.status("uid-p")
				if w := s.ContainerStatuses[0].State.Waiting; s.Phase != v1.PodPending || w == nil || !strings.Contains(w.Message, `"tls" not found`) {
					t.Fatalf("%+v", s)
				}
				if !b.store.said(`"tls" not found`) {
					t.Error("no event names it")
				}
				raw, err := kubeobj.EncodeSecret(&v1.Secret{Data: map[string][]byte{"k": []byte("v")}})
				if err != nil {
					t.Fatal(err)
				}
				b.store.mu.Lock()
				b.store.objects["Secret/default/tls"] = raw
				b.store.mu.Unlock()
				b.store.kick()
				b.settle(time.Second)
				if s := b.store.status("uid-p"); s.Phase != v1.PodRunning {
					t.Errorf("its Secret is here: %+v", s)
				}
			})
		})
	}
}

// A postStart hook that fails ends its container, with a kubelet's event, and the
// container is restarted.
func TestAPostStartHookThatFails(t *testing.T) {
	on(t, func(b *board) {
		b.rt.Answer("up", func(string) (*runtimeapi.ExecSyncResponse, error) {
			return &runtimeapi.ExecSyncResponse{ExitCode: 9}, nil
		})
		b.store.put(testPod("p", func(p *v1.Pod) {
			p.Spec.Containers[0].Lifecycle = &v1.Lifecycle{PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"up"}}}}
		}))
		b.settle(time.Second)
		if got := b.store.reasons("uid-p"); !strings.Contains(got, "Started FailedPostStartHook Killing") || !b.store.said("PostStartHook failed") || len(b.rt.Running("uid-p")) > 0 {
			t.Errorf("events %s, running %v", got, b.rt.Running("uid-p"))
		}
		b.settle(time.Minute)
		if s := b.store.status("uid-p").ContainerStatuses[0]; s.RestartCount == 0 || s.State.Waiting == nil || s.State.Waiting.Reason != "CrashLoopBackOff" {
			t.Errorf("%+v", s)
		}
	})
}

// A hook that hangs takes the pod's grace, and no more; while it hangs before a
// container is told to be ready, the pod can be deleted all the same.
func TestAHookThatHangs(t *testing.T) {
	for name, l := range map[string]*v1.Lifecycle{
		"preStop":   {PreStop: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"down"}}}},
		"postStart": {PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"up"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBoard(t)
				b.node = bigNode{}
				b.boot()
				defer b.stop()
				b.rt.Hang("ExecSync", true)
				pod := testPod("p", func(p *v1.Pod) { p.Spec.Containers[0].Lifecycle = l })
				b.store.put(pod)
				b.settle(time.Second)
				for i := range cap(b.m.slots[1]) { // with the first, more than may be started at a time
					b.store.put(testPod(fmt.Sprint("as", i), func(p *v1.Pod) { p.Spec.Containers[0].Lifecycle = l }))
				}
				b.settle(time.Second)
				b.store.put(testPod("other"))
				b.settle(time.Minute)
				if b.store.status("uid-other").Phase != v1.PodRunning {
					t.Error("another pod waits for the hook")
				}
				b.store.put(deleted(pod, 20))
				b.settle(15 * time.Second)
				if name == "preStop" && len(b.rt.Running("uid-p")) == 0 {
					t.Error("the grace was cut")
				}
				b.settle(10 * time.Second)
				if !b.store.gone("uid-p") {
					t.Errorf("it is still here after its grace: %+v", b.store.status("uid-p"))
				}
				if name == "preStop" && !strings.Contains(b.store.reasons("uid-p"), "FailedPreStopHook") {
					t.Errorf("events %s", b.store.reasons("uid-p"))
				}
			})
		})
	}
}
