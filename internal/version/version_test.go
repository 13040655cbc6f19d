package version

import (
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/version"
)

func TestForms(t *testing.T) {
	for v, want := range map[string]struct{ node, semantic string }{
		"v0.2.0":                   {"v1.36.3+coracle-v0.2.0", "0.2.0"},
		"v0.2.0-14-g3f2a9c1-dirty": {"v1.36.3+coracle-v0.2.0-14-g3f2a9c1-dirty", "0.2.0-14-g3f2a9c1-dirty"},
		"3f2a9c1":                  {"v1.36.3+coracle-3f2a9c1", "0.0.0+3f2a9c1"},
		"0123456-dirty":            {"v1.36.3+coracle-0123456-dirty", "0.0.0+0123456-dirty"},
		"unknown":                  {"v1.36.3+coracle-unknown", "0.0.0+unknown"},
		"0.0.0":                    {"v1.36.3+coracle-0.0.0", "0.0.0"},
		"release/7 of my_own":      {"v1.36.3+coracle-release-7-of-my-own", "0.0.0+release-7-of-my-own"},
		"v0.0.0-2026+incompatible": {"v1.36.3+coracle-v0.0.0-2026-incompatible", "0.0.0+v0.0.0-2026-incompatible"},
	} {
		if got := node(v); got != want.node {
			t.Errorf("node(%q) = %q, want %q", v, got, want.node)
		}
		if got := semantic(v); got != want.semantic {
			t.Errorf("semantic(%q) = %q, want %q", v, got, want.semantic)
		}
		for _, s := range []string{node(v), semantic(v)} {
			if _, err := version.ParseSemantic(s); err != nil {
				t.Errorf("%q of %q: %v", s, v, err)
			}
		}
	}
}

func TestWhatIsLinkedComesFirst(t *testing.T) {
	before := linked
	defer func() { linked = before }()
	linked = "v9.9.9"
	if String() != "v9.9.9" || Node() != Kubernetes+"+coracle-v9.9.9" || Semantic() != "9.9.9" {
		t.Errorf("%s, %s, %s", String(), Node(), Semantic())
	}
	if linked = ""; String() == "" {
		t.Error("a build that nobody gave a version has none")
	}
}

// A linker that is told to set a variable which isn't there says nothing.
func TestMakefileLinksIt(t *testing.T) {
	raw, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	if want := "-X github.com/coracle-edge/coracle/internal/version.linked=$(VERSION)"; !strings.Contains(string(raw), want) {
		t.Errorf("the Makefile has no %s", want)
	}
	if want := "KUBERNETES := " + Kubernetes; !strings.Contains(string(raw), want) {
		t.Errorf("the Makefile has no %s", want)
	}
}
