package pods

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
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
	volume := func(m v1.VolumeMount) *v1.Pod {
		return testPod("p", func(p *v1.Pod) {
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
				b.store.put(volume(c.mount))
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
