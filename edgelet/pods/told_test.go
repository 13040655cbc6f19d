package pods

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// messages are the events of a reason.
func (s *memStore) messages(reason string) (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if e.Reason == reason {
			out = append(out, e.Message)
		}
	}
	return out
}

func TestAPodWaitsForTheNodesNetwork(t *testing.T) {
	on(t, func(b *board) {
		b.rt.Say(nil, &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Status: true},
			&runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Reason: "NetworkPluginNotReady", Message: "Network plugin returns error: cni plugin not initialized"})
		b.rt.Fail("RunPodSandbox", errors.New("cni plugin not initialized"))
		host := testPod("host", func(p *v1.Pod) { p.Spec.HostNetwork = true })
		b.store.put(testPod("p"))
		b.store.put(host)
		b.settle(time.Minute)
		if n := b.store.messages("NetworkNotReady"); !slices.Equal(n, []string{"network is not ready: container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: cni plugin not initialized"}) {
			t.Errorf("%q", n)
		}
		if got := b.store.reasons("uid-p"); strings.Contains(got, "FailedCreatePodSandBox") {
			t.Error(got)
		}
		if got := b.store.reasons("uid-host"); !strings.Contains(got, "FailedCreatePodSandBox") {
			t.Error("a pod on the host's network fails for another reason:", got)
		}
		b.rt.Say(nil, &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true})
		b.settle(time.Minute)
		if got := b.store.reasons("uid-p"); !strings.Contains(got, "FailedCreatePodSandBox") {
			t.Error("with a network that is ready:", got)
		}
		b.rt.Fail("RunPodSandbox", nil)
		b.settle(time.Minute)
		if len(b.rt.Running("uid-p")) != 1 {
			t.Error("it doesn't run")
		}
	})
}

func TestWhatPodsDoNotGetOfAResolverConfigurationIsTold(t *testing.T) {
	long := strings.Repeat("a", 254)
	var names []string
	for i := range 31 {
		names = append(names, fmt.Sprintf("d%d.example.com", i))
	}
	var tooLong []string
	for i := range 9 {
		tooLong = append(tooLong, strings.Repeat(fmt.Sprint(i), 250))
	}
	for name, c := range map[string]struct {
		resolv, node string
		config       v1.PodDNSConfig
		cut          []string
	}{
		"fits": {"nameserver 192.0.2.1\nsearch example.com\n", "", v1.PodDNSConfig{}, nil},
		"name servers": {"nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n", "", v1.PodDNSConfig{Nameservers: []string{"192.0.2.4"}},
			[]string{"Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: 192.0.2.1 192.0.2.2 192.0.2.3"}},
		"a long name": {"search a.example.com " + long + "\n", `contains a search path which length is more than allowed 253 chars!`, v1.PodDNSConfig{},
			[]string{"Search Line limits were exceeded, some search paths have been omitted, the applied search line is: a.example.com"}},
		"many names": {"search " + strings.Join(names, " ") + "\n", `contains search line consisting of more than 29 domains!`, v1.PodDNSConfig{Searches: []string{"x", "y"}},
			[]string{"Search Line limits were exceeded, some search paths have been omitted, the applied search line is: " + strings.Join(names, " ") + " x"}},
		"a long line": {"search " + strings.Join(tooLong, " ") + "\n", `contains search line which length is more than allowed 2048 chars!`,
			v1.PodDNSConfig{Searches: []string{"x"}},
			[]string{"Search Line limits were exceeded, some search paths have been omitted, the applied search line is: " + strings.Join(tooLong[:8], " ")}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "resolv.conf")
			if err := os.WriteFile(file, []byte(c.resolv), 0o644); err != nil {
				t.Fatal(err)
			}
			m := &Manager{cfg: Config{ResolvConf: file, ClusterDomain: "cluster.local"}}
			_, cut, err := m.dns(testPod("p", func(p *v1.Pod) { p.Spec.DNSPolicy, p.Spec.DNSConfig = v1.DNSDefault, &c.config }))
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(cut, c.cut) {
				t.Errorf("%q\nwant %q", cut, c.cut)
			}
			if said := m.checkResolvConf(); (said == "") != (c.node == "") || !strings.HasSuffix(said, c.node) {
				t.Errorf("of the node: %q, want %q", said, c.node)
			}
		})
	}
	on(t, func(b *board) {
		if err := os.WriteFile(filepath.Join(b.dir, "none"), []byte("search "+long+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		b.store.put(testPod("p"))
		b.settle(time.Second)
		if n := b.store.messages("DNSConfigForming"); len(n) != 1 {
			t.Errorf("%q", n)
		}
	})
}

// nodeEvents runs a board on cgroups of its own and returns what it told of the node.
func TestWhatBoundsAllPodsIsTold(t *testing.T) {
	for name, v2 := range map[string]bool{"v1": false, "v2": true} {
		t.Run(name, func(t *testing.T) {
			c := fakeCgroups(t, v2)
			var told []string
			m := &Manager{cfg: Config{ResolvConf: "/does/not/exist", NodeEvent: func(eventType, reason, message string) {
				told = append(told, eventType+" "+reason+" "+message)
			}}}
			m.cgroups.root, m.cgroups.mount = c.root, c.mount
			m.cgroups.told = m.limited
			m.cgroups.limit = c.limit
			m.checkNode()
			var want []string
			if !v2 {
				want = []string{"Warning CgroupV1 " + messageCgroupV1}
			}
			if !slices.Equal(told, want) {
				t.Errorf("%q", told)
			}
			told = nil
			if err := m.cgroups.ensure(podWith("p")); err != nil {
				t.Fatal(err)
			}
			populate(t, &m.cgroups)
			// A limit that the kernel refuses: a folder can't be written.
			file := filepath.Join(c.mount, "memory/kubepods/memory.limit_in_bytes")
			if v2 {
				file = filepath.Join(c.mount, "kubepods/memory.max")
			}
			if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o755)); err != nil {
				t.Fatal(err)
			}
			m.cgroups.setLimits(c.limit)
			if len(told) != 2 || told[0] != "Normal NodeAllocatableEnforced Updated Node Allocatable limit across pods" ||
				!strings.HasPrefix(told[1], `Warning FailedNodeAllocatableEnforcement Failed to update Node Allocatable Limits "/kubepods": 943718400: open `) {
				t.Errorf("%q", told)
			}
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			next := podWith("q")
			next.UID = "u-2"
			if err := m.cgroups.ensure(next); err != nil {
				t.Fatal(err)
			}
			if len(told) != 3 || !strings.HasPrefix(told[2], "Normal NodeAllocatableEnforced") {
				t.Errorf("not tried again: %q", told)
			}
		})
	}
}
