package csi

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/coracle-edge/coracle/edgelet/rawcall"
)

// Volume is a volume of a pod, with everything resolved.
type Volume struct {
	PodUID string
	// Name is the PersistentVolume's, or the pod's own of an inline volume.
	Name string
	// PodVolume is what the pod calls it.
	PodVolume string
	Driver    string
	Handle    string
	// Ephemeral says that it is the pod's own and lives as long: never staged.
	Ephemeral bool
	Block     bool
	ReadOnly  bool
	// Attach says that a controller attached it.
	Attach       bool
	FSType       string
	MountOptions []string
	AccessMode   string // the API's
	// Attributes go to NodePublishVolume, StageAttributes to NodeStageVolume.
	Attributes, StageAttributes                 map[string]string
	PublishContext                              map[string]string
	StageSecrets, PublishSecrets, ExpandSecrets map[string]string
	FSGroup                                     *int64
	// Republish asks for NodePublishVolume also when the volume is published.
	Republish bool
}

// Published is where a volume is.
type Published struct {
	Path string
	// Fresh says that it was published just now; once it is ready for the pod, that
	// is to be told with [Manager.Ready].
	Fresh bool
	// GroupDone says that the driver itself applied the pod's fsGroup.
	GroupDone bool
}

// Config configures a [Manager]. All but Changed and Log are required.
type Config struct {
	// KubeletDir is /var/lib/kubelet: drivers that are pods have it mounted.
	KubeletDir string
	// RecordDir is where this package keeps its records.
	RecordDir string
	// Boot is different for every boot of the machine.
	Boot string
	// IsMountPoint looks whether something is mounted at a path.
	IsMountPoint func(path string) (bool, error)
	// Changed is called when a driver came or went, or, with false, when what is in
	// use did; may be nil.
	Changed func(drivers bool)
	Log     *slog.Logger
}

// Manager has volumes staged and published. Calls for one pod may not overlap,
// those for different pods may.
type Manager struct {
	Config

	mu      sync.Mutex
	drivers map[string]*driver
	records map[string]*record // by key; nil before the first use
	busy    map[string]chan struct{}
}

// New returns a Manager. Nothing is read or watched before the first volume.
func New(c Config) *Manager {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Manager{Config: c, drivers: map[string]*driver{}, busy: map[string]chan struct{}{}}
}

// lock keeps pods that share a volume from staging and unstaging it at once.
func (m *Manager) lock(ctx context.Context, volume string) (func(), error) {
	for {
		m.mu.Lock()
		held := m.busy[volume]
		if held == nil {
			done := make(chan struct{})
			m.busy[volume] = done
			m.mu.Unlock()
			return func() {
				m.mu.Lock()
				delete(m.busy, volume)
				m.mu.Unlock()
				close(done)
			}, nil
		}
		m.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

const pluginDir = "plugins/kubernetes.io/csi"

// paths are a kubelet's: csi_attacher.go, csi_mounter.go, csi_block.go.
func (m *Manager) paths(v *Volume) (staging, target string) {
	plugins := filepath.Join(m.KubeletDir, pluginDir)
	switch {
	case v.Block:
		return filepath.Join(plugins, "volumeDevices/staging", v.Name), filepath.Join(plugins, "volumeDevices/publish", v.Name, v.PodUID)
	case !v.Ephemeral:
		staging = filepath.Join(plugins, v.Driver, fmt.Sprintf("%x", sha256.Sum256([]byte(v.Handle))), "globalmount")
	}
	return staging, filepath.Join(m.KubeletDir, "pods", v.PodUID, "volumes/kubernetes.io~csi", v.Name, "mount")
}

// SetUp has a volume staged, if its driver stages volumes, and published. It is
// idempotent; a volume that is published in this boot of the machine is left
// alone without asking the driver, unless v.Republish.
func (m *Manager) SetUp(ctx context.Context, v *Volume) (Published, error) {
	staging, target := m.paths(v)
	unlock, err := m.lock(ctx, v.Driver+"^"+v.Handle)
	if err != nil {
		return Published{}, err
	}
	defer unlock()
	m.mu.Lock()
	err = m.load()
	have := m.records[v.PodUID+"/"+v.Name]
	m.mu.Unlock()
	if err != nil {
		return Published{}, err
	}
	ready := have != nil && have.Boot == m.Boot
	if ready && have.Mounted {
		if ready, err = m.IsMountPoint(target); err != nil {
			return Published{}, err
		}
	}
	if ready && !v.Republish {
		return Published{Path: target}, nil
	}
	d, err := m.driver(v.Driver)
	if err != nil {
		return Published{}, err
	}
	if v.Ephemeral || !d.caps.has(capStage) {
		staging = ""
	}
	r := record{PodUID: v.PodUID, Name: v.Name, PodVolume: v.PodVolume, Driver: v.Driver, Handle: v.Handle, Block: v.Block, Attach: v.Attach, Staging: staging, Target: target}
	if ready {
		r.Boot, r.Mounted = m.Boot, have.Mounted
	}
	if have == nil || *have != r {
		if err := m.keep(&r); err != nil {
			return Published{}, fmt.Errorf("recording the volume: %w", err)
		}
		if v.Attach {
			m.changed(false)
		}
	}
	group := ""
	if v.FSGroup != nil && d.caps.has(capMountGroup) {
		group = strconv.FormatInt(*v.FSGroup, 10)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if staging != "" && !ready {
		if err := m.stage(ctx, d, v, staging, group); err != nil {
			return Published{}, err
		}
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return Published{}, err
	}
	if _, err := d.call(ctx, "NodePublishVolume", v.publishRequest(staging, target, d.caps, group)); err != nil {
		if rawcall.Final(err) && !ready {
			m.removeMountDir(target)
		}
		return Published{}, err
	}
	return Published{Path: target, Fresh: !ready, GroupDone: group != ""}, nil
}

func (m *Manager) stage(ctx context.Context, d *driver, v *Volume, staging, group string) error {
	if err := os.MkdirAll(staging, 0o750); err != nil {
		return err
	}
	if _, err := d.call(ctx, "NodeStageVolume", v.stageRequest(staging, d.caps, group)); err != nil {
		if rawcall.Final(err) {
			m.removeMountDir(staging)
		}
		return fmt.Errorf("NodeStageVolume: %w", err)
	}
	return nil
}

// Ready notes that a volume that was Fresh is ready for its pod.
func (m *Manager) Ready(v *Volume) error {
	m.mu.Lock()
	have := m.records[v.PodUID+"/"+v.Name]
	m.mu.Unlock()
	if have == nil {
		return fmt.Errorf("volume %s of pod %s: %w", v.Name, v.PodUID, fs.ErrNotExist)
	}
	r := *have
	r.Boot = m.Boot
	var err error
	if r.Mounted, err = m.IsMountPoint(r.Target); err != nil {
		return err
	}
	return m.keep(&r)
}

// removeMountDir removes a path where a driver failed to mount. It is never
// removed while something is mounted there, nor with anything in it.
func (m *Manager) removeMountDir(path string) {
	if mounted, err := m.IsMountPoint(path); err != nil || mounted {
		return
	}
	_ = os.Remove(path)
}

// of returns the records of a pod, by name.
func (m *Manager) of(podUID string) ([]*record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.load(); err != nil {
		return nil, err
	}
	var out []*record
	for _, key := range slices.Sorted(maps.Keys(m.records)) {
		if r := m.records[key]; r.PodUID == podUID {
			out = append(out, r)
		}
	}
	return out, nil
}

// Pods are the UIDs that have volumes.
func (m *Manager) Pods() ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.load(); err != nil {
		return nil, err
	}
	uids := map[string]bool{}
	for _, r := range m.records {
		uids[r.PodUID] = true
	}
	return slices.Sorted(maps.Keys(uids)), nil
}

// TearDown undoes what was done for a pod: each volume is unpublished and, if no
// other pod uses it, unstaged. It is idempotent, and an error leaves what it is
// about for the next call.
func (m *Manager) TearDown(ctx context.Context, podUID string) error {
	records, err := m.of(podUID)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range records {
		if err := m.tearDown(ctx, r); err != nil {
			errs = append(errs, fmt.Errorf("UnmountVolume.TearDown failed for volume %q : %w", r.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) tearDown(ctx context.Context, r *record) error {
	unlock, err := m.lock(ctx, r.volume())
	if err != nil {
		return err
	}
	defer unlock()
	d, err := m.driver(r.Driver)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if r.Boot != "" {
		// From here on it isn't ready, whatever becomes of the rest.
		undone := *r
		undone.Boot, undone.Mounted = "", false
		if err := m.keep(&undone); err != nil {
			return err
		}
	}
	if _, err := d.call(ctx, "NodeUnpublishVolume", pathRequest(r.Handle, r.Target)); err != nil {
		return err
	}
	if mounted, err := m.IsMountPoint(r.Target); err != nil || mounted {
		return errors.Join(fmt.Errorf("the driver said that %s is unpublished, and it is still mounted", r.Target), err)
	}
	m.removeMountDir(r.Target) // the driver's to do, and not every one does
	if r.Staging != "" && !m.shared(r) {
		if _, err := d.call(ctx, "NodeUnstageVolume", pathRequest(r.Handle, r.Staging)); err != nil {
			return fmt.Errorf("NodeUnstageVolume: %w", err)
		}
		m.removeMountDir(r.Staging)
		_ = os.Remove(filepath.Dir(r.Staging))
	}
	_ = os.Remove(filepath.Dir(r.Target))
	if err := m.drop(r); err != nil {
		return err
	}
	if r.Attach {
		m.changed(false)
	}
	return nil
}

// Abandon unmounts all that drivers have mounted, without asking them, and forgets
// it: for a board that is nobody's any more, where they don't run. unmount
// unmounts everything at and below a path.
func (m *Manager) Abandon(unmount func(path string) error) error {
	m.mu.Lock()
	err := m.load()
	all := slices.Collect(maps.Values(m.records))
	m.mu.Unlock()
	errs := []error{err}
	for _, r := range all {
		failed := unmount(r.Target)
		if r.Staging != "" {
			failed = errors.Join(failed, unmount(r.Staging))
		}
		if failed == nil {
			m.removeMountDir(r.Target)
			failed = m.drop(r)
		}
		errs = append(errs, failed)
	}
	return errors.Join(errs...)
}

// shared reports whether another pod has the volume staged at the same place.
func (m *Manager) shared(r *record) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, other := range m.records {
		if key != r.key() && other.volume() == r.volume() && other.Staging == r.Staging {
			return true
		}
	}
	return false
}

// InUse names the attached volumes that this node uses, as status.volumesInUse
// does: they may not be detached.
func (m *Manager) InUse() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.load() != nil {
		return nil
	}
	names := map[string]bool{}
	for _, r := range m.records {
		if r.Attach {
			names["kubernetes.io/csi/"+r.volume()] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}
