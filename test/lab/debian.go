package lab

import (
	"debug/elf"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// Packages are unpacked Debian packages, which images are made of.
type Packages struct {
	root string            // where they are unpacked
	at   map[string]string // base name to path below root
}

// Unpacked finds the packages that `test/critest/packages.sh DIR` has downloaded
// and unpacked. Tests can't: they have no way out.
func Unpacked(t testing.TB, dir string) *Packages {
	t.Helper()
	p := &Packages{root: filepath.Join(dir, "root"), at: map[string]string{}}
	err := filepath.WalkDir(p.root, func(file string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			p.at[d.Name()], err = filepath.Rel(p.root, file)
		}
		return err
	})
	if err != nil {
		t.Fatalf("Debian packages: %v (test/critest/packages.sh %s fetches them)", err, dir)
	}
	return p
}

// Path of a file of the packages on this machine.
func (p *Packages) Path(file string) string { return filepath.Join(p.root, file) }

// Programs returns programs of the packages, by their paths in them, and the
// libraries that they load.
func (p *Packages) Programs(t testing.TB, paths ...string) []File {
	t.Helper()
	var files []File
	seen := map[string]bool{}
	var add func(at, as string)
	add = func(at, as string) {
		if seen[as] {
			return
		}
		seen[as] = true
		data := p.read(t, at)
		files = append(files, File{Path: as, Mode: 0o755, Data: data})
		obj, err := elf.Open(filepath.Join(p.root, p.resolve(t, at)))
		if err != nil {
			t.Fatal(err)
		}
		defer obj.Close()
		libs, err := obj.ImportedLibraries()
		if err != nil {
			t.Fatal(err)
		}
		for _, lib := range libs {
			file, ok := p.at[lib]
			if !ok {
				t.Fatalf("%s needs %s, which no downloaded package has", at, lib)
			}
			add(file, path.Join(path.Dir(file), lib))
		}
		if s := obj.Section(".interp"); s != nil {
			raw, err := s.Data()
			if err != nil {
				t.Fatal(err)
			}
			interp := strings.TrimRight(string(raw), "\x00")
			add(p.at[path.Base(interp)], strings.TrimPrefix(interp, "/"))
		}
	}
	for _, at := range paths {
		add(at, at)
	}
	return files
}

func (p *Packages) read(t testing.TB, at string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join(p.root, p.resolve(t, at)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// resolve follows links within the packages, absolute ones too.
func (p *Packages) resolve(t testing.TB, at string) string {
	t.Helper()
	for range 8 {
		to, err := os.Readlink(filepath.Join(p.root, at))
		if err != nil {
			return at
		}
		if path.IsAbs(to) {
			at = strings.TrimPrefix(path.Clean(to), "/")
		} else {
			at = path.Join(path.Dir(at), to)
		}
	}
	t.Fatalf("%s: a loop of links", at)
	return ""
}
