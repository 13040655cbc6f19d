package images

import (
	"bytes"
	"fmt"
	"path"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Kind says which runtime an image is for.
type Kind string

const (
	KindWasm Kind = "wasm"
	KindOCI  Kind = "oci"
)

// KindKey is where a Kind stands in ImageStatus Info and in the annotations of
// an ImageSpec.
const KindKey = "coracle.dev/kind"

// HandlerWasm is the runtime handler (RuntimeClass) that selects Wasm.
const HandlerWasm = "wasm"

// Shape is how a Wasm image is laid out.
type Shape string

const (
	ShapeArtifact Shape = "artifact" // one layer with the module's bytes
	ShapeCompat   Shape = "compat"   // a root file system with a module at its entrypoint
)

// Media types by which a Wasm artifact is known.
const (
	mediaTypeWasmConfig = "application/vnd.wasm.config.v0+json"
	mediaTypeWasm       = "application/wasm"
)

var wasmLayerTypes = []string{
	mediaTypeWasm,
	"application/vnd.wasm.content.layer.v1+wasm",                    // wasm-to-oci, Krustlet
	"application/vnd.module.wasm.content.layer.v1+wasm",             // solo, Istio
	"application/vnd.bytecodealliance.wasm.component.layer.v0+wasm", // runwasi; may be a core module all the same
	"application/vnd.bytecodealliance.wasm.component.layer.v1+wasm",
}

// Annotations of compat images, on the manifest or on its entry in an index.
var variantAnnotations = []string{"module.wasm.image/variant", "run.oci.handler"}

// imageConfig is what is read of an image's configuration, whatever its type:
// CNCF's Wasm configuration and OCI's share these names.
type imageConfig struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Config       struct {
		User       string            `json:"User"`
		Env        []string          `json:"Env"`
		Entrypoint []string          `json:"Entrypoint"`
		Cmd        []string          `json:"Cmd"`
		WorkingDir string            `json:"WorkingDir"`
		Labels     map[string]string `json:"Labels"`
	} `json:"config"`
	RootFS struct {
		DiffIDs []digest.Digest `json:"diff_ids"`
	} `json:"rootfs"`
}

// entrypoint is the program of an image that doesn't say otherwise.
func (c *imageConfig) entrypoint() string {
	switch {
	case len(c.Config.Entrypoint) > 0:
		return c.Config.Entrypoint[0]
	case len(c.Config.Cmd) > 0:
		return c.Config.Cmd[0]
	}
	return ""
}

// verdict of a classification. look means that only the bytes at the
// entrypoint can tell.
type verdict struct {
	kind  Kind
	shape Shape
	layer int // of the module, with ShapeArtifact
	why   string
	look  bool
}

// classify decides in the order of the field: runtime handler, type of the
// configuration, type of a layer, architecture, annotations, and then the
// magic bytes at the entrypoint. Those are looked for only where the
// entrypoint is called *.wasm, because an OCI image would have to be fetched
// twice otherwise.
func classify(handler string, desc ocispec.Descriptor, m *ocispec.Manifest, cfg *imageConfig) verdict {
	layer := -1
	for i, l := range m.Layers {
		if isWasmLayer(l.MediaType) {
			layer = i
			break
		}
	}
	wasm := verdict{kind: KindWasm, shape: ShapeArtifact, layer: layer}
	if layer < 0 {
		wasm.shape = ShapeCompat
		if len(m.Layers) == 1 && !images.IsLayerType(m.Layers[0].MediaType) {
			// A single layer of an unknown type: its bytes will tell.
			wasm.shape, wasm.layer = ShapeArtifact, 0
		}
	}
	switch {
	case handler == HandlerWasm:
		wasm.why = "runtime handler wasm"
	case m.Config.MediaType == mediaTypeWasmConfig:
		wasm.why = "config media type " + m.Config.MediaType
	case m.ArtifactType == mediaTypeWasmConfig, m.ArtifactType == mediaTypeWasm:
		wasm.why = "artifact type " + m.ArtifactType
	case layer >= 0:
		wasm.why = "layer media type " + m.Layers[layer].MediaType
	case isWasmArch(cfg.Architecture), strings.HasPrefix(cfg.OS, "wasi"):
		wasm.why = fmt.Sprintf("config architecture %q, os %q", cfg.Architecture, cfg.OS)
	case wasmVariant(m.Annotations, desc.Annotations, cfg.Config.Labels) != "":
		wasm.why = "annotation " + wasmVariant(m.Annotations, desc.Annotations, cfg.Config.Labels)
	case strings.HasSuffix(cfg.entrypoint(), ".wasm"):
		wasm.why, wasm.look = "a module at entrypoint "+cfg.entrypoint(), true
	default:
		return verdict{kind: KindOCI, why: "nothing says wasm"}
	}
	return wasm
}

func isWasmLayer(mediaType string) bool {
	mediaType = strings.TrimSuffix(strings.TrimSuffix(mediaType, "+gzip"), "+zstd")
	for _, t := range wasmLayerTypes {
		if mediaType == t {
			return true
		}
	}
	return false
}

func isWasmArch(arch string) bool { return arch == "wasm" || arch == "wasm32" }

func wasmVariant(sets ...map[string]string) string {
	for _, set := range sets {
		for _, key := range variantAnnotations {
			switch v := set[key]; v {
			case "compat", "compat-smart", "wasm", "wasm-smart":
				return key + "=" + v
			}
		}
	}
	return ""
}

// isWasmPlatform says whether an entry of an index is for Wasm.
func isWasmPlatform(p *ocispec.Platform) bool {
	return p != nil && (isWasmArch(p.Architecture) || strings.HasPrefix(p.OS, "wasi"))
}

// isWasmEntry says the same of an entry of an index, which may name no platform.
func isWasmEntry(d *ocispec.Descriptor) bool {
	return isWasmPlatform(d.Platform) || d.ArtifactType == mediaTypeWasmConfig || d.ArtifactType == mediaTypeWasm || wasmVariant(d.Annotations) != ""
}

// wasmRank orders the Wasm entries of an index: preview 1 is what runs here,
// preview 2 is components.
func wasmRank(p *ocispec.Platform) int {
	switch {
	case p == nil:
		return 1
	case p.OS == "wasip1":
		return 3
	case p.OS == "wasi":
		return 2
	case p.OS == "wasip2":
		return 0
	}
	return 1
}

var wasmMagic = []byte("\x00asm")

func isWasmBytes(head []byte) bool { return bytes.HasPrefix(head, wasmMagic) }

// moduleName is what messages and argv[0] call the module of an artifact: its
// title, else the last element of the reference with .wasm appended.
func moduleName(ref string, layer ocispec.Descriptor) string {
	if t := layer.Annotations[ocispec.AnnotationTitle]; t != "" {
		return path.Base(t)
	}
	name := path.Base(ref)
	if i := strings.IndexAny(name, "@:"); i >= 0 {
		name = name[:i]
	}
	if name == "" || name == "." || name == "/" {
		return "module.wasm"
	}
	if !strings.HasSuffix(name, ".wasm") {
		name += ".wasm"
	}
	return name
}
