package scheduler

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

const (
	reportWorkers = 4
	// maxReports bounds what waits to be written; beyond it the oldest is dropped.
	maxReports = 4096
)

// reporter writes what became of pods into the API: conditions and events. What
// waits to be written is keyed by pod, the latest wins. What was written last
// about a pod isn't written again.
type reporter struct {
	client   kubernetes.Interface
	name     string // of the scheduler
	log      *slog.Logger
	wake     chan struct{}
	mu       sync.Mutex
	pending  map[types.UID]*report
	order    []types.UID // of pending, oldest first
	writing  map[types.UID]*writing
	reported map[types.UID]string // what was written last about an unscheduled pod
}

// writing is a report on its way.
type writing struct {
	done chan struct{}
	over bool // the pod was bound or went meanwhile
}

type report struct {
	pod     *v1.Pod
	node    string // scheduled there; "" if not
	reason  string // of the condition
	message string
	// nominated is the node where room is being made, "" if none.
	nominated string
}

// said is what is compared to what was written last.
func (r *report) said() string { return r.message + "\x00" + r.nominated }

func newReporter(client kubernetes.Interface, name string, log *slog.Logger) *reporter {
	return &reporter{
		client: client, name: name, log: log, wake: make(chan struct{}, reportWorkers),
		pending: map[types.UID]*report{}, writing: map[types.UID]*writing{}, reported: map[types.UID]string{},
	}
}

// unschedulable reports that pod fits nowhere, unless that was said already.
func (r *reporter) unschedulable(pod *v1.Pod, reason, message, nominated string) {
	rep := &report{pod: pod, reason: reason, message: message, nominated: nominated}
	r.mu.Lock()
	last, known := r.reported[pod.UID]
	r.mu.Unlock()
	if !known {
		// After a restart the pod itself knows what was said.
		if c := scheduledCondition(pod); c != nil && c.Status == v1.ConditionFalse && c.Reason == reason {
			last = c.Message + "\x00" + pod.Status.NominatedNodeName
		}
	}
	if last != rep.said() {
		r.put(rep)
	}
}

// scheduled reports that pod was bound to node.
func (r *reporter) scheduled(pod *v1.Pod, node string) {
	r.put(&report{pod: pod, node: node, message: fmt.Sprintf("Successfully assigned %s/%s to %s", pod.Namespace, pod.Name, node)})
}

// settle drops what waits to be written about a pod, and returns when nothing
// about it is being written.
func (r *reporter) settle(uid types.UID) {
	r.mu.Lock()
	delete(r.pending, uid)
	w := r.writing[uid]
	r.mu.Unlock()
	if w != nil {
		<-w.done
	}
}

// forget is called when a pod is bound or gone.
func (r *reporter) forget(uid types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.reported, uid)
	if w := r.writing[uid]; w != nil {
		w.over = true
	}
	if p := r.pending[uid]; p != nil && p.node == "" {
		delete(r.pending, uid)
	}
}

func (r *reporter) put(rep *report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, waits := r.pending[rep.pod.UID]; !waits {
		if len(r.order) >= maxReports {
			delete(r.pending, r.order[0])
			r.order = r.order[1:]
		}
		r.order = append(r.order, rep.pod.UID)
	}
	r.pending[rep.pod.UID] = rep
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run writes until ctx ends.
func (r *reporter) run(ctx context.Context) {
	var workers sync.WaitGroup
	for range reportWorkers {
		workers.Go(func() {
			for {
				for rep := r.take(); rep != nil; rep = r.take() {
					r.write(ctx, rep)
				}
				select {
				case <-ctx.Done():
					return
				case <-r.wake:
				}
			}
		})
	}
	workers.Wait()
}

func (r *reporter) take() *report {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := 0; i < len(r.order); i++ {
		uid := r.order[i]
		rep := r.pending[uid]
		if rep != nil && r.writing[uid] != nil {
			continue // one at a time about a pod; its writer comes back for it
		}
		r.order = append(r.order[:i], r.order[i+1:]...)
		i--
		if rep != nil {
			delete(r.pending, uid)
			r.writing[uid] = &writing{done: make(chan struct{})}
			return rep
		}
	}
	return nil
}

func (r *reporter) write(ctx context.Context, rep *report) {
	uid := rep.pod.UID
	var err error
	if rep.node != "" {
		err = r.event(ctx, rep, v1.EventTypeNormal, "Scheduled", "Binding")
	} else if err = r.condition(ctx, rep); err == nil {
		err = r.event(ctx, rep, v1.EventTypeWarning, "FailedScheduling", "Scheduling")
	}
	if err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) {
		r.log.Warn("not reported", "pod", rep.pod.Namespace+"/"+rep.pod.Name, "message", rep.message, "err", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.writing[uid]
	if err == nil && rep.node == "" && !w.over {
		r.reported[uid] = rep.said()
	}
	close(w.done)
	delete(r.writing, uid)
}

func (r *reporter) event(ctx context.Context, rep *report, kind, reason, action string) error {
	event := framework.PodEvent(rep.pod, r.name, kind, reason, action, rep.message)
	_, err := r.client.EventsV1().Events(event.Namespace).Create(ctx, event, metav1.CreateOptions{})
	if apierrors.HasStatusCause(err, v1.NamespaceTerminatingCause) {
		return nil
	}
	return err
}

func (r *reporter) condition(ctx context.Context, rep *report) error {
	now := metav1.Now()
	c := v1.PodCondition{
		Type: v1.PodScheduled, Status: v1.ConditionFalse, Reason: rep.reason, Message: rep.message,
		LastTransitionTime: now, ObservedGeneration: rep.pod.Generation,
	}
	if old := scheduledCondition(rep.pod); old != nil && old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	status := map[string]any{"conditions": []v1.PodCondition{c}}
	if rep.nominated != rep.pod.Status.NominatedNodeName {
		status["nominatedNodeName"] = rep.nominated
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": rep.pod.UID}, "status": status})
	if err != nil {
		return err
	}
	_, err = r.client.CoreV1().Pods(rep.pod.Namespace).Patch(ctx, rep.pod.Name, types.StrategicMergePatchType, patch,
		metav1.PatchOptions{}, "status")
	return err
}

func scheduledCondition(pod *v1.Pod) *v1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == v1.PodScheduled {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}
