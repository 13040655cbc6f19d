package identity

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// Both files of an identity, as a torn card or a foreign grant leaves them: what is
// taken is for this node's key, and what isn't says so.
func FuzzIdentityFiles(f *testing.F) {
	dir := f.TempDir()
	a := newAuthority(f)
	a.member(dir, 0, 365)
	grant, keys := filepath.Join(dir, "identity.json"), filepath.Join(dir, "keys.pem")
	read := func(name string) []byte {
		raw, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		return raw
	}
	goodGrant, goodKeys := read(grant), read(keys)
	f.Add(goodGrant, goodKeys)
	f.Add(goodGrant[:len(goodGrant)/2], goodKeys)
	f.Add(goodGrant, goodKeys[:len(goodKeys)-40])
	f.Add([]byte(`{"version":1,"node":"pi-1","chain":["AA=="],"roots":[""]}`), goodKeys)
	f.Add([]byte(`{"version":1}`), append(goodKeys, goodKeys...))
	f.Fuzz(func(t *testing.T, g, k []byte) {
		for name, raw := range map[string][]byte{grant: g, keys: k} {
			if err := os.WriteFile(name, raw, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		id, err := Load(Options{Dir: dir})
		switch {
		case err != nil && errors.Is(err, ErrNotJoined):
			t.Errorf("files that are there are none: %v", err)
		case err == nil && (id.NodeName == "" || id.SigningKey == nil || id.SealingKey == nil):
			t.Errorf("%+v", id)
		}
	})
}
