package volumes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/csi"
)

// Objects is where API objects come from: the node's desired state.
type Objects interface {
	// Object returns the raw bytes of an object, and whether the node has it.
	Object(kind, namespace, name string) ([]byte, bool, error)
}

// TokenRequest asks for a service account token bound to a pod.
type TokenRequest struct {
	Namespace, Pod, PodUID, ServiceAccount, Node string
	// Audience is empty for the API server's own.
	Audience string
	Lifetime time.Duration
}

// TokenFunc answers a TokenRequest with a token and when it expires.
type TokenFunc func(context.Context, TokenRequest) (string, time.Time, error)

// Config configures a [Manager].
type Config struct {
	// Dir holds one directory per pod UID.
	Dir string
	// DevicesDir is where file systems of local devices are mounted, which pods share;
	// local-devices beside Dir if empty.
	DevicesDir string
	Objects    Objects
	// Token may be nil: then service account tokens are [ErrUnsupported].
	Token TokenFunc
	// Allocatable is the node's, for resourceFieldRef; may be nil.
	Allocatable func() v1.ResourceList
	Log         *slog.Logger
	// Now is the wall clock for token expiry; time.Now if nil.
	Now func() time.Time
	// Mounts mounts and unmounts; the kernel's if nil.
	Mounts Mounts
	// Folders is for volumes that the cluster provisions on this node; nil: they are
	// [ErrUnsupported].
	Folders *Folders
	// CSI is the node half of CSI volumes; nil: they are [ErrUnsupported].
	CSI *csi.Manager
	// Changed is called when [Manager.Expanded] changed; may be nil.
	Changed func()
	// Notice is told what events are to be made; may be nil.
	Notice func(Notice)
}

// Manager makes and removes volumes. Calls for different pods may run at the
// same time; calls for one pod may not.
type Manager struct {
	Config
	tmpfsRefused sync.Once

	devices sync.Mutex // file systems of local devices are mounted one at a time
	// mismatch is what was told of those of another type than their volume's; of who
	// holds devices.
	mismatch map[string]string

	folders sync.Mutex // while one of the node's own is made and mounted, or removed
	// removed are the volumes whose folders were, by UID: a pod that was told of one
	// before must not have it made again.
	removed map[string]bool
	// unremoved is what was told of folders that can't be; of who calls RemoveReleased.
	unremoved map[string]string

	mu sync.Mutex
	// alone says which pod has a volume that only one may use, by the volume's name.
	alone map[string]string
	// expanded are volumes that this agent has grown or failed to, by name, until the
	// claim says so.
	expanded map[string]Expanded
	// growing are those that can't be grown yet.
	growing map[growKey]growing
}

// New returns a Manager.
func New(c Config) *Manager {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Mounts == nil {
		c.Mounts = Kernel{}
	}
	if c.DevicesDir == "" {
		c.DevicesDir = filepath.Join(filepath.Dir(c.Dir), devicesDir)
	}
	return &Manager{Config: c, alone: map[string]string{}, expanded: map[string]Expanded{}, growing: map[growKey]growing{}, mismatch: map[string]string{},
		removed: map[string]bool{}, unremoved: map[string]string{}}
}

// Mounted is what a pod's volumes are on the node.
type Mounted struct {
	Paths map[string]string // by volume name
	// ReadOnly volumes are mounted read-only whatever the mount says.
	ReadOnly map[string]bool
	// Devices are block volumes' device files on the host, by volume name.
	Devices map[string]string
	// Images are volumes that are images, by volume name: the runtime mounts them.
	Images map[string]*v1.ImageVolumeSource
	// ImageRefs are the runtime's references of these images, for whoever pulls them
	// to fill in.
	ImageRefs map[string]string
	// Groups are to be added to every container's: the owners of volumes.
	Groups []int64
	// Refresh is when SetUp should be called again although nothing changed,
	// because a token grows old or Stale says something; zero if never.
	Refresh time.Time
	// Stale is why a volume, the first such, shows what it showed before: what it is
	// made of is gone or can't be had, and containers go on with what there is, as a
	// kubelet leaves a volume that is mounted.
	Stale error
}

// keep notes that a volume stays as it is, for now.
func (o *Mounted) keep(why error, again time.Time) {
	if o.Stale == nil {
		o.Stale = why
	}
	o.refreshBy(again)
}

// refreshBy has SetUp called again at that time at the latest.
func (o *Mounted) refreshBy(at time.Time) {
	if o.Refresh.IsZero() || at.Before(o.Refresh) {
		o.Refresh = at
	}
}

// PodDir returns the directory of a pod.
func (m *Manager) PodDir(uid string) string { return filepath.Join(m.Dir, uid) }

// SetUp makes the volumes that containers of the pod use, or brings them up to date:
// others need not even exist (upstream: desired_state_of_world_populator.go). It is
// idempotent and cheap when nothing changed. Addresses of the pod, for the
// downward API, are taken from pod.Status. On failure it returns an [*Error].
func (m *Manager) SetUp(ctx context.Context, pod *v1.Pod) (Mounted, error) {
	out := Mounted{Paths: map[string]string{}, ReadOnly: map[string]bool{}, Devices: map[string]string{}, Images: map[string]*v1.ImageVolumeSource{}, ImageRefs: map[string]string{}}
	if len(pod.Spec.Volumes) == 0 {
		return out, nil
	}
	if err := os.MkdirAll(m.PodDir(string(pod.UID)), 0o750); err != nil {
		return out, fmt.Errorf("creating the directory of pod %s/%s: %w", pod.Namespace, pod.Name, full(err, m.Dir))
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		mounts, block := used(pod, v.Name)
		if !mounts && !block && v.Image == nil { // pulled all the same (upstream: getImageVolumes)
			continue
		}
		err := m.setUp(ctx, pod, v, &out)
		if err == nil {
			continue
		}
		err = &Error{Volume: v.Name, Err: full(err, m.PodDir(string(pod.UID))), Block: block}
		path, shows := m.shown(pod, v)
		if !shows || ctx.Err() != nil {
			return out, err
		}
		out.Paths[v.Name], out.ReadOnly[v.Name] = path, true
		out.keep(err, m.Now().Add(minTokenRefresh))
	}
	return out, nil
}

// shown is where a volume of files lies that was written whole before.
func (m *Manager) shown(pod *v1.Pod, v *v1.Volume) (path string, ok bool) {
	plugin := ""
	switch s := v.VolumeSource; {
	case s.ConfigMap != nil:
		plugin = "configmap"
	case s.Secret != nil:
		plugin = "secret"
	case s.DownwardAPI != nil:
		plugin = "downward-api"
	case s.Projected != nil:
		plugin = "projected"
	default:
		return "", false
	}
	path = m.path(pod, plugin, v.Name)
	info, err := os.Stat(filepath.Join(path, dataLink))
	return path, err == nil && info.IsDir()
}

// TearDown unmounts and removes everything of the pod, in the order in which one
// lies on the other: subPaths, CSI volumes, all that is mounted, files. It is
// idempotent. It never deletes through a mount, and an error leaves what it is
// about for the next call.
func (m *Manager) TearDown(podUID string) error {
	if podUID == "" || podUID != filepath.Base(podUID) || podUID == ".." {
		return fmt.Errorf("%w: pod UID %q", ErrInvalid, podUID)
	}
	dir := m.PodDir(podUID)
	if err := m.unmount(podUID); err != nil {
		return err
	}
	if _, err := os.Lstat(dir); err == nil {
		if err := removeAll(context.Background(), dir); err != nil {
			return fmt.Errorf("removing the volumes of pod %s: %w", podUID, err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.alone, func(_, uid string) bool { return uid == podUID })
	m.forgetGrowing(podUID)
	return nil
}

// tearDownTimeout bounds what the drivers of a pod's volumes may take together,
// before it is tried again.
const tearDownTimeout = 5 * time.Minute

func (m *Manager) unmount(podUID string) error {
	dir := m.PodDir(podUID)
	// Of a subPath below a CSI volume the driver knows nothing.
	if err := m.Mounts.UnmountBelow(filepath.Join(dir, subPathsDir)); err != nil {
		return fmt.Errorf("unmounting the subPaths of pod %s: %w", podUID, err)
	}
	if m.CSI != nil {
		ctx, cancel := context.WithTimeout(context.Background(), tearDownTimeout)
		defer cancel()
		if err := m.CSI.TearDown(ctx, podUID); err != nil {
			return err
		}
	}
	if err := m.Mounts.UnmountBelow(dir); err != nil {
		return fmt.Errorf("unmounting the volumes of pod %s: %w", podUID, err)
	}
	if err := m.unmountDevices(); err != nil {
		return fmt.Errorf("unmounting the devices of pod %s: %w", podUID, err)
	}
	return nil
}

// Unmount unmounts everything of the pod and leaves the rest: SetUp mounts again.
// Nothing of the pod may run.
func (m *Manager) Unmount(podUID string) error {
	if podUID == "" || podUID != filepath.Base(podUID) || podUID == ".." {
		return fmt.Errorf("%w: pod UID %q", ErrInvalid, podUID)
	}
	return m.unmount(podUID)
}

// Pods are the UIDs of which there is something here: after a crash, also of pods
// that are no more.
func (m *Manager) Pods() ([]string, error) {
	entries, err := os.ReadDir(m.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	uids := map[string]bool{}
	for _, e := range entries {
		if e.IsDir() {
			uids[e.Name()] = true
		}
	}
	if m.CSI != nil {
		more, err := m.CSI.Pods()
		if err != nil {
			return nil, err
		}
		for _, uid := range more {
			uids[uid] = true
		}
	}
	return slices.Sorted(maps.Keys(uids)), nil
}

// path is where a volume lies: as a kubelet lays it out.
func (m *Manager) path(pod *v1.Pod, plugin, volume string) string {
	return filepath.Join(m.PodDir(string(pod.UID)), "volumes", "kubernetes.io~"+plugin, volume)
}

// memoryDir makes dir, on a tmpfs if the agent may mount one. size is a limit in
// bytes, 0 for none.
func (m *Manager) memoryDir(dir string, size int64) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	mounted, err := m.Mounts.IsMountPoint(dir)
	if err != nil || mounted {
		return err
	}
	switch err := m.Mounts.Tmpfs(dir, size); {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrPermission):
		m.tmpfsRefused.Do(func() {
			m.Log.Info("no tmpfs without CAP_SYS_ADMIN: secrets and memory volumes are directories only this user can enter", "dir", m.Dir)
		})
		return os.Chmod(dir, 0o700)
	default:
		return fmt.Errorf("mounting a tmpfs: %w", err)
	}
}
