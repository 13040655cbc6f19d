package pods

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/images"
)

// classify finds out what kind of sandbox the pod needs (D5): any OCI container
// makes it OCI. Images that are here are looked at first, and the network is
// asked only while the answer is open. With a runtime handler the handler
// decides.
func (w *worker) classify(ctx context.Context, handler string, pulls pulls) (string, time.Time, error) {
	if handler != "" {
		if handler == handlerWasm {
			return kindWasm, time.Time{}, nil
		}
		return kindOCI, time.Time{}, nil
	}
	var containers []*v1.Container
	for _, list := range [][]v1.Container{w.pod.Spec.InitContainers, w.pod.Spec.Containers} {
		for i := range list {
			containers = append(containers, &list[i])
		}
	}
	var missing []*v1.Container
	for _, c := range containers {
		img, ok, err := w.m.cfg.Images.Lookup(ctx, c.Image, "")
		if err != nil || !ok {
			missing = append(missing, c)
			continue
		}
		if img.Kind == images.KindOCI {
			return kindOCI, time.Time{}, nil
		}
	}
	var next time.Time
	var failed error
	for _, c := range missing {
		img, retry, err := w.image(ctx, c, "", pulls)
		if err != nil {
			if ctx.Err() != nil {
				return "", time.Time{}, err
			}
			next, failed = earliest(next, retry), err
			continue
		}
		if img.Kind == images.KindOCI {
			return kindOCI, time.Time{}, nil
		}
	}
	if failed != nil {
		return "", next, failed
	}
	return kindWasm, time.Time{}, nil
}

// anyImage makes the images of the containers to start present and returns nil if
// at least one is.
func (w *worker) anyImage(ctx context.Context, todo []*v1.Container, handler string, pulls pulls) (next time.Time, err error) {
	found := false
	for _, c := range todo {
		_, retry, e := w.image(ctx, c, handler, pulls)
		if ctx.Err() != nil {
			return time.Time{}, ctx.Err()
		}
		if e == nil {
			found = true
			continue
		}
		next, err = earliest(next, retry), e
	}
	if found {
		return time.Time{}, nil
	}
	return next, err
}

// pulls are what was asked for in one sync, by container, so that nothing is
// asked for twice.
type pulls map[string]pulled

type pulled struct {
	img   images.Image
	retry time.Time
	err   error
}

// image makes a container's image present, or notes why it waits for it and when
// to ask again.
func (w *worker) image(ctx context.Context, c *v1.Container, handler string, pulls pulls) (images.Image, time.Time, error) {
	if p, ok := pulls[c.Name]; ok {
		return p.img, p.retry, p.err
	}
	img, retry, err := w.ensureImage(ctx, c, handler)
	pulls[c.Name] = pulled{img, retry, err}
	return img, retry, err
}

func (w *worker) ensureImage(ctx context.Context, c *v1.Container, handler string) (images.Image, time.Time, error) {
	var pulling time.Time
	img, err := w.m.cfg.Images.Ensure(ctx, images.Request{
		PodUID: w.uid, Image: c.Image, Policy: pullPolicy(c), Handler: handler, Secrets: w.pullSecrets(),
		Local: w.ran[c.Name] || w.restarted(c.Name), LocalFirst: w.ran[c.Name],
		Event: func(eventType, reason, message string) {
			if repeats(reason, message) {
				w.eventOnce(c.Name, eventType, reason, message)
				return
			}
			w.event(c.Name, eventType, reason, message)
		},
		BeforePull: func() {
			pulling = time.Now()
			w.reportPending()
		},
	})
	if !pulling.IsZero() {
		w.timed.pulling += time.Since(pulling)
	}
	var e *images.Error
	switch {
	case err == nil:
		delete(w.waiting, c.Name)
		return img, time.Time{}, nil
	case errors.As(err, &e):
		// A pull that failed is shown first, then that it is waited; from then on, as
		// long as it fails alike, nothing new is to be said.
		retry, before := e.Retry, w.waiting[c.Name]
		if e.Reason == images.ReasonPull {
			retry = earliest(retry, time.Now().Add(showPullError))
		}
		if e.Reason != images.ReasonPull || before.reason != images.ReasonBackOff || !strings.HasSuffix(before.message, e.Message) {
			put(&w.waiting, c.Name, waiting{e.Reason, e.Message})
			w.eventOnce(c.Name, v1.EventTypeWarning, eventFailed, "Error: "+e.Reason)
		}
		return images.Image{}, retry, errWaiting
	}
	return images.Image{}, time.Time{}, err
}

// repeats says which events of an image come again with each attempt at a container
// that can't be started, whatever it is that keeps it.
func repeats(reason, message string) bool {
	return reason == eventBackOff || reason == eventFailed || strings.HasPrefix(reason, "Err") || reason == "InspectFailed" ||
		reason == eventPulled && !strings.HasPrefix(message, "Successfully pulled")
}

func (w *worker) restarted(name string) bool {
	s := w.reported.Load()
	if s == nil {
		return false
	}
	for _, list := range [][]v1.ContainerStatus{s.ContainerStatuses, s.InitContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return list[i].ContainerID != "" || list[i].RestartCount > 0 || list[i].LastTerminationState.Terminated != nil
			}
		}
	}
	return false
}

func pullPolicy(c *v1.Container) v1.PullPolicy {
	if c.ImagePullPolicy != "" {
		return c.ImagePullPolicy
	}
	return v1.PullIfNotPresent
}

func (w *worker) pullSecrets() []*v1.Secret {
	var out []*v1.Secret
	for _, r := range w.pod.Spec.ImagePullSecrets {
		s, err := w.m.secret(w.namespace, r.Name, true)
		if err != nil || s == nil {
			w.eventOnce("", v1.EventTypeWarning, "FailedToRetrieveImagePullSecret",
				fmt.Sprintf("Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", r.Name))
			continue
		}
		out = append(out, s)
	}
	return out
}
