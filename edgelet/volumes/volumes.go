package volumes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
)

var (
	// ErrUnsupported is returned when a volume's type isn't one this node makes.
	ErrUnsupported = errors.New("volume type is not supported on this node")
	// ErrNotFound is returned when an object a volume is made of isn't on the node.
	ErrNotFound = errors.New("not found")
	// ErrHostPath is returned when what is at a hostPath isn't of the type asked for.
	ErrHostPath = errors.New("hostPath type check failed")
	// ErrInvalid is returned when a volume says something that can't be done, such
	// as a path that leaves the volume.
	ErrInvalid = errors.New("invalid volume")
)

// Error names the volume that can't be set up.
type Error struct {
	Volume string
	Err    error
}

func (e *Error) Error() string {
	return fmt.Sprintf("MountVolume.SetUp failed for volume %q : %v", e.Volume, e.Err)
}
func (e *Error) Unwrap() error { return e.Err }

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
	Dir     string
	Objects Objects
	// Token may be nil: then service account tokens are [ErrUnsupported].
	Token TokenFunc
	// Allocatable is the node's, for resourceFieldRef; may be nil.
	Allocatable func() v1.ResourceList
	Log         *slog.Logger
	// Now is the wall clock for token expiry; time.Now if nil.
	Now func() time.Time
	// Mounts mounts and unmounts; the kernel's if nil.
	Mounts Mounts
}

// Manager makes and removes volumes. Calls for different pods may run at the
// same time; calls for one pod may not.
type Manager struct {
	Config
	tmpfsRefused sync.Once
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
		c.Mounts = kernel{}
	}
	return &Manager{Config: c}
}

// Mounted is what a pod's volumes are on the node.
type Mounted struct {
	Paths map[string]string // by volume name
	// ReadOnly volumes are mounted read-only whatever the mount says.
	ReadOnly map[string]bool
	// Refresh is when SetUp should be called again although nothing changed,
	// because a token grows old; zero if never.
	Refresh time.Time
}

// PodDir returns the directory of a pod.
func (m *Manager) PodDir(uid string) string { return filepath.Join(m.Dir, uid) }

// SetUp makes all volumes of the pod, or brings them up to date. It is
// idempotent and cheap when nothing changed. Addresses of the pod, for the
// downward API, are taken from pod.Status. On failure it returns an [*Error].
func (m *Manager) SetUp(ctx context.Context, pod *v1.Pod) (Mounted, error) {
	out := Mounted{Paths: map[string]string{}, ReadOnly: map[string]bool{}}
	if len(pod.Spec.Volumes) == 0 {
		return out, nil
	}
	if err := os.MkdirAll(m.PodDir(string(pod.UID)), 0o750); err != nil {
		return out, fmt.Errorf("creating the directory of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if err := m.setUp(ctx, pod, v, &out); err != nil {
			return out, &Error{Volume: v.Name, Err: err}
		}
	}
	return out, nil
}

// TearDown unmounts and removes everything of the pod. It is idempotent. It
// never follows a mount out of the pod's directory.
func (m *Manager) TearDown(podUID string) error {
	if podUID == "" || podUID != filepath.Base(podUID) {
		return fmt.Errorf("%w: pod UID %q", ErrInvalid, podUID)
	}
	dir := m.PodDir(podUID)
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := m.Mounts.UnmountBelow(dir); err != nil {
		return fmt.Errorf("unmounting the volumes of pod %s: %w", podUID, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing the volumes of pod %s: %w", podUID, err)
	}
	return nil
}

// Unmount unmounts everything of the pod and leaves the rest: SetUp mounts again.
// Nothing of the pod may run.
func (m *Manager) Unmount(podUID string) error {
	if podUID == "" || podUID != filepath.Base(podUID) {
		return fmt.Errorf("%w: pod UID %q", ErrInvalid, podUID)
	}
	if err := m.Mounts.UnmountBelow(m.PodDir(podUID)); err != nil {
		return fmt.Errorf("unmounting the volumes of pod %s: %w", podUID, err)
	}
	return nil
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
