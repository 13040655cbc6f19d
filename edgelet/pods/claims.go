package pods

import (
	"context"
	"errors"
	"slices"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/claims"
)

// reasonClaims is upstream's event for claims that can't be prepared.
const reasonClaims = "FailedPrepareDynamicResources"

// noClaims is why a pod with claims is not let in where no driver can be.
const noClaims = "the pod has resource claims, and this node can't have DRA drivers: the agent has to run as root"

// Claims is where the devices of resource claims come in: [claims.Manager].
type Claims interface {
	// Prepare has a pod's claims prepared, durably. fresh: for a new sandbox.
	Prepare(ctx context.Context, pod *v1.Pod, fresh bool) error
	// Unprepare undoes it, as far as no other pod uses them.
	Unprepare(ctx context.Context, podUID string) error
	// Uses reports whether there is something to undo.
	Uses(podUID string) bool
	// CDI are a container's devices.
	CDI(pod *v1.Pod, c *v1.Container) ([]string, error)
	// Health of them, nil if there are none.
	Health(pod *v1.Pod, c *v1.Container) []v1.ResourceStatus
	// Blocked says which claim of a pod is still another one's of before.
	Blocked(pod *v1.Pod) error
	// Pods are the UIDs that have claims.
	Pods() []string
}

// prepareClaims has the claims of a pod prepared, or notes why it waits.
func (w *worker) prepareClaims(ctx context.Context, fresh bool) error {
	if w.m.cfg.Claims == nil {
		return errors.New(noClaims) // one that an agent with drivers has let in
	}
	w.unclaimed.Store(true) // first, so that no driver that comes meanwhile is missed
	err := w.m.cfg.Claims.Prepare(ctx, w.pod, fresh)
	if err == nil {
		w.unclaimed.Store(false)
		return nil
	}
	if ctx.Err() != nil {
		return err
	}
	text := "Failed to prepare dynamic resources: " + message(err)
	w.eventOnce("", v1.EventTypeWarning, reasonClaims, text)
	w.allWait(reasonCreating, text)
	return err
}

// sayBlocked tells of a pod that waits for another of its name, whose claims have
// names that are taken, too: it would have to wait for these.
func (w *worker) sayBlocked() {
	if w.m.cfg.Claims == nil || !claims.Has(w.pod) {
		return
	}
	if err := w.m.cfg.Claims.Blocked(w.pod); err != nil {
		w.eventOnce("", v1.EventTypeWarning, reasonClaims, "Failed to prepare dynamic resources: "+message(err))
	}
}

// unprepareClaims has them undone once nothing of the pod runs, and before the
// cluster is told so.
func (w *worker) unprepareClaims(ctx context.Context) error {
	if w.m.cfg.Claims == nil || !w.m.cfg.Claims.Uses(w.uid) {
		return nil
	}
	w.unclaimed.Store(true)
	if err := w.m.cfg.Claims.Unprepare(ctx, w.uid); err != nil {
		if ctx.Err() == nil {
			w.eventOnce("", v1.EventTypeWarning, "FailedKillPod", "error killing pod: "+message(err))
		}
		return err
	}
	w.unclaimed.Store(false)
	return nil
}

// unprepareLeft does it for a pod that is no more.
func (m *Manager) unprepareLeft(ctx context.Context, uid string) error {
	if m.cfg.Claims == nil {
		return nil
	}
	return m.cfg.Claims.Unprepare(ctx, uid)
}

// addClaims puts the devices of a container's claims into its configuration.
func (m *Manager) addClaims(pod *v1.Pod, c *v1.Container, cfg *runtimeapi.ContainerConfig) error {
	if !claims.Has(pod) || m.cfg.Claims == nil {
		return nil
	}
	ids, err := m.cfg.Claims.CDI(pod, c)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if !slices.ContainsFunc(cfg.CDIDevices, func(d *runtimeapi.CDIDevice) bool { return d.Name == id }) {
			cfg.CDIDevices = append(cfg.CDIDevices, &runtimeapi.CDIDevice{Name: id})
		}
	}
	return nil
}

// deviceHealth is of what plugins gave a container, and of its claims.
func (w *worker) deviceHealth(container string) (out []v1.ResourceStatus) {
	if d := w.m.cfg.Devices; d != nil {
		out = d.Health(w.uid, container)
	}
	if d := w.m.cfg.Claims; d != nil && claims.Has(w.pod) {
		// As upstream: of app containers only.
		if i := slices.IndexFunc(w.pod.Spec.Containers, func(c v1.Container) bool { return c.Name == container }); i >= 0 {
			out = append(out, d.Health(w.pod, &w.pod.Spec.Containers[i])...)
		}
	}
	return out
}

// ClaimsChanged has the pods look again that wait for their claims, or for their
// claims' end: a driver came.
func (m *Manager) ClaimsChanged() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.workers {
		if w.unclaimed.Load() {
			w.signal()
		}
	}
}
