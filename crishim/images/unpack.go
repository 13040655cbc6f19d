package images

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// takeArtifact stores an image whose module is the bytes of a layer. The blob
// itself is the module's file, unless the layer is compressed.
func (s *Store) takeArtifact(ctx context.Context, t *transfer, img *Image, layer ocispec.Descriptor) error {
	ref := t.ref
	if err := s.checkSpace(ctx, t, []ocispec.Descriptor{layer}, 1); err != nil {
		return err
	}
	if err := t.fetch(ctx, layer); err != nil {
		return err
	}
	img.Module = Module{Name: moduleName(ref, layer), Digest: layer.Digest, Size: layer.Size, Path: blobPath(layer.Digest)}
	ra, err := s.content.ReaderAt(ctx, layer)
	if err != nil {
		return fmt.Errorf("image %q: %w", ref, err)
	}
	defer ra.Close()
	head := make([]byte, 8)
	n, _ := ra.ReadAt(head, 0)
	if isWasmBytes(head[:n]) || !isCompressed(head[:n]) {
		// Not even the magic: the check says what is wrong with it when a
		// container is created, with the module's name.
		img.Blobs = append(img.Blobs, layer.Digest)
		img.Size = layer.Size
		return nil
	}
	r, err := decompress(content.NewReader(ra))
	if err != nil {
		return fmt.Errorf("image %q: layer %s: %w: %w", ref, layer.Digest, ErrInvalidImage, err)
	}
	defer r.Close()
	err = s.storeModule(img, r)
	if err != nil {
		return fmt.Errorf("image %q: layer %s: %w", ref, layer.Digest, err)
	}
	return nil
}

// storeModule copies a module into modules/ under its digest.
func (s *Store) storeModule(img *Image, r io.Reader) error {
	tmp, err := os.CreateTemp(s.path("tmp"), "module-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	h := digest.Canonical.Digester()
	n, err := io.Copy(io.MultiWriter(tmp, h.Hash()), io.LimitReader(r, s.opts.MaxUnpacked+1))
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrInvalidImage, err)
	case n > s.opts.MaxUnpacked:
		return fmt.Errorf("%w: it unpacks to more than %d bytes", ErrInvalidImage, s.opts.MaxUnpacked)
	}
	if err := errors.Join(tmp.Chmod(0o444), tmp.Sync()); err != nil {
		return err
	}
	img.Module.Digest, img.Module.Size = h.Digest(), n
	img.Module.Path = filepath.Join("modules", h.Digest().Encoded()+".wasm")
	img.Size = n
	if err := os.Rename(tmp.Name(), s.path(img.Module.Path)); err != nil {
		return err
	}
	return syncDir(s.path("modules"))
}

// takeCompat unpacks an image's layers into a root folder; the module is the
// file at its entrypoint. The layers' blobs aren't kept: flash is small.
func (s *Store) takeCompat(ctx context.Context, t *transfer, img *Image, m *ocispec.Manifest, cfg *imageConfig) error {
	ref := t.ref
	if len(m.Layers) != len(cfg.RootFS.DiffIDs) && len(cfg.RootFS.DiffIDs) > 0 {
		return fmt.Errorf("image %q: %w: %d layers, %d diff IDs", ref, ErrInvalidImage, len(m.Layers), len(cfg.RootFS.DiffIDs))
	}
	rel := filepath.Join("rootfs", img.ID.Encoded())
	root := s.path(rel)
	if _, err := os.Stat(root); errors.Is(err, fs.ErrNotExist) {
		if err := s.checkSpace(ctx, t, m.Layers, 3); err != nil { // the blob, and twice of it unpacked
			return err
		}
		tmp, err := os.MkdirTemp(s.path("tmp"), "rootfs-*")
		if err != nil {
			return fmt.Errorf("image %q: %w", ref, err)
		}
		defer os.RemoveAll(tmp)
		if err := os.Chmod(tmp, 0o755); err != nil {
			return fmt.Errorf("image %q: %w", ref, err)
		}
		u := &unpacker{bytes: s.opts.MaxUnpacked, files: s.opts.MaxUnpackedFiles, chown: os.Geteuid() == 0}
		for i, layer := range m.Layers {
			if !images.IsLayerType(layer.MediaType) {
				return fmt.Errorf("image %q: %w: layer %d has media type %q", ref, ErrInvalidImage, i, layer.MediaType)
			}
			if err := t.fetch(ctx, layer); err != nil {
				return err
			}
			var want digest.Digest
			if len(cfg.RootFS.DiffIDs) > 0 {
				want = cfg.RootFS.DiffIDs[i]
			}
			if err := s.unpackLayer(ctx, u, tmp, layer, want); err != nil {
				return fmt.Errorf("image %q: layer %d (%s): %w", ref, i, layer.Digest, err)
			}
		}
		if err := syncFS(tmp); err != nil {
			return fmt.Errorf("image %q: %w", ref, err)
		}
		// Another pull of the same image, by another name, may have been faster.
		if err := os.Rename(tmp, root); err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("image %q: %w", ref, err)
		}
		if err := syncDir(s.path("rootfs")); err != nil {
			return fmt.Errorf("image %q: %w", ref, err)
		}
	}
	img.Rootfs = rel
	module, err := findModule(root, cfg.entrypoint(), cfg.Config.WorkingDir)
	if err == nil {
		img.Module, err = moduleFile(root, rel, module)
	}
	if err != nil {
		s.sweepWhenIdle() // another pull may have come to the same folder
		return fmt.Errorf("image %q: %w", ref, err)
	}
	img.Size = dirSize(root)
	return nil
}

// findModule returns the path, relative to root, of the file an image starts.
func findModule(root, entrypoint, workingDir string) (string, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return "", err
	}
	defer r.Close()
	if entrypoint == "" {
		matches, _ := fs.Glob(r.FS(), "*.wasm")
		if len(matches) == 1 {
			return matches[0], nil
		}
		return "", fmt.Errorf("%w: it has no entrypoint and %d files *.wasm at its top", ErrNotWasm, len(matches))
	}
	entrypoint, _, _ = strings.Cut(entrypoint, "#") // runwasi: path#function
	candidates := []string{entrypoint}
	if !path.IsAbs(entrypoint) {
		candidates = []string{path.Join(workingDir, entrypoint), entrypoint}
	}
	for _, c := range candidates {
		c = strings.TrimPrefix(path.Clean("/"+c), "/")
		f, err := r.Open(c)
		if err != nil {
			continue
		}
		head := make([]byte, 4)
		_, err = io.ReadFull(f, head)
		f.Close()
		if err == nil && isWasmBytes(head) {
			return c, nil
		}
		return "", fmt.Errorf("%w: its entrypoint %s begins with % x, a module with 00 61 73 6d", ErrNotWasm, entrypoint, head)
	}
	return "", fmt.Errorf("%w: its entrypoint %s is not a file of it", ErrNotWasm, entrypoint)
}

func moduleFile(root, rel, module string) (Module, error) {
	f, err := os.OpenInRoot(root, module)
	if err != nil {
		return Module{}, err
	}
	defer f.Close()
	h := digest.Canonical.Digester()
	n, err := io.Copy(h.Hash(), f)
	return Module{Path: filepath.Join(rel, module), Digest: h.Digest(), Size: n, Name: path.Base(module)}, err
}

func (s *Store) unpackLayer(ctx context.Context, u *unpacker, root string, layer ocispec.Descriptor, want digest.Digest) error {
	ra, err := s.content.ReaderAt(ctx, layer)
	if err != nil {
		return err
	}
	defer ra.Close()
	r, err := decompress(content.NewReader(ra))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidImage, err)
	}
	defer r.Close()
	h := digest.Canonical.Digester()
	t := io.TeeReader(io.LimitReader(r, u.bytes+1), h.Hash())
	if err := u.unpack(ctx, root, t); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, t); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidImage, err)
	}
	if want != "" && h.Digest() != want {
		return fmt.Errorf("%w: it unpacks to %s, its configuration says %s", ErrInvalidImage, h.Digest(), want)
	}
	return nil
}

func isCompressed(head []byte) bool {
	return strings.HasPrefix(string(head), "\x1f\x8b") || strings.HasPrefix(string(head), "\x28\xb5\x2f\xfd")
}

// decompress looks at the first bytes: media types of layers lie.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case strings.HasPrefix(string(head), "\x1f\x8b"):
		return gzip.NewReader(br)
	case strings.HasPrefix(string(head), "\x28\xb5\x2f\xfd"):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(32<<20))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(br), nil
}

func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

func dirSize(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				n += info.Size()
			}
		}
		return nil
	})
	return n
}

// unpacker applies layers to a root folder. All paths are resolved within the
// root by the kernel's rules (os.Root), so nothing of a layer lands outside.
// Devices, sockets and set-id bits are left out.
type unpacker struct {
	bytes int64 // that may still be written
	files int   // that may still be made
	chown bool
}

const (
	whiteout       = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

func (u *unpacker) unpack(ctx context.Context, dir string, r io.Reader) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	tr := tar.NewReader(r)
	made := map[string]bool{} // by this layer: an opaque marker spares them
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: tar: %w", ErrInvalidImage, err)
		}
		name := strings.TrimPrefix(path.Clean("/"+hdr.Name), "/")
		if name == "" {
			continue
		}
		if u.files--; u.files < 0 {
			return fmt.Errorf("%w: too many files", ErrInvalidImage)
		}
		if err := u.entry(root, tr, hdr, name, made); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrInvalidImage, name, err)
		}
	}
}

func (u *unpacker) entry(root *os.Root, tr *tar.Reader, hdr *tar.Header, name string, made map[string]bool) error {
	dir, base := path.Split(name)
	dir = path.Clean(dir)
	if base == whiteoutOpaque {
		return clearDir(root, dir, made)
	}
	if strings.HasPrefix(base, whiteout) {
		return root.RemoveAll(path.Join(dir, strings.TrimPrefix(base, whiteout)))
	}
	if dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	mode := fs.FileMode(hdr.Mode).Perm()
	if hdr.Typeflag != tar.TypeDir {
		if err := root.RemoveAll(name); err != nil {
			return err
		}
	}
	made[name] = true
	switch hdr.Typeflag {
	case tar.TypeDir:
		fi, err := root.Lstat(name)
		if err == nil && !fi.IsDir() {
			err = root.RemoveAll(name)
			if err != nil {
				return err
			}
		}
		if err := root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		if err := root.Chmod(name, mode|0o700); err != nil {
			return err
		}
	case tar.TypeReg:
		if u.bytes -= hdr.Size; u.bytes < 0 {
			return errors.New("the image unpacks to more than is allowed")
		}
		f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, tr)
		if err = errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
			return err
		}
	case tar.TypeSymlink:
		target := hdr.Linkname
		if path.IsAbs(target) {
			// Guests and os.Root resolve beneath the root only: the same file
			// by a relative path.
			rel, err := filepath.Rel("/"+dir, path.Clean(target))
			if err != nil {
				return err
			}
			target = rel
		}
		if err := root.Symlink(target, name); err != nil {
			return err
		}
	case tar.TypeLink:
		old := strings.TrimPrefix(path.Clean("/"+hdr.Linkname), "/")
		return root.Link(old, name)
	default:
		return nil // devices, FIFOs
	}
	if u.chown {
		return root.Lchown(name, hdr.Uid, hdr.Gid)
	}
	return nil
}

// clearDir removes what lower layers put into a directory.
func clearDir(root *os.Root, dir string, made map[string]bool) error {
	d, err := root.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	if err != nil {
		return err
	}
	for _, n := range names {
		if p := path.Join(dir, n); !made[p] {
			if err := root.RemoveAll(p); err != nil {
				return err
			}
		}
	}
	return nil
}
