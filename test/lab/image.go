package lab

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image in memory. The last blob is its manifest or index; each
// blob comes after those that it names.
type Image struct{ Blobs []Blob }

// Blob is a part of an image.
type Blob struct {
	Desc ocispec.Descriptor
	Data []byte
}

// Desc is the image's own descriptor.
func (i *Image) Desc() ocispec.Descriptor { return i.Blobs[len(i.Blobs)-1].Desc }

func (i *Image) add(mediaType string, data []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	i.Blobs = append(i.Blobs, Blob{d, data})
	return d
}

func (i *Image) addJSON(mediaType string, v any) ocispec.Descriptor {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err) // only programmer's structs come here
	}
	return i.add(mediaType, raw)
}

func isManifest(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || mediaType == ocispec.MediaTypeImageIndex
}

func (i *Image) manifest(config ocispec.Descriptor, annotations map[string]string, layers ...ocispec.Descriptor) *Image {
	i.addJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: layers, Annotations: annotations,
	})
	return i
}

// CNCF is the artifact of the CNCF Wasm working group.
func CNCF(module []byte) *Image {
	i := &Image{}
	layer := i.add("application/wasm", module)
	cfg := i.addJSON("application/vnd.wasm.config.v0+json", map[string]any{
		"created": "2024-01-01T00:00:00Z", "architecture": "wasm", "os": "wasip1", "layerDigests": []digest.Digest{layer.Digest},
	})
	return i.manifest(cfg, nil, layer)
}

// WasmToOCI is what wasm-to-oci and Krustlet push; its configuration is {}.
func WasmToOCI(module []byte) *Image {
	i := &Image{}
	layer := i.add("application/vnd.wasm.content.layer.v1+wasm", module)
	layer.Annotations = map[string]string{ocispec.AnnotationTitle: "probe.wasm"}
	return i.manifest(i.add("application/vnd.wasm.config.v1+json", []byte("{}")), nil, layer)
}

// Solo is the style of solo.io and Istio.
func Solo(module []byte) *Image {
	i := &Image{}
	layer := i.add("application/vnd.module.wasm.content.layer.v1+wasm", module)
	return i.manifest(i.addJSON("application/vnd.module.wasm.config.v1+json", map[string]any{"name": "probe"}), nil, layer)
}

// Runwasi is what runwasi's older tools push: an OCI configuration of
// architecture wasm, and a component layer type with a core module in it.
func Runwasi(module []byte) *Image {
	i := &Image{}
	layer := i.add("application/vnd.bytecodealliance.wasm.component.layer.v0+wasm", module)
	cfg := i.addJSON(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{OS: "wasip1", Architecture: "wasm"},
		Config:   ocispec.ImageConfig{Entrypoint: []string{"/probe.wasm"}},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
	})
	return i.manifest(cfg, nil, layer)
}

// File of a root file system.
type File struct {
	Path string
	Mode int64
	Data []byte
	Link string // symbolic, if set
	Hard string // hard link, if set
	Type byte   // of tar; 0: by the other fields
	UID  int
	GID  int
}

// TarGz packs files, without entries for their folders.
func TarGz(files []File) (packed, plain []byte) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.Path, Mode: f.Mode, Size: int64(len(f.Data)), Typeflag: tar.TypeReg, Uid: f.UID, Gid: f.GID}
		switch {
		case f.Type != 0:
			h.Typeflag, h.Size = f.Type, 0
		case f.Link != "":
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, f.Link, 0
		case f.Hard != "":
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, f.Hard, 0
		}
		if err := tw.WriteHeader(h); err != nil {
			panic(err)
		}
		if h.Size > 0 {
			_, _ = tw.Write(f.Data)
		}
	}
	_ = tw.Close()
	var z bytes.Buffer
	zw := gzip.NewWriter(&z)
	_, _ = zw.Write(buf.Bytes())
	_ = zw.Close()
	return z.Bytes(), buf.Bytes()
}

// Compat is an ordinary image with a module at its entrypoint. With an
// annotation "" it is known by its bytes alone.
func Compat(module []byte, annotation string, more ...File) *Image {
	files := append([]File{{Path: "probe.wasm", Mode: 0o755, Data: module}}, more...)
	var annotations map[string]string
	if annotation != "" {
		annotations = map[string]string{"module.wasm.image/variant": annotation}
	}
	return OCI(ocispec.ImageConfig{Entrypoint: []string{"/probe.wasm"}, Env: []string{"FROM_IMAGE=yes"}}, annotations, files)
}

// OCI is an ordinary image of this machine's architecture with one layer per
// list of files.
func OCI(cfg ocispec.ImageConfig, annotations map[string]string, layers ...[]File) *Image {
	return OCIFor(runtime.GOARCH, cfg, annotations, layers...)
}

// OCIFor is one of another architecture.
func OCIFor(arch string, cfg ocispec.ImageConfig, annotations map[string]string, layers ...[]File) *Image {
	i := &Image{}
	conf := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: arch}, Config: cfg, RootFS: ocispec.RootFS{Type: "layers"}}
	var descs []ocispec.Descriptor
	for _, files := range layers {
		packed, plain := TarGz(files)
		descs = append(descs, i.add(ocispec.MediaTypeImageLayerGzip, packed))
		conf.RootFS.DiffIDs = append(conf.RootFS.DiffIDs, digest.FromBytes(plain))
	}
	return i.manifest(i.addJSON(ocispec.MediaTypeImageConfig, conf), annotations, descs...)
}

// Busybox is Debian's static busybox with links for its applets.
func Busybox(t testing.TB) *Image {
	t.Helper()
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs busybox-static: ", err)
	}
	files := []File{
		{Path: "bin/busybox", Mode: 0o755, Data: data},
		{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")},
		{Path: "tmp/", Mode: 0o1777, Type: tar.TypeDir},
	}
	for applet := range strings.FieldsSeq("sh sleep cat echo ls env wget nc httpd id hostname true false ps kill touch mkdir head tail yes ip tar stty") {
		files = append(files, File{Path: "bin/" + applet, Mode: 0o755, Hard: "bin/busybox"})
	}
	return OCI(ocispec.ImageConfig{Entrypoint: []string{"/bin/sh"}, Env: []string{"PATH=/bin"}}, nil, files)
}

// Index puts images for several platforms under one name.
func Index(entries map[string]*Image) *Image {
	out := &Image{}
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for platform, img := range entries {
		out.Blobs = append(out.Blobs, img.Blobs...)
		os, arch, _ := strings.Cut(platform, "/")
		d := img.Desc()
		d.Platform = &ocispec.Platform{OS: os, Architecture: arch}
		idx.Manifests = append(idx.Manifests, d)
	}
	out.addJSON(ocispec.MediaTypeImageIndex, idx)
	return out
}

// Archive packs an image as an OCI archive with a name.
func Archive(img *Image, name string) []byte {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	put := func(name string, data []byte) {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
			panic(err)
		}
		_, _ = tw.Write(data)
	}
	put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	seen := map[digest.Digest]bool{}
	for _, b := range img.Blobs {
		if !seen[b.Desc.Digest] {
			put(fmt.Sprintf("blobs/sha256/%s", b.Desc.Digest.Encoded()), b.Data)
		}
		seen[b.Desc.Digest] = true
	}
	d := img.Desc()
	if name != "" {
		d.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	}
	idx, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{d}})
	if err != nil {
		panic(err)
	}
	put("index.json", idx)
	_ = tw.Close()
	return buf.Bytes()
}
