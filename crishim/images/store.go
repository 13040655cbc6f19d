package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Options configure a Store. Dir is required.
type Options struct {
	// Dir holds everything of the store. One process uses it at a time.
	Dir string
	// HostsDir is a registry hosts directory in containerd's layout
	// (HOST/hosts.toml, _default/hosts.toml); empty or missing means none.
	HostsDir string
	// Prepare is called once for the module of each pulled image: check and
	// compile. Its error doesn't fail the pull, because pulling again won't
	// help; the module is refused when a container of it is created.
	Prepare func(ctx context.Context, m Module) error
	// InUse says whether a container still needs the files of an image that
	// has been removed. May be nil.
	InUse func(id digest.Digest) bool
	// MinFree bytes must remain free after a pull. Zero: 32 MiB.
	MinFree int64
	// MaxParallel pulls at a time; others wait. Zero: 2.
	MaxParallel int
	// Stall ends a pull that got no byte for so long. Zero: 90 s.
	Stall time.Duration
	// KeepPartial is how long what an interrupted pull left is kept so that
	// the next one resumes it. Zero: 24 h. Negative: not at all.
	KeepPartial time.Duration
	// Limits for unpacking root file systems. Zero: 2 GiB and 100000 files.
	MaxUnpacked      int64
	MaxUnpackedFiles int
	Logger           *slog.Logger
	// Now is the wall clock; nil means time.Now.
	Now func() time.Time
}

// Module is a module's file in the store.
type Module struct {
	// Path is relative to the store's directory in the index, absolute in
	// what the Store returns.
	Path   string        `json:"path"`
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	// Name is what messages call it.
	Name string `json:"name"`
}

// Image is a Wasm image of the store.
type Image struct {
	// ID is the digest of the manifest. The configuration's digest, which is
	// containerd's image ID, isn't unique for artifacts: wasm-to-oci's is {}.
	ID digest.Digest `json:"id"`
	// Refs are the full names with tags, Digests those with @digest.
	Refs    []string `json:"refs,omitempty"`
	Digests []string `json:"digests,omitempty"`
	Shape   Shape    `json:"shape"`
	// Why it is taken for Wasm.
	Why    string `json:"why"`
	Module Module `json:"module"`
	// Rootfs is the unpacked root of a compat image, else empty.
	Rootfs string `json:"rootfs,omitempty"`
	// Size in bytes on the store's file system.
	Size int64 `json:"size"`

	Entrypoint  []string          `json:"entrypoint,omitempty"`
	Cmd         []string          `json:"cmd,omitempty"`
	Env         []string          `json:"env,omitempty"`
	User        string            `json:"user,omitempty"`
	WorkingDir  string            `json:"workingDir,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	PulledAt    time.Time         `json:"pulledAt"`
	// Blobs of the content store that belong to it.
	Blobs []digest.Digest `json:"blobs"`
}

func (i *Image) clone() *Image {
	c := *i
	c.Refs, c.Digests, c.Blobs = slices.Clone(i.Refs), slices.Clone(i.Digests), slices.Clone(i.Blobs)
	return &c
}

// indexVersion is the schema of index.json. A higher one in the file is
// refused, a lower one is migrated by load.
const indexVersion = 1

type indexFile struct {
	Version int      `json:"version"`
	Images  []*Image `json:"images"`
}

// Store keeps Wasm images. It is safe for concurrent use.
type Store struct {
	opts    Options
	log     *slog.Logger
	quiet   *log.Entry // for containerd's libraries, which log what they also return
	content content.Store
	slots   chan struct{}
	flights flights

	importing sync.Mutex

	mu     sync.Mutex
	images []*Image
	sweep  bool   // files may be left over: look when no pull is under way
	writes uint64 // of the index, for metrics and tests
	// transfers under way, and how many of them hold a blob.
	transfers map[*transfer]struct{}
	holds     map[digest.Digest]int
	later     *time.Timer // sweeps when what is kept for a next try is too old
	closed    bool
}

// Open makes or opens the store in opts.Dir, and removes what an interrupted
// pull, import or removal left there.
func Open(opts Options) (*Store, error) {
	if opts.MinFree == 0 {
		opts.MinFree = 32 << 20
	}
	if opts.MaxParallel <= 0 {
		opts.MaxParallel = 2
	}
	if opts.Stall <= 0 {
		opts.Stall = 90 * time.Second
	}
	if opts.KeepPartial == 0 {
		opts.KeepPartial = 24 * time.Hour
	}
	if opts.MaxUnpacked == 0 {
		opts.MaxUnpacked = 2 << 30
	}
	if opts.MaxUnpackedFiles == 0 {
		opts.MaxUnpackedFiles = 100_000
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	for _, dir := range []string{"modules", "rootfs", "tmp"} {
		if err := os.MkdirAll(filepath.Join(opts.Dir, dir), 0o755); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	if err := os.Chmod(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	cs, err := local.NewStore(filepath.Join(opts.Dir, "content"))
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	quiet.SetLevel(logrus.PanicLevel)
	s := &Store{opts: opts, log: opts.Logger, quiet: logrus.NewEntry(quiet), content: cs, slots: make(chan struct{}, opts.MaxParallel),
		transfers: map[*transfer]struct{}{}, holds: map[digest.Digest]int{}}
	if err := s.load(); err != nil {
		return nil, err
	}
	if err := emptyDir(s.path("tmp")); err != nil {
		s.log.Warn("left-overs can't be removed", "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropUnusedLocked()
	s.sweepLocked(context.Background())
	return s, nil
}

// Close ends what the store does by itself. Pulls go by their callers' contexts.
func (s *Store) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.later != nil {
		s.later.Stop()
	}
}

// load reads the index. An index that can't be parsed is set aside, not
// deleted: the images are pulled again, and what it held can be looked at.
func (s *Store) load() error {
	path := s.path("index.json")
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	images, err := parseIndex(raw)
	if errors.Is(err, errNewerIndex) {
		return fmt.Errorf("image store: %s: %w", path, err)
	}
	if err != nil {
		aside := path + ".broken"
		s.log.Error("image index can't be read, starting with an empty one", "index", path, "setAside", aside, "err", err)
		return os.Rename(path, aside)
	}
	for _, img := range images {
		if fi, err := os.Stat(s.path(img.Module.Path)); err != nil || fi.Size() != img.Module.Size {
			s.log.Warn("image is dropped: its module is gone or has another size", "image", img.ID, "module", img.Module.Path)
			continue
		}
		s.images = append(s.images, img)
	}
	return nil
}

var errNewerIndex = errors.New("index of a newer program")

// parseIndex leaves out images that name what isn't the store's.
func parseIndex(raw []byte) ([]*Image, error) {
	var idx indexFile
	if err := json.Unmarshal(raw, &idx); err != nil {
		return nil, err
	}
	if idx.Version > indexVersion {
		return nil, fmt.Errorf("%w: it has schema version %d, this program knows %d: use the newer program", errNewerIndex, idx.Version, indexVersion)
	}
	seen := map[digest.Digest]bool{}
	return slices.DeleteFunc(idx.Images, func(img *Image) bool {
		if img == nil || img.ID.Validate() != nil || seen[img.ID] || !within(img.Module.Path, "content", "modules", "rootfs") ||
			img.Rootfs != "" && !within(img.Rootfs, "rootfs") || slices.ContainsFunc(img.Blobs, func(d digest.Digest) bool { return d.Validate() != nil }) {
			return true
		}
		seen[img.ID] = true
		return false
	}), nil
}

// within says whether a path is below one of the store's folders.
func within(rel string, dirs ...string) bool {
	top, rest, _ := strings.Cut(rel, string(filepath.Separator))
	return filepath.IsLocal(rel) && rel == filepath.Clean(rel) && rest != "" && slices.Contains(dirs, top)
}

// saveLocked replaces the index durably.
func (s *Store) saveLocked() error {
	raw, err := json.Marshal(indexFile{Version: indexVersion, Images: s.images})
	if err != nil {
		return err
	}
	s.writes++
	return writeFileDurable(s.path("index.json"), raw)
}

// Lookup finds an image by reference (in any spelling), by name@digest or by
// ID. ErrNotFound if the store hasn't it: then it is containerd's to know.
func (s *Store) Lookup(ref string) (*Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	img := s.findLocked(ref)
	if img == nil {
		return nil, fmt.Errorf("image %q: %w", ref, ErrNotFound)
	}
	return s.absolute(img), nil
}

func (s *Store) findLocked(ref string) *Image {
	if id, err := digest.Parse(ref); err == nil {
		return s.byIDLocked(id)
	}
	named, err := reference.ParseDockerRef(ref)
	if err == nil {
		name := named.String()
		for _, img := range s.images {
			if slices.Contains(img.Refs, name) || slices.Contains(img.Digests, name) {
				return img
			}
		}
	}
	// crictl shortens IDs; a name wins over that.
	if len(ref) >= 8 && strings.Trim(ref, "0123456789abcdef") == "" {
		var found *Image
		for _, img := range s.images {
			if strings.HasPrefix(img.ID.Encoded(), ref) && s.listed(img) {
				if found != nil {
					return nil
				}
				found = img
			}
		}
		return found
	}
	return nil
}

func (s *Store) byIDLocked(id digest.Digest) *Image {
	for _, img := range s.images {
		if img.ID == id {
			return img
		}
	}
	return nil
}

// listed says whether an image has a name. One without is kept for the
// containers that use it.
func (s *Store) listed(img *Image) bool { return len(img.Refs)+len(img.Digests) > 0 }

func (s *Store) absolute(img *Image) *Image {
	c := img.clone()
	c.Module.Path = s.path(c.Module.Path)
	if c.Rootfs != "" {
		c.Rootfs = s.path(c.Rootfs)
	}
	return c
}

// List returns all images, sorted by ID.
func (s *Store) List() []*Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*Image
	for _, img := range s.images {
		if s.listed(img) {
			out = append(out, s.absolute(img))
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

// put stores an image under a name, which is taken from any other image.
func (s *Store) put(img *Image, named reference.Named, target digest.Digest) (*Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := slices.Clone(s.images)
	if old := s.byIDLocked(img.ID); old != nil {
		img.Refs, img.Digests = slices.Clone(old.Refs), slices.Clone(old.Digests)
	}
	tag, byDigest := names(named, target)
	s.images = slices.DeleteFunc(s.images, func(i *Image) bool { return i.ID == img.ID })
	for i, other := range s.images {
		if tag != "" && slices.Contains(other.Refs, tag) {
			other = other.clone()
			other.Refs = slices.DeleteFunc(other.Refs, func(r string) bool { return r == tag })
			s.images[i] = other
		}
	}
	if tag != "" && !slices.Contains(img.Refs, tag) {
		img.Refs = append(img.Refs, tag)
	}
	if byDigest != "" && !slices.Contains(img.Digests, byDigest) {
		img.Digests = append(img.Digests, byDigest)
	}
	s.images = append(s.images, img)
	if err := s.saveLocked(); err != nil {
		s.images = before
		return nil, fmt.Errorf("image %q: index: %w", named.String(), err)
	}
	return s.absolute(img), nil
}

// names are the tag and the digest under which an image is known.
func names(named reference.Named, target digest.Digest) (tag, byDigest string) {
	if t, ok := named.(reference.Tagged); ok {
		tag = reference.TrimNamed(named).Name() + ":" + t.Tag()
	}
	return tag, reference.TrimNamed(named).Name() + "@" + target.String()
}

// Disown takes a reference out of the index: it has become containerd's.
func (s *Store) Disown(ref string) error {
	_, err := s.untag(ref, false)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// Remove takes the image with all its names out of the index and deletes what
// no other image and no container needs. ErrNotFound if the store hasn't it.
func (s *Store) Remove(ref string) error {
	img, err := s.untag(ref, true)
	if err != nil {
		return err
	}
	s.log.Info("image removed", "image", ref, "id", img.ID)
	return nil
}

func (s *Store) untag(ref string, all bool) (*Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	img := s.findLocked(ref)
	if img == nil || !s.listed(img) {
		return nil, fmt.Errorf("image %q: %w", ref, ErrNotFound)
	}
	before := slices.Clone(s.images)
	next := img.clone()
	if all {
		next.Refs, next.Digests = nil, nil
	} else if named, err := reference.ParseDockerRef(ref); err == nil {
		name := named.String()
		same := func(r string) bool { return r == name }
		next.Refs, next.Digests = slices.DeleteFunc(next.Refs, same), slices.DeleteFunc(next.Digests, same)
		if len(next.Refs) == 0 {
			next.Digests = nil
		}
	}
	s.images[slices.Index(s.images, img)] = next
	dropped := s.dropUnusedLocked()
	if err := s.saveLocked(); err != nil {
		s.images = before
		return nil, fmt.Errorf("image %q: index: %w", ref, err)
	}
	s.deleteFilesLocked(dropped)
	return img, nil
}

// Collect deletes the files of removed images that no container uses any more.
// It is called when a container has been removed.
func (s *Store) Collect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if dropped := s.dropUnusedLocked(); len(dropped) > 0 {
		if err := s.saveLocked(); err != nil {
			s.log.Error("image index can't be written", "err", err)
			return
		}
		s.deleteFilesLocked(dropped)
	}
	if s.sweep && !s.flights.busy() {
		s.sweepLocked(context.Background())
	}
}

// dropUnusedLocked takes nameless images that no container uses out of the
// list and returns them.
func (s *Store) dropUnusedLocked() (dropped []*Image) {
	s.images = slices.DeleteFunc(slices.Clone(s.images), func(i *Image) bool {
		drop := !s.listed(i) && (s.opts.InUse == nil || !s.opts.InUse(i.ID))
		if drop {
			dropped = append(dropped, i)
		}
		return drop
	})
	return dropped
}

// needed are the blobs and paths that the images of the index name.
func (s *Store) neededLocked() (blobs map[digest.Digest]bool, files map[string]bool) {
	blobs, files = map[digest.Digest]bool{}, map[string]bool{}
	for _, img := range s.images {
		for _, b := range img.Blobs {
			blobs[b] = true
		}
		files[img.Module.Path], files[img.Rootfs] = true, true
	}
	return blobs, files
}

// deleteFilesLocked deletes what only the given images needed. A pull under
// way may share blobs with them without being in the index yet, so it waits
// for the sweep then.
func (s *Store) deleteFilesLocked(dropped []*Image) {
	if s.flights.busy() {
		s.sweep = true
		return
	}
	blobs, files := s.neededLocked()
	for _, img := range dropped {
		for _, b := range img.Blobs {
			if !blobs[b] && s.holds[b] == 0 {
				s.deleteBlob(context.Background(), b)
			}
		}
		for _, rel := range []string{img.Module.Path, img.Rootfs} {
			if rel != "" && !files[rel] {
				s.deletePath(rel)
			}
		}
	}
}

// sweepWhenIdle has files looked for that no image has.
func (s *Store) sweepWhenIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep = true
}

// sweepLaterLocked sweeps when what was left half-made is too old.
func (s *Store) sweepLaterLocked() {
	if s.closed || s.opts.KeepPartial < 0 {
		return
	}
	if s.later != nil {
		s.later.Stop()
	}
	s.later = time.AfterFunc(s.opts.KeepPartial+time.Second, func() {
		s.sweepWhenIdle()
		s.Collect() // with a pull under way its end does
	})
}

// sweepLocked deletes everything that no image of the index names. What a pull
// left half-made is kept for KeepPartial, so that the next try resumes it.
func (s *Store) sweepLocked(ctx context.Context) {
	s.sweep = false
	blobs, files := s.neededLocked()
	now := s.opts.Now()
	kept := false
	stale := func(t time.Time) bool {
		old := s.opts.KeepPartial < 0 || now.Sub(t) > s.opts.KeepPartial
		kept = kept || !old
		return old
	}
	// Not by the content store's list: it fails at the first one that a kill left
	// without its files.
	ingests, _ := os.ReadDir(s.path("content", "ingest"))
	for _, e := range ingests {
		dir := s.path("content", "ingest", e.Name())
		fi, err := os.Stat(filepath.Join(dir, "data"))
		if err != nil {
			fi, err = os.Stat(filepath.Join(dir, "ref"))
		}
		if err != nil || stale(fi.ModTime()) {
			if err := os.RemoveAll(dir); err != nil {
				s.log.Warn("what an interrupted pull left can't be removed", "dir", dir, "err", err)
			}
		}
	}
	var old []digest.Digest
	_ = s.content.Walk(ctx, func(info content.Info) error {
		if !blobs[info.Digest] && s.holds[info.Digest] == 0 && stale(info.CreatedAt) {
			old = append(old, info.Digest)
		}
		return nil
	})
	for _, d := range old {
		s.deleteBlob(ctx, d)
	}
	if kept {
		s.sweepLaterLocked()
	}
	for _, dir := range []string{"modules", "rootfs"} {
		entries, err := os.ReadDir(s.path(dir))
		if err != nil {
			continue
		}
		for _, e := range entries {
			if rel := filepath.Join(dir, e.Name()); !files[rel] {
				s.deletePath(rel)
			}
		}
	}
}

func (s *Store) deleteBlob(ctx context.Context, d digest.Digest) {
	if err := s.content.Delete(ctx, d); err != nil && !errdefs.IsNotFound(err) {
		s.log.Warn("blob can't be deleted", "blob", d, "err", err)
	}
}

func (s *Store) deletePath(rel string) {
	if strings.HasPrefix(rel, "content"+string(filepath.Separator)) {
		return // a blob, deleted as such
	}
	if err := os.RemoveAll(s.path(rel)); err != nil {
		s.log.Warn("files of an image can't be deleted", "path", rel, "err", err)
	}
}

// Usage is what the store occupies.
type Usage struct {
	Path          string
	Bytes, Inodes uint64
}

// Usage counts blobs, modules and roots by walking them.
func (s *Store) Usage() (Usage, error) {
	u := Usage{Path: s.opts.Dir}
	err := filepath.WalkDir(s.opts.Dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		u.Inodes++
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*unix.Stat_t); ok {
				u.Bytes += uint64(st.Blocks) * 512
			} else if info.Mode().IsRegular() {
				u.Bytes += uint64(info.Size())
			}
		}
		return nil
	})
	return u, err
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.opts.Dir}, elem...)...)
}

// blobPath is where the local content store keeps a blob, relative to Dir.
func blobPath(d digest.Digest) string {
	return filepath.Join("content", "blobs", d.Algorithm().String(), d.Encoded())
}

// checkSpace compares what is still to be fetched, by this transfer and by the
// others under way, with what is free. factor is how much of it a byte needs.
func (s *Store) checkSpace(ctx context.Context, t *transfer, descs []ocispec.Descriptor, factor int64) error {
	var need int64
	for _, d := range descs {
		if d.Size > math.MaxInt64/4/factor-need {
			return fmt.Errorf("image %q: %w: a layer of %d bytes", t.ref, ErrInvalidImage, d.Size)
		}
		if _, err := s.content.Info(ctx, d.Digest); err == nil {
			need += d.Size * (factor - 1)
			continue
		}
		need += d.Size * factor
		d.Annotations = nil // as fetch calls it
		if st, err := s.content.Status(ctx, remotes.MakeRefKey(ctx, d)); err == nil {
			need -= min(st.Offset, d.Size)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.opts.Dir, &st); err != nil {
		return fmt.Errorf("image %q: statfs %s: %w", t.ref, s.opts.Dir, err)
	}
	free := int64(st.Bavail) * int64(st.Bsize) // Bsize is an int32 on 32-bit ARM
	s.mu.Lock()
	defer s.mu.Unlock()
	var promised int64
	for other := range s.transfers {
		if other != t {
			promised += max(0, other.need.Load()-other.done.Load())
		}
	}
	if free-promised-need < s.opts.MinFree {
		others := ""
		if promised > 0 {
			others = fmt.Sprintf(", pulls under way need %d of them", promised)
		}
		return fmt.Errorf("image %q: %w: it needs %d bytes, %s has %d free%s, of which %d are kept: remove images or files there",
			t.ref, ErrNoSpace, need, s.opts.Dir, free, others, s.opts.MinFree)
	}
	t.need.Store(need)
	return nil
}

// writeFileDurable replaces path by a synced file.
func writeFileDurable(path string, data []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return errors.Join(errs...)
}
