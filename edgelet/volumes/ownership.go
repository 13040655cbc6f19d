package volumes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// What fsGroup gives to a group: upstream's rwMask, roMask and execMask
// (pkg/volume/volume_linux.go).
const (
	maskWrite = 0o660
	maskRead  = 0o440
	maskEnter = 0o110
)

// ownership is how a volume is given to the pod's group.
type ownership struct {
	group        *int64
	readOnly     bool
	rootMismatch bool // only if the root isn't as it should be
	// slow is told how many files are done, the first time 0, while it takes long; may
	// be nil.
	slow func(files int64)
	// after is when it takes long.
	after time.Duration
	// files counts, for slow; not nil if that isn't.
	files *atomic.Int64
}

// When to tell that giving a volume to a group takes long, and how often.
const (
	slowAfter = 30 * time.Second
	slowAgain = time.Minute
)

// ownershipOf is that of a volume at dir that a pod may write, following its policy.
// That it takes long is told in upstream's words (pkg/volume/volume_linux.go).
func (m *Manager) ownershipOf(pod *v1.Pod, dir string) ownership {
	o := ownership{group: fsGroup(pod), after: slowAfter, files: new(atomic.Int64)}
	if _, below, ok := strings.Cut(dir, string(pod.UID)); ok {
		dir = string(pod.UID) + below
	}
	o.slow = func(files int64) {
		message := fmt.Sprintf("Setting volume ownership for %s is taking longer than expected, consider using OnRootMismatch - https://kubernetes.io/docs/tasks/configure-pod-container/security-context/#configure-volume-permission-and-ownership-change-policy-for-pods", dir)
		if files > 0 {
			message = fmt.Sprintf("Setting volume ownership for %s, processed %d files.", dir, files)
		}
		m.notice(Notice{PodUID: string(pod.UID), Type: v1.EventTypeWarning, Reason: "VolumePermissionChangeInProgress", Message: message})
	}
	if sc := pod.Spec.SecurityContext; sc != nil && sc.FSGroupChangePolicy != nil {
		o.rootMismatch = *sc.FSGroupChangePolicy == v1.FSGroupChangeOnRootMismatch
	}
	return o
}

// apply gives a tree to the group: readable to it, writable unless readOnly,
// folders with setgid. The tree is walked by descriptors and no symlink is
// followed, so that what a pod does in it meanwhile leads nowhere else. The root
// comes last: with rootMismatch, one that is right says that all is. Without the
// right to change owners it does nothing: then there is one user only.
func (o ownership) apply(root string) error {
	if o.group == nil {
		return nil
	}
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		defer unix.Close(fd)
		if o.rootMismatch && o.right(fd) {
			return nil
		}
		if o.slow != nil {
			stop := make(chan struct{})
			timer := time.AfterFunc(o.after, func() { o.watch(stop) })
			defer timer.Stop()
			defer close(stop)
		}
		err = o.applyAt(fd, root)
	}
	if errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("applying fsGroup %d: %w", *o.group, err)
	}
	return nil
}

// watch tells how far it is until stop is closed.
func (o ownership) watch(stop <-chan struct{}) {
	ticker := time.NewTicker(slowAgain)
	defer ticker.Stop()
	for files := int64(0); ; files = max(o.files.Load(), 1) {
		o.slow(files)
		select {
		case <-stop:
			return
		case <-ticker.C:
		}
	}
}

func (o ownership) mask(dir bool) uint32 {
	m := uint32(maskWrite)
	if o.readOnly {
		m = maskRead
	}
	if dir {
		m |= maskEnter | unix.S_ISGID
	}
	return m
}

// right reports whether a root is as apply leaves it.
func (o ownership) right(fd int) bool {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return false
	}
	return int64(st.Gid) == *o.group && st.Mode&o.mask(true) == o.mask(true)
}

// applyAt works on what fd has open.
func (o ownership) applyAt(fd int, path string) error {
	fail := func(op string, err error) error { return &os.PathError{Op: op, Path: path, Err: err} }
	if o.files != nil {
		o.files.Add(1)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fail("stat", err)
	}
	dir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if dir {
		copied, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fail("open", err)
		}
		f := os.NewFile(uintptr(copied), path)
		defer f.Close()
		for {
			names, err := f.Readdirnames(256)
			for _, name := range names {
				if err := o.child(fd, name, filepath.Join(path, name)); err != nil {
					return err
				}
			}
			if len(names) == 0 || err != nil {
				break
			}
		}
	}
	if err := unix.Fchown(fd, -1, int(*o.group)); err != nil {
		return fail("chown", err)
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777|o.mask(dir)); err != nil {
		return fail("chmod", err)
	}
	return nil
}

// child goes on with an entry of a folder. What is neither file nor folder is
// not opened: that could wait for ever, or do something.
func (o ownership) child(dir int, name, path string) error {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil // gone meanwhile
	}
	if err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFDIR && kind != unix.S_IFREG {
		if err := unix.Fchownat(dir, name, -1, int(*o.group), unix.AT_SYMLINK_NOFOLLOW); err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "chown", Path: path, Err: err}
		}
		return nil
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) {
		return nil // it became something else meanwhile
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	return o.applyAt(fd, path)
}

func fsGroup(pod *v1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

// fsUser is the user that all containers of the pod run as, nil if they differ or
// don't say (upstream: util.FsUserFrom).
func fsUser(pod *v1.Pod) *int64 {
	var podUser *int64
	if pod.Spec.SecurityContext != nil {
		podUser = pod.Spec.SecurityContext.RunAsUser
	}
	var user *int64
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			own := podUser
			if sc := list[i].SecurityContext; sc != nil && sc.RunAsUser != nil {
				own = sc.RunAsUser
			}
			if own == nil || user != nil && *user != *own {
				return nil
			}
			user = own
		}
	}
	return user
}
