package wasm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// newNetNS makes a network namespace with loopback up and the given net.*
// sysctls, held by a bind mount at path.
func newNetNS(path string, sysctls map[string]string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	done := make(chan error)
	go func() {
		// Never unlocked: the thread belongs to the new namespace and ends
		// with this goroutine.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			if err := loopbackUp(); err != nil {
				return fmt.Errorf("loopback: %w", err)
			}
			if err := setSysctls(sysctls); err != nil {
				return err
			}
			self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
			if err := unix.Mount(self, path, "", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("bind mount: %w", err)
			}
			return nil
		}()
	}()
	if err := <-done; err != nil {
		return errors.Join(err, removeNetNS(path))
	}
	return nil
}

// removeNetNS lets go of a namespace. A path that isn't there is fine.
func removeNetNS(path string) error {
	if path == "" {
		return nil
	}
	for {
		err := unix.Unmount(path, unix.MNT_DETACH)
		if err == nil {
			continue // mounted twice
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) {
			break
		}
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func isNetNS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && int64(st.Type) == unix.NSFS_MAGIC
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req)
}

// setSysctls sets net.* sysctls of the calling thread's namespace.
func setSysctls(sysctls map[string]string) error {
	for key, value := range sysctls {
		if !strings.HasPrefix(key, "net.") || strings.Contains(key, "..") || strings.Contains(key, "/../") {
			return fmt.Errorf("sysctl %s: %w: a Wasm pod has a network namespace only, so net.* only", key, ErrUnsupported)
		}
		file := filepath.Join("/proc/sys", strings.ReplaceAll(key, ".", "/"))
		if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
			return fmt.Errorf("sysctl %s=%s: %w", key, value, err)
		}
	}
	return nil
}

// refuseNetSysctls is for pods on the host's network.
func refuseNetSysctls(cfg *runtimeapi.PodSandboxConfig) error {
	for key := range cfg.GetLinux().GetSysctls() {
		return fmt.Errorf("sysctl %s: %w: the pod uses the host's network", key, ErrUnsupported)
	}
	return nil
}
