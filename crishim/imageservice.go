package crishim

import (
	"context"
	"strconv"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim/images"
	"github.com/coracle-edge/coracle/crishim/oci"
	"github.com/coracle-edge/coracle/crishim/wasm"
)

// PullImage looks at the manifest, and then pulls a Wasm image into the store
// here or has containerd pull it.
func (s *Service) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	ref := req.GetImage().GetImage()
	pull := images.PullRequest{Ref: ref, Handler: req.GetImage().GetRuntimeHandler()}
	if a := req.GetAuth(); a != nil {
		pull.Credentials = &images.Credentials{
			Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(), ServerAddress: a.GetServerAddress(),
			IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
		}
	}
	res, err := s.store.Pull(ctx, pull)
	if err != nil {
		return nil, rpcError(err)
	}
	if res.Kind == images.KindWasm {
		return &runtimeapi.PullImageResponse{ImageRef: res.Image.ID.String()}, nil
	}
	if s.oci == nil {
		return nil, status.Errorf(codes.FailedPrecondition, "image %q is an OCI image: %s", ref, noContainerd)
	}
	if err := s.store.Disown(ref); err != nil {
		return nil, rpcError(err)
	}
	resp, err := s.oci.Images.PullImage(ctx, req)
	if status.Code(err) == codes.Unavailable {
		return nil, status.Errorf(codes.Unavailable, "image %q is an OCI image: %s", ref, status.Convert(err).Message())
	}
	return resp, err
}

// ImageStatus of one image; an absent one is no error. Info always says the
// kind.
func (s *Service) ImageStatus(ctx context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	img, err := s.store.Lookup(req.GetImage().GetImage())
	if err == nil {
		resp := &runtimeapi.ImageStatusResponse{Image: criImage(img), Info: map[string]string{AnnotationKind: string(images.KindWasm)}}
		if req.GetVerbose() {
			resp.Info["info"] = wasm.JSON(map[string]any{"image": img})
		}
		return resp, nil
	}
	if s.oci == nil {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	resp, err := s.oci.Images.ImageStatus(ctx, req)
	if status.Code(err) == codes.Unavailable {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil || resp.GetImage() == nil {
		return resp, err
	}
	if resp.Info == nil {
		resp.Info = map[string]string{}
	}
	resp.Info[AnnotationKind] = string(images.KindOCI)
	s.markOCI(resp.Image, s.sandboxImage(ctx))
	return resp, nil
}

// ListImages of both stores.
func (s *Service) ListImages(ctx context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	out := &runtimeapi.ListImagesResponse{}
	want := req.GetFilter().GetImage().GetImage()
	if want != "" {
		if img, err := s.store.Lookup(want); err == nil {
			out.Images = append(out.Images, criImage(img))
			return out, nil
		}
	} else {
		for _, img := range s.store.List() {
			out.Images = append(out.Images, criImage(img))
		}
	}
	if s.oci == nil {
		return out, nil
	}
	resp, err := s.oci.Images.ListImages(ctx, req)
	if err != nil {
		if status.Code(err) == codes.Unavailable {
			return out, nil
		}
		return nil, err
	}
	sandboxes := s.sandboxImage(ctx)
	for _, img := range resp.GetImages() {
		s.markOCI(img, sandboxes)
		out.Images = append(out.Images, img)
	}
	return out, nil
}

// RemoveImage from whichever store has it; an absent one is no error.
func (s *Service) RemoveImage(ctx context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	ref := req.GetImage().GetImage()
	if ref == "" {
		return nil, status.Error(codes.InvalidArgument, "RemoveImage: image.image is empty: name the image")
	}
	err := s.store.Remove(ref)
	if err == nil {
		return &runtimeapi.RemoveImageResponse{}, nil
	}
	if err := rpcError(err); status.Code(err) != codes.NotFound {
		return nil, err
	}
	if s.oci == nil {
		return &runtimeapi.RemoveImageResponse{}, nil
	}
	return s.oci.Images.RemoveImage(ctx, req)
}

// ImageFsInfo of both stores, in one entry if they share a file system.
func (s *Service) ImageFsInfo(ctx context.Context, req *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	u, err := s.store.Usage()
	if err != nil {
		return nil, rpcError(err)
	}
	own := &runtimeapi.FilesystemUsage{
		Timestamp: s.now().UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: u.Path},
		UsedBytes: &runtimeapi.UInt64Value{Value: u.Bytes}, InodesUsed: &runtimeapi.UInt64Value{Value: u.Inodes},
	}
	out := &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{own}}
	if s.oci != nil {
		resp, err := s.oci.Images.ImageFsInfo(ctx, req)
		if err != nil && status.Code(err) != codes.Unavailable {
			return nil, err
		}
		for _, fs := range resp.GetImageFilesystems() {
			if sameFileSystem(fs.GetFsId().GetMountpoint(), u.Path) {
				own.UsedBytes.Value += fs.GetUsedBytes().GetValue()
				own.InodesUsed.Value += fs.GetInodesUsed().GetValue()
				continue
			}
			out.ImageFilesystems = append(out.ImageFilesystems, fs)
		}
		for _, fs := range resp.GetContainerFilesystems() {
			if !sameFileSystem(fs.GetFsId().GetMountpoint(), u.Path) {
				out.ContainerFilesystems = append(out.ContainerFilesystems, fs)
			}
		}
	}
	return out, nil
}

func sameFileSystem(a, b string) bool {
	var sa, sb syscall.Stat_t
	return syscall.Stat(a, &sa) == nil && syscall.Stat(b, &sb) == nil && sa.Dev == sb.Dev
}

// criImage says in the CRI's words what an image of the store is.
func criImage(img *images.Image) *runtimeapi.Image {
	out := &runtimeapi.Image{
		Id: img.ID.String(), RepoTags: img.Refs, RepoDigests: img.Digests, Size: uint64(max(img.Size, 1)),
		Spec: &runtimeapi.ImageSpec{Image: img.ID.String(), Annotations: map[string]string{AnnotationKind: string(images.KindWasm)}},
	}
	// Who it runs as if the pod doesn't say; kubelets ask for runAsNonRoot, and
	// don't trust a name.
	uid := int64(wasm.Nonroot)
	if u, _, _ := strings.Cut(img.User, ":"); u != "" {
		n, err := strconv.ParseUint(u, 10, 32)
		if err != nil && img.Rootfs != "" {
			out.Username = u
			return out
		}
		if err == nil && n != 0 {
			uid = int64(n)
		}
	}
	out.Uid = &runtimeapi.Int64Value{Value: uid}
	return out
}

// markOCI says of which kind an image is, and pins that of containerd's sandboxes,
// because containerd 1.6 doesn't.
func (s *Service) markOCI(img *runtimeapi.Image, sandboxes string) {
	if img.Spec == nil {
		img.Spec = &runtimeapi.ImageSpec{Image: img.GetId()}
	}
	if img.Spec.Annotations == nil {
		img.Spec.Annotations = map[string]string{}
	}
	img.Spec.Annotations[AnnotationKind] = string(images.KindOCI)
	img.Pinned = img.Pinned || pinned(img, oci.PauseImage, sandboxes)
}
