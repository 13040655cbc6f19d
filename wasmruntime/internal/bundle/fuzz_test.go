package bundle

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// Files of a bundle that a power cut tore, or that a guest's runner was killed
// writing: what isn't whole is none.
func FuzzFiles(f *testing.F) {
	f.Add([]byte("{\"pid\":1,\"startTime\":2}\n"))
	f.Add([]byte("{\"code\":1,\"reason\":\"Error\""))
	f.Add([]byte("null\n"))
	f.Add([]byte("{\"pid\":-1}\n"))
	f.Add([]byte("\x00\x00\x00\x01"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := os.WriteFile(filepath.Join(dir, "x"), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		whole := bytes.HasSuffix(raw, []byte("\n"))
		var s State
		if err := ReadJSON(dir, "x", &s); err == nil {
			if !whole {
				t.Errorf("%q was taken", raw)
			}
			if s.PID != os.Getpid() && s.PID != 1 { // else there may be such a process
				s.Gone()
			}
		}
		var e ExitStatus
		_ = ReadJSON(dir, "x", &e)
		var spec Spec
		if ReadJSON(dir, "x", &spec) == nil {
			_ = spec.ModuleName()
		}
		file, err := os.Open(filepath.Join(dir, "x"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := ReadLimit(int(file.Fd())); err == nil && len(raw) < 8 {
			t.Errorf("%q is a limit of memory", raw)
		}
	})
}
