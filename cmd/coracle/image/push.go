package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of the CNCF Wasm OCI artifact layout.
// https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/
const (
	MediaTypeConfig = "application/vnd.wasm.config.v0+json"
	MediaTypeLayer  = "application/wasm"
)

// ErrNotWasm is returned when the file to push does not begin with a core
// module's or a component's header.
var ErrNotWasm = errors.New("not a WebAssembly module")

// Artifact is a Wasm OCI artifact in memory.
type Artifact struct {
	Manifest, Config, Layer          []byte
	ManifestDesc, ConfigDesc, Module ocispec.Descriptor
}

// New makes the artifact of a module. The same module and time give the same
// bytes; the time is the artifact's "created" and may be zero to leave it out.
func New(module []byte, created time.Time) (*Artifact, error) {
	os := "wasip1"
	switch {
	case bytes.HasPrefix(module, []byte("\x00asm\x01\x00\x00\x00")):
	case bytes.HasPrefix(module, []byte("\x00asm\x0d\x00\x01\x00")):
		os = "wasip2"
	default:
		return nil, fmt.Errorf("%w: it begins with % x, want 00 61 73 6d", ErrNotWasm, module[:min(8, len(module))])
	}
	a := &Artifact{Layer: module}
	a.Module = describe(MediaTypeLayer, module)
	type wasmConfig struct {
		Created      *time.Time      `json:"created,omitempty"`
		Architecture string          `json:"architecture"`
		OS           string          `json:"os"`
		LayerDigests []digest.Digest `json:"layerDigests"`
	}
	cfg := wasmConfig{Architecture: "wasm", OS: os, LayerDigests: []digest.Digest{a.Module.Digest}}
	if !created.IsZero() {
		created = created.UTC().Truncate(time.Second)
		cfg.Created = &created
	}
	var err error
	if a.Config, err = json.Marshal(cfg); err != nil {
		return nil, err
	}
	a.ConfigDesc = describe(MediaTypeConfig, a.Config)
	a.Manifest, err = json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: a.ConfigDesc, Layers: []ocispec.Descriptor{a.Module},
	})
	if err != nil {
		return nil, err
	}
	a.ManifestDesc = describe(ocispec.MediaTypeImageManifest, a.Manifest)
	return a, nil
}

func describe(mediaType string, b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

// Push uploads the artifact under ref (a name with a tag; "latest" without one)
// and returns the manifest's digest. hostsDir is a registry hosts directory in
// containerd's layout, or ""; credentials come from docker's config.json.
func Push(ctx context.Context, a *Artifact, ref, hostsDir string) (digest.Digest, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", fmt.Errorf("image reference %q: %w; want REGISTRY/NAME:TAG", ref, err)
	}
	opts := config.HostOptions{Credentials: dockerCredentials}
	if hostsDir != "" {
		opts.HostDir = config.HostDirFromRoot(hostsDir)
	}
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, opts)})
	pusher, err := resolver.Pusher(ctx, named.String())
	if err != nil {
		return "", fmt.Errorf("push %s: %w", named, err)
	}
	for _, blob := range []struct {
		desc ocispec.Descriptor
		data []byte
	}{{a.Module, a.Layer}, {a.ConfigDesc, a.Config}, {a.ManifestDesc, a.Manifest}} {
		w, err := pusher.Push(ctx, blob.desc)
		if errdefs.IsAlreadyExists(err) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("push %s: %s %s: %w", named, blob.desc.MediaType, blob.desc.Digest, err)
		}
		err = content.Copy(ctx, w, bytes.NewReader(blob.data), blob.desc.Size, blob.desc.Digest)
		if err = errors.Join(err, w.Close()); err != nil && !errdefs.IsAlreadyExists(err) {
			return "", fmt.Errorf("push %s: %s %s: %w", named, blob.desc.MediaType, blob.desc.Digest, err)
		}
	}
	return a.ManifestDesc.Digest, nil
}

// dockerCredentials reads user and password for host out of docker's
// config.json ($DOCKER_CONFIG or ~/.docker); none there is no error.
func dockerCredentials(host string) (string, string, error) {
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", "", nil
		}
		dir = filepath.Join(home, ".docker")
	}
	file := filepath.Join(dir, "config.json")
	raw, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return "", "", nil
	}
	if err != nil {
		return "", "", err
	}
	var cfg struct {
		Auths map[string]struct {
			Auth, IdentityToken string
		} `json:"auths"`
	}
	if err := json.Unmarshal(raw, &cfg); err != nil {
		return "", "", fmt.Errorf("%s: %w", file, err)
	}
	auth, ok := cfg.Auths[host]
	if !ok {
		return "", "", nil
	}
	if auth.IdentityToken != "" {
		return "", auth.IdentityToken, nil
	}
	plain, err := base64.StdEncoding.DecodeString(auth.Auth)
	if err != nil {
		return "", "", fmt.Errorf("%s: auths.%q.auth is not base64: %w", file, host, err)
	}
	user, password, _ := strings.Cut(string(plain), ":")
	return user, password, nil
}
