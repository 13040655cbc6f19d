package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/edgelet/volumes"
)

// errPodsOfOthers is returned when another kubelet has volumes mounted in the folder.
var errPodsOfOthers = errors.New("has volumes of another kubelet's pods, which a mount would hide")

// ownPods is the folder of pods in the data folder.
func (a *agent) ownPods() string { return filepath.Join(a.o.dataDir, "pods") }

// devicesDir is where file systems of local volumes' devices are mounted.
func (a *agent) devicesDir() string { return filepath.Join(a.o.dataDir, "local-devices") }

// podsDir is where the folders of pods are: where a kubelet has them, because backup
// agents (Velero's), drivers and people look there. They stay on the disk of the data
// folder, which is bound to it. The mount outlives the agent, as those in it do, and
// not the boot. Where it can't be made, they are in the data folder only.
func (a *agent) podsDir() string {
	if !a.o.asKubelet || os.Geteuid() != 0 {
		return a.ownPods()
	}
	at := filepath.Join(a.o.kubeletDir, "pods")
	bound, err := sameFolder(a.ownPods(), at)
	if err == nil && !bound {
		if a.forGood {
			return a.ownPods()
		}
		err = bindPods(a.ownPods(), at)
	}
	if err != nil {
		a.log.Warn("the folders of pods are not where a kubelet has them; pods run all the same", "where", at, "instead", a.ownPods(), "err", err)
		return a.ownPods()
	}
	return at
}

// bindPods binds own to at, with what is mounted below own, which then is mounted
// below at only.
func bindPods(own, at string) error {
	if err := os.MkdirAll(at, 0o750); err != nil {
		return err
	}
	if point, err := mountedIn(at); err != nil {
		return err
	} else if point != "" {
		return fmt.Errorf("%s %w (%s): end it and start edgelet again", at, errPodsOfOthers, point)
	}
	if err := unix.Mount(own, at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("binding %s to %s: %w", own, at, err)
	}
	// A peer group of its own: else each volume would be mounted at both places.
	for _, propagation := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount("", at, "", propagation|unix.MS_REC, ""); err != nil {
			return errors.Join(fmt.Errorf("propagation of %s: %w", at, err), unix.Unmount(at, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH))
		}
	}
	entries, err := os.ReadDir(own)
	for _, e := range entries {
		err = errors.Join(err, volumes.Kernel{}.UnmountBelow(filepath.Join(own, e.Name())))
	}
	return err
}

// unbindPods undoes bindPods, once nothing is mounted in it.
func (a *agent) unbindPods() error {
	at := filepath.Join(a.o.kubeletDir, "pods")
	if bound, err := sameFolder(a.ownPods(), at); err != nil || !bound {
		return err
	}
	if point, err := mountedIn(at); err != nil {
		return err
	} else if point != "" {
		return fmt.Errorf("%s is still mounted", point)
	}
	return unbind(a.ownPods(), at)
}

// mountedIn is a mount in dir, not dir itself, or nothing.
func mountedIn(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		points, err := volumes.MountsBelow(filepath.Join(dir, e.Name()))
		if err != nil {
			return "", err
		}
		if len(points) > 0 {
			return points[0], nil
		}
	}
	return "", err
}
