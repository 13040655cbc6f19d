package images

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
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
	// unused blobs, for KindOCI.
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
		res, err := s.pull(log.WithLogger(ctx, s.quiet), named, req)
		return res, wrapRemote(req.Ref, err)
	})
	s.Collect()
	return res, err
}

func (s *Store) pull(ctx context.Context, named reference.Named, req PullRequest) (Result, error) {
	start := s.opts.Now()
	creds, err := credentialsFunc(req.Credentials)
	if err != nil {
		return Result{}, fmt.Errorf("image %q: %w: %w", req.Ref, ErrUnauthorized, err)
	}
	host := config.HostOptions{Credentials: creds}
	if s.opts.HostsDir != "" {
		host.HostDir = config.HostDirFromRoot(s.opts.HostsDir)
	}
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, host)})
	name, target, err := resolver.Resolve(ctx, named.String())
	if err != nil {
		return Result{}, err
	}
	fetcher, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return Result{}, err
	}
	fetch := func(ctx context.Context, desc ocispec.Descriptor) error {
		return s.fetch(ctx, fetcher, desc)
	}
	res, err := s.take(ctx, named, target, req.Handler, fetch)
	s.deleteUnnamed(ctx, res.unused...)
	if err == nil && res.Kind == KindWasm {
		s.log.Info("image pulled", "image", named.String(), "id", res.Image.ID, "why", res.Why,
			"bytes", res.Image.Size, "took", s.opts.Now().Sub(start).Round(time.Millisecond))
	}
	return res, err
}

// take classifies the image behind target and stores it if it is Wasm. fetch
// makes sure that a blob is in the content store.
func (s *Store) take(ctx context.Context, named reference.Named, target ocispec.Descriptor, handler string, fetch func(context.Context, ocispec.Descriptor) error) (Result, error) {
	ref := named.String()
	desc, m, err := s.manifest(ctx, ref, target, handler, fetch)
	if err != nil {
		return Result{}, err
	}
	cfg := &imageConfig{}
	if m.Config.Size > 2 { // {} and nothing are configurations too
		if err := s.readJSON(ctx, m.Config, fetch, cfg); err != nil {
			return Result{}, fmt.Errorf("image %q: configuration: %w", ref, err)
		}
	} else if m.Config.Size > 0 {
		if err := fetch(ctx, m.Config); err != nil {
			return Result{}, err
		}
	}
	v := classify(handler, desc, m, cfg)
	unused := []digest.Digest{target.Digest, desc.Digest, m.Config.Digest}
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
	if m.Config.Size > 0 {
		img.Blobs = append(img.Blobs, m.Config.Digest)
	}
	switch v.shape {
	case ShapeArtifact:
		err = s.takeArtifact(ctx, ref, img, m.Layers[v.layer], fetch)
	case ShapeCompat:
		err = s.takeCompat(ctx, ref, img, m, cfg, fetch)
	}
	switch {
	case errors.Is(err, ErrNotWasm) && v.look:
		for _, l := range m.Layers {
			unused = append(unused, l.Digest)
		}
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
	return Result{Kind: KindWasm, Why: v.why, Image: stored}, nil
}

// manifest follows an index to the manifest for this board.
func (s *Store) manifest(ctx context.Context, ref string, target ocispec.Descriptor, handler string, fetch func(context.Context, ocispec.Descriptor) error) (ocispec.Descriptor, *ocispec.Manifest, error) {
	desc := target
	for depth := 0; images.IsIndexType(desc.MediaType); depth++ {
		if depth == 3 {
			return desc, nil, fmt.Errorf("image %q: %w: indexes within indexes", ref, ErrInvalidImage)
		}
		var idx ocispec.Index
		if err := s.readJSON(ctx, desc, fetch, &idx); err != nil {
			return desc, nil, fmt.Errorf("image %q: index: %w", ref, err)
		}
		next, err := choose(idx.Manifests, handler)
		if err != nil {
			return desc, nil, fmt.Errorf("image %q: %w", ref, err)
		}
		desc = next
	}
	if !images.IsManifestType(desc.MediaType) {
		return desc, nil, fmt.Errorf("image %q: %w: media type %q is neither a manifest nor an index", ref, ErrInvalidImage, desc.MediaType)
	}
	m := &ocispec.Manifest{}
	if err := s.readJSON(ctx, desc, fetch, m); err != nil {
		return desc, nil, fmt.Errorf("image %q: manifest: %w", ref, err)
	}
	for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if err := d.Digest.Validate(); err != nil {
			return desc, nil, fmt.Errorf("image %q: %w: manifest names %q: %w", ref, ErrInvalidImage, d.Digest, err)
		}
	}
	return desc, m, nil
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
		case e.Platform == nil || e.Platform.OS == "" && e.Platform.Architecture == "":
			if untold == nil {
				untold = e
			}
			continue
		case isWasmPlatform(e.Platform):
			if wasm == nil {
				wasm = e
			}
		case host.Match(*e.Platform):
			if native == nil || host.Less(*e.Platform, *native.Platform) {
				native = e
			}
		}
		have = append(have, platforms.Format(*e.Platform))
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

func (s *Store) readJSON(ctx context.Context, desc ocispec.Descriptor, fetch func(context.Context, ocispec.Descriptor) error, into any) error {
	if desc.Size > maxMetadata {
		return fmt.Errorf("%w: %s has %d bytes, at most %d are read", ErrInvalidImage, desc.MediaType, desc.Size, maxMetadata)
	}
	if err := fetch(ctx, desc); err != nil {
		return err
	}
	raw, err := content.ReadBlob(ctx, s.content, desc)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInvalidImage, desc.MediaType, err)
	}
	return nil
}

// fetch gets a blob into the content store, which verifies size and digest.
// A transfer that breaks or stalls is resumed where it ended.
func (s *Store) fetch(ctx context.Context, fetcher remotes.Fetcher, desc ocispec.Descriptor) error {
	if _, err := s.content.Info(ctx, desc.Digest); err == nil {
		return nil
	}
	var err error
	for try := 1; try <= attempts; try++ {
		err = s.fetchOnce(ctx, fetcher, desc)
		if err == nil || errdefs.IsAlreadyExists(err) {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errdefs.IsNotFound(err) || errors.Is(err, docker.ErrInvalidAuthorization) || errdefs.IsInvalidArgument(err) {
			return err
		}
		if errdefs.IsFailedPrecondition(err) {
			// Other bytes than promised: what is there is worth nothing.
			_ = s.content.Abort(ctx, remotes.MakeRefKey(ctx, desc))
			return err
		}
		s.log.Warn("fetching a blob failed", "blob", desc.Digest, "try", try, "err", err)
		select {
		case <-time.After(time.Duration(try) * 500 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (s *Store) fetchOnce(ctx context.Context, fetcher remotes.Fetcher, desc ocispec.Descriptor) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &watchedFetcher{fetcher: fetcher}
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(s.opts.Stall)
		defer t.Stop()
		for last := int64(0); ; {
			select {
			case <-t.C:
				now := w.n.Load()
				if now == last {
					cancel(fmt.Errorf("%w: no byte of %s for %v", ErrRegistry, desc.Digest, s.opts.Stall))
					return
				}
				last = now
			case <-stop:
				return
			}
		}
	}()
	err := remotes.Fetch(ctx, s.content, w, desc)
	close(stop)
	<-ended
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// watchedFetcher counts the bytes that come in.
type watchedFetcher struct {
	fetcher remotes.Fetcher
	n       atomic.Int64
}

func (w *watchedFetcher) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	rc, err := w.fetcher.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	r := &watchedReader{ReadCloser: rc, n: &w.n}
	if seeker, ok := rc.(io.Seeker); ok {
		return &watchedSeeker{watchedReader: r, Seeker: seeker}, nil
	}
	return r, nil
}

type watchedReader struct {
	io.ReadCloser
	n *atomic.Int64
}

func (r *watchedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.n.Add(int64(n))
	return n, err
}

// watchedSeeker keeps the ability to resume.
type watchedSeeker struct {
	*watchedReader
	io.Seeker
}

// deleteUnnamed deletes blobs that no image of the index has.
func (s *Store) deleteUnnamed(ctx context.Context, digests ...digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	named, _ := s.neededLocked()
	for _, d := range digests {
		if d != "" && !named[d] {
			s.deleteBlob(ctx, d)
		}
	}
}

// credentialsFunc reads CRI's AuthConfig as containerd does.
func credentialsFunc(c *Credentials) (func(host string) (string, string, error), error) {
	if c == nil {
		return nil, nil
	}
	user, secret := c.Username, c.Password
	switch {
	case c.IdentityToken != "":
		user, secret = "", c.IdentityToken
	case user != "":
	case c.Auth != "":
		plain, err := base64.StdEncoding.DecodeString(c.Auth)
		if err != nil {
			return nil, fmt.Errorf("auth is not base64: %w", err)
		}
		var ok bool
		if user, secret, ok = strings.Cut(string(plain), ":"); !ok {
			return nil, errors.New("auth is not the base64 of USER:PASSWORD")
		}
		secret = strings.Trim(secret, "\x00")
	case c.RegistryToken != "":
		return nil, errors.New("a registry token is not supported: give user name and password, or an identity token")
	default:
		return nil, nil
	}
	return func(host string) (string, string, error) {
		if c.ServerAddress != "" {
			want := c.ServerAddress
			if u, err := url.Parse(want); err == nil && u.Host != "" {
				want = u.Host
			}
			if want == "index.docker.io" || want == "docker.io" {
				want = "registry-1.docker.io"
			}
			if host != want {
				return "", "", nil
			}
		}
		return user, secret, nil
	}, nil
}
