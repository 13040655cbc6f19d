package node

import (
	"strings"
	"testing"
	"testing/fstest"
)

// The kernel's and the distribution's files, as another kernel may write them.
func FuzzFacts(f *testing.F) {
	f.Add("MemTotal: 1024 kB\nMemAvailable: 9223372036854775807 kB\n", "PRETTY_NAME=\"A\"\n")
	f.Add("MemTotal: -1 kB\nSwapTotal:\n", "PRETTY_NAME=")
	f.Fuzz(func(t *testing.T, memory, release string) {
		root := fstest.MapFS{"proc/meminfo": {Data: []byte(memory)}, "etc/os-release": {Data: []byte(release)}}
		for name, bytes := range meminfo(root) {
			if bytes < 0 {
				t.Errorf("%s is %d", name, bytes)
			}
		}
		if name := osRelease(root); strings.Contains(name, "\n") {
			t.Errorf("%q", name)
		}
		firstLine(root, "proc/meminfo")
	})
}
