package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxConfig is how large an image's configuration may be in bytes.
const maxConfig = 8 << 20

// unpack makes the snapshots of an image that was imported and never pulled: for such
// a one containerd makes them with its first container, and a volume is none. It does
// what containerd's own client does (client/image.go: Unpack).
func (c *Client) unpack(ctx context.Context, snapshotter string, image *runtimeapi.Image) error {
	target, err := c.target(ctx, image)
	if err != nil {
		return err
	}
	leases := leasesapi.NewLeasesClient(c.conn)
	lease, err := leases.Create(inNamespace(ctx, ""), &leasesapi.CreateRequest{
		ID: fmt.Sprintf("coracle-unpack-%d", time.Now().UnixNano()),
		Labels: map[string]string{
			"containerd.io/gc.expire": time.Now().Add(time.Hour).UTC().Format(time.RFC3339), labelOwner: c.Owner,
		},
	})
	if err != nil {
		return fmt.Errorf("lease: %w", c.unavailable(err))
	}
	defer func() {
		_, _ = leases.Delete(inNamespace(context.WithoutCancel(ctx), ""), &leasesapi.DeleteRequest{ID: lease.GetLease().GetID()})
	}()
	ctx = inNamespace(ctx, lease.GetLease().GetID())
	store := proxy.NewContentStore(c.conn)
	manifest, err := images.Manifest(ctx, store, target, platforms.Default())
	if err != nil {
		return err
	}
	if manifest.Config.Size > maxConfig {
		return fmt.Errorf("its configuration has %d bytes, at most %d are read", manifest.Config.Size, maxConfig)
	}
	raw, err := content.ReadBlob(ctx, store, manifest.Config)
	if err != nil {
		return err
	}
	diffs, err := parseDiffIDs(raw, len(manifest.Layers))
	if err != nil {
		return err
	}
	for i, layer := range manifest.Layers {
		// The function writes where its argument has room.
		chain := identity.ChainID(append([]digest.Digest(nil), diffs[:i+1]...)).String()
		parent := identity.ChainID(append([]digest.Digest(nil), diffs[:i]...)).String()
		if err := c.applyLayer(ctx, snapshotter, layer, diffs[i], parent, chain); err != nil {
			return fmt.Errorf("layer %s: %w", layer.Digest, err)
		}
		if i == len(manifest.Layers)-1 {
			return c.keepUnpacked(ctx, manifest.Config.Digest, snapshotter, chain)
		}
	}
	return errors.New("it has no layers")
}

// target finds the manifest or index of an image under one of its names.
func (c *Client) target(ctx context.Context, image *runtimeapi.Image) (ocispec.Descriptor, error) {
	svc := imagesapi.NewImagesClient(c.conn)
	for _, names := range [][]string{{image.GetId()}, image.GetRepoTags(), image.GetRepoDigests()} {
		for _, name := range names {
			resp, err := svc.Get(inNamespace(ctx, ""), &imagesapi.GetImageRequest{Name: name})
			switch status.Code(err) {
			case codes.OK:
				t := resp.GetImage().GetTarget()
				return ocispec.Descriptor{MediaType: t.GetMediaType(), Digest: digest.Digest(t.GetDigest()), Size: t.GetSize()}, nil
			case codes.NotFound:
			default:
				return ocispec.Descriptor{}, fmt.Errorf("image %s: %w", name, c.unavailable(err))
			}
		}
	}
	return ocispec.Descriptor{}, fmt.Errorf("containerd has no name for image %s", image.GetId())
}

// parseDiffIDs reads the digests of the plain layers from an image's configuration.
func parseDiffIDs(config []byte, layers int) ([]digest.Digest, error) {
	var image struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &image); err != nil {
		return nil, fmt.Errorf("its configuration: %w", err)
	}
	if n := len(image.RootFS.DiffIDs); n != layers {
		return nil, fmt.Errorf("its configuration names %d layers, its manifest %d", n, layers)
	}
	for _, d := range image.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("its configuration: diff ID %q: %w", d, err)
		}
	}
	return image.RootFS.DiffIDs, nil
}

// applyLayer makes the snapshot called chain of a layer on top of parent, unless it is
// there.
func (c *Client) applyLayer(ctx context.Context, snapshotter string, layer ocispec.Descriptor, diff digest.Digest, parent, chain string) error {
	snapshots := snapshotsapi.NewSnapshotsClient(c.conn)
	_, err := snapshots.Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: snapshotter, Key: chain})
	if status.Code(err) != codes.NotFound {
		return c.unavailable(err)
	}
	// The name by which containerd tells that nobody's container is in it.
	key := fmt.Sprintf("extract-%d %s", time.Now().UnixNano(), chain)
	made, err := snapshots.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: snapshotter, Key: key, Parent: parent})
	if err != nil {
		return c.unavailable(err)
	}
	applied, err := diffapi.NewDiffClient(c.conn).Apply(ctx, &diffapi.ApplyRequest{Mounts: made.GetMounts(),
		Diff: &types.Descriptor{MediaType: layer.MediaType, Digest: layer.Digest.String(), Size: layer.Size}})
	if err == nil && applied.GetApplied().GetDigest() != diff.String() {
		err = fmt.Errorf("it unpacks to %s, and the image's configuration says %s", applied.GetApplied().GetDigest(), diff)
	}
	if err == nil {
		if _, err = snapshots.Commit(ctx, &snapshotsapi.CommitSnapshotRequest{Snapshotter: snapshotter, Name: chain, Key: key}); err == nil {
			return nil
		}
	}
	_, failed := snapshots.Remove(context.WithoutCancel(ctx), &snapshotsapi.RemoveSnapshotRequest{Snapshotter: snapshotter, Key: key})
	if status.Code(err) == codes.AlreadyExists { // another was faster
		return failed
	}
	return errors.Join(c.unavailable(err), failed)
}

// keepUnpacked has containerd keep the snapshots for as long as the image.
func (c *Client) keepUnpacked(ctx context.Context, config digest.Digest, snapshotter, chain string) error {
	label := "containerd.io/gc.ref.snapshot." + snapshotter
	_, err := contentapi.NewContentClient(c.conn).Update(ctx, &contentapi.UpdateRequest{
		Info:       &contentapi.Info{Digest: config.String(), Labels: map[string]string{label: chain}},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels." + label}},
	})
	return c.unavailable(err)
}
