package devices

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/coracle-edge/coracle/edgelet/affinity"
	"github.com/coracle-edge/coracle/test/lab/deviceplugin"
)

// A plugin says which nodes its devices are near: hints are made of that, and
// devices are given from there.
func TestDevicesNearANode(t *testing.T) {
	n := newNode(t)
	n.Manager.cfg.Nodes = 0b11
	p := deviceplugin.New(n.dir, camera, "anywhere")
	p.Options = pluginapi.DevicePluginOptions{GetPreferredAllocationAvailable: true}
	p.Prefer = func(_, _ []string, _ int) []string { return []string{"a0", "e1"} }
	p.Near(0, "a0", "b0")
	p.Near(1, "c1", "d1", "e1")
	p.Near(9, "f9") // which this machine hasn't
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	n.have(camera, 7, 7)
	hints := func(a *Allocation, c *v1.Container) string {
		out := ""
		for _, h := range a.Hints(c)[camera] {
			out += fmt.Sprintf("%b:%t ", h.Nodes, h.Preferred)
		}
		return out
	}
	one, two, three, six := container("x", 1), container("x", 2), container("x", 3), container("x", 6)
	a := n.Begin(pod("p", two))
	for n, c := range map[string]v1.Container{"1:true 10:true 11:false ": one, "10:true 11:false ": three, "": six} {
		if got := hints(a, &c); got != n {
			t.Errorf("%v: %s, want %s", c.Resources.Limits, got, n)
		}
	}
	if h, some := a.Hints(&six)[camera]; !some || h == nil {
		t.Error("six cameras are near no nodes, and that is no preference")
	}
	if got := a.PodHints()[camera]; len(got) != 3 || got[0] != (affinity.Hint{Nodes: 1, Preferred: true}) {
		t.Errorf("the pod as a whole: %v", got)
	}
	if err := a.Give(t.Context(), &two, 0b10); err != nil {
		t.Fatal(err)
	}
	if err := a.Keep(); err != nil {
		t.Fatal(err)
	}
	a.Release()
	near := func(uid, name string) (out []string) {
		for _, h := range n.Holds(uid, name) {
			out = append(out, fmt.Sprintf("%s@%b", h.ID, h.Nodes))
		}
		return out
	}
	if got := near("p", "x"); !slices.Equal(got, []string{"c1@10", "e1@10"}) {
		t.Errorf("has %v", got)
	}
	// What it has it keeps, and another finds the rest.
	if got := hints(n.Begin(pod("p", two)), &two); got != "10:true 11:false " {
		t.Error("asked again:", got)
	}
	b := n.Begin(pod("q", three))
	if got := hints(b, &three); got != "11:false " {
		t.Error("of what is left:", got)
	}
	if err := b.Give(t.Context(), &three, 0b10); err != nil {
		t.Fatal(err)
	}
	b.Release()
	if got := b.pod["x"][camera].IDs; len(got) != 3 || got[0] != "d1" || got[1] != "a0" {
		t.Errorf("from that node first: %v", got)
	}
	if all := n.Allocatable(); len(all) != 7 || all[0] != (Held{camera, "a0", 1}) || all[1].Nodes != 0 {
		t.Errorf("allocatable: %v", all)
	}
	// The plugin is asked which of the node's it prefers, or what beside them.
	if calls := strings.Join(p.Calls(), ", "); !strings.Contains(calls, "Preferred[c1 d1 e1], Allocate[e1 c1]") || !strings.Contains(calls, "Preferred[a0 anywhere b0 d1 f9], Allocate[d1 a0 anywhere]") {
		t.Error(calls)
	}
}
