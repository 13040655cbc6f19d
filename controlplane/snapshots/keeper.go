package snapshots

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coracle-edge/coracle/internal/durable"
)

var (
	// ErrUnchanged is returned when the newest snapshot already has everything.
	ErrUnchanged = errors.New("nothing changed since the last snapshot")
	// ErrNoSpace is returned when the file system has no room for one more.
	ErrNoSpace = errors.New("no space for a snapshot")
)

// Source is what snapshots are taken of. datastore.Store is one.
type Source interface {
	// Revision is raised by every change.
	Revision(ctx context.Context) (int64, error)
	// SnapshotSize is how many bytes WriteSnapshot is about to write.
	SnapshotSize(ctx context.Context) (int64, error)
	// WriteSnapshot writes the database as it is now, and its SHA-256.
	WriteSnapshot(ctx context.Context, w io.Writer) error
}

// Config of a Keeper. Dir and Source are required.
type Config struct {
	Dir    string
	Source Source
	// Interval of the schedule; zero or less: only on request and before upgrades.
	Interval time.Duration
	// Keep is how many of each reason are kept; at least one.
	Keep int
	// MaxBytes bounds all of them together; the newest is kept even if it alone is
	// larger.
	MaxBytes int64
	// Reserve is how many bytes of the file system a snapshot leaves free: etcd
	// refuses writes on a disk that is nearly full.
	Reserve int64
	Now     func() time.Time
	Logger  *slog.Logger
}

// Keeper takes snapshots and keeps some. Safe for concurrent use.
type Keeper struct {
	c  Config
	mu sync.Mutex // one is taken at a time

	failure struct {
		sync.Mutex
		err string
	}
}

// New returns a Keeper; the folder is made with the first snapshot.
func New(c Config) (*Keeper, error) {
	if c.Dir == "" || c.Source == nil {
		return nil, errors.New("snapshots: Dir and Source are needed")
	}
	if c.Keep < 1 {
		return nil, fmt.Errorf("snapshots: keep %d: at least one is kept", c.Keep)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Keeper{c: c}, nil
}

// Dir is the folder.
func (k *Keeper) Dir() string { return k.c.Dir }

// Path of a snapshot in the folder; ErrName if no snapshot can have that name.
func (k *Keeper) Path(name string) (string, error) {
	if _, err := ParseName(name); err != nil {
		return "", err
	}
	return filepath.Join(k.c.Dir, name), nil
}

// Failure is why the last attempt didn't bring a snapshot, empty if it did.
func (k *Keeper) Failure() string {
	k.failure.Lock()
	defer k.failure.Unlock()
	return k.failure.err
}

// List returns what is in the folder, oldest first.
func (k *Keeper) List() ([]Info, error) { return List(k.c.Dir) }

// List returns the snapshots in dir, oldest first. They are sorted by revision,
// because the clock of a board may be wrong; other files are passed over.
func List(dir string) ([]Info, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("snapshots: %w", err)
	}
	var out []Info
	for _, e := range entries {
		info, err := ParseName(e.Name())
		if err != nil {
			continue
		}
		file, err := e.Info()
		if err != nil {
			continue // removed meanwhile
		}
		info.Size = file.Size()
		out = append(out, info)
	}
	slices.SortStableFunc(out, func(a, b Info) int {
		if a.Revision != b.Revision {
			return int(min(max(a.Revision-b.Revision, -1), 1))
		}
		return a.Taken.Compare(b.Taken)
	})
	return out, nil
}

// Take takes a snapshot and removes those that are too many. A scheduled one, or
// one before an upgrade, is ErrUnchanged if the newest has everything already.
func (k *Keeper) Take(ctx context.Context, reason Reason) (Info, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	info, err := k.take(ctx, reason)
	k.failure.Lock()
	defer k.failure.Unlock()
	k.failure.err = ""
	if err != nil && !errors.Is(err, ErrUnchanged) {
		err = fmt.Errorf("snapshot (%s): %w", reason, err)
		k.failure.err = err.Error()
	}
	return info, err
}

func (k *Keeper) take(ctx context.Context, reason Reason) (Info, error) {
	have, err := k.List()
	if err != nil {
		return Info{}, err
	}
	if reason != Requested && len(have) > 0 {
		newest := have[len(have)-1]
		now, err := k.c.Source.Revision(ctx)
		if err != nil {
			return Info{}, err
		}
		if now == newest.Revision {
			return newest, fmt.Errorf("%w: %s", ErrUnchanged, newest.Name)
		}
	}
	if err := os.MkdirAll(k.c.Dir, 0o700); err != nil {
		return Info{}, fullDisk(err, k.c.Dir)
	}
	k.sweep()
	size, err := k.c.Source.SnapshotSize(ctx)
	if err != nil {
		return Info{}, err
	}
	if err := k.room(size); err != nil {
		return Info{}, err
	}
	info, err := k.write(ctx, reason)
	if err != nil {
		return Info{}, fullDisk(err, k.c.Dir)
	}
	k.prune()
	return info, nil
}

// room checks that a snapshot of size bytes leaves the reserve.
func (k *Keeper) room(size int64) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(k.c.Dir, &st); err != nil {
		return nil // nothing known, nothing refused
	}
	if free := int64(st.Bavail) * st.Bsize; free < size+k.c.Reserve {
		return fmt.Errorf("%w in %s: %d MiB are free, %d MiB are needed, of which %d are etcd's to write on: free some space there (df -h %[2]s), or name another folder with --snapshot-dir",
			ErrNoSpace, k.c.Dir, free>>20, (size+k.c.Reserve+(1<<20)-1)>>20, k.c.Reserve>>20)
	}
	return nil
}

func fullDisk(err error, dir string) error {
	if errors.Is(err, syscall.ENOSPC) && !errors.Is(err, ErrNoSpace) {
		return fmt.Errorf("%w in %s: free some space there (df -h %[2]s), or name another folder with --snapshot-dir: %w", ErrNoSpace, dir, err)
	}
	return err
}

const tempPrefix = ".new-"

// sweep removes what a process that was killed left half written.
func (k *Keeper) sweep() {
	left, _ := filepath.Glob(filepath.Join(k.c.Dir, tempPrefix+"*"))
	for _, path := range left {
		_ = os.Remove(path)
	}
}

// write brings one snapshot onto the medium, checked, under its name.
func (k *Keeper) write(ctx context.Context, reason Reason) (info Info, err error) {
	f, err := os.CreateTemp(k.c.Dir, tempPrefix+"*") // 0600
	if err != nil {
		return Info{}, err
	}
	tmp := f.Name()
	defer func() {
		if err != nil {
			_ = os.Remove(tmp)
		}
	}()
	err = k.c.Source.WriteSnapshot(ctx, f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return Info{}, err
	}
	// It is read back: what the medium has is what counts.
	revision, err := Verify(tmp)
	if err != nil {
		return Info{}, err
	}
	taken := k.c.Now()
	info, err = ParseName(name(taken, revision, reason))
	if err != nil {
		return Info{}, err
	}
	if file, err := os.Stat(tmp); err == nil {
		info.Size = file.Size()
	}
	if err := os.Rename(tmp, filepath.Join(k.c.Dir, info.Name)); err != nil {
		return Info{}, err
	}
	if err := durable.SyncDir(k.c.Dir); err != nil {
		return Info{}, err
	}
	k.c.Logger.Info("snapshot taken", "snapshot", filepath.Join(k.c.Dir, info.Name), "bytes", info.Size)
	return info, nil
}

// prune removes, oldest first, what is more than Keep of its reason, and then
// what is beyond MaxBytes. The newest of all stays.
func (k *Keeper) prune() {
	have, err := k.List()
	if err != nil {
		k.c.Logger.Warn("old snapshots not removed", "err", err)
		return
	}
	count := map[Reason]int{}
	var total int64
	for i := len(have) - 1; i >= 0; i-- {
		one := have[i]
		count[one.Reason]++
		total += one.Size
		if i == len(have)-1 || count[one.Reason] <= k.c.Keep && total <= k.c.MaxBytes {
			continue
		}
		total -= one.Size
		if err := os.Remove(filepath.Join(k.c.Dir, one.Name)); err != nil {
			k.c.Logger.Warn("old snapshot not removed", "snapshot", one.Name, "err", err)
			continue
		}
		k.c.Logger.Info("old snapshot removed", "snapshot", one.Name)
	}
}

const (
	// lookAgain is how often a due snapshot that wasn't taken is tried again, and how
	// often the clock is looked at: it may be set while a timer runs.
	lookAgain = time.Hour
	// firstLook lets the start's writes settle.
	firstLook = 5 * time.Minute
)

// Run takes snapshots by the interval until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	wait := firstLook
	for {
		if k.c.Interval <= 0 {
			<-ctx.Done()
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(min(wait, k.c.Interval)):
		}
		wait = k.until()
		if wait > 0 {
			continue
		}
		wait = lookAgain
		switch _, err := k.Take(ctx, Scheduled); {
		case ctx.Err() != nil:
		case errors.Is(err, ErrUnchanged):
			k.c.Logger.Debug("no snapshot", "reason", err)
		case err != nil:
			k.c.Logger.Error("no snapshot", "err", err, "again in", min(lookAgain, k.c.Interval))
		}
	}
}

// until is how long the next scheduled snapshot isn't due; at most lookAgain.
func (k *Keeper) until() time.Duration {
	have, err := k.List()
	if err != nil || len(have) == 0 {
		return 0
	}
	now := k.c.Now()
	var last time.Time
	for _, one := range have {
		// One of the future was taken while the clock was wrong: it says nothing.
		if one.Taken.After(last) && !one.Taken.After(now) {
			last = one.Taken
		}
	}
	return min(k.c.Interval-now.Sub(last), lookAgain)
}

// BeforeUpgrade takes a snapshot if the data was last written by another version
// than this one, which the file at record says, and writes this one there. It is
// to be called before anything of this version writes. taken is false if there
// was no need.
//
// A snapshot that can't be taken doesn't keep the control plane from starting: the
// error says why, and the next start tries again.
func (k *Keeper) BeforeUpgrade(ctx context.Context, record, version string) (taken bool, err error) {
	raw, err := os.ReadFile(record)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	last := strings.TrimSpace(string(raw))
	if last == version {
		return false, nil
	}
	revision, err := k.c.Source.Revision(ctx)
	if err != nil {
		return false, err
	}
	if revision > 1 { // not a new cluster
		if last == "" {
			last = "an unknown version"
		}
		switch info, err := k.Take(ctx, Upgrade); {
		case errors.Is(err, ErrUnchanged):
		case err != nil:
			return false, fmt.Errorf("before the upgrade from %s to %s: %w", last, version, err)
		default:
			taken = true
			k.c.Logger.Info("snapshot before an upgrade", "from", last, "to", version, "snapshot", info.Name)
		}
	}
	return taken, durable.WriteFile(record, []byte(version+"\n"), 0o600)
}
