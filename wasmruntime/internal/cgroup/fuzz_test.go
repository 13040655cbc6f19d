package cgroup

import (
	"os"
	"path/filepath"
	"testing"
)

// The kernel's files of a group.
func FuzzFiles(f *testing.F) {
	f.Add("oom_kill 3\n", "12345\n")
	f.Add("oom_kill\noom_kill -1", "max\n")
	file := filepath.Join(f.TempDir(), "x")
	f.Fuzz(func(t *testing.T, keyed, single string) {
		if err := os.WriteFile(file, []byte(keyed), 0o600); err != nil {
			t.Fatal(err)
		}
		field(file, "oom_kill")
		if err := os.WriteFile(file, []byte(single), 0o600); err != nil {
			t.Fatal(err)
		}
		number(file)
	})
}
