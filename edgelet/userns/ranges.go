package userns

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/coracle-edge/coracle/internal/durable"
)

var (
	// ErrRecord is returned when the file that says which ids a pod has can't be
	// read or is none that this package or a kubelet wrote.
	ErrRecord = errors.New("invalid user namespace mappings file")
	// ErrFull is returned when all ranges are taken.
	ErrFull = errors.New("could not find an empty slot to allocate a user namespace")
)

const (
	// PerPod is how many ids a pod has, and what the first one is a multiple of: a
	// kubelet's default and unit.
	PerPod = 1 << 16
	// File is the name of the record in a pod's folder.
	File = "userns"

	maxFile = 4 << 10
)

// Range are ids of the node that are 0 to Length-1 in a pod, users and groups alike.
type Range struct{ First, Length uint32 }

// Ranges gives and remembers ranges. Its methods may be called at the same time.
type Ranges struct {
	dir  string
	pool func() (Range, error)

	mu    sync.Mutex
	known *Range // what pool said
}

// New returns the Ranges whose pods have their folders in dir. pool says which ids
// there are to give, such as [Node]; it is asked once, when the first pod wants some.
func New(dir string, pool func() (Range, error)) *Ranges {
	return &Ranges{dir: dir, pool: pool}
}

// Of is the pod's range: the one it has, or else the lowest that is free. When it
// returns, the range is on the medium. It is free again when the pod's folder is
// gone.
//
// [ErrRecord] names the file of whichever pod's record is broken: what that pod has
// isn't known then, so nobody can be given ids that are surely not its own.
func (r *Ranges) Of(uid string) (Range, error) {
	if uid == "" || uid != filepath.Base(uid) || uid == ".." || uid == "." {
		return Range{}, fmt.Errorf("user namespace: pod UID %q", uid)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch have, err := r.read(uid); {
	case err == nil:
		return have, nil
	case !errors.Is(err, os.ErrNotExist):
		return Range{}, fmt.Errorf("user namespace: %w", err)
	}
	pool, err := r.poolLocked()
	if err != nil {
		return Range{}, err
	}
	taken, err := r.taken()
	if err != nil {
		return Range{}, fmt.Errorf("user namespace: %w; delete that pod", err)
	}
	got, err := free(pool, taken)
	if err != nil {
		return Range{}, fmt.Errorf("create user namespace: %w", err)
	}
	return got, r.write(uid, got)
}

func (r *Ranges) poolLocked() (Range, error) {
	if r.known == nil {
		pool, err := r.pool()
		if err == nil {
			err = check(pool)
		}
		if err != nil {
			return Range{}, err
		}
		r.known = &pool
	}
	return *r.known, nil
}

// check words its errors as a kubelet that doesn't start over them.
func check(pool Range) error {
	switch {
	case pool.First%PerPod != 0:
		return fmt.Errorf("kubelet user assigned ID %d is not a multiple of %d (see /etc/subuid)", pool.First, PerPod)
	case pool.First < PerPod:
		return fmt.Errorf("kubelet user assigned ID %d must be greater or equal to %d (see /etc/subuid)", pool.First, PerPod)
	case pool.Length%PerPod != 0:
		return fmt.Errorf("kubelet user assigned IDs length %d is not a multiple of %d (see /etc/subuid)", pool.Length, PerPod)
	case uint64(pool.First)+uint64(pool.Length) > 1<<32:
		return fmt.Errorf("kubelet user assigned IDs %d to %d are not 32-bit numbers (see /etc/subuid)", pool.First, uint64(pool.First)+uint64(pool.Length))
	}
	return nil
}

// taken are the first ids of the ranges that pods have.
func (r *Ranges) taken() (map[uint32]bool, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	taken := map[uint32]bool{}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		switch have, err := r.read(e.Name()); {
		case err == nil:
			taken[have.First] = true
		case !errors.Is(err, os.ErrNotExist):
			return nil, err
		}
	}
	return taken, nil
}

func free(pool Range, taken map[uint32]bool) (Range, error) {
	for n := range pool.Length / PerPod {
		if first := pool.First + n*PerPod; !taken[first] {
			return Range{First: first, Length: PerPod}, nil
		}
	}
	return Range{}, ErrFull
}

// mapping and mappings are a kubelet's file.
type mapping struct {
	Host      uint32 `json:"hostId"`
	Container uint32 `json:"containerId"`
	Length    uint32 `json:"length"`
}

type mappings struct {
	UIDs []mapping `json:"uidMappings"`
	GIDs []mapping `json:"gidMappings"`
}

func (r *Ranges) read(uid string) (Range, error) {
	path := filepath.Join(r.dir, uid, File)
	info, err := os.Lstat(path)
	if err != nil {
		return Range{}, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return Range{}, fmt.Errorf("%w: %s: not a small file", ErrRecord, path)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return Range{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	got, err := parse(raw)
	if err != nil {
		return Range{}, fmt.Errorf("%w: %s: %w", ErrRecord, path, err)
	}
	return got, nil
}

// parse takes only what write could have written: something else may overlap.
func parse(raw []byte) (Range, error) {
	var m mappings
	if err := json.Unmarshal(raw, &m); err != nil {
		return Range{}, err
	}
	if len(m.UIDs) != 1 || len(m.GIDs) != 1 {
		return Range{}, errors.New("no more than one mapping allowed")
	}
	got := m.UIDs[0]
	switch {
	case got != m.GIDs[0]:
		return Range{}, errors.New("GID and UID mapping should be identical")
	case got.Container != 0:
		return Range{}, errors.New("UID 0 must be mapped")
	case got.Length != PerPod:
		return Range{}, fmt.Errorf("wrong user namespace length %d", got.Length)
	case got.Host%PerPod != 0 || got.Host < PerPod:
		return Range{}, fmt.Errorf("wrong user namespace offset specified %d", got.Host)
	}
	return Range{First: got.Host, Length: got.Length}, nil
}

func (r *Ranges) write(uid string, got Range) error {
	m := []mapping{{Host: got.First, Length: got.Length}}
	raw, err := json.Marshal(mappings{UIDs: m, GIDs: m})
	if err != nil {
		return err
	}
	dir := filepath.Join(r.dir, uid)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("create user namespace: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(dir, File), raw, 0o600); err != nil {
		return fmt.Errorf("create user namespace: %w", err)
	}
	// The folder may be new: without its own name on the medium the file is lost.
	return durable.SyncDir(r.dir)
}
