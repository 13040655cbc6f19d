package images

import (
	"bytes"
	"io"
	"runtime"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coracle-edge/coracle/test/lab"
)

// TestClassify has every combination of what can say "Wasm", in the order in
// which the field asks: the first that speaks is the reason.
func TestClassify(t *testing.T) {
	sayings := []struct {
		name string
		why  string
		set  func(handler *string, m *ocispec.Manifest, cfg *imageConfig)
	}{
		{"handler", "runtime handler wasm", func(h *string, _ *ocispec.Manifest, _ *imageConfig) { *h = HandlerWasm }},
		{"config media type", "config media type " + mediaTypeWasmConfig, func(_ *string, m *ocispec.Manifest, _ *imageConfig) { m.Config.MediaType = mediaTypeWasmConfig }},
		{"layer media type", "layer media type " + wasmLayerTypes[1], func(_ *string, m *ocispec.Manifest, _ *imageConfig) { m.Layers[0].MediaType = wasmLayerTypes[1] }},
		{"architecture", `config architecture "wasm", os "linux"`, func(_ *string, _ *ocispec.Manifest, c *imageConfig) { c.Architecture = "wasm" }},
		{"annotation", "annotation module.wasm.image/variant=compat", func(_ *string, m *ocispec.Manifest, _ *imageConfig) {
			m.Annotations = map[string]string{"module.wasm.image/variant": "compat"}
		}},
		{"entrypoint", "a module at entrypoint /app.wasm", func(_ *string, _ *ocispec.Manifest, c *imageConfig) { c.Config.Entrypoint = []string{"/app.wasm"} }},
	}
	for bits := range 1 << len(sayings) {
		handler := ""
		m := &ocispec.Manifest{
			Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig},
			Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayerGzip}},
		}
		cfg := &imageConfig{Architecture: runtime.GOARCH, OS: "linux"}
		var names []string
		why := ""
		for i, s := range sayings {
			if bits&(1<<i) == 0 {
				continue
			}
			names = append(names, s.name)
			s.set(&handler, m, cfg)
			if why == "" {
				why = s.why
			}
		}
		v := classify(handler, ocispec.Descriptor{}, m, cfg)
		want := verdict{kind: KindWasm, shape: ShapeCompat, layer: -1, why: why}
		if bits&(1<<2) != 0 {
			want.shape, want.layer = ShapeArtifact, 0
		}
		want.look = bits == 1<<5 // the entrypoint's name alone needs the bytes as well
		if bits == 0 {
			want = verdict{kind: KindOCI, why: "nothing says wasm"}
		}
		if v != want {
			t.Errorf("%s: %+v, want %+v", strings.Join(names, " + "), v, want)
		}
	}
}

func TestClassifyOthers(t *testing.T) {
	gz := ocispec.MediaTypeImageLayerGzip
	for _, c := range []struct {
		name    string
		handler string
		desc    ocispec.Descriptor
		m       ocispec.Manifest
		cfg     imageConfig
		kind    Kind
		shape   Shape
		layer   int
	}{
		{name: "every layer type", m: ocispec.Manifest{Layers: []ocispec.Descriptor{{MediaType: mediaTypeWasm}}}, kind: KindWasm, shape: ShapeArtifact},
		{name: "compressed", m: ocispec.Manifest{Layers: []ocispec.Descriptor{{MediaType: mediaTypeWasm + "+gzip"}}}, kind: KindWasm, shape: ShapeArtifact},
		{name: "the module is the second layer", m: ocispec.Manifest{Layers: []ocispec.Descriptor{{MediaType: "text/plain"}, {MediaType: mediaTypeWasm}}}, kind: KindWasm, shape: ShapeArtifact, layer: 1},
		{name: "artifact type", m: ocispec.Manifest{ArtifactType: mediaTypeWasm, Layers: []ocispec.Descriptor{{MediaType: "x/y"}}}, kind: KindWasm, shape: ShapeArtifact},
		{name: "handler, a layer of an unknown type", handler: HandlerWasm, m: ocispec.Manifest{Layers: []ocispec.Descriptor{{MediaType: "x/y"}}}, kind: KindWasm, shape: ShapeArtifact},
		{name: "another handler", handler: "kata", m: ocispec.Manifest{Layers: []ocispec.Descriptor{{MediaType: gz}}}, kind: KindOCI},
		{name: "os wasip1", m: ocispec.Manifest{Layers: []ocispec.Descriptor{{MediaType: gz}}}, cfg: imageConfig{OS: "wasip1"}, kind: KindWasm, shape: ShapeCompat, layer: -1},
		{name: "annotation in the index", desc: ocispec.Descriptor{Annotations: map[string]string{"run.oci.handler": "wasm"}}, m: ocispec.Manifest{Layers: []ocispec.Descriptor{{MediaType: gz}}}, kind: KindWasm, shape: ShapeCompat, layer: -1},
		{name: "another handler's annotation", m: ocispec.Manifest{Annotations: map[string]string{"run.oci.handler": "krun"}, Layers: []ocispec.Descriptor{{MediaType: gz}}}, kind: KindOCI},
		{name: "nothing at all", kind: KindOCI},
	} {
		v := classify(c.handler, c.desc, &c.m, &c.cfg)
		if v.kind != c.kind || v.shape != c.shape || v.layer != c.layer {
			t.Errorf("%s: %+v", c.name, v)
		}
	}
	for _, mediaType := range wasmLayerTypes {
		if !isWasmLayer(mediaType) || !isWasmLayer(mediaType+"+zstd") || isWasmLayer(mediaType+"x") {
			t.Error(mediaType)
		}
	}
}

// TestChoose: the entry of an index.
func TestChoose(t *testing.T) {
	entry := func(platform string, artifactType string) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType}
		if os, arch, ok := strings.Cut(platform, "/"); ok {
			d.Platform = &ocispec.Platform{OS: os, Architecture: arch}
		}
		d.Annotations = map[string]string{"is": platform + artifactType}
		return d
	}
	here := "linux/" + runtime.GOARCH
	attestation := entry("unknown/unknown", "")
	attestation.Annotations["vnd.docker.reference.type"] = "attestation-manifest"
	for _, c := range []struct {
		name         string
		entries      []string // ! has an artifact type and no platform
		plain, asked string   // what is chosen without and with the handler
	}{
		{"this board's and Wasm", []string{"wasip1/wasm", here}, here, "wasip1/wasm"},
		{"other boards' and Wasm", []string{"linux/s390x", "wasip1/wasm"}, "wasip1/wasm", "wasip1/wasm"},
		{"preview 1 before components", []string{"wasip2/wasm", "wasip1/wasm", "wasi/wasm"}, "wasip1/wasm", "wasip1/wasm"},
		{"wasi before components", []string{"wasip2/wasm", "wasi/wasm"}, "wasi/wasm", "wasi/wasm"},
		{"a component only", []string{"wasip2/wasm"}, "wasip2/wasm", "wasip2/wasm"},
		{"an artifact without a platform", []string{"linux/s390x", "!"}, mediaTypeWasm, mediaTypeWasm},
		{"one that says nothing", []string{""}, "", ""},
		{"this board's only", []string{here}, here, here},
		{"others' only", []string{"linux/s390x", "windows/amd64"}, "none", "none"},
		{"none", nil, "none", "none"},
	} {
		list := []ocispec.Descriptor{attestation}
		for _, e := range c.entries {
			if e == "!" {
				list = append(list, entry("", mediaTypeWasm))
				continue
			}
			list = append(list, entry(e, ""))
		}
		for handler, want := range map[string]string{"": c.plain, HandlerWasm: c.asked} {
			got := "none"
			d, err := choose(list, handler)
			if err == nil {
				got = d.Annotations["is"]
			}
			if got != want {
				t.Errorf("%s, handler %q: %q (%v), want %q", c.name, handler, got, err, want)
			}
		}
	}
}

// FuzzManifest: what a registry says of an image is taken for no more than
// that. Nothing is fetched here: the sizes are the registry's word.
func FuzzManifest(f *testing.F) {
	for _, img := range []*lab.Image{lab.CNCF(module), lab.WasmToOCI(module), lab.Runwasi(module), lab.Compat(module, "compat")} {
		var config []byte
		for _, b := range img.Blobs {
			if strings.Contains(b.Desc.MediaType, "config") {
				config = b.Data
			}
		}
		f.Add(img.Blobs[len(img.Blobs)-1].Data, config)
	}
	f.Add(lab.Index(map[string]*lab.Image{"wasip1/wasm": lab.CNCF(module)}).Blobs[3].Data, []byte(`{}`))
	f.Add([]byte(`{"layers":[{"digest":"sha256:../../x","size":-1}]}`), []byte(`{"config":{"Entrypoint":[""]}}`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		m, cfg, idx := &ocispec.Manifest{}, &imageConfig{}, ocispec.Index{}
		if decode(manifest, &idx) == nil {
			if d, err := choose(idx.Manifests, ""); err == nil && len(idx.Manifests) == 0 {
				t.Errorf("chose %+v of nothing", d)
			}
		}
		if decode(manifest, m) != nil || checkManifest("x", m) != nil || decode(config, cfg) != nil {
			return
		}
		for _, l := range append(m.Layers, m.Config) {
			if l.Size < 0 || l.Digest.Validate() != nil {
				t.Errorf("layer %+v", l)
			}
		}
		for _, handler := range []string{"", HandlerWasm} {
			v := classify(handler, ocispec.Descriptor{}, m, cfg)
			if v.kind == KindWasm && v.shape == ShapeArtifact {
				if v.layer < 0 || v.layer >= len(m.Layers) {
					t.Errorf("layer %d of %d", v.layer, len(m.Layers))
				} else if name := moduleName("example.org/x:1", m.Layers[v.layer]); strings.Contains(name, "/") || name == "" {
					t.Errorf("module is called %q", name)
				}
			}
		}
	})
}

// FuzzIndex: whatever the index file says, nothing outside the store is named.
func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"version":1,"images":[{"id":"sha256:` + strings.Repeat("0", 64) + `","refs":["x"],"module":{"path":"modules/a.wasm"},"rootfs":"../../etc"}]}`))
	f.Add([]byte(`{"version":1,"images":[null]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		images, err := parseIndex(raw)
		if err != nil {
			return
		}
		for _, img := range images {
			for _, p := range []string{img.Module.Path, img.Rootfs} {
				if strings.HasPrefix(p, "/") || strings.Contains("/"+p+"/", "/../") {
					t.Errorf("path %q", p)
				}
			}
			for _, b := range img.Blobs {
				if b.Validate() != nil {
					t.Errorf("blob %q", b)
				}
			}
		}
	})
}

func FuzzDecompress(f *testing.F) {
	packed, _ := lab.TarGz([]lab.File{{Path: "a", Mode: 0o644, Data: []byte("x")}})
	f.Add(packed)
	f.Add([]byte("\x28\xb5\x2f\xfd"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decompress(bytes.NewReader(data))
		if err != nil {
			return
		}
		defer r.Close()
		_, _ = io.Copy(io.Discard, io.LimitReader(r, 1<<20))
	})
}
