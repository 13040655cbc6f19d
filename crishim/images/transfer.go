package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// transfer is one pull or import on its way. The blobs that it came to rely on
// are held: nobody else deletes them meanwhile.
type transfer struct {
	store *Store
	ref   string // changed with store.mu held
	since time.Time
	// get brings a blob into the content store.
	get func(ctx context.Context, desc ocispec.Descriptor) error

	traffic traffic
	need    atomic.Int64 // bytes promised on the file system
	total   atomic.Int64 // of the layers
	done    atomic.Int64 // of the layers, those of an earlier try too

	held []digest.Digest // guarded by store.mu
}

// Progress of a pull.
type Progress struct {
	Ref   string    `json:"image"`
	Since time.Time `json:"since"`
	// Done and Total are bytes of layers; Total is zero until the manifest is
	// read.
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
}

// Pulls lists the pulls and imports under way, the oldest first.
func (s *Store) Pulls() []Progress {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Progress
	for t := range s.transfers {
		out = append(out, Progress{Ref: t.ref, Since: t.since, Done: min(t.done.Load(), t.total.Load()), Total: t.total.Load()})
	}
	slices.SortFunc(out, func(a, b Progress) int { return a.Since.Compare(b.Since) })
	return out
}

func (s *Store) beginTransfer(ref string) *transfer {
	t := &transfer{store: s, ref: ref, since: s.opts.Now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.transfers[t] = struct{}{}
	return t
}

// rename is for an import that comes to its next image.
func (t *transfer) rename(ref string) {
	t.store.mu.Lock()
	defer t.store.mu.Unlock()
	t.ref = ref
}

// fetch makes sure that a blob is in the content store, and stays there until
// the transfer ends.
func (t *transfer) fetch(ctx context.Context, desc ocispec.Descriptor) error {
	t.hold(desc.Digest)
	return t.get(ctx, desc)
}

func (t *transfer) hold(d digest.Digest) {
	t.store.mu.Lock()
	defer t.store.mu.Unlock()
	if !slices.Contains(t.held, d) {
		t.held = append(t.held, d)
		t.store.holds[d]++
	}
}

// end lets go of the blobs, and deletes those that no image has: the unused
// ones, and after an error all. What an unreachable registry or an impatient
// caller cut off is kept for the next try, and not for ever.
func (t *transfer) end(ctx context.Context, unused []digest.Digest, err error) {
	s := t.store
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.transfers, t)
	for _, d := range t.held {
		if s.holds[d]--; s.holds[d] == 0 {
			delete(s.holds, d)
		}
	}
	switch {
	case err == nil:
	case resumable(err) && s.opts.KeepPartial > 0:
		s.sweepLaterLocked()
		return
	default:
		unused = t.held
	}
	named, _ := s.neededLocked()
	for _, d := range unused {
		if d == "" || named[d] || s.holds[d] > 0 {
			continue
		}
		s.deleteBlob(ctx, d)
		for _, ref := range ingestRefs(d) {
			_ = s.content.Abort(ctx, ref)
		}
	}
}

// resumable errors are those after which the same pull may go on where it ended.
func resumable(err error) bool {
	return errors.Is(err, ErrRegistry) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// ingestRefs are the names under which remotes.Fetch may write a blob.
func ingestRefs(d digest.Digest) []string {
	var refs []string
	for _, kind := range []string{"manifest", "index", "layer", "config", "attestation", "unknown"} {
		refs = append(refs, kind+"-"+d.String())
	}
	return refs
}

// tell logs how far it is, until stop is called.
func (t *transfer) tell(every time.Duration) (stop func()) {
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
				t.store.log.Info("pulling image", "image", t.ref, "bytes", t.done.Load(), "of", t.total.Load(), "since", t.store.opts.Now().Sub(t.since).Round(time.Second))
			}
		}
	}()
	return func() { close(quit); <-ended }
}

// watch runs f, and ends it when nothing came from the network for Options.Stall.
func (t *transfer) watch(ctx context.Context, what string, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := t.store.opts.Stall
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(stall)
		defer tick.Stop()
		for last := t.traffic.moved.Load(); ; {
			select {
			case <-quit:
				return
			case <-tick.C:
				now := t.traffic.moved.Load()
				if now == last && t.traffic.waiting.Load() == 0 {
					cancel(fmt.Errorf("%w: no byte of %s for %v", ErrRegistry, what, stall))
					return
				}
				last = now
			}
		}
	}()
	err := f(ctx)
	close(quit)
	<-ended
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// measured is a fetcher that counts what comes, and takes no more than was
// promised: a registry mustn't fill the disk.
type measured struct {
	remotes.Fetcher
	t     *transfer
	layer bool
}

func (m *measured) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	rc, err := m.Fetcher.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	r := &measuredReader{ReadCloser: rc, desc: desc, left: desc.Size}
	if m.layer {
		r.done = &m.t.done
	}
	if seeker, ok := rc.(io.Seeker); ok {
		return &measuredSeeker{measuredReader: r, seeker: seeker}, nil
	}
	return r, nil
}

type measuredReader struct {
	io.ReadCloser
	desc    ocispec.Descriptor
	left    int64
	counted int64
	done    *atomic.Int64 // nil for metadata
}

func (r *measuredReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if r.left -= int64(n); r.left < 0 {
		return 0, fmt.Errorf("%w: the registry sends more than the %d bytes of %s", ErrInvalidImage, r.desc.Size, r.desc.Digest)
	}
	r.count(int64(n))
	return n, err
}

func (r *measuredReader) count(n int64) {
	if r.done != nil {
		r.counted += n
		r.done.Add(n)
	}
}

// Close takes back what a broken transfer counted: the next one says itself
// where it begins.
func (r *measuredReader) Close() error {
	if r.left > 0 {
		r.count(-r.counted)
	}
	return r.ReadCloser.Close()
}

// measuredSeeker keeps the ability to resume.
type measuredSeeker struct {
	*measuredReader
	seeker io.Seeker
}

func (r *measuredSeeker) Seek(offset int64, whence int) (int64, error) {
	at, err := r.seeker.Seek(offset, whence)
	if err == nil {
		r.left = r.desc.Size - at
		r.count(at - r.counted)
	}
	return at, err
}
