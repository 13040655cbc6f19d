package jail

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Config is what Enter does.
type Config struct {
	// SetUser takes on UID, GID and Groups; the caller must be root.
	SetUser  bool
	UID, GID uint32
	Groups   []uint32
	// Chroot is a directory's descriptor, -1 for none.
	Chroot int
	// Paths are what landlock lets through.
	Paths []Path
	// Outbound leaves connecting to others to landlock's guest.
	Outbound bool
	// Files is RLIMIT_NOFILE, DataBytes RLIMIT_DATA, CPUSeconds RLIMIT_CPU,
	// FileBytes RLIMIT_FSIZE; zero leaves it.
	Files, DataBytes, CPUSeconds, FileBytes uint64
}

// Enter raises the walls around the calling thread and gives the names of
// those that stand, and of those that are missing with a leading "no ".
func Enter(cfg Config) (walls []string, err error) {
	note := func(name string, err error) {
		if err != nil {
			name = fmt.Sprintf("no %s: %v", name, err)
		}
		walls = append(walls, name)
	}
	for _, r := range []struct {
		what  int
		limit uint64
	}{
		{unix.RLIMIT_CORE, 0}, {unix.RLIMIT_NOFILE, cfg.Files}, {unix.RLIMIT_DATA, cfg.DataBytes},
		{unix.RLIMIT_CPU, cfg.CPUSeconds}, {unix.RLIMIT_FSIZE, cfg.FileBytes},
	} {
		if r.limit > 0 || r.what == unix.RLIMIT_CORE {
			lower(r.what, r.limit)
		}
	}
	// Huge pages cost a small guest more than everything else together.
	unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0)

	inNamespace := mappedNamespace() // while /proc is there
	ruleset, err := newRuleset(cfg.Paths, cfg.Outbound)
	if err != nil {
		note("landlock", err)
	}
	if cfg.Chroot >= 0 {
		err := unix.Fchdir(cfg.Chroot)
		if err == nil {
			err = unix.Chroot(".")
		}
		note("chroot", err)
	}
	if cfg.SetUser {
		already := cfg.UID == uint32(os.Getuid()) && cfg.GID == uint32(os.Getgid())
		err := setUser(cfg)
		if err != nil && !inNamespace && !already {
			return walls, err
		}
		// In a user namespace that has no such user, root is the ordinary
		// user who made it, and the guest stays that user. A root without
		// capabilities can't even leave its groups.
		note(fmt.Sprintf("uid %d", cfg.UID), err)
	}
	note("capabilities", dropCapabilities())
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return walls, fmt.Errorf("no_new_privs: %w", err)
	}
	if ruleset >= 0 {
		note("landlock", restrict(ruleset))
		unix.Close(ruleset)
	}
	return walls, nil
}

// lower sets a limit, or as much of it as the hard limit allows.
func lower(what int, limit uint64) {
	var have unix.Rlimit
	if unix.Getrlimit(what, &have) == nil {
		limit = min(limit, have.Max)
	}
	unix.Setrlimit(what, &unix.Rlimit{Cur: limit, Max: limit})
}

// mappedNamespace is true in a user namespace other than the first.
func mappedNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(b)), " ") != "0 0 4294967295"
}

func setUser(cfg Config) error {
	groups := make([]int, 0, len(cfg.Groups)+1)
	for _, g := range cfg.Groups {
		groups = append(groups, int(g))
	}
	// The bare system calls: they are for this thread only, which execs.
	if err := setgroups(groups); err != nil {
		return fmt.Errorf("set groups %v: %w", cfg.Groups, err)
	}
	if _, _, e := unix.RawSyscall(sysSetresgid, uintptr(cfg.GID), uintptr(cfg.GID), uintptr(cfg.GID)); e != 0 {
		return fmt.Errorf("become group %d: %w", cfg.GID, e)
	}
	// The bounding set can be dropped as long as this is root.
	dropBounding()
	if _, _, e := unix.RawSyscall(sysSetresuid, uintptr(cfg.UID), uintptr(cfg.UID), uintptr(cfg.UID)); e != 0 {
		return fmt.Errorf("become user %d: %w", cfg.UID, e)
	}
	return nil
}

func dropBounding() {
	for c := uintptr(0); c <= 63; c++ {
		if unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0) != nil {
			break // EPERM: not root any more; EINVAL: that was the last one
		}
	}
}

// dropCapabilities also keeps uid 0 from getting them back by exec.
func dropCapabilities() error {
	dropBounding()
	const noroot, norootLocked = 1 << 0, 1 << 1
	unix.Prctl(unix.PR_SET_SECUREBITS, noroot|norootLocked, 0, 0, 0)
	unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	var data [2]unix.CapUserData
	return unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0])
}
