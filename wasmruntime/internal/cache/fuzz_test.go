package cache

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// An index of native code, and the digest that leads to it: nothing but the entry's
// own files, whole, is ever taken.
func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"files":{"module":{"size":4,"sha256":"x"}}}`), "sha256:"+strings.Repeat("0", 64))
	f.Add([]byte(`{"files":{"`+ModuleFile+`":{"size":-1,"hole":[9223372036854775807,-1]}}}`), "sha256:../..")
	f.Add([]byte(`{"files":{"`+ModuleFile+`":{},"../outside":{}}}`), "md5:")
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ModuleFile), []byte("\x00asm"), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte, digest string) {
		if key, err := Key(digest, Engine{}); err == nil && (!filepath.IsLocal(key) || strings.Contains(key, "/")) {
			t.Errorf("%q is kept as %q", digest, key)
		}
		if err := os.WriteFile(filepath.Join(dir, IndexFile), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		index, err := Read(dir)
		if err != nil {
			return
		}
		if err := check(dir, index); err == nil {
			for name, want := range index.Files {
				have, err := sum(filepath.Join(dir, name), want.Hole)
				if err != nil || !filepath.IsLocal(name) || have.Size != want.Size || have.SHA256 != want.SHA256 {
					t.Errorf("%q is %+v, want %+v, %v", name, have, want, err)
				}
			}
		}
	})
}
