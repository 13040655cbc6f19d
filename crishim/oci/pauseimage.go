package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"runtime"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// PauseImage is what a private containerd makes its sandboxes of. No registry
// has it: it is made of a program in this package.
const PauseImage = "coracle.dev/pause:1"

//go:generate pause/build.sh

//go:embed pause/pause-*
var pausePrograms embed.FS

// memoryImage is an image in memory.
type memoryImage struct {
	desc  ocispec.Descriptor
	blobs map[digest.Digest][]byte
}

// PauseProgram is the static program of the pause image for an architecture.
func PauseProgram(arch string) ([]byte, error) {
	program, err := pausePrograms.ReadFile("pause/pause-" + arch)
	if err != nil {
		return nil, fmt.Errorf("there is no pause program for %s: name a sandbox image", arch)
	}
	return program, nil
}

// pauseImage makes the image for an architecture.
func pauseImage(arch string) (*memoryImage, error) {
	program, err := PauseProgram(arch)
	if err != nil {
		return nil, err
	}
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	err = tw.WriteHeader(&tar.Header{Name: "pause", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program)), Format: tar.FormatUSTAR})
	if err == nil {
		_, err = tw.Write(program)
	}
	if err == nil {
		err = tw.Close()
	}
	if err != nil {
		return nil, err
	}
	img := &memoryImage{blobs: map[digest.Digest][]byte{}}
	layerDesc := img.add(ocispec.MediaTypeImageLayer, layer.Bytes())
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: arch},
		Config:   ocispec.ImageConfig{User: "65535:65535", Entrypoint: []string{"/pause"}},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layerDesc.Digest}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: img.add(ocispec.MediaTypeImageConfig, config), Layers: []ocispec.Descriptor{layerDesc},
	})
	if err != nil {
		return nil, err
	}
	img.desc = img.add(ocispec.MediaTypeImageManifest, manifest)
	return img, nil
}

func (m *memoryImage) add(mediaType string, data []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	m.blobs[d.Digest] = data
	return d
}

// ReaderAt makes it a content.Provider.
func (m *memoryImage) ReaderAt(_ context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	b, ok := m.blobs[d.Digest]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, errdefs.ErrNotFound)
	}
	return memoryReader{bytes.NewReader(b)}, nil
}

type memoryReader struct{ *bytes.Reader }

func (memoryReader) Close() error { return nil }

var _ io.ReaderAt = memoryReader{}

// ImportPause puts the pause image for this machine into containerd, pinned,
// unless it is there.
func (c *Client) ImportPause(ctx context.Context) error {
	if resp, err := c.Images.ImageStatus(ctx, imageStatusRequest(PauseImage)); err == nil && resp.GetImage() != nil {
		return nil
	}
	img, err := pauseImage(runtime.GOARCH)
	if err != nil {
		return err
	}
	return c.importImage(ctx, PauseImage, img.desc, img, true)
}
