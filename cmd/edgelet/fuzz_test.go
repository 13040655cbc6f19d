package main

import (
	"strings"
	"testing"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// The kernel's list of what is mapped: only ranges that are some are given back.
func FuzzReadOnlySegments(f *testing.F) {
	f.Add("00400000-00500000 r-xp 00000000 08:01 1 /bin/edgelet\n", "/bin/edgelet")
	f.Add("5-4 r--p 0 0 0 x y\n", "x y")
	f.Add("ffffffffffffffffff-0 r--p 0 0 0 x\n", "x")
	f.Fuzz(func(t *testing.T, maps, file string) {
		list, err := readOnlySegments(strings.NewReader(maps), file)
		for _, s := range list {
			if err == nil && s.end <= s.start {
				t.Errorf("%x-%x", s.start, s.end)
			}
		}
	})
}

// Lists in flags.
func FuzzLists(f *testing.F) {
	f.Add("cpu=100m,memory=1Gi,,")
	f.Add("pid=1e999,a=b")
	f.Add(fleet.LabelLinkClass + "=lan")
	f.Fuzz(func(t *testing.T, text string) {
		r := resourceFlags{kubeReserved: text, systemReserved: text}
		if list, err := r.reserved(); err == nil {
			for name, q := range list {
				if q.Sign() < 0 {
					t.Errorf("%q reserves %s of %s", text, q.String(), name)
				}
			}
		}
		if labels, err := keyValues(text); err == nil {
			if _, own := labels[fleet.LabelLinkClass]; own || labels[""] != "" {
				t.Errorf("%q became %v", text, labels)
			}
		}
	})
}
