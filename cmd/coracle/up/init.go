package up

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// InitCommand is the name of the command that is a board's first process.
const InitCommand = "board-init"

// initReady is what it writes to its fourth file when the namespaces are
// arranged.
const initReady = "ready\n"

// Init is a board's first process: it arranges the namespaces it was started in,
// then reaps whom their parents have left, as any init does. It returns on
// SIGTERM, and with it ends everything on the board. disk is the node's data folder.
func Init(name, disk string) error {
	if os.Getpid() != 1 {
		return fmt.Errorf("`coracle %s` is started by `coracle up`, as the first process of a board", InitCommand)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	if err := arrange(name, disk); err != nil {
		return err
	}
	ready := os.NewFile(3, "ready")
	if _, err := ready.WriteString(initReady); err != nil {
		return err
	}
	if err := ready.Close(); err != nil {
		return err
	}
	for {
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 && !errors.Is(err, syscall.EINTR) {
				break
			}
		}
		select {
		case <-stop:
			return nil
		case <-children:
		}
	}
}

// arrange makes the namespaces look like a machine: its own mounts where
// programs keep what belongs to one machine, its own /proc and /sys, a name.
func arrange(name, disk string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	// What is mounted on the machine later appears here too, and never the other
	// way round.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("/: %w", err)
	}
	if err := mountKernel(disk); err != nil {
		return err
	}
	// What doesn't survive a board's reboot.
	for _, dir := range []string{"/run/netns", "/run/containerd", filepath.Join(disk, "containerd", "state")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0711"); err != nil {
			return fmt.Errorf("tmpfs on %s: %w", dir, err)
		}
	}
	for _, dir := range []string{"/etc/cni/net.d", "/var/lib/cni", "/var/lib/kubelet", "/var/log/pods", "/var/log/containers"} {
		own := filepath.Join(disk, "disk", dir)
		if err := errors.Join(os.MkdirAll(own, 0o755), os.MkdirAll(dir, 0o755)); err != nil {
			return err
		}
		if err := bind(own, dir); err != nil {
			return err
		}
	}
	if err := identify(disk); err != nil {
		return err
	}
	// Pods may ask that their mounts reach their node.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("/: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}

// mountKernel mounts what shows a process its own namespaces. Cgroups are the
// machine's; boards have different parts of them.
func mountKernel(disk string) error {
	cgroups := filepath.Join(disk, "disk", "cgroup")
	if err := os.MkdirAll(cgroups, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/sys/fs/cgroup", cgroups, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("/sys/fs/cgroup: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("sysfs", "/sys", "sysfs", flags, ""); err != nil {
		return fmt.Errorf("/sys: %w", err)
	}
	if err := unix.Mount(cgroups, "/sys/fs/cgroup", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("/sys/fs/cgroup: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", flags, ""); err != nil {
		return fmt.Errorf("/proc: %w", err)
	}
	return nil
}

// identify gives the board the ids that no two machines share: one for as long
// as it has its disk, one for each boot.
func identify(disk string) error {
	machine := filepath.Join(disk, "disk", "machine-id")
	if _, err := os.Stat(machine); errors.Is(err, os.ErrNotExist) {
		id := make([]byte, 16)
		if _, err := rand.Read(id); err != nil {
			return err
		}
		if err := os.WriteFile(machine, []byte(hex.EncodeToString(id)+"\n"), 0o644); err != nil {
			return err
		}
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // RFC 9562, version 4, as the kernel's
	boot := filepath.Join("/run/containerd", "boot_id")
	text := fmt.Sprintf("%x-%x-%x-%x-%x\n", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
	if err := os.WriteFile(boot, []byte(text), 0o444); err != nil {
		return err
	}
	if err := bind(boot, "/proc/sys/kernel/random/boot_id"); err != nil {
		return err
	}
	// With that the kernel takes this /proc for one that hides something, and mounts
	// none for a pod of its own users where no other is whole (mount_too_revealing in
	// fs/namespace.c).
	whole := filepath.Join("/run/containerd", "proc")
	if err := os.Mkdir(whole, 0o555); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := unix.Mount("proc", whole, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("%s: %w", whole, err)
	}
	if _, err := os.Stat("/etc/machine-id"); err == nil {
		return bind(machine, "/etc/machine-id")
	}
	return nil
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("%s on %s: %w", from, to, err)
	}
	return nil
}
