package pods

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/edgelet/images"
)

// sweepTimeout bounds what is waited for the workers to remove what is dead.
const sweepTimeout = 30 * time.Second

// DeleteDeadContainers removes what is left in the runtime of pods that are over:
// otherwise that stays, with its logs, until the pod is deleted, as with a kubelet. Of
// a container that restarts only the last dead one is kept anyway. What was reported
// of them is in the pods' records.
func (m *Manager) DeleteDeadContainers(ctx context.Context) error {
	m.mu.Lock()
	var waits []chan struct{}
	for _, w := range m.workers {
		if !w.isOver() {
			continue
		}
		done := make(chan struct{})
		w.mu.Lock()
		w.sweeps = append(w.sweeps, done)
		w.mu.Unlock()
		w.signal()
		waits = append(waits, done)
	}
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	for _, done := range waits {
		select {
		case <-done:
		case <-ctx.Done():
			return fmt.Errorf("removing dead containers: %w", ctx.Err())
		}
	}
	return nil
}

// sweep removes what the runtime has of a pod that is over, if that was asked for.
func (w *worker) sweep(ctx context.Context, seen *observation) error {
	w.mu.Lock()
	asked := len(w.sweeps) > 0
	w.mu.Unlock()
	if !asked {
		return nil
	}
	if err := w.removeAll(ctx, seen); err != nil {
		return err
	}
	w.swept()
	return nil
}

// swept lets go who waits for a sweep.
func (w *worker) swept() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, done := range w.sweeps {
		close(done)
	}
	w.sweeps = nil
}

// DeleteOrphans removes the folders of logs and volumes of pods that are no longer
// here: a power cut may leave them. It does nothing unless all that should be here
// is known, and is to be called once Ready is closed.
func (m *Manager) DeleteOrphans() error {
	_, complete, err := m.cfg.Store.Desired()
	m.mu.Lock()
	complete = complete && m.staticOK && err == nil
	known := map[string]bool{}
	for uid := range m.workers {
		known[uid] = true
	}
	m.mu.Unlock()
	if !complete {
		return nil
	}
	var errs []error
	logs, _ := os.ReadDir(m.cfg.LogsDir)
	for _, e := range logs {
		// NAMESPACE_POD_UID: none of them has an underscore.
		parts := strings.Split(e.Name(), "_")
		if len(parts) == 3 && !known[parts[2]] {
			m.log.Info("removing the logs of a pod that is gone", "folder", e.Name())
			errs = append(errs, os.RemoveAll(filepath.Join(m.cfg.LogsDir, e.Name())))
		}
	}
	m.unlinkLogs("", "")
	dirs, _ := os.ReadDir(filepath.Dir(m.podDir("x")))
	for _, e := range dirs {
		if e.IsDir() && !known[e.Name()] {
			m.log.Info("removing the volumes of a pod that is gone", "uid", e.Name())
			errs = append(errs, m.cfg.Volumes.TearDown(e.Name()))
		}
	}
	return errors.Join(errs...)
}

// ImageUse is what image garbage collection must not remove.
func (m *Manager) ImageUse() images.Use {
	var u images.Use
	u.Images, u.Complete = m.Images()
	for _, p := range m.Pods() {
		pod, err := m.Spec(p.UID)
		if err != nil {
			continue // it is leaving
		}
		w := images.Workload{Key: workloadKey(pod), Good: isGood(&p.Status)}
		for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers, ephemerals(pod)} {
			for i := range list {
				w.Images = append(w.Images, list[i].Image)
			}
		}
		for _, v := range pod.Spec.Volumes {
			if v.Image != nil && v.Image.Reference != "" {
				w.Images = append(w.Images, v.Image.Reference)
			}
		}
		u.Workloads = append(u.Workloads, w)
	}
	return u
}

func workloadKey(pod *v1.Pod) string {
	kind, name := "", ""
	if owner := metav1.GetControllerOf(pod); owner != nil {
		kind, name = owner.Kind, owner.Name
	}
	return images.WorkloadKey(pod.Namespace, pod.Name, kind, name, pod.Labels["pod-template-hash"])
}

func isGood(s *v1.PodStatus) bool {
	if s.Phase == v1.PodSucceeded {
		return true
	}
	for _, c := range s.Conditions {
		if c.Type == v1.PodReady {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}
