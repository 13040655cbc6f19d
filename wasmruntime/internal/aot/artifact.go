package aot

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coracle-edge/coracle/wasmruntime/internal/cache"
)

var (
	// ErrFormat is returned when a file isn't an artifact of this version, or is
	// damaged.
	ErrFormat = errors.New("not a compiled wasm module")
	// ErrUntrusted is returned when none of the trusted keys made the signature.
	ErrUntrusted = errors.New("signed by no key that is trusted here")
)

const magic = "coracle-wasm-aot 1\n"

// maxHeader bounds the line that describes an artifact; maxFiles what it lists.
const (
	maxHeader = 256 << 10
	maxFiles  = 64
	maxBytes  = 4 << 30
)

type header struct {
	Index cache.Index `json:"index"`
}

// Artifact is one whose description was read. It isn't trusted yet.
type Artifact struct {
	Index     cache.Index
	signed    []byte
	signature []byte
	body      *bufio.Reader
}

// Write makes an artifact of a cache entry that is whole.
func Write(w io.Writer, dir string, key ed25519.PrivateKey) error {
	index, err := cache.Read(dir)
	if err != nil {
		return err
	}
	line, err := json.Marshal(header{index})
	if err != nil {
		return err
	}
	signed := append([]byte(magic), append(line, '\n')...)
	if len(signed) > maxHeader {
		return fmt.Errorf("the description of %s has %d bytes, the limit is %d", dir, len(signed), maxHeader)
	}
	sig := base64.StdEncoding.EncodeToString(ed25519.Sign(key, signed))
	if _, err := w.Write(append(signed, sig+"\n"...)); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(index.Files)) {
		if err := copyFile(w, filepath.Join(dir, name), index.Files[name]); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(w io.Writer, path string, f cache.File) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	for _, part := range parts(f) {
		if n, err := io.Copy(w, io.NewSectionReader(in, part[0], part[1])); err != nil || n != part[1] {
			return fmt.Errorf("%s: %w", path, errors.Join(err, io.ErrUnexpectedEOF))
		}
	}
	return nil
}

// parts of a file that travel: begin and length.
func parts(f cache.File) [][2]int64 {
	return [][2]int64{{0, f.Hole[0]}, {f.Hole[1], f.Size - f.Hole[1]}}
}

// Read reads an artifact's description. Errors are ErrFormat.
func Read(r io.Reader) (*Artifact, error) {
	a := &Artifact{body: bufio.NewReader(r)}
	first, err := line(a.body, len(magic))
	if err != nil || string(first) != magic {
		return nil, fmt.Errorf("%w: it doesn't begin with %q", ErrFormat, strings.TrimSpace(magic))
	}
	second, err := line(a.body, maxHeader)
	if err != nil {
		return nil, fmt.Errorf("%w: description: %w", ErrFormat, err)
	}
	third, err := line(a.body, 128)
	if err != nil {
		return nil, fmt.Errorf("%w: signature: %w", ErrFormat, err)
	}
	a.signed = append([]byte(magic), second...)
	if a.signature, err = base64.StdEncoding.DecodeString(string(bytes.TrimSuffix(third, []byte("\n")))); err != nil || len(a.signature) != ed25519.SignatureSize {
		return nil, fmt.Errorf("%w: the signature isn't one", ErrFormat)
	}
	var h header
	if err := json.Unmarshal(second, &h); err != nil {
		return nil, fmt.Errorf("%w: description: %w", ErrFormat, err)
	}
	a.Index = h.Index
	return a, check(a.Index)
}

// check that what the description says of files can be.
func check(index cache.Index) error {
	if len(index.Files) > maxFiles {
		return fmt.Errorf("%w: it lists %d files", ErrFormat, len(index.Files))
	}
	var sum int64
	for name, f := range index.Files {
		if !filepath.IsLocal(name) || filepath.Clean(name) != name || strings.Count(name, "/") > 1 || name == cache.IndexFile {
			return fmt.Errorf("%w: it lists a file %q", ErrFormat, name)
		}
		if f.Size < 0 || f.Size > maxBytes || f.Hole[0] < 0 || f.Hole[1] < f.Hole[0] || f.Hole[1] > f.Size {
			return fmt.Errorf("%w: %s has %d bytes and a hole from %d to %d", ErrFormat, name, f.Size, f.Hole[0], f.Hole[1])
		}
		if sum += f.Size; sum > maxBytes {
			return fmt.Errorf("%w: more than %d bytes", ErrFormat, int64(maxBytes))
		}
	}
	return nil
}

func line(r *bufio.Reader, most int) ([]byte, error) {
	var out []byte
	for {
		part, err := r.ReadSlice('\n')
		out = append(out, part...)
		switch {
		case len(out) > most:
			return nil, fmt.Errorf("more than %d bytes", most)
		case err == nil:
			return out, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, fmt.Errorf("%w after %d bytes", err, len(out))
		}
	}
}

// Trusted gives the name of the key that signed, or ErrUntrusted.
func (a *Artifact) Trusted(keys map[string]ed25519.PublicKey) (string, error) {
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		if ed25519.Verify(keys[name], a.signed, a.signature) {
			return name, nil
		}
	}
	return "", ErrUntrusted
}

// Extract writes the files below dir, holes as holes. What they hold is for
// cache.Verify to say; call it for a trusted artifact only, once.
func (a *Artifact) Extract(dir string) error {
	for _, name := range slices.Sorted(maps.Keys(a.Index.Files)) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := a.extract(path, a.Index.Files[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (a *Artifact) extract(path string, f cache.File) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := out.Truncate(f.Size); err != nil {
		return err
	}
	for _, part := range parts(f) {
		n, err := io.Copy(io.NewOffsetWriter(out, part[0]), io.LimitReader(a.body, part[1]))
		if err != nil {
			return err
		}
		if n != part[1] {
			return fmt.Errorf("%w: it ends %d bytes early", ErrFormat, part[1]-n)
		}
	}
	return errors.Join(out.Sync(), out.Close())
}
