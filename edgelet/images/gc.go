package images

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/internal/durable"
)

// Defaults of a [Collector], a kubelet's.
const (
	DefaultHighPercent = 85
	DefaultLowPercent  = 80
	DefaultMinAge      = 2 * time.Minute
	gcPeriod           = 5 * time.Minute
	gcTimeout          = 2 * time.Minute
	absentFor          = 10 * time.Minute
	// maxKept bounds the workloads whose former images are remembered.
	maxKept = 512
)

// ErrNotEnough is returned when images were removed and the disk is still fuller
// than it should be.
var ErrNotEnough = errors.New("not enough room was freed by removing images")

// messageNotFreed and messageNoCapacity are upstream's (image_gc_manager.go).
const (
	messageNotFreed = "Insufficient free disk space on the node's image filesystem (%d%% of %s used). " +
		"Failed to free sufficient space by deleting unused images (freed %d bytes). " +
		"Investigate disk usage, as it could be used by active images, logs, volumes, or other data."
	messageNoCapacity = "invalid capacity 0 on image filesystem"
)

// size is bytes for people, as upstream's message has them.
func size(bytes uint64) string {
	const unit = 1024
	if bytes < unit {
		return fmt.Sprintf("%d B", bytes)
	}
	n, names := float64(bytes)/unit, []string{"KiB", "MiB", "GiB"}
	for _, name := range names {
		if n < unit {
			return fmt.Sprintf("%.1f %s", n, name)
		}
		n /= unit
	}
	return fmt.Sprintf("%.1f TiB", n)
}

// Store is what is asked of the runtime to remove images.
type Store interface {
	ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error)
	RemoveImage(context.Context, *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error)
	ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error)
	ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error)
}

// Workload is what one pod is of, and the images it is made of.
type Workload struct {
	// Key is the same for the pods of a workload, whatever its version: see
	// [WorkloadKey].
	Key    string
	Images []string
	// Good says that its containers are ready, or ended well.
	Good bool
}

// Use is what must not be removed.
type Use struct {
	// Images of all pods that are desired or known here, in any state.
	Images    []string
	Workloads []Workload
	// Complete says that this is all. Otherwise nothing is removed.
	Complete bool
}

// CollectorConfig configures a [Collector]. Store, Use and Space are required.
type CollectorConfig struct {
	Store Store
	Use   func() Use
	// Space says what the disk that path is on has, in bytes.
	Space func(path string) (capacity, available uint64, err error)
	// HighPercent of the disk used starts removing, until LowPercent are. 100 turns
	// it off.
	HighPercent, LowPercent int
	// MinAge is how long an image must be here before it is removed, MaxAge how long
	// an unused one stays; 0: as long as there is room.
	MinAge, MaxAge time.Duration
	// Memory is the file that keeps which images the pods before the present ones
	// had; empty: it isn't kept over a restart.
	Memory string
	Log    *slog.Logger
	// Removed is told after images were removed; may be nil.
	Removed func()
	// Event is told what a kubelet tells of its node; may be nil.
	Event func(eventType, reason, message string)
}

// Collector removes images that nobody needs, those that were used longest ago
// first, when the disk fills up. It never removes what a desired pod is made of, nor
// what the pods had that ran well before the present version of their workload did:
// a node that is offline could not get it back.
type Collector struct {
	CollectorConfig

	mu   sync.Mutex
	seen map[string]*seenImage // by ID
	kept map[string]*former    // by workload
	read bool
	// absent is since when a workload has had no pod here.
	absent map[string]time.Time
}

// seenImage is what was seen of an image, on the monotonic clock.
type seenImage struct{ first, used time.Time }

// former are the images of a workload: those of its pods that were last good, and
// those that were before them.
type former struct {
	Good   []string `json:"good,omitempty"`
	Before []string `json:"before,omitempty"`
}

// NewCollector returns a Collector that has seen nothing yet.
func NewCollector(c CollectorConfig) (*Collector, error) {
	if c.HighPercent == 0 {
		c.HighPercent = DefaultHighPercent
	}
	if c.LowPercent == 0 {
		c.LowPercent = min(DefaultLowPercent, c.HighPercent)
	}
	switch {
	case c.Store == nil, c.Use == nil, c.Space == nil:
		return nil, errors.New("images: Store, Use and Space are required")
	case c.HighPercent < 0 || c.HighPercent > 100:
		return nil, fmt.Errorf("image-gc-high-threshold %d: want a percentage from 1 to 100", c.HighPercent)
	case c.LowPercent < 0 || c.LowPercent > c.HighPercent:
		return nil, fmt.Errorf("image-gc-low-threshold %d: want a percentage not above image-gc-high-threshold, %d", c.LowPercent, c.HighPercent)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Event == nil {
		c.Event = func(string, string, string) {}
	}
	return &Collector{CollectorConfig: c, seen: map[string]*seenImage{}, kept: map[string]*former{}, absent: map[string]time.Time{}}, nil
}

// Run looks every five minutes until ctx ends. While the disk is emptier than
// LowPercent and no MaxAge is set, that is one question for the disk.
func (c *Collector) Run(ctx context.Context) error {
	ticker := time.NewTicker(gcPeriod)
	defer ticker.Stop()
	failed := false
	for {
		err := c.Collect(ctx)
		if err != nil && ctx.Err() == nil {
			c.Log.Warn("image garbage collection", "err", err)
			if failed { // as a kubelet: once may be a runtime that has just started
				c.Event(v1.EventTypeWarning, "ImageGCFailed", err.Error())
			}
		}
		failed = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// Collect looks once, and removes what is too old or, with the disk too full,
// what was used longest ago.
func (c *Collector) Collect(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, gcTimeout)
	defer cancel()
	use := c.Use()
	c.remember(use)
	capacity, available, err := c.space(ctx)
	if err != nil || capacity == 0 {
		return err
	}
	percent := func(available uint64) int { return 100 - int(available*100/capacity) }
	if percent(available) < c.LowPercent && c.MaxAge == 0 {
		return nil
	}
	unused, err := c.look(ctx, use)
	if err != nil {
		return err
	}
	if c.MaxAge > 0 {
		var old []*runtimeapi.Image
		for _, img := range unused {
			if s := c.seen[img.Id]; time.Since(s.used) > c.MaxAge && time.Since(s.first) > c.MaxAge {
				old = append(old, img)
			}
		}
		if _, err := c.remove(ctx, old, math.MaxUint64); err != nil {
			return err
		}
	}
	if c.HighPercent >= 100 || percent(available) < c.HighPercent {
		return nil
	}
	want := capacity*uint64(100-c.LowPercent)/100 - min(available, capacity*uint64(100-c.LowPercent)/100)
	c.Log.Info("the disk with images fills up, removing unused ones", "used", fmt.Sprintf("%d %%", percent(available)), "free", want)
	freed, err := c.remove(ctx, unused, want)
	if err != nil {
		return err
	}
	if freed < want {
		c.Event(v1.EventTypeWarning, "FreeDiskSpaceFailed", fmt.Sprintf(messageNotFreed, percent(available), size(capacity), freed))
		return fmt.Errorf("%w: wanted %d bytes, found %d eligible to free", ErrNotEnough, want, freed)
	}
	return nil
}

// DeleteUnusedImages removes all that may be.
func (c *Collector) DeleteUnusedImages(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, gcTimeout)
	defer cancel()
	use := c.Use()
	c.remember(use)
	unused, err := c.look(ctx, use)
	if err != nil {
		return err
	}
	_, err = c.remove(ctx, unused, math.MaxUint64)
	return err
}

// space is of the disk that images are on.
func (c *Collector) space(ctx context.Context) (capacity, available uint64, err error) {
	info, err := c.Store.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		return 0, 0, fmt.Errorf("asking where images lie: %w", err)
	}
	var errs []error
	for _, fs := range info.GetImageFilesystems() {
		total, free, err := c.Space(fs.GetFsId().GetMountpoint())
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if capacity == 0 || free*capacity < available*total { // the fullest
			capacity, available = total, free
		}
	}
	if capacity == 0 {
		if len(errs) == 0 && len(info.GetImageFilesystems()) > 0 {
			c.Event(v1.EventTypeWarning, "InvalidDiskCapacity", messageNoCapacity)
			errs = append(errs, errors.New(messageNoCapacity))
		}
		return 0, 0, errors.Join(errs...)
	}
	return capacity, available, nil
}

// look lists images, and returns those that nobody needs, what was used longest
// ago first.
func (c *Collector) look(ctx context.Context, use Use) ([]*runtimeapi.Image, error) {
	if !use.Complete {
		c.Log.Info("no image is removed: not all that this node should run is known")
		return nil, nil
	}
	list, err := c.Store.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("listing images: %w", err)
	}
	containers, err := c.Store.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("listing containers that use images: %w", err)
	}
	needed := map[string]bool{}
	need := func(ref string) {
		if ref != "" {
			needed[ref] = true
			needed[canonical(ref)] = true
		}
	}
	for _, ref := range use.Images {
		need(ref)
	}
	for _, f := range c.kept {
		for _, ref := range slices.Concat(f.Good, f.Before) {
			need(ref)
		}
	}
	for _, one := range containers.GetContainers() {
		need(one.GetImageRef())
		need(one.GetImageId())
		need(one.GetImage().GetImage())
	}
	now := time.Now()
	there := map[string]bool{}
	var unused []*runtimeapi.Image
	for _, img := range list.GetImages() {
		there[img.Id] = true
		s := c.seen[img.Id]
		if s == nil {
			s = &seenImage{first: now}
			c.seen[img.Id] = s
		}
		if isNeeded(img, needed) {
			s.used = now
			continue
		}
		if !img.Pinned && now.Sub(s.first) >= c.MinAge {
			unused = append(unused, img)
		}
	}
	for id := range c.seen {
		if !there[id] {
			delete(c.seen, id)
		}
	}
	slices.SortStableFunc(unused, func(a, b *runtimeapi.Image) int {
		x, y := c.seen[a.Id], c.seen[b.Id]
		return cmp.Or(x.used.Compare(y.used), x.first.Compare(y.first))
	})
	return unused, nil
}

func isNeeded(img *runtimeapi.Image, needed map[string]bool) bool {
	for _, ref := range slices.Concat([]string{img.Id}, img.RepoTags, img.RepoDigests) {
		if needed[ref] || needed[canonical(ref)] {
			return true
		}
	}
	return false
}

// canonical is a reference in full: docker.io/library/busybox:latest.
func canonical(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.TagNameOnly(named).String()
}

// remove removes images until so many bytes are freed. One that can't be removed
// doesn't keep the others.
func (c *Collector) remove(ctx context.Context, unused []*runtimeapi.Image, want uint64) (freed uint64, err error) {
	var errs []error
	for _, img := range unused {
		if freed >= want {
			break
		}
		// All its names: what a runtime has under two is one image.
		for _, ref := range slices.Concat(img.RepoTags, []string{img.Id}) {
			if _, err := c.Store.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
				errs = append(errs, fmt.Errorf("removing image %s: %w", ref, err))
			}
		}
		c.Log.Info("image removed", "id", img.Id, "names", img.RepoTags, "bytes", img.Size)
		delete(c.seen, img.Id)
		freed += img.Size
	}
	if freed > 0 && c.Removed != nil {
		c.Removed()
	}
	return freed, errors.Join(errs...)
}

// remember notes which images were good, and keeps those of the version before.
// A workload that has had no pod here for a while is forgotten; not at once, because
// between the old version's pod and the new one's there may be none.
func (c *Collector) remember(use Use) {
	if !c.read {
		c.kept, c.read = readFormer(c.Memory, c.Log), true
	}
	if !use.Complete {
		return
	}
	changed := false
	present := map[string]bool{}
	for _, w := range use.Workloads {
		present[w.Key] = true
		if !w.Good || len(w.Images) == 0 {
			continue
		}
		f := c.kept[w.Key]
		if f == nil {
			if len(c.kept) >= maxKept {
				continue
			}
			f = &former{}
			c.kept[w.Key] = f
		}
		images := slices.Clone(w.Images)
		slices.Sort(images)
		if slices.Equal(images, f.Good) {
			continue
		}
		f.Before, f.Good, changed = f.Good, images, true
	}
	now := time.Now()
	for key := range c.kept {
		switch since, gone := c.absent[key]; {
		case present[key]:
			delete(c.absent, key)
		case !gone:
			c.absent[key] = now
		case now.Sub(since) > absentFor:
			delete(c.kept, key)
			delete(c.absent, key)
			changed = true
		}
	}
	if changed && c.Memory != "" {
		raw, err := json.Marshal(c.kept)
		if err == nil {
			err = durable.WriteFile(c.Memory, raw, 0o600)
		}
		if err != nil {
			c.Log.Warn("which images were good is not kept over a restart", "err", err)
		}
	}
}

// readFormer reads what remember wrote; anything else is nothing.
func readFormer(path string, log *slog.Logger) map[string]*former {
	if path == "" {
		return map[string]*former{}
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return map[string]*former{}
	}
	var out map[string]*former
	if err == nil {
		out, err = decodeFormer(raw)
	}
	if err != nil {
		log.Warn("which images were good before the restart can't be read", "err", err)
		return map[string]*former{}
	}
	return out
}

func decodeFormer(raw []byte) (map[string]*former, error) {
	out := map[string]*former{}
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, err
	}
	if len(out) > maxKept {
		return nil, fmt.Errorf("%d workloads, more than %d", len(out), maxKept)
	}
	for key, f := range out {
		if f == nil {
			delete(out, key)
		}
	}
	return out, nil
}

// WorkloadKey names what a pod is of: its controller, without the part of a
// ReplicaSet's name that changes with each version of a Deployment, or else itself.
func WorkloadKey(namespace, pod, ownerKind, owner, templateHash string) string {
	if owner == "" {
		return namespace + "/" + pod
	}
	if templateHash != "" {
		owner = strings.TrimSuffix(owner, "-"+templateHash)
	}
	return namespace + "/" + ownerKind + "/" + owner
}
