package pods

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/coracle-edge/coracle/controlplane/api/features"
	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/edgelet/pods/fakecri"
	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
)

func TestPodRunsAndIsReportedOnce(t *testing.T) {
	on(t, func(b *board) {
		pod := testPod("p")
		b.store.put(pod)
		synctest.Wait()
		s := b.store.status("uid-p")
		if s.Phase != v1.PodRunning || s.HostIP != "192.0.2.7" || s.PodIP == "" || s.QOSClass != v1.PodQOSBestEffort || s.StartTime == nil {
			t.Fatalf("status %+v", s)
		}
		for _, c := range []v1.PodConditionType{v1.PodScheduled, v1.PodInitialized, v1.ContainersReady, v1.PodReady, v1.PodReadyToStartContainers} {
			if condition(s, c).Status != v1.ConditionTrue {
				t.Errorf("%s = %+v", c, condition(s, c))
			}
		}
		cs := s.ContainerStatuses[0]
		if !cs.Ready || cs.Started == nil || !*cs.Started || cs.State.Running == nil || !strings.HasPrefix(cs.ContainerID, "fake://c") ||
			cs.ImageID != "sha256:wasm:1" || cs.Image != "wasm:1" {
			t.Errorf("container status %+v", cs)
		}
		// One message for the whole start: no Pending before it, nothing after.
		b.settle(time.Hour)
		if n := len(b.store.told()); n != 1 {
			t.Errorf("%d reports for one start", n)
		}
		if b.store.writes != 1 {
			t.Errorf("%d durable writes for one start", b.store.writes)
		}
		if got := b.store.reasons("uid-p"); got != "Pulled Created Started" {
			t.Errorf("events: %s", got)
		}
		var steps []trace.Step
		for _, o := range b.store.reports["uid-p"].Trace.Offsets() {
			steps = append(steps, o.Step)
		}
		for _, want := range []trace.Step{trace.ImageReady, trace.SandboxCreated, trace.ContainerCreated, trace.ContainerStarted, trace.StatusQueued} {
			if !slices.Contains(steps, want) {
				t.Errorf("trace lacks %s: %v", want, steps)
			}
		}
		cfg, _ := b.rt.Sandbox("uid-p")
		if cfg.Annotations[AnnotationSandbox] != "wasm" || cfg.Labels[labelPodUID] != "uid-p" || cfg.Hostname != "p" {
			t.Errorf("sandbox config %+v", cfg)
		}
	})
}

func TestKindOfSandboxFollowsTheImages(t *testing.T) {
	mixed := ctr("native")
	mixed.Image = "oci:1"
	wasm := "wasm"
	other := "kata"
	for name, c := range map[string]struct {
		pod           *v1.Pod
		kind, handler string
	}{
		"all wasm":  {testPod("p"), "wasm", ""},
		"one OCI":   {testPod("p", withContainers(ctr("main"), mixed)), "oci", ""},
		"init OCI":  {testPod("p", withInit(mixed)), "oci", ""},
		"by class":  {testPod("p", func(p *v1.Pod) { p.Spec.RuntimeClassName = &wasm }), "wasm", "wasm"},
		"any class": {testPod("p", func(p *v1.Pod) { p.Spec.RuntimeClassName = &other }), "oci", "kata"},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, func(b *board) {
				b.store.put(c.pod)
				synctest.Wait()
				cfg, handler := b.rt.Sandbox("uid-p")
				if cfg == nil || cfg.Annotations[AnnotationSandbox] != c.kind || handler != c.handler {
					t.Errorf("sandbox %v, handler %q", cfg, handler)
				}
			})
		})
	}
}

func TestInitContainersThenSidecarsThenApps(t *testing.T) {
	on(t, func(b *board) {
		b.rt.Plan("one", fakecri.Plan{RunFor: 5 * time.Second})
		b.rt.Plan("two", fakecri.Plan{RunFor: 5 * time.Second})
		pod := testPod("p", withInit(ctr("one"), sidecar("mesh"), ctr("two")))
		b.store.put(pod)
		synctest.Wait()
		s := b.store.status("uid-p")
		if s.Phase != v1.PodPending || condition(s, v1.PodInitialized).Message != "containers with incomplete status: [one mesh two]" {
			t.Errorf("phase %s, %+v", s.Phase, condition(s, v1.PodInitialized))
		}
		if w := s.ContainerStatuses[0].State.Waiting; w == nil || w.Reason != "PodInitializing" {
			t.Errorf("main: %+v", s.ContainerStatuses[0].State)
		}
		b.settle(11 * time.Second)
		s = b.store.status("uid-p")
		if s.Phase != v1.PodRunning || condition(s, v1.PodReady).Status != v1.ConditionTrue {
			t.Fatalf("%+v", s)
		}
		if r := s.InitContainerStatuses; r[0].State.Terminated == nil || !r[0].Ready || r[1].State.Running == nil || !r[1].Ready || r[2].State.Terminated == nil {
			t.Errorf("init statuses %+v", r)
		}
		want := "StartContainer one, StartContainer mesh, StartContainer two, StartContainer main"
		var got []string
		for _, c := range b.rt.Calls() {
			if strings.HasPrefix(c, "Start") {
				got = append(got, c)
			}
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("order %v", got)
		}
		// The end: apps first, sidecars after them.
		b.store.put(deleted(pod, 30))
		b.settle(time.Second)
		calls := strings.Join(b.rt.Calls(), ", ")
		if strings.Index(calls, "StopContainer main") > strings.Index(calls, "StopContainer mesh") {
			t.Errorf("order of the end: %s", calls)
		}
		if !b.store.gone("uid-p") {
			t.Error("not gone")
		}
	})
}

func TestFailedInitContainer(t *testing.T) {
	for policy, want := range map[v1.RestartPolicy]v1.PodPhase{v1.RestartPolicyNever: v1.PodFailed, v1.RestartPolicyAlways: v1.PodPending} {
		on(t, func(b *board) {
			b.rt.Plan("one", fakecri.Exit(3))
			b.store.put(testPod("p", restart(policy), withInit(ctr("one"))))
			b.settle(time.Second)
			s := b.store.status("uid-p")
			if s.Phase != want {
				t.Errorf("%s: %s, want %s", policy, s.Phase, want)
			}
			if policy == v1.RestartPolicyAlways {
				if w := s.InitContainerStatuses[0].State.Waiting; w == nil || w.Reason != "CrashLoopBackOff" {
					t.Errorf("%+v", s.InitContainerStatuses[0].State)
				}
			}
		})
	}
}

// Upstream: at once, then 10 s doubling to 300 s after each end.
func TestCrashLoopBackOff(t *testing.T) {
	on(t, func(b *board) {
		b.rt.Plan("main", fakecri.Plan{ExitCode: 3, Message: "out of luck"})
		start := time.Now()
		b.store.put(testPod("p"))
		var at []time.Duration
		for range 1400 {
			for _, c := range b.rt.Calls() {
				if c == "StartContainer main" {
					at = append(at, time.Since(start))
				}
			}
			b.settle(time.Second)
		}
		want := []time.Duration{0, 0, 10, 30, 70, 150, 310, 610, 910, 1210}
		if len(at) < len(want) {
			t.Fatalf("starts at %v", at)
		}
		for i, w := range want {
			if d := at[i] - w*time.Second; d < -time.Second || d > 2*time.Second {
				t.Errorf("start %d at %v, want %v", i, at[i], w*time.Second)
			}
		}
		s := b.store.status("uid-p")
		cs := s.ContainerStatuses[0]
		if s.Phase != v1.PodRunning || cs.State.Waiting == nil || cs.State.Waiting.Reason != "CrashLoopBackOff" ||
			cs.State.Waiting.Message != "back-off 5m0s restarting failed container=main pod=p_default(uid-p)" {
			t.Errorf("phase %s, %+v", s.Phase, cs.State)
		}
		last := cs.LastTerminationState.Terminated
		if last == nil || last.ExitCode != 3 || last.Reason != "Error" || last.Message != "out of luck" || cs.RestartCount < 9 {
			t.Errorf("last %+v, %d restarts", last, cs.RestartCount)
		}
		if condition(s, v1.PodReady).Message != "containers with unready status: [main]" {
			t.Errorf("%+v", condition(s, v1.PodReady))
		}
		if !b.store.said("Back-off restarting failed container main in pod p_default(uid-p)") {
			t.Error("no BackOff event")
		}
		if _, n := b.rt.Count(); n > 2 {
			t.Errorf("%d containers kept", n)
		}
		// A container that ran for ten minutes starts anew.
		b.rt.Plan("main", fakecri.Forever())
		b.settle(310 * time.Second)
		b.settle(15 * time.Minute)
		b.rt.Calls()
		b.rt.Kill("uid-p", "main", 1)
		b.settle(time.Second)
		if !slices.Contains(b.rt.Calls(), "StartContainer main") {
			t.Error("the back-off was not reset")
		}
	})
}

func TestRestartPolicies(t *testing.T) {
	for _, c := range []struct {
		policy  v1.RestartPolicy
		code    int32
		phase   v1.PodPhase
		restart bool
	}{
		{v1.RestartPolicyAlways, 0, v1.PodRunning, true},
		{v1.RestartPolicyOnFailure, 0, v1.PodSucceeded, false},
		{v1.RestartPolicyOnFailure, 1, v1.PodRunning, true},
		{v1.RestartPolicyNever, 0, v1.PodSucceeded, false},
		{v1.RestartPolicyNever, 7, v1.PodFailed, false},
	} {
		on(t, func(b *board) {
			b.rt.Plan("main", fakecri.Exit(c.code))
			b.store.put(testPod("p", restart(c.policy)))
			b.settle(5 * time.Second)
			s := b.store.status("uid-p")
			if s.Phase != c.phase || (s.ContainerStatuses[0].RestartCount > 0) != c.restart {
				t.Errorf("%s, exit %d: %s, %d restarts", c.policy, c.code, s.Phase, s.ContainerStatuses[0].RestartCount)
			}
			if c.phase == v1.PodSucceeded || c.phase == v1.PodFailed {
				if cfg, _ := b.rt.Sandbox("uid-p"); cfg != nil {
					t.Error("the sandbox of a pod that is over is still ready")
				}
				if term := s.ContainerStatuses[0].State.Terminated; term == nil || term.ExitCode != c.code {
					t.Errorf("state %+v", s.ContainerStatuses[0].State)
				}
			}
			if c.phase == v1.PodSucceeded && condition(s, v1.PodReady).Reason != "PodCompleted" {
				t.Errorf("%+v", condition(s, v1.PodReady))
			}
		})
	}
}

func TestSidecarDoesNotKeepAFinishedPodAlive(t *testing.T) {
	on(t, func(b *board) {
		b.rt.Plan("main", fakecri.Plan{RunFor: time.Minute})
		b.store.put(testPod("p", restart(v1.RestartPolicyNever), withInit(sidecar("mesh"))))
		b.settle(2 * time.Minute)
		if s := b.store.status("uid-p"); s.Phase != v1.PodSucceeded || len(b.rt.Running("uid-p")) != 0 {
			t.Errorf("%s, running %v", s.Phase, b.rt.Running("uid-p"))
		}
	})
}

func TestDeletionTakesItsGraceAndLeavesNothing(t *testing.T) {
	on(t, func(b *board) {
		b.rt.Plan("main", fakecri.Plan{RunFor: -1, IgnoreTerm: true, Log: "hello\n"})
		pod := testPod("p", func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}
		})
		b.store.put(pod)
		b.settle(time.Second)
		start := time.Now()
		b.store.put(deleted(pod, 20))
		b.settle(10 * time.Second)
		if b.store.gone("uid-p") {
			t.Fatal("gone before its grace was over")
		}
		b.settle(11 * time.Second)
		if !b.store.gone("uid-p") {
			t.Fatalf("not gone after %v", time.Since(start))
		}
		if timeout, _ := b.rt.StopTimeout("main"); timeout != 20 {
			t.Errorf("StopContainer with %d s", timeout)
		}
		s := b.store.status("uid-p")
		if s.Phase != v1.PodFailed || s.ContainerStatuses[0].State.Terminated.ExitCode != 137 {
			t.Errorf("final status %+v", s)
		}
		if sandboxes, containers := b.rt.Count(); sandboxes+containers != 0 {
			t.Errorf("%d sandboxes and %d containers stay", sandboxes, containers)
		}
		for _, dir := range []string{"pods", "logs"} {
			if left, _ := os.ReadDir(filepath.Join(b.dir, dir)); len(left) != 0 {
				t.Errorf("%s: %v stay", dir, left)
			}
		}
		if len(b.store.records) != 0 {
			t.Error("the record stays")
		}
		b.store.drop("uid-p")
		b.settle(time.Minute)
		if got := b.store.reasons("uid-p"); strings.Count(got, "Killing") != 1 {
			t.Errorf("events %s", got)
		}
	})
}

func TestGraceCanBeShortened(t *testing.T) {
	on(t, func(b *board) {
		b.rt.Plan("main", fakecri.Plan{RunFor: -1, IgnoreTerm: true})
		pod := testPod("p")
		b.store.put(pod)
		b.settle(time.Second)
		b.store.put(deleted(pod, 600))
		b.settle(5 * time.Second)
		b.store.put(deleted(pod, 0))
		b.settle(5 * time.Second)
		if !b.store.gone("uid-p") {
			t.Error("still here")
		}
	})
}

// The API writes that a pod is to end at once and removes it in the same moment: a
// node may see only that it is gone.
func TestForceDeletedPodEndsAtOnce(t *testing.T) {
	for name, seen := range map[string][]int64{"unseen": nil, "while it ends": {600}, "seen": {0}, "twice": {600, 0}} {
		t.Run(name, func(t *testing.T) {
			on(t, func(b *board) {
				b.rt.Plan("main", fakecri.Plan{RunFor: -1, IgnoreTerm: true})
				pod := testPod("p", func(p *v1.Pod) { p.Spec.TerminationGracePeriodSeconds = new(int64(600)) })
				b.store.put(pod)
				b.settle(time.Second)
				for _, secs := range seen {
					b.store.put(deleted(pod, secs))
					b.settle(time.Second)
				}
				b.store.drop("uid-p")
				b.settle(5 * time.Second)
				if !b.store.gone("uid-p") {
					t.Error("still here")
				}
			})
		})
	}
}

func TestANewPodOfTheSameNameWaits(t *testing.T) {
	on(t, func(b *board) {
		b.rt.Plan("main", fakecri.Plan{RunFor: -1, TermAfter: 10 * time.Second})
		old := testPod("p")
		b.store.put(old)
		b.settle(time.Second)
		b.store.put(deleted(old, 30))
		young := testPod("p", func(p *v1.Pod) { p.UID = "uid-young" })
		b.store.put(young)
		b.settle(5 * time.Second)
		if cfg, _ := b.rt.Sandbox("uid-young"); cfg != nil {
			t.Error("the new pod didn't wait")
		}
		b.settle(10 * time.Second)
		if b.store.status("uid-young").Phase != v1.PodRunning || !b.store.gone("uid-p") {
			t.Error("the new pod doesn't run")
		}
	})
}

func TestDeletionInterruptsAPull(t *testing.T) {
	on(t, func(b *board) {
		b.rt.Hang("PullImage", true)
		pod := testPod("p", func(p *v1.Pod) { p.Spec.Containers[0].Image = "far:1" })
		b.store.put(pod)
		b.settle(time.Minute)
		if s := b.store.status("uid-p"); s.Phase != v1.PodPending || s.ContainerStatuses[0].State.Waiting.Reason != "ContainerCreating" {
			t.Errorf("while pulling: %+v", s)
		}
		b.store.put(deleted(pod, 30))
		b.settle(time.Second)
		if !b.store.gone("uid-p") {
			t.Error("the pull keeps the pod")
		}
	})
}

func TestImageThatIsNowhere(t *testing.T) {
	on(t, func(b *board) {
		b.store.put(testPod("p", func(p *v1.Pod) { p.Spec.Containers[0].Image = "nowhere:1" }))
		synctest.Wait()
		w := b.store.status("uid-p").ContainerStatuses[0].State.Waiting
		if w == nil || w.Reason != "ErrImagePull" || w.Message != "failed to resolve image: nowhere:1: not found" {
			t.Fatalf("%+v", w)
		}
		b.settle(12 * time.Second)
		seen := map[string]bool{}
		for _, r := range b.store.told() {
			if w := r.Status.ContainerStatuses[0].State.Waiting; w != nil {
				seen[w.Reason] = true
			}
		}
		b.rt.AddRemote("nowhere:1", "wasm")
		b.settle(time.Minute)
		if b.store.status("uid-p").Phase != v1.PodRunning {
			t.Errorf("%+v", b.store.status("uid-p").ContainerStatuses)
		}
		if !seen["ErrImagePull"] {
			t.Errorf("saw %v", seen)
		}
	})
}

// Without a volume of it the container is created first, and waits.
func TestMissingConfigMapOfAVariableIsNamed(t *testing.T) {
	on(t, func(b *board) {
		b.store.put(testPod("p", func(p *v1.Pod) {
			p.Spec.Containers[0].EnvFrom = []v1.EnvFromSource{{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}}}}
		}))
		b.settle(time.Minute)
		w := b.store.status("uid-p").ContainerStatuses[0].State.Waiting
		if w == nil || w.Reason != "CreateContainerConfigError" || w.Message != `configmap "cm" not found` {
			t.Fatalf("%+v", w)
		}
		b.store.setConfigMap("cm", "k", "value")
		synctest.Wait()
		if s := b.store.status("uid-p"); s.Phase != v1.PodRunning {
			t.Fatalf("%+v", s.ContainerStatuses)
		}
	})
}

func TestMissingConfigMapIsNamedAndItsArrivalStartsThePod(t *testing.T) {
	on(t, func(b *board) {
		b.store.put(testPod("p", func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "cfg", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}}}}}
			p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "cfg", MountPath: "/cfg"}}
			p.Spec.Containers[0].Env = []v1.EnvVar{{Name: "A", ValueFrom: &v1.EnvVarSource{ConfigMapKeyRef: &v1.ConfigMapKeySelector{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}, Key: "k"}}},
				{Name: "B", Value: "$(A)-$(NONE)-$$(A)"}, {Name: "C", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: "status.podIP"}}}}
		}))
		b.settle(time.Second)
		w := b.store.status("uid-p").ContainerStatuses[0].State.Waiting
		if w == nil || w.Reason != "ContainerCreating" || !strings.Contains(w.Message, `configmap "cm" not found`) {
			t.Fatalf("%+v", w)
		}
		if !b.store.said(`MountVolume.SetUp failed for volume "cfg" : configmap "cm" not found`) {
			t.Error("no FailedMount event")
		}
		b.store.setConfigMap("cm", "k", "value")
		synctest.Wait()
		s := b.store.status("uid-p")
		if s.Phase != v1.PodRunning {
			t.Fatalf("%+v", s.ContainerStatuses)
		}
		env := map[string]string{}
		for _, kv := range b.rt.Config("main").Envs {
			env[kv.Key] = string(kv.Value)
		}
		if env["A"] != "value" || env["B"] != "value-$(NONE)-$(A)" || env["C"] != s.PodIP {
			t.Errorf("env %v", env)
		}
		var path string
		for _, m := range b.rt.Config("main").Mounts {
			if m.ContainerPath == "/cfg" {
				path = m.HostPath
			}
		}
		b.store.setConfigMap("cm", "k", "changed")
		b.settle(time.Second)
		if got, err := os.ReadFile(filepath.Join(path, "k")); err != nil || string(got) != "changed" {
			t.Errorf("the volume says %q, %v", got, err)
		}
	})
}

func (s *memStore) setConfigMap(name, k, v string) {
	raw, err := kubeobj.EncodeConfigMap(&v1.ConfigMap{Data: map[string]string{k: v}})
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	s.objects["ConfigMap/default/"+name] = raw
	s.mu.Unlock()
	s.kick()
}

func TestWhatCannotBeCreatedSaysWhy(t *testing.T) {
	yes := true
	for name, c := range map[string]struct {
		method  string
		err     error
		pod     *v1.Pod
		reason  string
		message string
	}{
		"sandbox": {"RunPodSandbox", errors.New("no CNI configuration in /etc/cni/net.d"), testPod("p"), "ContainerCreating", "Failed to create pod sandbox: no CNI configuration"},
		"create":  {"CreateContainer", errors.New("module x imports env.foo"), testPod("p"), "CreateContainerError", "module x imports env.foo"},
		"start":   {"StartContainer", errors.New("runner: exec format error"), testPod("p"), "RunContainerError", "exec format error"},
		"secret": {"", nil, testPod("p", func(p *v1.Pod) {
			p.Spec.Containers[0].EnvFrom = []v1.EnvFromSource{{SecretRef: &v1.SecretEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "s"}}}}
		}), "CreateContainerConfigError", `secret "s" not found`},
		"non-root": {"", nil, testPod("p", func(p *v1.Pod) {
			p.Spec.SecurityContext = &v1.PodSecurityContext{RunAsNonRoot: &yes}
			p.Spec.Containers[0].Image = "oci:1"
		}), "CreateContainerConfigError", "container has runAsNonRoot and image will run as root"},
		"volume type": {"", nil, testPod("p", func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "n", VolumeSource: v1.VolumeSource{ISCSI: &v1.ISCSIVolumeSource{}}}}
			p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "n", MountPath: "/n"}}
		}), "UnsupportedVolumeType", "iscsi"},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, func(b *board) {
				if c.method != "" {
					b.rt.Fail(c.method, c.err)
				}
				b.store.put(c.pod)
				b.settle(time.Second)
				s := b.store.status("uid-p")
				w := s.ContainerStatuses[0].State.Waiting
				if s.Phase != v1.PodPending || w == nil || w.Reason != c.reason || !strings.Contains(w.Message, c.message) {
					t.Fatalf("%s: %+v", s.Phase, w)
				}
				n := len(b.store.told())
				b.settle(10 * time.Minute)
				if more := len(b.store.told()) - n; more > 10 || (more > 2 && c.method != "StartContainer") {
					t.Errorf("%d more reports of the same", more)
				}
				if _, containers := b.rt.Count(); containers > 2 {
					t.Errorf("%d containers left behind", containers)
				}
				if c.method != "" {
					b.rt.Fail(c.method, nil)
					b.settle(6 * time.Minute)
					if got := b.store.status("uid-p").Phase; got != v1.PodRunning {
						t.Errorf("after it was mended: %s", got)
					}
				}
			})
		})
	}
}

func TestAdmission(t *testing.T) {
	for name, c := range map[string]struct {
		change          podOption
		reason, message string
	}{
		"cpu": {func(p *v1.Pod) {
			p.Spec.Containers[0].Resources.Requests = v1.ResourceList{"cpu": resource.MustParse("3")}
		}, "OutOfcpu", "Pod was rejected: Node didn't have enough resource: cpu, requested: 3000, used: 500, capacity: 2000"},
		"memory": {func(p *v1.Pod) {
			p.Spec.Containers[0].Resources.Requests = v1.ResourceList{"memory": resource.MustParse("1Gi")}
		}, "OutOfmemory", "memory, requested: 1073741824"},
		"selector": {func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "b"} }, "NodeAffinity", "node affinity/selector"},
		"os":       {func(p *v1.Pod) { p.Spec.OS = &v1.PodOS{Name: "windows"} }, "PodOSNotSupported", "OS field"},
		"port": {func(p *v1.Pod) {
			p.Spec.Containers[0].Ports = []v1.ContainerPort{{ContainerPort: 1, HostPort: 80, Protocol: v1.ProtocolTCP}}
		}, "NodePorts", "free ports"},
		"feature": {func(p *v1.Pod) {
			p.Annotations = map[string]string{features.Annotation: "wasm, Teleport, GPIO"}
		}, "PodFeatureUnsupported", "Pod requires node features that are not available: Teleport, GPIO"},
		"rule that restarts all": {func(p *v1.Pod) {
			p.Spec.Containers[0].RestartPolicyRules = []v1.ContainerRestartRule{{Action: v1.ContainerRestartRuleActionRestartAllContainers}}
		}, "PodFeatureUnsupported", "RestartAllContainersOnContainerExits"},
		"user namespace on the host's network": {func(p *v1.Pod) {
			no := false
			p.Spec.HostNetwork, p.Spec.HostUsers = true, &no
		}, "PodFeatureUnsupported", "UserNamespacesHostNetworkSupport"},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, func(b *board) {
				b.store.put(testPod("first", func(p *v1.Pod) {
					p.Spec.Containers[0].Resources.Requests = v1.ResourceList{"cpu": resource.MustParse("500m")}
					p.Spec.Containers[0].Ports = []v1.ContainerPort{{ContainerPort: 1, HostPort: 80, Protocol: v1.ProtocolTCP}}
				}))
				synctest.Wait()
				b.store.put(testPod("p", c.change))
				synctest.Wait()
				s := b.store.status("uid-p")
				if s.Phase != v1.PodFailed || s.Reason != c.reason || !strings.Contains(s.Message, c.message) {
					t.Errorf("%s %s: %s", s.Phase, s.Reason, s.Message)
				}
				if cfg, _ := b.rt.Sandbox("uid-p"); cfg != nil {
					t.Error("it runs all the same")
				}
			})
		})
	}
}

func TestAPodWhoseFeaturesAreHereRuns(t *testing.T) {
	on(t, func(b *board) {
		b.store.put(testPod("p", func(p *v1.Pod) { p.Annotations = map[string]string{features.Annotation: "wasm,Sidecars"} }))
		synctest.Wait()
		if s := b.store.status("uid-p"); s.Phase != v1.PodRunning {
			t.Errorf("%s %s: %s", s.Phase, s.Reason, s.Message)
		}
	})
}

func TestActiveDeadline(t *testing.T) {
	on(t, func(b *board) {
		limit := int64(60)
		b.store.put(testPod("p", func(p *v1.Pod) { p.Spec.ActiveDeadlineSeconds = &limit }))
		b.settle(50 * time.Second)
		if b.store.status("uid-p").Phase != v1.PodRunning {
			t.Fatal("too early")
		}
		b.settle(15 * time.Second)
		s := b.store.status("uid-p")
		if s.Phase != v1.PodFailed || s.Reason != "DeadlineExceeded" || len(b.rt.Running("uid-p")) != 0 {
			t.Errorf("%s %s %s", s.Phase, s.Reason, s.Message)
		}
	})
}

func TestHooks(t *testing.T) {
	on(t, func(b *board) {
		b.rt.AddImage("oci:1", "oci")
		pod := testPod("p", func(p *v1.Pod) {
			p.Spec.Containers[0].Lifecycle = &v1.Lifecycle{
				PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"up"}}},
				PreStop:   &v1.LifecycleHandler{Sleep: &v1.SleepAction{Seconds: 7}}}
		})
		b.store.put(pod)
		b.settle(time.Second)
		if !slices.Contains(b.rt.Calls(), "ExecSync up") {
			t.Error("postStart did not run")
		}
		b.store.put(deleted(pod, 30))
		b.settle(5 * time.Second)
		if _, stopped := b.rt.StopTimeout("main"); stopped {
			t.Error("stopped before preStop was over")
		}
		b.settle(5 * time.Second)
		if timeout, _ := b.rt.StopTimeout("main"); timeout != 23 || !b.store.gone("uid-p") {
			t.Errorf("stopped with %d s", timeout)
		}
	})
}

func TestMessagesOfTheEnd(t *testing.T) {
	on(t, func(b *board) {
		b.rt.Plan("main", fakecri.Plan{ExitCode: 1, Log: "one\ntwo\n"})
		b.store.put(testPod("p", restart(v1.RestartPolicyNever), func(p *v1.Pod) {
			p.Spec.Containers[0].TerminationMessagePolicy = v1.TerminationMessageFallbackToLogsOnError
		}))
		b.settle(time.Second)
		if got := b.store.status("uid-p").ContainerStatuses[0].State.Terminated.Message; got != "one\ntwo\n" {
			t.Errorf("message %q", got)
		}
	})
}
