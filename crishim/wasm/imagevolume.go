package wasm

import (
	"fmt"
	"os"
	"path"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim/images"
	"github.com/coracle-edge/coracle/wasmruntime"
)

// imageVolume makes a preopen of the root of another image, or of a folder of it.
// The image has to be one of the store here and to have a root.
func imageVolume(mnt *runtimeapi.Mount, lookup func(string) (*images.Image, error)) (wasmruntime.Mount, error) {
	ref := mnt.GetImage().GetImage()
	fail := func(err error) (wasmruntime.Mount, error) {
		return wasmruntime.Mount{}, fmt.Errorf("mount %s: image volume %q: %w", mnt.GetContainerPath(), ref, err)
	}
	if !mnt.GetReadonly() {
		return fail(fmt.Errorf("%w: it has to be readonly", ErrInvalid))
	}
	img, err := lookup(ref)
	if err != nil {
		return fail(err)
	}
	if img.Rootfs == "" {
		return fail(fmt.Errorf("%w: the image is a module without a root file system", ErrUnsupported))
	}
	sub := mnt.GetImageSubPath()
	if sub == "" {
		sub = "."
	}
	if !filepath.IsLocal(sub) {
		return fail(fmt.Errorf("%w: image_sub_path %q leads out of it", ErrInvalid, sub))
	}
	f, err := os.OpenInRoot(img.Rootfs, sub)
	if err != nil {
		return fail(fmt.Errorf("%w: image_sub_path: %w", ErrInvalid, err))
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.IsDir() {
		return fail(fmt.Errorf("%w: image_sub_path %q is no folder", ErrInvalid, sub))
	}
	return wasmruntime.Mount{Host: filepath.Join(img.Rootfs, sub), Guest: path.Clean(mnt.GetContainerPath()), ReadOnly: true}, nil
}

// noteVolumeImages has the mounts of a container's configuration, and so its status,
// say which images its volumes are made of, and returns their IDs.
func (m *Manager) noteVolumeImages(cfg *runtimeapi.ContainerConfig) (ids []string) {
	for _, mnt := range cfg.GetMounts() {
		if mnt.GetImage().GetImage() == "" {
			continue
		}
		if img, err := m.opts.Image(mnt.GetImage().GetImage()); err == nil {
			mnt.Image.ImageRef = img.ID.String()
			ids = append(ids, mnt.Image.ImageRef)
		}
	}
	return ids
}
