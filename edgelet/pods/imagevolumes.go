package pods

import (
	"context"
	"errors"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/images"
)

// volumeImages makes the images present that a container's volumes are, or notes
// which one it waits for, and why, and when to ask again. Reasons are those of a
// container's own image, as a kubelet's.
func (w *worker) volumeImages(ctx context.Context, c *v1.Container, handler string) (time.Time, error) {
	for i := range c.VolumeMounts {
		name := c.VolumeMounts[i].Name
		source := w.mounted.Images[name]
		if source == nil || w.mounted.ImageRefs[name] != "" {
			continue
		}
		img, retry, err := w.volumeImage(ctx, c, name, source, handler)
		if err != nil {
			return retry, err
		}
		w.mounted.ImageRefs[name] = img.Ref
	}
	return time.Time{}, nil
}

func (w *worker) volumeImage(ctx context.Context, c *v1.Container, volume string, source *v1.ImageVolumeSource, handler string) (images.Image, time.Time, error) {
	policy := source.PullPolicy
	if policy == "" {
		policy = v1.PullIfNotPresent
	}
	img, err := w.m.cfg.Images.Ensure(ctx, images.Request{
		PodUID: w.uid, Image: source.Reference, Policy: policy, Handler: handler, Secrets: w.pullSecrets(),
		// As the container's own: a board boots without a network.
		Local: w.ran[c.Name] || w.restarted(c.Name), LocalFirst: w.ran[c.Name],
		Event: func(eventType, reason, message string) {
			if eventType == v1.EventTypeWarning || repeats(reason, message) {
				w.eventOnce(c.Name, eventType, reason, fmt.Sprintf("volume %q: %s", volume, message))
				return
			}
			w.event(c.Name, eventType, reason, message)
		},
		BeforePull: w.reportPending,
	})
	var e *images.Error
	if !errors.As(err, &e) {
		return img, time.Time{}, err
	}
	retry := e.Retry
	if e.Reason == images.ReasonPull {
		retry = earliest(retry, time.Now().Add(showPullError))
	}
	put(&w.waiting, c.Name, waiting{e.Reason, fmt.Sprintf("volume %q: %s", volume, e.Message)})
	w.eventOnce(c.Name, v1.EventTypeWarning, eventFailed, fmt.Sprintf("Error: volume %q: %s", volume, e.Message))
	return images.Image{}, retry, errWaiting
}
