package controllers

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"

	utilfeature "k8s.io/apiserver/pkg/util/feature"

	"github.com/coracle-edge/coracle/controlplane/controllers/upstream"
)

// Every controller that upstream's command starts by default runs here, or RATIONALE.md says why it doesn't: an upgrade
// that brings a new one fails this test.
func TestControllersAreUpstreamsDefaultOnes(t *testing.T) {
	var want []string
	for name, d := range app.NewControllerDescriptors() {
		on := !d.IsDisabledByDefault() && !d.IsCloudProviderController() // upstream's command has no cloud provider either
		for _, gate := range d.GetRequiredFeatureGates() {
			on = on && utilfeature.DefaultFeatureGate.Enabled(gate)
		}
		if on {
			want = append(want, name)
		}
	}

	var own, theirs []string
	for _, o := range ours() {
		if o.name == "node-controller" { // as upstream's service account for it; its flag has another name
			o.name = "node-lifecycle-controller"
		}
		own = append(own, o.name)
	}
	set, err := upstream.New(t.Context(), upstream.Deps{
		Config:  func(string, ...string) *rest.Config { return &rest.Config{Host: "https://127.0.0.1:1"} },
		Factory: informers.NewSharedInformerFactory(fake.NewClientset(), 0),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range set.Controllers() {
		if c.Name != "discovery-refresh" { // not a controller: a cache that upstream fills by polling
			theirs = append(theirs, c.Name)
		}
	}

	left := leftOut(t)
	for _, name := range want {
		runs := slices.Contains(own, name) || slices.Contains(theirs, name)
		if runs == slices.Contains(left, name) {
			t.Errorf("%s is on by default upstream: it must either run or be left out with a reason in RATIONALE.md", name)
		}
		if slices.Contains(own, name) && slices.Contains(theirs, name) {
			t.Errorf("%s runs twice, ours and upstream's", name)
		}
	}
	for _, name := range slices.Concat(theirs, left) {
		if !slices.Contains(want, name) {
			t.Errorf("%s isn't one of those that are on by default upstream", name)
		}
	}
}

// leftOut reads the names from the table in RATIONALE.md.
func leftOut(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../../RATIONALE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n## Which of upstream's controllers don't run\n")
	if !found {
		t.Fatal("RATIONALE.md: no section of controllers that don't run")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var names []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllStringSubmatch(section, -1) {
		names = append(names, m[1])
	}
	return names
}
