package pods

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
	"github.com/coracle-edge/coracle/edgelet/volumes"
)

func mountAt(cfg *runtimeapi.ContainerConfig, path string) *runtimeapi.Mount {
	for _, m := range cfg.GetMounts() {
		if m.ContainerPath == path {
			return m
		}
	}
	return nil
}

func TestDownwardVolumeFollowsTheRunningPod(t *testing.T) {
	on(t, func(b *board) {
		pod := testPod("p", func(p *v1.Pod) {
			p.Labels = map[string]string{"tier": "one"}
			p.Spec.Volumes = []v1.Volume{{Name: "info", VolumeSource: v1.VolumeSource{DownwardAPI: &v1.DownwardAPIVolumeSource{
				Items: []v1.DownwardAPIVolumeFile{{Path: "labels", FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}}}}
			p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "info", MountPath: "/info"}}
		})
		b.store.put(pod)
		b.settle(time.Second)
		file := filepath.Join(mountAt(b.rt.Config("main"), "/info").HostPath, "labels")
		if got, err := os.ReadFile(file); err != nil || string(got) != `tier="one"` {
			t.Fatalf("%q, %v", got, err)
		}
		next := pod.DeepCopy()
		next.Labels["tier"] = "two"
		b.rt.Calls()
		b.store.put(next)
		b.settle(time.Second)
		if got, err := os.ReadFile(file); err != nil || string(got) != `tier="two"` {
			t.Errorf("after the label changed: %q, %v", got, err)
		}
		if calls := b.rt.Calls(); len(calls) > 0 {
			t.Errorf("the pod was not left alone: %v", calls)
		}
	})
}

func TestImageVolumes(t *testing.T) {
	on(t, func(b *board) {
		b.store.put(testPod("p", func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "model", VolumeSource: v1.VolumeSource{Image: &v1.ImageVolumeSource{Reference: "model:1"}}}}
			p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "model", MountPath: "/model", SubPath: "weights/a"}}
			p.Spec.Containers = append(p.Spec.Containers, ctr("other"))
		}))
		b.settle(time.Second)
		s := b.store.status("uid-p")
		w := s.ContainerStatuses[0].State.Waiting
		if w == nil || w.Reason != "ErrImagePull" && w.Reason != "ImagePullBackOff" || !strings.HasPrefix(w.Message, `volume "model": `) {
			t.Fatalf("%+v", s.ContainerStatuses[0].State)
		}
		if s.ContainerStatuses[1].State.Running == nil {
			t.Errorf("a container that has no part in it: %+v", s.ContainerStatuses[1].State)
		}
		b.settle(time.Minute)
		if w = b.store.status("uid-p").ContainerStatuses[0].State.Waiting; w == nil || w.Reason != "ImagePullBackOff" || !strings.Contains(w.Message, `volume "model"`) {
			t.Errorf("%+v", w)
		}
		b.rt.AddRemote("model:1", "oci")
		b.settle(6 * time.Minute)
		if got := b.store.status("uid-p").Phase; got != v1.PodRunning {
			t.Fatalf("when the image is there: %s", got)
		}
		m := mountAt(b.rt.Config("main"), "/model")
		if m == nil || m.GetImage().GetImage() != "sha256:model:1" || m.ImageSubPath != "weights/a" || !m.Readonly || m.HostPath != "" {
			t.Errorf("%v", m)
		}
	})
}

// A board lost its power when a pod had gone and its volumes had not.
func TestVolumesOfPodsThatAreNoMoreAreRemoved(t *testing.T) {
	on(t, func(b *board) {
		b.store.put(testPod("p"))
		b.settle(time.Second)
		b.stop()
		left := filepath.Join(b.dir, "pods", "uid-gone", "volumes")
		kept := filepath.Join(b.dir, "pods", "uid-p")
		if err := errors.Join(os.MkdirAll(left, 0o755), os.MkdirAll(kept, 0o755)); err != nil {
			t.Fatal(err)
		}
		b.boot()
		b.settle(2 * time.Minute)
		if _, err := os.Stat(filepath.Dir(left)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("what a pod left is there: %v", err)
		}
		if _, err := os.Stat(kept); err != nil {
			t.Errorf("a pod that runs lost its folder: %v", err)
		}
	})
}

func TestRecursiveReadOnlyNeedsARuntimeThatCan(t *testing.T) {
	mode := v1.RecursiveReadOnlyEnabled
	maybe := v1.RecursiveReadOnlyIfPossible
	volume := func(image string, m v1.VolumeMount) *v1.Pod {
		return testPod("p", func(p *v1.Pod) {
			p.Spec.Containers[0].Image = image
			p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}
			p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{m}
		})
	}
	for name, c := range map[string]struct {
		mount v1.VolumeMount
		says  string
	}{
		"unable":      {v1.VolumeMount{Name: "v", MountPath: "/v", ReadOnly: true, RecursiveReadOnly: &mode}, `volume "v" requested recursive read-only mode, but it is not supported by the runtime`},
		"writable":    {v1.VolumeMount{Name: "v", MountPath: "/v", RecursiveReadOnly: &mode}, `volume "v" requested recursive read-only mode, but it is not read-only`},
		"if possible": {v1.VolumeMount{Name: "v", MountPath: "/v", ReadOnly: true, RecursiveReadOnly: &maybe}, ""},
		"way out":     {v1.VolumeMount{Name: "v", MountPath: "/v", SubPath: "../../x"}, "unable to provision SubPath `../../x`"},
		"absolute":    {v1.VolumeMount{Name: "v", MountPath: "/v", SubPath: "/x"}, "error SubPath `/x` must not be an absolute path"},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, func(b *board) {
				b.store.put(volume("oci:1", c.mount))
				b.settle(time.Second)
				s := b.store.status("uid-p")
				if w := s.ContainerStatuses[0].State.Waiting; c.says != "" && (w == nil || w.Reason != "CreateContainerConfigError" || !strings.Contains(w.Message, c.says)) {
					t.Errorf("%+v", s.ContainerStatuses[0].State)
				}
				if c.says == "" && s.Phase != v1.PodRunning {
					t.Errorf("%+v", s.ContainerStatuses[0].State)
				}
			})
		})
	}
}

// What keeps a pod is named, all of it.
func TestMissingImageAndMissingSecret(t *testing.T) {
	on(t, func(b *board) {
		b.store.put(testPod("p", func(p *v1.Pod) {
			p.Spec.Containers[0].Image = "none:1"
			p.Spec.Volumes = []v1.Volume{{Name: "keys", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "absent"}}}}
			p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "keys", MountPath: "/keys"}}
		}))
		says := func() (string, string) {
			w := b.store.status("uid-p").ContainerStatuses[0].State.Waiting
			if w == nil {
				return "", ""
			}
			return w.Reason, w.Message
		}
		b.settle(5 * time.Minute)
		if reason, message := says(); reason != "ImagePullBackOff" || !strings.Contains(message, "none:1") || strings.Count(message, `secret "absent" not found`) != 1 {
			t.Errorf("%s: %s", reason, message)
		}
		if !b.store.said(`secret "absent" not found`) {
			t.Error("no event names the secret")
		}
		raw, err := kubeobj.EncodeSecret(&v1.Secret{Data: map[string][]byte{"k": []byte("v")}})
		if err != nil {
			t.Fatal(err)
		}
		b.store.mu.Lock()
		b.store.objects["Secret/default/absent"] = raw
		b.store.mu.Unlock()
		b.store.kick()
		b.settle(10 * time.Minute)
		if reason, message := says(); reason != "ImagePullBackOff" || strings.Contains(message, "absent") {
			t.Errorf("with the secret: %s: %s", reason, message)
		}
		b.rt.AddRemote("none:1", "wasm")
		b.settle(10 * time.Minute)
		if s := b.store.status("uid-p"); s.Phase != v1.PodRunning {
			t.Errorf("with both: %+v", s.ContainerStatuses[0].State)
		}
	})
}

// What a volume is made of may go while its pod runs: it can't be set up again, which
// is said, and the pod's containers are restarted with what is mounted.
func TestAMountedVolumeThatCanNotBeSetUpAgain(t *testing.T) {
	on(t, func(b *board) {
		dir := filepath.Join(t.TempDir(), "here")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		b.store.setConfigMap("cm", "k", "first")
		kind := v1.HostPathDirectory
		b.store.put(testPod("p", func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "host", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: dir, Type: &kind}}},
				{Name: "cm", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}}}}}
			p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "host", MountPath: "/host"}, {Name: "cm", MountPath: "/cm"}}
		}))
		b.settle(time.Second)
		if s := b.store.status("uid-p"); s.Phase != v1.PodRunning {
			t.Fatalf("%+v", s)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		b.store.setConfigMap("cm", "k", "second") // has the volumes looked at again
		b.settle(time.Second)
		if !b.rt.Kill("uid-p", "main", 1) {
			t.Fatal("nothing ran")
		}
		b.settle(30 * time.Second)
		if s := b.store.status("uid-p").ContainerStatuses[0]; s.State.Running == nil || s.RestartCount != 1 {
			t.Errorf("%+v", s)
		}
		if !b.store.said(`MountVolume.SetUp failed for volume "host" : hostPath type check failed`) {
			t.Error("no event says what is missing")
		}
		path := ""
		for _, m := range b.rt.Config("main").Mounts {
			if m.ContainerPath == "/cm" {
				path = m.HostPath
			}
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		b.settle(2 * volumeRetry)
		if raw, err := os.ReadFile(filepath.Join(path, "k")); err != nil || string(raw) != "second" {
			t.Errorf("when it is there again, the volume behind it has %q, %v", raw, err)
		}
	})
}

// A ConfigMap that goes under a running pod is missed in an event, not one each time
// that it is looked for, and nothing
// else happens to the pod.
func TestAConfigMapThatGoesIsSaid(t *testing.T) {
	on(t, func(b *board) {
		b.store.setConfigMap("cm", "k", "v")
		b.store.put(testPod("p", func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "cm", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}}}}}
			p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "cm", MountPath: "/cm"}}
		}))
		b.settle(time.Second)
		b.store.mu.Lock()
		delete(b.store.objects, "ConfigMap/default/cm")
		b.store.mu.Unlock()
		b.store.kick()
		b.settle(9 * time.Minute)
		if s := b.store.status("uid-p"); s.Phase != v1.PodRunning || s.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("%+v", s)
		}
		if got := b.store.reasons("uid-p"); strings.Count(got, "FailedMount") != 1 || !b.store.said(`MountVolume.SetUp failed for volume "cm" : configmap "cm" not found`) {
			t.Errorf("events %s", got)
		}
	})
}

// A guest's preopens are read-only with all below them whatever containerd can do.
func TestRecursiveReadOnlyOfAWasmContainer(t *testing.T) {
	mode := v1.RecursiveReadOnlyEnabled
	on(t, func(b *board) {
		b.store.put(testPod("p", func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}
			p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "v", MountPath: "/v", ReadOnly: true, RecursiveReadOnly: &mode}}
		}))
		b.settle(time.Second)
		s := b.store.status("uid-p")
		if s.Phase != v1.PodRunning || len(s.ContainerStatuses[0].VolumeMounts) != 1 || deref(s.ContainerStatuses[0].VolumeMounts[0].RecursiveReadOnly, "") != mode {
			t.Errorf("%+v", s.ContainerStatuses)
		}
		if m := b.rt.Config("main").Mounts; len(m) == 0 || !m[0].Readonly || !m[0].RecursiveReadOnly {
			t.Errorf("the runtime was told %+v", m)
		}
	})
}

func TestMountsSayWhetherAllBelowIsReadOnly(t *testing.T) {
	mount := func(mode v1.RecursiveReadOnlyMode) v1.VolumeMount {
		return v1.VolumeMount{Name: "v", MountPath: "/v", ReadOnly: true, RecursiveReadOnly: &mode}
	}
	into := v1.MountPropagationHostToContainer
	spread := mount(v1.RecursiveReadOnlyIfPossible)
	spread.MountPropagation = &into
	for name, c := range map[string]struct {
		mount v1.VolumeMount
		able  bool
		want  v1.RecursiveReadOnlyMode
	}{
		"enabled":              {mount(v1.RecursiveReadOnlyEnabled), true, v1.RecursiveReadOnlyEnabled},
		"if possible, and is":  {mount(v1.RecursiveReadOnlyIfPossible), true, v1.RecursiveReadOnlyEnabled},
		"if possible, isn't":   {mount(v1.RecursiveReadOnlyIfPossible), false, v1.RecursiveReadOnlyDisabled},
		"disabled":             {mount(v1.RecursiveReadOnlyDisabled), true, v1.RecursiveReadOnlyDisabled},
		"not asked for":        {v1.VolumeMount{Name: "v", MountPath: "/v", ReadOnly: true}, true, v1.RecursiveReadOnlyDisabled},
		"with propagation":     {spread, true, v1.RecursiveReadOnlyDisabled},
		"not read-only at all": {v1.VolumeMount{Name: "v", MountPath: "/v"}, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := mountStatuses(&v1.Container{VolumeMounts: []v1.VolumeMount{c.mount}}, func() bool { return c.able })
			if len(got) != 1 || deref(got[0].RecursiveReadOnly, "") != c.want {
				t.Errorf("%+v, want %q", got, c.want)
			}
		})
	}
}

// hanging is a kernel that has no answer about a server's volume until the channel is
// closed.
type hanging struct {
	noMounts
	until chan struct{}
}

func (h hanging) IsMountPoint(path string) (bool, error) {
	if strings.Contains(path, "~nfs") {
		<-h.until
	}
	return h.noMounts.IsMountPoint(path)
}

func TestAVolumeThatHangsKeepsNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		until := make(chan struct{})
		b.more = func(c *Config) {
			c.Parallel = 1
			c.Volumes = volumes.New(volumes.Config{Dir: b.dir + "/pods", Objects: b.store, Mounts: hanging{until: until}})
		}
		b.boot()
		b.store.put(testPod("hangs", func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{NFS: &v1.NFSVolumeSource{Server: "192.0.2.1", Path: "/"}}}}
			p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "v", MountPath: "/v"}}
		}))
		b.settle(time.Second)
		b.store.put(testPod("plain"))
		b.settle(time.Second)
		if s := b.store.status("uid-plain"); s.Phase != v1.PodRunning {
			t.Errorf("another pod is %s", s.Phase)
		}
		close(until)
		b.stop()
	})
}
