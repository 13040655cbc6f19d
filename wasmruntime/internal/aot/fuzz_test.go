package aot

import (
	"os"
	"path/filepath"
	"testing"
)

// A file in the folder of trusted keys is an Ed25519 key or named as none, and takes
// no other one away.
func FuzzKeys(f *testing.F) {
	private, public, err := Generate()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(public)
	f.Add(private)
	f.Add(public[:len(public)/2])
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"))
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "good.pem"), public, 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		file := filepath.Join(dir, "x.pem")
		if err := os.WriteFile(file, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		keys, err := Trusted(dir)
		if len(keys["good.pem"]) == 0 {
			t.Errorf("the good key is gone: %v", err)
		}
		if k, ok := keys["x.pem"]; ok == (err != nil) || ok && len(k) != 32 {
			t.Errorf("%q is the key %x, %v", raw, k, err)
		}
		_, _ = Private(file)
	})
}
