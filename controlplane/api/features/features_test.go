package features

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestNeeded(t *testing.T) {
	for text, want := range map[string][]string{
		"": nil, " , ": nil, "wasm": {"wasm"}, "GPIO, Camera ,GPIO,gpio": {"GPIO", "Camera"},
	} {
		if got := Needed(map[string]string{Annotation: text}); !slices.Equal(got, want) {
			t.Errorf("%q needs %q, want %q", text, got, want)
		}
	}
	if got := Needed(nil); got != nil {
		t.Errorf("no annotations need %q", got)
	}
}

func TestMissing(t *testing.T) {
	have := []string{"Sidecars", "Wasm"}
	if got := Missing([]string{"wasm", "Teleport", "SIDECARS", "Was"}, have); !slices.Equal(got, []string{"Teleport", "Was"}) {
		t.Errorf("missing %q", got)
	}
	if got := Missing([]string{"Wasm"}, nil); !slices.Equal(got, []string{"Wasm"}) {
		t.Errorf("a node that declares nothing lacks %q", got)
	}
}

func TestDeclare(t *testing.T) {
	if got := Declare("Wasm", "GPIO", "Wasm"); !slices.Equal(got, []string{"GPIO", "Wasm"}) {
		t.Errorf("%q", got)
	}
}

// upstream is nodeDeclaredFeatureRegexp of k8s.io/kubernetes/pkg/apis/core/validation.
var upstream = regexp.MustCompile(`^[A-Z][a-zA-Z0-9]*(\/[a-zA-Z][a-zA-Z0-9]*)*$`)

func TestValid(t *testing.T) {
	for name, want := range map[string]bool{
		"Wasm": true, "GPIO": true, "Coracle/wasm": true, "A/B9/c": true, "X1": true,
		"wasm": false, "": false, "Static-Pods": false, "Wasm/": false, "/Wasm": false, "Wasm/9": false, "9": false, "Wäsm": false,
		strings.Repeat("A", 253): true, strings.Repeat("A", 254): false,
	} {
		if got := Valid(name); got != want {
			t.Errorf("Valid(%q) = %t", name, got)
		}
	}
}

func FuzzNames(f *testing.F) {
	for _, s := range []string{"Wasm, GPIO", "a/b", "A/b", ",,", "Ünix"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if Valid(s) != (len(s) <= 253 && upstream.MatchString(s)) {
			t.Errorf("Valid(%q) = %t, not as upstream says", s, Valid(s))
		}
		need := Needed(map[string]string{Annotation: s})
		if missing := Missing(need, need); len(missing) > 0 {
			t.Errorf("%q lacks %q of itself", need, missing)
		}
	})
}
