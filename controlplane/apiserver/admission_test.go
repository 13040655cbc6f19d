package apiserver

import (
	"slices"
	"testing"

	kubeoptions "k8s.io/kubernetes/pkg/kubeapiserver/options"
	"k8s.io/kubernetes/plugin/pkg/admission/defaulttolerationseconds"
	"k8s.io/kubernetes/plugin/pkg/admission/noderestriction"

	ouradmission "github.com/coracle-edge/coracle/controlplane/admission"
)

// The admission chain is what upstream enables by default, in upstream's order, but for two plugins: ours stands where
// DefaultTolerationSeconds did, because an hour offline must not evict a board's pods, and NodeRestriction is on.
func TestAdmissionIsUpstreamsDefaultWithOneReplacement(t *testing.T) {
	off := kubeoptions.DefaultOffAdmissionPlugins()
	if !off.Has(noderestriction.PluginName) {
		t.Fatal("NodeRestriction is on by default now: it needs no case of its own any more")
	}
	var want []string
	for _, name := range kubeoptions.AllOrderedPlugins {
		if !off.Has(name) || name == noderestriction.PluginName {
			want = append(want, name)
		}
	}
	place := slices.Index(want, defaulttolerationseconds.PluginName)
	if place < 0 {
		t.Fatal("upstream has no DefaultTolerationSeconds any more: what does ours stand for?")
	}
	want[place] = ouradmission.PluginName

	plugins, got := admissionPlugins()
	if !slices.Equal(got, want) {
		t.Errorf("admission plugins %v\nwant upstream's %v", got, want)
	}
	for _, name := range got {
		if !slices.Contains(plugins.Registered(), name) {
			t.Errorf("%s isn't registered", name)
		}
	}
}
