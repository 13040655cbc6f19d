package oci

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Labels by which containerd's CRI plugin knows its images.
const (
	labelManaged = "io.cri-containerd.image"
	labelPinned  = "io.cri-containerd.pinned"
)

// labelOwner on a lease says whose import it is for.
const labelOwner = "coracle.dev/owner"

// inNamespace addresses the CRI plugin's namespace.
func inNamespace(ctx context.Context, lease string) context.Context {
	pairs := []string{"containerd-namespace", namespace}
	if lease != "" {
		pairs = append(pairs, "containerd-lease", lease)
	}
	return metadata.AppendToOutgoingContext(ctx, pairs...)
}

// ImportImage copies an image into containerd under a name. containerd unpacks
// it when the first container is made of it.
func (c *Client) ImportImage(ctx context.Context, name string, desc ocispec.Descriptor, src content.Provider) error {
	return c.importImage(ctx, name, desc, src, false)
}

func (c *Client) importImage(ctx context.Context, name string, desc ocispec.Descriptor, src content.Provider, pin bool) error {
	if err := c.Available(ctx); err != nil {
		return err
	}
	// A lease keeps containerd's garbage collector away until the image names
	// the blobs.
	leases := leasesapi.NewLeasesClient(c.conn)
	lease, err := leases.Create(inNamespace(ctx, ""), &leasesapi.CreateRequest{
		ID: fmt.Sprintf("coracle-import-%d", time.Now().UnixNano()),
		Labels: map[string]string{
			"containerd.io/gc.expire": time.Now().Add(time.Hour).UTC().Format(time.RFC3339), labelOwner: c.Owner,
		},
	})
	if err != nil {
		return fmt.Errorf("containerd: lease: %w", c.unavailable(err))
	}
	defer func() {
		_, _ = leases.Delete(inNamespace(context.WithoutCancel(ctx), ""), &leasesapi.DeleteRequest{ID: lease.GetLease().GetID()})
	}()
	ctx = inNamespace(ctx, lease.GetLease().GetID())
	dst := proxy.NewContentStore(c.conn)
	copyBlob := images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		ra, err := src.ReaderAt(ctx, d)
		if errdefs.IsNotFound(err) && d.Digest != desc.Digest {
			// Another platform's, which the archive hasn't got.
			return nil, images.ErrSkipDesc
		}
		if err != nil {
			return nil, err
		}
		defer ra.Close()
		err = content.WriteBlob(ctx, dst, c.ingestPrefix()+d.Digest.String(), content.NewReader(ra), d)
		if err != nil && !errdefs.IsAlreadyExists(err) {
			return nil, fmt.Errorf("blob %s: %w", d.Digest, err)
		}
		return nil, nil
	})
	// Children first are labelled on their parents, so that collecting garbage
	// finds them from the image.
	children := images.SetChildrenLabels(dst, images.ChildrenHandler(src))
	if err := images.Walk(ctx, images.Handlers(copyBlob, children), desc); err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	labels := map[string]string{labelManaged: "managed"}
	if pin {
		labels[labelPinned] = "pinned"
	}
	img := &imagesapi.Image{
		Name: name, Labels: labels,
		Target: &types.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest.String(), Size: desc.Size, Annotations: desc.Annotations},
	}
	svc := imagesapi.NewImagesClient(c.conn)
	_, err = svc.Create(ctx, &imagesapi.CreateImageRequest{Image: img})
	if status.Code(err) == codes.AlreadyExists {
		_, err = svc.Update(ctx, &imagesapi.UpdateImageRequest{Image: img})
	}
	if err != nil {
		return fmt.Errorf("containerd: image %s: %w", name, c.unavailable(err))
	}
	return c.awaitImage(ctx, name)
}

// ingestPrefix begins the names of what this client writes.
func (c *Client) ingestPrefix() string { return "coracle-" + c.Owner + "-" }

// SweepImports removes what imports of a former process of the same owner left
// in containerd because it was killed: leases, which would keep blobs for an
// hour, and half-written blobs, which would be kept for a day. It is for the
// time before the first import of this one.
func (c *Client) SweepImports(ctx context.Context) error {
	if c.Owner == "" {
		return nil
	}
	ctx = inNamespace(ctx, "")
	leases := leasesapi.NewLeasesClient(c.conn)
	list, err := leases.List(ctx, &leasesapi.ListRequest{Filters: []string{fmt.Sprintf("labels.%q==%q", labelOwner, c.Owner)}})
	if err != nil {
		return fmt.Errorf("containerd: leases: %w", c.unavailable(err))
	}
	dst := proxy.NewContentStore(c.conn)
	statuses, err := dst.ListStatuses(ctx)
	if err != nil {
		return fmt.Errorf("containerd: ingests: %w", c.unavailable(err))
	}
	var errs []error
	for _, st := range statuses {
		if strings.HasPrefix(st.Ref, c.ingestPrefix()) {
			errs = append(errs, dst.Abort(ctx, st.Ref))
		}
	}
	for _, l := range list.GetLeases() {
		_, err := leases.Delete(ctx, &leasesapi.DeleteRequest{ID: l.GetID()})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Untag takes a name from an image; containerd collects what has no name any
// more. An absent one is no error.
func (c *Client) Untag(ctx context.Context, name string) error {
	_, err := imagesapi.NewImagesClient(c.conn).Delete(inNamespace(ctx, ""), &imagesapi.DeleteImageRequest{Name: name})
	if err != nil && status.Code(err) != codes.NotFound {
		return fmt.Errorf("containerd: image %s: %w", name, c.unavailable(err))
	}
	return nil
}

// awaitImage waits until the CRI plugin has heard of an image: it learns of it
// by an event.
func (c *Client) awaitImage(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for wait := 5 * time.Millisecond; ; wait *= 2 {
		resp, err := c.Images.ImageStatus(ctx, imageStatusRequest(name))
		if err == nil && resp.GetImage() != nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("containerd: image %s was stored, but its CRI plugin doesn't list it", name)
		case <-time.After(wait):
		}
	}
}
