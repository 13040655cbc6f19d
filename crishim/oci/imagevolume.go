package oci

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ErrImageVolume is returned for an image volume that can't be made.
var ErrImageVolume = errors.New("image volume")

// hasImageVolumes reports whether containerd makes volumes of images itself: since
// 2.1. Earlier ones take such a mount for one of the folder "".
func hasImageVolumes(version string) bool {
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, errA := strconv.Atoi(major)
	b, errB := strconv.Atoi(minor)
	return errA == nil && errB == nil && (a > 2 || a == 2 && b >= 1)
}

// PlaceImageVolumes makes the image mounts of a container's configuration bind
// mounts of read-only views below dir, where containerd has no image volumes. The
// views are the sandbox's, until ReleaseImageVolumes. The images must have been
// pulled.
func (c *Client) PlaceImageVolumes(ctx context.Context, dir, sandbox string, cfg *runtimeapi.ContainerConfig) error {
	var mounts []*runtimeapi.Mount
	for _, m := range cfg.GetMounts() {
		if m.GetImage().GetImage() != "" {
			mounts = append(mounts, m)
		}
	}
	if len(mounts) == 0 {
		return nil
	}
	v, err := c.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return err
	}
	if hasImageVolumes(v.GetRuntimeVersion()) {
		return nil
	}
	for _, m := range mounts {
		path, err := c.imageView(ctx, dir, sandbox, m.GetImage().GetImage(), m.GetImageSubPath())
		if err != nil {
			return fmt.Errorf("mount %s: %w %q: %w", m.GetContainerPath(), ErrImageVolume, cmp.Or(m.GetImage().GetUserSpecifiedImage(), m.GetImage().GetImage()), err)
		}
		m.HostPath, m.Image, m.ImageSubPath, m.Readonly = path, nil, "", true
	}
	return nil
}

// imageView returns where an image, or sub of it, is to be seen on this machine.
func (c *Client) imageView(ctx context.Context, dir, sandbox, image, sub string) (string, error) {
	found, chain, err := c.chainID(ctx, image)
	if err != nil {
		return "", err
	}
	snapshotter, err := c.snapshotter(ctx)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(chain))
	name := hex.EncodeToString(sum[:8])
	at := filepath.Join(dir, sandbox, name)
	if mounted, err := isMountPoint(at); err != nil {
		return "", err
	} else if !mounted {
		err := c.mountView(ctx, snapshotter, viewKey(sandbox, name), chain, at)
		if errors.Is(err, errNotUnpacked) {
			if err := c.unpack(ctx, snapshotter, found); err != nil {
				return "", fmt.Errorf("containerd: unpacking it: %w", err)
			}
			err = c.mountView(ctx, snapshotter, viewKey(sandbox, name), chain, at)
		}
		if err != nil {
			return "", err
		}
	}
	if sub == "" {
		return at, nil
	}
	f, err := os.OpenInRoot(at, sub)
	if err != nil {
		return "", fmt.Errorf("image_sub_path: %w", err)
	}
	return filepath.Join(at, sub), f.Close()
}

func viewKey(sandbox, name string) string { return "coracle-volume-" + sandbox + "-" + name }

// errNotUnpacked is returned for an image without snapshots.
var errNotUnpacked = errors.New("the image is not unpacked")

// chainID finds an image and names the snapshot that it is unpacked to.
func (c *Client) chainID(ctx context.Context, image string) (*runtimeapi.Image, string, error) {
	resp, err := c.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: image}, Verbose: true})
	if err != nil {
		return nil, "", err
	}
	if resp.GetImage() == nil {
		return nil, "", errors.New("it isn't on this node")
	}
	chain, err := parseChainID(resp.GetInfo()["info"])
	return resp.GetImage(), chain, err
}

func parseChainID(raw string) (string, error) {
	var info struct {
		ChainID digest.Digest `json:"chainID"`
	}
	err := json.Unmarshal([]byte(raw), &info)
	if err == nil {
		err = info.ChainID.Validate()
	}
	if err != nil {
		return "", fmt.Errorf("containerd doesn't say what it was unpacked to (%w); update containerd to 2.1", err)
	}
	return info.ChainID.String(), nil
}

// snapshotter is the one that containerd's CRI plugin uses.
func (c *Client) snapshotter(ctx context.Context) (string, error) {
	resp, err := c.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return "", err
	}
	return parseSnapshotter(resp.GetInfo()["config"])
}

func parseSnapshotter(raw string) (string, error) {
	var config struct {
		Containerd struct {
			Snapshotter string `json:"snapshotter"`
		} `json:"containerd"`
	}
	if err := json.Unmarshal([]byte(raw), &config); err != nil || config.Containerd.Snapshotter == "" {
		return "", fmt.Errorf("containerd doesn't say which snapshotter it uses (%v); update containerd to 2.1", err)
	}
	return config.Containerd.Snapshotter, nil
}

// mountView mounts a view of a snapshot, which it makes if there is none.
func (c *Client) mountView(ctx context.Context, snapshotter, key, parent, at string) error {
	snapshots := snapshotsapi.NewSnapshotsClient(c.conn)
	var mounts []*types.Mount
	view, err := snapshots.View(inNamespace(ctx, ""), &snapshotsapi.ViewSnapshotRequest{Snapshotter: snapshotter, Key: key, Parent: parent,
		Labels: map[string]string{"containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339), labelOwner: c.Owner}})
	switch status.Code(err) {
	case codes.OK:
		mounts = view.GetMounts()
	case codes.AlreadyExists:
		have, err := snapshots.Mounts(inNamespace(ctx, ""), &snapshotsapi.MountsRequest{Snapshotter: snapshotter, Key: key})
		if err != nil {
			return fmt.Errorf("containerd: snapshot %s: %w", key, err)
		}
		mounts = have.GetMounts()
	case codes.NotFound:
		return fmt.Errorf("%w: containerd: a view of snapshot %s: %w", errNotUnpacked, parent, err)
	default:
		return fmt.Errorf("containerd: a view of snapshot %s: %w", parent, err)
	}
	if len(mounts) != 1 {
		return fmt.Errorf("containerd: snapshot %s is %d mounts, not one", key, len(mounts))
	}
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := mountReadOnly(mounts[0].GetType(), mounts[0].GetSource(), at, mounts[0].GetOptions()); err != nil {
		return fmt.Errorf("mount %s on %s: %w", mounts[0].GetType(), at, err)
	}
	return nil
}

// mountReadOnly makes a mount of a snapshot, whatever its options say about
// writing.
func mountReadOnly(fstype, source, target string, options []string) error {
	var data []string
	flags := uintptr(unix.MS_RDONLY)
	for _, o := range options {
		switch o {
		case "ro", "rw":
		case "bind":
			flags |= unix.MS_BIND
		case "rbind":
			flags |= unix.MS_BIND | unix.MS_REC
		default:
			data = append(data, o)
		}
	}
	if err := unix.Mount(source, target, fstype, flags, strings.Join(data, ",")); err != nil {
		return err
	}
	if flags&unix.MS_BIND == 0 {
		return nil
	}
	// A bind mount takes its flags from what it shows until it is mounted again.
	return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// isMountPoint compares with the folder above; what isn't there is none.
func isMountPoint(path string) (bool, error) {
	var here, above unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &here); errors.Is(err, unix.ENOENT) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if err := unix.Statx(unix.AT_FDCWD, filepath.Dir(path), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &above); err != nil {
		return false, err
	}
	return here.Mnt_id != above.Mnt_id, nil
}

// ReleaseImageVolumes takes away what PlaceImageVolumes made for a sandbox. Called
// when its containers are gone; nothing to do is no error.
func (c *Client) ReleaseImageVolumes(ctx context.Context, dir, sandbox string) error {
	if sandbox == "" || filepath.Base(sandbox) != sandbox {
		return nil // no ID of a sandbox
	}
	of := filepath.Join(dir, sandbox)
	entries, err := os.ReadDir(of)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	snapshotter, err := c.snapshotter(ctx)
	if err != nil {
		return err
	}
	snapshots := snapshotsapi.NewSnapshotsClient(c.conn)
	var errs []error
	for _, e := range entries {
		at := filepath.Join(of, e.Name())
		// Never removed by content: a mount that stays is somebody's image.
		if err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", at, err))
			continue
		}
		_, err := snapshots.Remove(inNamespace(ctx, ""), &snapshotsapi.RemoveSnapshotRequest{Snapshotter: snapshotter, Key: viewKey(sandbox, e.Name())})
		if err != nil && status.Code(err) != codes.NotFound {
			errs = append(errs, fmt.Errorf("containerd: remove snapshot %s: %w", viewKey(sandbox, e.Name()), err))
			continue
		}
		errs = append(errs, os.Remove(at))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.Remove(of)
}

// SweepImageVolumes releases those of sandboxes that are no more: removed while
// nobody was here to see it.
func (c *Client) SweepImageVolumes(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || len(entries) == 0 {
		return nil
	}
	list, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, s := range list.GetItems() {
		there[s.GetId()] = true
	}
	var errs []error
	for _, e := range entries {
		if !there[e.Name()] {
			errs = append(errs, c.ReleaseImageVolumes(ctx, dir, e.Name()))
		}
	}
	return errors.Join(errs...)
}
