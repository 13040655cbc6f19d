package wasmruntime

import (
	"bytes"
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// inUserNamespace has a child of an ordinary user begin in a user and mount
// namespace of its own, as that user and nobody else, so that the runner can
// shut it into a directory as root's runners do. Where the kernel doesn't let
// ordinary users have them, the guest has landlock and seccomp alone.
func inUserNamespace(attr *syscall.SysProcAttr) {
	attr.Cloneflags = unix.CLONE_NEWUSER | unix.CLONE_NEWNS
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
}

// mayHaveUserNamespace says whether that is worth a try.
func mayHaveUserNamespace() bool {
	if os.Geteuid() == 0 {
		return false // has what it takes
	}
	// Ubuntu's AppArmor lets anybody make one and takes all capabilities in it away.
	raw, err := os.ReadFile("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
	return err != nil || !bytes.HasPrefix(raw, []byte("1"))
}

// noUserNamespace says whether err is the kernel's no (clone(2), user_namespaces(7)).
func noUserNamespace(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL) ||
		errors.Is(err, unix.EUSERS) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EACCES)
}
