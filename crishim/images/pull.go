package images

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// maxMetadata bounds manifests, indexes and configurations, which are parsed
// in memory.
const maxMetadata = 4 << 20

// attempts at a blob before a pull fails; each resumes where the last ended.
const attempts = 3

// Credentials for a registry, as CRI's AuthConfig has them.
type Credentials struct {
	Username, Password string
	Auth               string // base64 of user:password
	ServerAddress      string // the credentials are for this registry only, if set
	IdentityToken      string
	RegistryToken      string
}

// PullRequest says what to pull.
type PullRequest struct {
	Ref string
	// Handler is the pod's runtime handler.
	Handler     string
	Credentials *Credentials
}

// Result of a pull.
type Result struct {
	Kind Kind
	// Why it is of this kind.
	Why string
	// Image is set for KindWasm. For KindOCI nothing was stored.
	Image *Image
	// unused blobs, unless the index names them.
	unused []digest.Digest
}

// Pull fetches an image if it is Wasm, and says so if it isn't. Callers that
// ask for the same at the same time share one pull. Errors wrap one of the
// package's sentinels and name the image.
func (s *Store) Pull(ctx context.Context, req PullRequest) (Result, error) {
	named, err := reference.ParseDockerRef(req.Ref)
	if err != nil {
		return Result{}, fmt.Errorf("image %q: %w: %w", req.Ref, ErrInvalidReference, err)
	}
	credKey := ""
	if req.Credentials != nil {
		raw, _ := json.Marshal(req.Credentials) // strings can't fail
		credKey = fmt.Sprintf("%x", sha256.Sum256(raw))
	}
	key := strings.Join([]string{named.String(), req.Handler, credKey}, "\x00")
	res, err := s.flights.do(ctx, key, func(ctx context.Context) (Result, error) {
		select {
		case s.slots <- struct{}{}:
			defer func() { <-s.slots }()
		case <-ctx.Done():
			return Result{}, ctx.Err()
		}
		t := s.beginTransfer(named.String())
		defer t.tell(tellEvery)()
		res, err := s.pull(log.WithLogger(ctx, s.quiet), t, named, req)
		err = wrapRemote(req.Ref, err)
		t.end(context.WithoutCancel(ctx), res.unused, err)
		return res, err
	})
	s.Collect()
	return res, err
}

// tellEvery is how often the log says how far a pull is.
const tellEvery = 10 * time.Second

func (s *Store) pull(ctx context.Context, t *transfer, named reference.Named, req PullRequest) (Result, error) {
	creds, err := credentialsFunc(req.Credentials)
	if err != nil {
		return Result{}, fmt.Errorf("image %q: %w: %w", req.Ref, ErrUnauthorized, err)
	}
	host := config.HostOptions{Credentials: creds, UpdateClient: t.traffic.wrap(s.opts.Now)}
	if s.opts.HostsDir != "" {
		host.HostDir = config.HostDirFromRoot(s.opts.HostsDir)
	}
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: withRegistryToken(config.ConfigureHosts(ctx, host), req.Credentials)})
	var name string
	var target ocispec.Descriptor
	err = t.watch(ctx, "an answer for "+named.String(), func(ctx context.Context) (err error) {
		name, target, err = resolver.Resolve(ctx, named.String())
		return err
	})
	if err != nil {
		return Result{}, err
	}
	fetcher, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return Result{}, err
	}
	t.get = func(ctx context.Context, desc ocispec.Descriptor) error {
		return s.fetch(ctx, t, fetcher, desc)
	}
	res, err := s.take(ctx, t, named, target, req.Handler)
	if err == nil && res.Kind == KindWasm {
		s.log.Info("image pulled", "image", named.String(), "id", res.Image.ID, "why", res.Why,
			"bytes", res.Image.Size, "took", s.opts.Now().Sub(t.since).Round(time.Millisecond))
	}
	return res, err
}

// take classifies the image behind target and stores it if it is Wasm.
func (s *Store) take(ctx context.Context, t *transfer, named reference.Named, target ocispec.Descriptor, handler string) (Result, error) {
	ref := named.String()
	desc, m, unused, err := s.manifest(ctx, t, ref, target, handler)
	if err != nil {
		return Result{}, err
	}
	cfg := &imageConfig{}
	if m.Config.Size > 2 { // {} and nothing are configurations too
		if err := s.readJSON(ctx, t, m.Config, cfg); err != nil {
			return Result{}, fmt.Errorf("image %q: configuration: %w", ref, err)
		}
	} else if m.Config.Size > 0 {
		if err := t.fetch(ctx, m.Config); err != nil {
			return Result{}, err
		}
	}
	v := classify(handler, desc, m, cfg)
	unused = append(unused, m.Config.Digest)
	if v.kind == KindOCI {
		return Result{Kind: KindOCI, Why: v.why, unused: unused}, nil
	}
	if len(m.Layers) == 0 {
		return Result{}, fmt.Errorf("image %q: %w: it has no layers", ref, ErrInvalidImage)
	}
	img := &Image{
		ID: desc.Digest, Shape: v.shape, Why: v.why, PulledAt: s.opts.Now().UTC(),
		Entrypoint: cfg.Config.Entrypoint, Cmd: cfg.Config.Cmd, Env: cfg.Config.Env,
		User: cfg.Config.User, WorkingDir: cfg.Config.WorkingDir, Annotations: m.Annotations,
		Blobs: []digest.Digest{desc.Digest},
	}
	if target.Digest != desc.Digest {
		img.Blobs = append(img.Blobs, target.Digest)
	}
	for _, l := range m.Layers {
		t.total.Add(max(0, l.Size))
	}
	if m.Config.Size > 0 {
		img.Blobs = append(img.Blobs, m.Config.Digest)
	}
	switch v.shape {
	case ShapeArtifact:
		err = s.takeArtifact(ctx, t, img, m.Layers[v.layer])
	case ShapeCompat:
		err = s.takeCompat(ctx, t, img, m, cfg)
	}
	for _, l := range m.Layers {
		unused = append(unused, l.Digest) // the index names those that are kept
	}
	switch {
	case errors.Is(err, ErrNotWasm) && v.look:
		return Result{Kind: KindOCI, Why: err.Error(), unused: unused}, nil
	case err != nil:
		return Result{}, err
	}
	if s.opts.Prepare != nil {
		module := img.Module
		module.Path = s.path(module.Path)
		if err := s.opts.Prepare(ctx, module); err != nil {
			if ctx.Err() != nil {
				return Result{}, ctx.Err()
			}
			s.log.Warn("module of a pulled image is refused", "image", ref, "err", err)
		}
	}
	stored, err := s.put(img, named, target.Digest)
	if err != nil {
		return Result{}, err
	}
	return Result{Kind: KindWasm, Why: v.why, Image: stored, unused: unused}, nil
}

// manifest follows an index to the manifest for this board. blobs are what it
// read on the way.
func (s *Store) manifest(ctx context.Context, t *transfer, ref string, target ocispec.Descriptor, handler string) (desc ocispec.Descriptor, m *ocispec.Manifest, blobs []digest.Digest, err error) {
	desc = target
	for depth := 0; images.IsIndexType(desc.MediaType); depth++ {
		if depth == 3 {
			return desc, nil, nil, fmt.Errorf("image %q: %w: indexes within indexes", ref, ErrInvalidImage)
		}
		blobs = append(blobs, desc.Digest)
		var idx ocispec.Index
		if err := s.readJSON(ctx, t, desc, &idx); err != nil {
			return desc, nil, nil, fmt.Errorf("image %q: index: %w", ref, err)
		}
		next, err := choose(idx.Manifests, handler)
		if err != nil {
			return desc, nil, nil, fmt.Errorf("image %q: %w", ref, err)
		}
		desc = next
	}
	if !images.IsManifestType(desc.MediaType) {
		return desc, nil, nil, fmt.Errorf("image %q: %w: media type %q is neither a manifest nor an index", ref, ErrInvalidImage, desc.MediaType)
	}
	blobs = append(blobs, desc.Digest)
	m = &ocispec.Manifest{}
	if err := s.readJSON(ctx, t, desc, m); err != nil {
		return desc, nil, nil, fmt.Errorf("image %q: manifest: %w", ref, err)
	}
	return desc, m, blobs, checkManifest(ref, m)
}

// checkManifest refuses what nobody could fetch.
func checkManifest(ref string, m *ocispec.Manifest) error {
	for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if err := d.Digest.Validate(); err != nil {
			return fmt.Errorf("image %q: %w: manifest names %q: %w", ref, ErrInvalidImage, d.Digest, err)
		}
		if d.Size < 0 {
			return fmt.Errorf("image %q: %w: manifest says that %s has %d bytes", ref, ErrInvalidImage, d.Digest, d.Size)
		}
	}
	return nil
}

// choose picks the entry of an index: with the wasm handler the Wasm one if
// there is any; else this board's, and the Wasm one if it has none for it.
func choose(entries []ocispec.Descriptor, handler string) (ocispec.Descriptor, error) {
	var wasm, native, untold *ocispec.Descriptor
	var have []string
	host := platforms.Default()
	for i := range entries {
		e := &entries[i]
		if e.Annotations["vnd.docker.reference.type"] == "attestation-manifest" {
			continue
		}
		switch {
		case isWasmEntry(e):
			if wasm == nil || wasmRank(e.Platform) > wasmRank(wasm.Platform) {
				wasm = e
			}
		case e.Platform == nil || e.Platform.OS == "" && e.Platform.Architecture == "":
			if untold == nil {
				untold = e
			}
			continue
		case host.Match(*e.Platform):
			if native == nil || host.Less(*e.Platform, *native.Platform) {
				native = e
			}
		}
		if e.Platform != nil {
			have = append(have, platforms.Format(*e.Platform))
		}
	}
	order := []*ocispec.Descriptor{native, wasm, untold}
	if handler == HandlerWasm {
		order = []*ocispec.Descriptor{wasm, untold, native}
	}
	for _, d := range order {
		if d != nil {
			return *d, nil
		}
	}
	return ocispec.Descriptor{}, fmt.Errorf("%w: no manifest for %s or wasm in its index, which has %s",
		ErrNotFound, platforms.DefaultString(), strings.Join(have, ", "))
}

func (s *Store) readJSON(ctx context.Context, t *transfer, desc ocispec.Descriptor, into any) error {
	if desc.Size > maxMetadata {
		return fmt.Errorf("%w: %s has %d bytes, at most %d are read", ErrInvalidImage, desc.MediaType, desc.Size, maxMetadata)
	}
	if err := t.fetch(ctx, desc); err != nil {
		return err
	}
	raw, err := content.ReadBlob(ctx, s.content, desc)
	if err != nil {
		return err
	}
	if err := decode(raw, into); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInvalidImage, desc.MediaType, err)
	}
	return nil
}

// decode reads a manifest, an index or a configuration.
func decode(raw []byte, into any) error { return json.Unmarshal(raw, into) }

// fetch gets a blob into the content store, which verifies size and digest.
// A transfer that breaks or stalls is resumed where it ended.
func (s *Store) fetch(ctx context.Context, t *transfer, fetcher remotes.Fetcher, desc ocispec.Descriptor) error {
	layer := t.total.Load() > 0 // they come last
	desc.Annotations = nil      // part of the name of what is half-written
	if _, err := s.content.Info(ctx, desc.Digest); err == nil {
		if layer {
			t.done.Add(desc.Size)
		}
		return nil
	}
	from := &measured{Fetcher: fetcher, t: t, layer: layer}
	ref := remotes.MakeRefKey(ctx, desc)
	var err error
	for try := 1; try <= attempts; try++ {
		st, serr := s.content.Status(ctx, ref)
		resumed := serr == nil && st.Offset > 0
		err = t.watch(ctx, desc.Digest.String(), func(ctx context.Context) error {
			return remotes.Fetch(ctx, s.content, from, desc)
		})
		if err == nil || errdefs.IsAlreadyExists(err) {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errdefs.IsFailedPrecondition(err) || errors.Is(err, ErrInvalidImage) {
			// Other bytes than promised: what is there is worth nothing. Those of an
			// earlier try may have been torn by a power cut.
			_ = s.content.Abort(ctx, ref)
			if !resumed {
				return err
			}
		}
		if final(err) {
			return err
		}
		s.log.Warn("fetching a blob failed", "image", t.ref, "blob", desc.Digest, "try", try, "err", err)
		select {
		case <-time.After(time.Duration(try) * 500 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

// final errors are those that asking again doesn't change.
func final(err error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) && status.StatusCode < 500 && status.StatusCode != http.StatusRequestTimeout && status.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		return true
	}
	var throttled *throttledError
	return errdefs.IsNotFound(err) || errors.Is(err, docker.ErrInvalidAuthorization) || errdefs.IsInvalidArgument(err) ||
		errors.Is(err, unix.ENOSPC) || errors.As(err, &throttled)
}

// credentialsFunc reads CRI's AuthConfig as containerd does.
func credentialsFunc(c *Credentials) (func(host string) (string, string, error), error) {
	if c == nil {
		return nil, nil
	}
	user, secret := c.Username, c.Password
	switch {
	case user != "":
	case c.IdentityToken != "":
		secret = c.IdentityToken
	case c.Auth != "":
		plain, err := base64.StdEncoding.DecodeString(c.Auth)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errBadAuth, err)
		}
		var ok bool
		if user, secret, ok = strings.Cut(string(plain), ":"); !ok {
			return nil, errBadAuth
		}
		secret = strings.Trim(secret, "\x00")
	default:
		return nil, nil // a registry token, or none
	}
	return func(host string) (string, string, error) {
		if !c.isFor(host) {
			return "", "", nil
		}
		return user, secret, nil
	}, nil
}
