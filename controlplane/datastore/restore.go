package datastore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	etcdsnapshot "go.etcd.io/etcd/etcdutl/v3/snapshot"

	"github.com/coracle-edge/coracle/controlplane/snapshots"
	"github.com/coracle-edge/coracle/internal/durable"
)

const (
	// revisionBump lifts the restored etcd's revision above all that its clients may
	// have seen: to them a resource version never goes back, and watches of the past
	// are told to list again.
	revisionBump = 1_000_000_000

	stagingDir  = "restoring"
	asidePrefix = "before-"
	intentFile  = "restoring.json"
)

// RestoreConfig says what to put where.
type RestoreConfig struct {
	// Snapshot is the file.
	Snapshot string
	// Dir is the folder of the embedded etcd, as in Config. It may not exist yet.
	Dir string
	// Reserve is as in Config.
	Reserve int64
	Now     func() time.Time
	Logger  *slog.Logger
}

// Restored is what came of it.
type Restored struct {
	Mark Mark
	// Aside is where the data is that was there before; empty if there was none.
	Aside string
}

// intent is durable while the new data takes the old one's place.
type intent struct {
	Aside string `json:"aside"` // a name in the folder
}

// Restore puts the snapshot in the place of the embedded etcd's data. The data is
// marked as a new incarnation of the cluster, so that nodes keep what they run
// until an operator confirms. What was there is kept aside until the next
// restore.
//
// The new data is built beside the old one and made durable; then it takes its
// place, and a start after a power cut finishes that. So nothing is lost whatever
// fails, and when: ErrLocked if a control plane runs there, snapshots.ErrDamaged
// for a bad file, ErrNoSpace for a full disk.
func Restore(ctx context.Context, cfg RestoreConfig) (Restored, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	revision, err := snapshots.Verify(cfg.Snapshot)
	if err != nil {
		return Restored{}, fmt.Errorf("restore: %w", err)
	}
	unlock, err := lockDir(cfg.Dir)
	if err != nil {
		return Restored{}, err
	}
	defer unlock()
	if err := finishRestore(cfg.Dir); err != nil {
		return Restored{}, err
	}
	if err := roomFor(cfg); err != nil {
		return Restored{}, err
	}
	mark := newMark(filepath.Base(cfg.Snapshot), revision, cfg.Now())
	if err := stage(ctx, cfg, mark); err != nil {
		_ = os.RemoveAll(filepath.Join(cfg.Dir, stagingDir))
		return Restored{}, explainDir(cfg.Dir, fmt.Errorf("restore %s: %w", cfg.Snapshot, err))
	}
	// The older ones are no longer the only copy of anything.
	older, _ := filepath.Glob(filepath.Join(cfg.Dir, asidePrefix+"*"))
	in := intent{Aside: asidePrefix + mark.At.Format("20060102T150405Z") + "-" + mark.ID}
	raw, err := json.Marshal(in)
	if err != nil {
		return Restored{}, err
	}
	if err := durable.WriteFile(filepath.Join(cfg.Dir, intentFile), raw, 0o600); err != nil {
		return Restored{}, err
	}
	if err := finishRestore(cfg.Dir); err != nil {
		return Restored{}, err
	}
	out := Restored{Mark: mark}
	if aside := filepath.Join(cfg.Dir, in.Aside); exists(aside) {
		out.Aside = aside
		for _, path := range older {
			if err := os.RemoveAll(path); err != nil {
				cfg.Logger.Warn("data of before an earlier restore not removed", "err", err)
			}
		}
	}
	return out, nil
}

// roomFor checks that the new data has room beside the old one.
func roomFor(cfg RestoreConfig) error {
	info, err := os.Stat(cfg.Snapshot)
	if err != nil {
		return err
	}
	if cfg.Reserve == 0 {
		cfg.Reserve = defaultReserve
	}
	// Twice the segment: etcd preallocates the next one.
	return freeSpace(cfg.Dir, info.Size()+2*walSegment+cfg.Reserve)(true)
}

// stage builds the new data in a folder beside the old and makes it durable.
func stage(ctx context.Context, cfg RestoreConfig, mark Mark) error {
	dir := filepath.Join(cfg.Dir, stagingDir)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := unpack(cfg, dir); err != nil {
		return err
	}
	// It is opened once: that it can be is the best proof that it is whole.
	s, err := Open(ctx, Config{Dir: dir, CompactInterval: -1, Reserve: cfg.Reserve, Logger: cfg.Logger})
	if err != nil {
		return err
	}
	err = putMark(ctx, s.client.Client, mark)
	if err = errors.Join(err, s.Close()); err != nil {
		return err
	}
	return syncTree(dir)
}

// unpack has etcd's own tool make a data folder of the snapshot.
func unpack(cfg RestoreConfig, dir string) (err error) {
	smallSegments()
	said := make(chan string, 1)
	manager := etcdsnapshot.NewV3(newLogger(cfg.Logger, func(message string) {
		select {
		case said <- message:
		default:
		}
	}))
	done := make(chan struct{})
	err = ErrFailed // what is left if etcd ends its goroutine; see newLogger
	go func() {
		defer close(done)
		debug.SetPanicOnFault(true)
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("%w: %v", snapshots.ErrDamaged, r)
			}
		}()
		err = manager.Restore(etcdsnapshot.RestoreConfig{
			SnapshotPath: cfg.Snapshot, OutputDataDir: dir,
			Name: memberName, PeerURLs: []string{memberURL}, InitialCluster: memberName + "=" + memberURL,
			InitialClusterToken: "coracle",
			RevisionBump:        revisionBump, MarkCompacted: true,
		})
	}()
	<-done
	if errors.Is(err, ErrFailed) {
		select {
		case message := <-said:
			return fmt.Errorf("%w: %s", ErrFailed, message)
		default:
		}
	}
	return err
}

// finishRestore puts staged data into its place if that was decided, and removes
// what is staged otherwise. It may be interrupted anywhere and called again.
func finishRestore(dir string) error {
	staging := filepath.Join(dir, stagingDir)
	path := filepath.Join(dir, intentFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if exists(staging) {
			return os.RemoveAll(staging) // was never decided
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("unfinished restore: %w", err)
	}
	var in intent
	if err := json.Unmarshal(raw, &in); err != nil || !strings.HasPrefix(in.Aside, asidePrefix) || filepath.Base(in.Aside) != in.Aside {
		return fmt.Errorf("unfinished restore: %s can't be read (%v): the restored data is in %s, the one before in %s or a folder %s* beside it; "+
			"move the one you want to %[4]s/member and remove the file", path, err, filepath.Join(staging, "member"), dir, asidePrefix)
	}
	member, next, aside := filepath.Join(dir, "member"), filepath.Join(staging, "member"), filepath.Join(dir, in.Aside)
	if exists(next) {
		if exists(member) {
			if err := os.MkdirAll(aside, 0o700); err != nil {
				return fmt.Errorf("unfinished restore: %w", err)
			}
			if err := os.Rename(member, filepath.Join(aside, "member")); err != nil {
				return fmt.Errorf("unfinished restore: %w", err)
			}
			if err := errors.Join(durable.SyncDir(aside), durable.SyncDir(dir)); err != nil {
				return fmt.Errorf("unfinished restore: %w", err)
			}
		}
		if err := os.Rename(next, member); err != nil {
			return fmt.Errorf("unfinished restore: %w", err)
		}
		if err := durable.SyncDir(dir); err != nil {
			return fmt.Errorf("unfinished restore: %w", err)
		}
	}
	if err := errors.Join(os.RemoveAll(staging), os.Remove(path)); err != nil {
		return fmt.Errorf("finished restore: %w", err)
	}
	return durable.SyncDir(dir)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// syncTree makes all files and folders below dir durable.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = f.Sync()
		if errors.Is(err, syscall.EINVAL) { // a file system without it
			err = nil
		}
		return errors.Join(err, f.Close())
	})
}
