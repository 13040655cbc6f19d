package pods

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

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

// A hook that hangs takes the pod's grace, and no more; while it hangs before a
// container is told to be ready, the pod can be deleted all the same.
func TestAHookThatHangs(t *testing.T) {
	for name, l := range map[string]*v1.Lifecycle{
		"preStop":   {PreStop: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"down"}}}},
		"postStart": {PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"up"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, func(b *board) {
				b.rt.Hang("ExecSync", true)
				pod := testPod("p", func(p *v1.Pod) { p.Spec.Containers[0].Lifecycle = l })
				b.store.put(pod)
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
