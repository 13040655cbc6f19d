package images

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/log"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// OCITarget takes OCI images out of an archive. crishim/oci implements it on
// containerd.
type OCITarget interface {
	// ImportImage copies the image behind desc from src and gives it a name.
	ImportImage(ctx context.Context, name string, desc ocispec.Descriptor, src content.Provider) error
}

// Import stores the images of an OCI or docker archive: Wasm ones here, others
// in oci, which may be nil (then they are refused by name). ref names the
// image of an archive that has one only; with an empty ref the archive's own
// names are taken. It returns the full names.
func (s *Store) Import(ctx context.Context, r io.Reader, ref string, oci OCITarget) ([]string, error) {
	res, err := s.flights.do(ctx, fmt.Sprintf("import %p", &r), func(ctx context.Context) (Result, error) {
		names, err := s.importArchive(log.WithLogger(ctx, s.quiet), r, ref, oci)
		return Result{Image: &Image{Refs: names}}, err
	})
	s.Collect()
	if err != nil {
		return nil, err
	}
	return res.Image.Refs, nil
}

func (s *Store) importArchive(ctx context.Context, r io.Reader, ref string, oci OCITarget) ([]string, error) {
	s.importing.Lock() // both would write the same ingests
	defer s.importing.Unlock()
	// What a killed import left half-written would be gone on with, whatever this
	// archive has under that name.
	s.abortArchive()
	t := s.beginTransfer(ref)
	rec := &recordingStore{Store: s.content, t: t}
	// Whatever came with the archive goes unless an image of the index has it.
	defer func() {
		t.end(context.WithoutCancel(ctx), t.held, nil)
		s.abortArchive()
	}()
	idxDesc, err := archive.ImportIndex(ctx, rec, r)
	if err != nil {
		return nil, fmt.Errorf("image archive: %w: %w", ErrInvalidImage, err)
	}
	var idx ocispec.Index
	t.get = func(ctx context.Context, desc ocispec.Descriptor) error {
		_, err := s.content.Info(ctx, desc.Digest)
		if err != nil {
			return fmt.Errorf("%w: the archive lacks %s %s", ErrInvalidImage, desc.MediaType, desc.Digest)
		}
		return nil
	}
	if err := s.readJSON(ctx, t, idxDesc, &idx); err != nil {
		return nil, fmt.Errorf("image archive: %w", err)
	}
	if len(idx.Manifests) == 0 {
		return nil, fmt.Errorf("image archive: %w: its index names no image", ErrInvalidImage)
	}
	if ref != "" && len(idx.Manifests) > 1 {
		// One image for several platforms, or several images?
		for _, d := range idx.Manifests {
			if d.Platform == nil || d.Annotations[images.AnnotationImageName] != "" {
				return nil, fmt.Errorf("image archive: it has %d images, which can't all be called %q: leave out the name", len(idx.Manifests), ref)
			}
		}
		chosen, err := choose(idx.Manifests, "")
		if err != nil {
			return nil, fmt.Errorf("image archive: %w", err)
		}
		idx.Manifests = []ocispec.Descriptor{chosen}
	}
	var names []string
	for _, desc := range idx.Manifests {
		name := ref
		if name == "" {
			name = archiveName(desc)
		}
		if name == "" {
			return names, fmt.Errorf("image archive: %s has no name in it: give one", desc.Digest)
		}
		named, err := reference.ParseDockerRef(name)
		if err != nil {
			return names, fmt.Errorf("image %q: %w: %w", name, ErrInvalidReference, err)
		}
		t.rename(named.String())
		res, err := s.take(ctx, t, named, desc, "")
		if err != nil {
			return names, err
		}
		if res.Kind == KindOCI {
			if oci == nil {
				return names, fmt.Errorf("image %q is an OCI image (%s), and there is no containerd to keep it: install containerd and start this program as root with --containerd", name, res.Why)
			}
			if err := oci.ImportImage(ctx, named.String(), desc, s.content); err != nil {
				return names, fmt.Errorf("image %q: %w", name, err)
			}
			if err := s.Disown(named.String()); err != nil {
				return names, err
			}
		}
		names = append(names, named.String())
	}
	return names, nil
}

// archiveName is what an archive calls an image: containerd's annotation, else
// OCI's if that is a whole name and not a tag only.
func archiveName(desc ocispec.Descriptor) string {
	if n := desc.Annotations[images.AnnotationImageName]; n != "" {
		return n
	}
	n := desc.Annotations[ocispec.AnnotationRefName]
	if named, err := reference.ParseNormalizedNamed(n); err == nil && !reference.IsNameOnly(named) {
		return n
	}
	return ""
}

// recordingStore has what is written held by a transfer.
type recordingStore struct {
	content.Store
	t *transfer
}

func (r *recordingStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := r.Store.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	return &recordingWriter{Writer: w, t: r.t}, nil
}

type recordingWriter struct {
	content.Writer
	t *transfer
}

func (w *recordingWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	w.t.hold(w.Digest())
	return w.Writer.Commit(ctx, size, expected, opts...)
}

// abortArchive removes what an import left half-written. The content store's own
// list fails at the first one that a kill left without its files.
func (s *Store) abortArchive() {
	refs, _ := filepath.Glob(s.path("content", "ingest", "*", "ref"))
	for _, file := range refs {
		if ref, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(ref), "tar-") {
			if err := os.RemoveAll(filepath.Dir(file)); err != nil {
				s.log.Warn("what an interrupted import left can't be removed", "dir", filepath.Dir(file), "err", err)
			}
		}
	}
}
