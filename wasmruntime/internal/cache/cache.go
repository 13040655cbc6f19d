package cache

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Format is raised whenever what an entry holds changes its meaning.
const Format = 2

const (
	// IndexFile lists an entry's files.
	IndexFile = "index.json"
	// ModuleFile is the module that the engine is given.
	ModuleFile = "module.wasm"
	// CodeFile is native code that replicas share, if the engine's own file has a
	// hole in its place.
	CodeFile = "code"
)

// ErrCorrupt is returned by Verify when an entry isn't what its index says.
var ErrCorrupt = errors.New("compiled module is corrupt")

// Engine is what compiled code depends on besides the module.
type Engine struct {
	// Name is compiler or interpreter.
	Name string `json:"engine"`
	// Version of wazero, Arch and CPU features.
	Version string `json:"version"`
	Arch    string `json:"arch"`
	CPU     string `json:"cpu"`
	Format  int    `json:"format"`
}

// Index is an entry's table of contents.
type Index struct {
	Engine Engine `json:"engine"`
	// Digest of the module as it was given.
	Digest string `json:"digest"`
	// Files by their path in the entry.
	Files map[string]File `json:"files"`
	// Imports are the names of host functions that the module uses, those of
	// the socket extension with a space and their signature.
	Imports []string `json:"imports"`
	// Go is true for modules of the Go toolchain.
	Go bool `json:"go,omitempty"`
	// MemoryPages is the initial memory.
	MemoryPages uint32 `json:"memoryPages"`
}

// File is one file of an entry.
type File struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	// Hole is a range, begin and end, that SHA256 leaves out: code is laid over
	// what is read there, so that nothing is ever made of its bytes.
	Hole [2]int64 `json:"hole,omitzero"`
}

// Key is the name of an entry.
func Key(digest string, e Engine) (string, error) {
	alg, sum, ok := strings.Cut(digest, ":")
	if !ok || alg != "sha256" || len(sum) != 64 || strings.Trim(sum, "0123456789abcdef") != "" {
		return "", fmt.Errorf("module digest %q isn't sha256:<64 hexadecimal digits>", digest)
	}
	b, err := json.Marshal(e)
	if err != nil {
		return "", err
	}
	of := sha256.Sum256(b)
	return sum + "-" + hex.EncodeToString(of[:8]), nil
}

// Seal hashes the files of a new entry, writes its index, makes everything
// read-only and syncs it. No file but the expected kinds may be there: the
// directory was written by the unprivileged compiler.
func Seal(dir string, index Index) error {
	index.Files = map[string]File{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			return nil
		case !d.Type().IsRegular():
			return fmt.Errorf("%w: %s is no regular file", ErrCorrupt, rel)
		case rel == IndexFile:
			return fmt.Errorf("%w: the compiler left an index of its own", ErrCorrupt)
		}
		f, err := seal(path)
		if err != nil {
			return err
		}
		index.Files[rel] = f
		return os.Chmod(path, 0o444)
	})
	if err != nil {
		return err
	}
	if _, ok := index.Files[ModuleFile]; !ok {
		return fmt.Errorf("%w: the compiler left no %s", ErrCorrupt, ModuleFile)
	}
	return finish(dir, index)
}

// SealAs is Seal for files whose sums are known: they must be those of index, and
// nothing else may be there.
func SealAs(dir string, index Index) error {
	found := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		found++
		return os.Chmod(path, 0o444)
	})
	if err != nil {
		return err
	}
	if found != len(index.Files) {
		return fmt.Errorf("%w: %d files, its index lists %d", ErrCorrupt, found, len(index.Files))
	}
	if err := check(dir, index); err != nil {
		return err
	}
	return finish(dir, index)
}

// finish writes the index and freezes the entry.
func finish(dir string, index Index) error {
	b, err := json.Marshal(index)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, IndexFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close(), freeze(dir))
}

// freeze takes the right to write from all directories of the entry, so that
// no guest that runs as their owner can add a file.
func freeze(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return os.Chmod(path, 0o555)
	})
}

// Remove removes an entry, frozen or not.
func Remove(dir string) error {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// Read reads an entry's index without looking at the files.
func Read(dir string) (Index, error) {
	var index Index
	b, err := os.ReadFile(filepath.Join(dir, IndexFile))
	if err != nil {
		return index, err
	}
	if err := json.Unmarshal(b, &index); err != nil {
		return index, fmt.Errorf("%w: %s: %w", ErrCorrupt, filepath.Join(dir, IndexFile), err)
	}
	return index, nil
}

// Verify holds an entry against its index, every byte of it.
func Verify(dir string, e Engine) (Index, error) {
	index, err := Read(dir)
	if err != nil {
		return index, err
	}
	if index.Engine != e {
		return index, fmt.Errorf("%w: %s is for %v, this is %v", ErrCorrupt, dir, index.Engine, e)
	}
	return index, check(dir, index)
}

// check holds an entry's files against an index.
func check(dir string, index Index) error {
	if _, ok := index.Files[ModuleFile]; !ok {
		return fmt.Errorf("%w: %s lists no module", ErrCorrupt, dir)
	}
	for name, want := range index.Files {
		if !filepath.IsLocal(name) {
			return fmt.Errorf("%w: %s lists %q", ErrCorrupt, dir, name)
		}
		have, err := sum(filepath.Join(dir, name), want.Hole)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		if have != want {
			return fmt.Errorf("%w: %s has %d bytes of digest %.12s, its index says %d of %.12s",
				ErrCorrupt, filepath.Join(dir, name), have.Size, have.SHA256, want.Size, want.SHA256)
		}
	}
	return nil
}

// seal syncs a file and sums it. The hole of the largest kind of file, the engine's,
// is found as the file system tells it; where it tells none there is none.
func seal(path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return File{}, err
	}
	var hole [2]int64
	if _, err := os.Stat(filepath.Join(filepath.Dir(filepath.Dir(path)), CodeFile)); err == nil {
		hole = findHole(f)
	}
	return sum(path, hole)
}

func findHole(f *os.File) (hole [2]int64) {
	begin, err := f.Seek(0, unix.SEEK_HOLE)
	if err != nil {
		return hole
	}
	end, err := f.Seek(begin, unix.SEEK_DATA)
	if err != nil || end <= begin { // at the end of the file: no hole
		return hole
	}
	return [2]int64{begin, end}
}

// sum of a file without its hole.
func sum(path string, hole [2]int64) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	if hole[0] < 0 || hole[1] < hole[0] || hole[1] > st.Size() {
		return File{}, fmt.Errorf("%s has %d bytes, and a hole from %d to %d", path, st.Size(), hole[0], hole[1])
	}
	h := sha256.New()
	n, err := io.Copy(h, io.NewSectionReader(f, 0, hole[0]))
	if err == nil {
		var rest int64
		rest, err = io.Copy(h, io.NewSectionReader(f, hole[1], st.Size()-hole[1]))
		n += rest + hole[1] - hole[0]
	}
	return File{Size: n, SHA256: hex.EncodeToString(h.Sum(nil)), Hole: hole}, err
}

// DigestFile is "sha256:<hex>" of a file.
func DigestFile(path string) (string, error) {
	f, err := sum(path, [2]int64{})
	return "sha256:" + f.SHA256, err
}
