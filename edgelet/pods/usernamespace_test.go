package pods

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/userns"
)

// mapsIDs is a handler that has user namespaces, or not.
func mapsIDs(name string, yes bool) *runtimeapi.RuntimeHandler {
	return &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{UserNamespaces: yes}}
}

func ownUsers(image string) podOption {
	return func(pod *v1.Pod) {
		no := false
		pod.Spec.HostUsers = &no
		pod.Spec.Containers[0].Image = image
	}
}

// A pod that asks for a user namespace doesn't run as the node's users instead.
func TestUserNamespaceThatCanNotBe(t *testing.T) {
	other := "kata"
	for name, c := range map[string]struct {
		handlers []*runtimeapi.RuntimeHandler
		change   podOption
		says     string
	}{
		"an old runtime": {nil, nil, "Failed to create pod sandbox: can't set `spec.hostUsers: false`, runtime does not support user namespaces"},
		"no idmap":       {[]*runtimeapi.RuntimeHandler{mapsIDs("", false)}, nil, "runtime does not support user namespaces"},
		"of its class": {[]*runtimeapi.RuntimeHandler{mapsIDs("", true), mapsIDs("kata", false)}, func(p *v1.Pod) { p.Spec.RuntimeClassName = &other },
			"RuntimeClass handler \"kata\" does not support user namespaces"},
		"unknown":       {[]*runtimeapi.RuntimeHandler{mapsIDs("", true)}, func(p *v1.Pod) { p.Spec.RuntimeClassName = &other }, "the handler \"kata\" is not known"},
		"a Wasm module": {[]*runtimeapi.RuntimeHandler{mapsIDs("", true)}, ownUsers("wasm:1"), "a Wasm container has no users of its own to map"},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, func(b *board) {
				b.rt.Handle(c.handlers...)
				pod := testPod("a", ownUsers("oci:1"))
				if c.change != nil {
					c.change(pod)
				}
				b.store.put(pod)
				b.settle(time.Second)
				if s := b.store.status("uid-a"); len(b.rt.Running("uid-a")) > 0 || s.Phase != v1.PodPending || !b.store.said(c.says) {
					t.Errorf("%s, running %v, events %v", s.Phase, b.rt.Running("uid-a"), b.store.events)
				}
			})
		})
	}
}

// A folder that only root may pass is named, with what to do, to a pod of its own users
// only.
func TestAFolderThatKeepsAPodsUsersOutIsNamed(t *testing.T) {
	on(t, func(b *board) {
		b.stop()
		b.more = func(c *Config) {
			c.UserNamespaces = userns.New(b.dir+"/pods", func() (userns.Range, error) { return userns.Range{First: 1 << 16, Length: 2 << 16}, nil })
		}
		b.boot()
		b.rt.Handle(mapsIDs("", true))
		closed := b.dir + "/containerd"
		if err := os.Mkdir(closed, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(b.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		b.rt.Fail("RunPodSandbox", fmt.Errorf("runc create failed: error preparing rootfs: remount-private dst=%s/state/id/rootfs, flags=MS_PRIVATE: permission denied", closed))
		b.store.put(testPod("own", ownUsers("oci:1")))
		b.store.put(testPod("nodes", func(p *v1.Pod) { p.Spec.Containers[0].Image = "oci:1" }))
		b.settle(time.Second)
		for name, want := range map[string]bool{"own": true, "nodes": false} {
			why := b.store.status("uid-" + name).ContainerStatuses[0].State.Waiting.Message
			says := strings.Contains(why, closed+" (mode 0700)") && strings.Contains(why, "chmod o+x ") && strings.Contains(why, closed+"`")
			if !strings.Contains(why, "permission denied") || says != want {
				t.Errorf("%s: %s", name, why)
			}
		}
	})
}

func TestUserNamespaceIsThePodsAlone(t *testing.T) {
	on(t, func(b *board) {
		b.stop()
		b.more = func(c *Config) {
			c.UserNamespaces = userns.New(b.dir+"/pods", func() (userns.Range, error) { return userns.Range{First: 1 << 16, Length: 2 << 16}, nil })
		}
		b.boot()
		b.rt.Handle(mapsIDs("", true))
		mapping := func(list []*runtimeapi.IDMapping) string {
			out := ""
			for _, m := range list {
				out += fmt.Sprintf("%d-%d-%d", m.ContainerId, m.HostId, m.Length)
			}
			return out
		}
		expect := func(pod, container, want string) {
			t.Helper()
			sandbox, _ := b.rt.Sandbox("uid-" + pod)
			ns, cfg := sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions(), b.rt.Config(container)
			if got := mapping(ns.GetUids()) + " " + mapping(ns.GetGids()); ns.GetMode() != runtimeapi.NamespaceMode_POD || got != want+" "+want {
				t.Errorf("the sandbox of %s: %v", pod, ns)
			}
			if got := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions(); mapping(got.GetUids()) != want || mapping(got.GetGids()) != want {
				t.Errorf("container %s: %v", container, got)
			}
			if len(cfg.GetMounts()) < 2 {
				t.Errorf("mounts of %s: %v", container, cfg.GetMounts())
			}
			for _, m := range cfg.GetMounts() {
				if mapping(m.UidMappings) != want || mapping(m.GidMappings) != want {
					t.Errorf("%s at %s: %v %v", container, m.ContainerPath, m.UidMappings, m.GidMappings)
				}
			}
		}
		named := func(name string) podOption {
			return func(p *v1.Pod) {
				p.Spec.Containers[0].Name = name
				p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}
				p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "v", MountPath: "/v"}}
			}
		}
		first, second := testPod("a", ownUsers("oci:1"), named("one")), testPod("b", ownUsers("oci:1"), named("two"))
		b.store.put(first)
		b.settle(time.Second)
		b.store.put(second)
		b.settle(time.Second)
		expect("a", "one", "0-65536-65536")
		expect("b", "two", "0-131072-65536")

		if started, failed := b.m.OwnUsers(); started != 2 || failed != 0 {
			t.Errorf("%d started, %d failed", started, failed)
		}
		// A third finds no room, and has it when the first is gone.
		b.store.put(testPod("c", ownUsers("oci:1"), named("three")))
		b.settle(time.Second)
		if !b.store.said("could not find an empty slot to allocate a user namespace") || len(b.rt.Running("uid-c")) > 0 {
			t.Error("a third pod of two ranges runs")
		}
		if started, failed := b.m.OwnUsers(); started < 3 || failed != started-2 {
			t.Errorf("%d started, %d failed", started, failed)
		}
		// After a restart of the agent a container that begins again has its pod's ids.
		b.stop()
		b.boot()
		b.rt.Kill("uid-b", "two", 1)
		b.settle(30 * time.Second)
		expect("b", "two", "0-131072-65536")
		b.store.put(deleted(first, 0))
		b.settle(time.Second)
		b.store.drop("uid-a")
		b.settle(10 * time.Minute)
		if _, err := os.Stat(b.dir + "/pods/uid-a"); !os.IsNotExist(err) {
			t.Error("the record of a pod that is gone: ", err)
		}
		expect("c", "three", "0-65536-65536")

		// A pod of the node's users says nothing of the kind.
		b.store.put(testPod("d", func(p *v1.Pod) { p.Spec.Containers[0].Image, p.Spec.Containers[0].Name = "oci:1", "four" }))
		b.settle(time.Second)
		if s, _ := b.rt.Sandbox("uid-d"); s.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions() != nil ||
			strings.Contains(b.rt.Config("four").String(), "uid_mappings") {
			t.Error("a user namespace that nobody asked for")
		}
	})
}
