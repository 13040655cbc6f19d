package state

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// Options of a Store; the zero value is usable.
type Options struct {
	// Unseal opens a sealed object. Without it sealed objects can't be read.
	Unseal func(uid string, hash fleet.Hash, sealed []byte) ([]byte, error)
	// FlushDelay is how long reports and journal entries may stay in memory
	// only: the price of a smaller one is flash. 250 ms if zero.
	FlushDelay time.Duration
	// JournalEntries and JournalBytes bound the journal; the oldest entries
	// go, and if they were not acknowledged a gap is noted. 1024 and 256 KiB
	// if zero.
	JournalEntries int
	JournalBytes   int
	// LockTimeout is how long Open waits for another process. 1 s if zero.
	LockTimeout time.Duration
	Logger      *slog.Logger
	// Disk names what holds the file, for messages: "mmcblk0 (ext4 mounted on /)".
	Disk string
	// Now is the wall clock with a monotonic reading.
	Now func() time.Time
}

func (o *Options) defaults() {
	if o.FlushDelay == 0 {
		o.FlushDelay = 250 * time.Millisecond
	}
	if o.JournalEntries == 0 {
		o.JournalEntries = 1024
	}
	if o.JournalBytes == 0 {
		o.JournalBytes = 256 << 10
	}
	if o.LockTimeout == 0 {
		o.LockTimeout = time.Second
	}
	if o.Disk == "" {
		o.Disk = "its file system"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// Store is one node's state file. Safe for concurrent use.
type Store struct {
	path     string
	opts     Options
	db       *bolt.DB
	started  time.Time
	setAside string

	writes chan *write
	kick   chan struct{} // something buffered wants to be flushed
	quit   chan struct{}
	done   chan struct{}
	closed atomic.Bool

	changed chan struct{} // desired set
	outbox  chan struct{} // reports, journal

	// mu guards everything below; it is never held while writing to disk.
	mu       sync.Mutex
	id       string
	boot     uint64
	floor    time.Time
	settings map[string]string
	desired  desired
	reports  reports
	journal  journal
	usage    Usage
	// followers hear of the desired set, too.
	followers []chan struct{}
	health    error

	usageDirty bool
	// dirtyClaims are records of claims that aren't on disk yet; nil: delete.
	dirtyClaims map[string][]byte

	commits, bytes, syncs atomic.Int64
}

// Open opens or makes the state file at path and begins a new boot: the boot
// number is raised durably (or, if the disk is full, as soon as a write
// succeeds). A file that can't be read is set aside, see [Store.SetAside].
func Open(path string, opts Options) (*Store, error) {
	opts.defaults()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("state file %s: %w", path, err)
	}
	s := &Store{
		path: path, opts: opts, started: opts.Now(),
		writes: make(chan *write), kick: make(chan struct{}, 1),
		quit: make(chan struct{}), done: make(chan struct{}),
		changed: make(chan struct{}, 1), outbox: make(chan struct{}, 1),
		settings: map[string]string{},
	}
	s.desired.init()
	s.reports.init()

	err := s.open()
	if errors.Is(err, errCorrupt) {
		aside, moveErr := moveAside(path)
		if moveErr != nil {
			return nil, fmt.Errorf("state file %s is corrupt (%w) and can't be set aside, move it away by hand: %w", path, err, moveErr)
		}
		opts.Logger.Error("state file is corrupt: it was set aside and an empty one takes its place; the control plane will send again what this node should run",
			"file", path, "setAside", aside, "error", err)
		s.setAside = aside
		s.desired.init()
		s.reports.init()
		s.journal = journal{}
		s.usage = Usage{}
		s.settings = map[string]string{}
		err = s.open()
	}
	if err != nil {
		return nil, err
	}
	go s.writer()
	if err := s.commit("raising the boot number", func(tx *bolt.Tx) error {
		return putMeta(tx, keyBoot, be64(s.boot))
	}); err != nil {
		opts.Logger.Error("boot number not durable yet", "boot", s.boot, "error", err)
		s.mu.Lock()
		s.reports.bootDirty = true
		s.mu.Unlock()
		s.wake()
	}
	return s, nil
}

// open opens the file, migrates and reads it. It returns errCorrupt if the file
// must be set aside.
func (s *Store) open() (err error) {
	// A truncated file faults in the mapping; a damaged page makes bbolt
	// panic. Both mean the same.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var db *bolt.DB
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("state file %s: %w: %v", s.path, errCorrupt, p)
		}
		if err != nil && db != nil {
			closeQuietly(db)
		}
	}()
	existed, err := s.verify()
	if err != nil {
		return err
	}
	db, err = bolt.Open(s.path, 0o600, &bolt.Options{
		Timeout:         s.opts.LockTimeout,
		NoFreelistSync:  true, // the free list is found again by a scan: fewer bytes per write
		FreelistType:    bolt.FreelistMapType,
		InitialMmapSize: 1 << 20, // growing the mapping waits for readers
	})
	switch {
	case err == nil:
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("%w: %s; another edgelet runs on this folder, stop it first", ErrLocked, s.path)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum),
		errors.Is(err, berrors.ErrVersionMismatch), errors.Is(err, berrors.ErrInvalidMapping):
		return fmt.Errorf("state file %s: %w: %w", s.path, errCorrupt, err)
	case existed && !isSystemError(err):
		return fmt.Errorf("state file %s: %w: %w", s.path, errCorrupt, err)
	default:
		return s.writeError("opening the state file", err)
	}
	db.AllocSize = 1 << 20
	if err := s.migrate(db); err != nil {
		return err
	}
	if err := db.View(s.load); err != nil {
		return fmt.Errorf("state file %s: %w: %w", s.path, errCorrupt, err)
	}
	s.db = db
	return nil
}

// verify looks at the file before bbolt does; see verify.go.
func (s *Store) verify() (existed bool, err error) {
	f, err := os.Open(s.path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, s.writeError("opening the state file", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false, s.writeError("opening the state file", err)
	}
	if info.Size() == 0 {
		return false, nil
	}
	if unlock, held := tryLock(f); held {
		defer unlock()
	} else {
		return true, nil // another process writes it: bbolt will say so
	}
	need, err := verify(f, info.Size())
	if err != nil {
		if isSystemError(err) {
			return true, s.writeError("reading the state file", err)
		}
		return true, fmt.Errorf("state file %s: %w: %w", s.path, errCorrupt, err)
	}
	if info.Size() < need {
		// Only pages that aren't used are missing: bbolt wants to have them.
		if err := os.Truncate(s.path, need); err != nil {
			return true, s.writeError("repairing the state file", err)
		}
	}
	return true, nil
}

// load reads what is kept in memory.
func (s *Store) load(tx *bolt.Tx) error {
	s.id = string(getMeta(tx, keyStore))
	if len(s.id) == 0 {
		return errors.New("no store id")
	}
	s.boot = fromBE64(getMeta(tx, keyBoot)) + 1
	if n := int64(fromBE64(getMeta(tx, keyFloor))); n != 0 {
		s.floor = time.Unix(n, 0).UTC()
	}
	s.usage = decodeUsage(getMeta(tx, keyUsage))
	if err := tx.Bucket(bucketSettings).ForEach(func(k, v []byte) error {
		s.settings[string(k)] = string(v)
		return nil
	}); err != nil {
		return err
	}
	if err := s.desired.load(tx); err != nil {
		return err
	}
	if err := s.reports.load(tx); err != nil {
		return err
	}
	return s.journal.load(tx)
}

// moveAside renames path to the first free path.corrupt-N.
func moveAside(path string) (string, error) {
	for n := 1; n < 10000; n++ {
		aside := fmt.Sprintf("%s.corrupt-%d", path, n)
		if _, err := os.Lstat(aside); err == nil {
			continue
		}
		if err := os.Rename(path, aside); err != nil {
			return "", err
		}
		if dir, err := os.Open(filepath.Dir(path)); err == nil {
			_ = dir.Sync()
			_ = dir.Close()
		}
		return aside, nil
	}
	return "", fmt.Errorf("too many files %s.corrupt-N, remove some", path)
}

// Close writes what is buffered and closes the file.
func (s *Store) Close() error {
	if !s.closed.CompareAndSwap(false, true) {
		return nil
	}
	close(s.quit)
	<-s.done
	flushErr := s.flush(nil)
	return errors.Join(flushErr, s.db.Close())
}

// Path of the state file.
func (s *Store) Path() string { return s.path }

// SetAside is where Open has put a corrupt file, empty if it was in order.
func (s *Store) SetAside() string { return s.setAside }

// ID is the state file's own random name, part of every session and stamp.
func (s *Store) ID() string { return s.id }

// BootSeq is the number of this start of the agent with this state file.
func (s *Store) BootSeq() uint64 { return s.boot }

// Uptime is the monotonic time since Open.
func (s *Store) Uptime() time.Duration { return s.opts.Now().Sub(s.started) }

// Health is the error of the last write, nil if it succeeded.
func (s *Store) Health() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.health
}

// Written is what the store has cost the flash since Open.
type Written struct {
	Commits int64 // transactions
	Bytes   int64 // pages handed to the device
	Syncs   int64 // fdatasync calls
}

// Written returns the counters.
func (s *Store) Written() Written {
	return Written{s.commits.Load(), s.bytes.Load(), s.syncs.Load()}
}

// Changed signals that something in the desired set changed since it was last
// received from. It holds one signal: read everything anew.
func (s *Store) Changed() <-chan struct{} { return s.changed }

// Follow is Changed for one more who wants to know; it has a signal of its own
// already. Call it before anything is applied.
func (s *Store) Follow() <-chan struct{} {
	ch := make(chan struct{}, 1)
	signal(ch)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.followers = append(s.followers, ch)
	return ch
}

// Outbox signals that there may be something to send.
func (s *Store) Outbox() <-chan struct{} { return s.outbox }

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func newID() []byte {
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails
	return id
}

func closeQuietly(db *bolt.DB) {
	defer func() { _ = recover() }()
	_ = db.Close()
}

func isSystemError(err error) bool {
	var pathErr *os.PathError
	return errors.As(err, &pathErr)
}
