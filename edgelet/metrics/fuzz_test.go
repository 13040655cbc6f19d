package metrics

import (
	"io"
	"os"
	"path/filepath"
	"testing"
)

// /proc/self, whatever the program is called.
func FuzzProcess(f *testing.F) {
	f.Add([]byte("7 (edgelet) S 1 7 7 0 -1 4194560 1 0 0 0 10 20 0 0 20 0 9 0 1 2 3\n"), []byte("100 50 20\n"))
	f.Add([]byte("7 (a) b) S 1"), []byte("x"))
	proc := f.TempDir()
	if err := os.MkdirAll(filepath.Join(proc, "self", "fd"), 0o755); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, stat, statm []byte) {
		for name, raw := range map[string][]byte{"stat": stat, "statm": statm} {
			if err := os.WriteFile(filepath.Join(proc, "self", name), raw, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := Stream(io.Discard, func(p *Page) { process(p, proc) }); err != nil {
			t.Error(err)
		}
	})
}
