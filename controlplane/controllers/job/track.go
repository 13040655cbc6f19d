package job

import (
	"context"
	"fmt"
	"slices"

	batch "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/utils/ptr"

	"github.com/coracle-edge/coracle/controlplane/controllers/reconciler"
)

// track counts every pod that has ended exactly once, whatever is interrupted in between:
//
//  1. UIDs of ended pods are written to status.uncountedTerminatedPods (of succeeded indexes, the index itself).
//  2. Their finalizers are removed.
//  3. Pods without finalizer move from the uncounted lists into the counters.
//  4. When none is left and the job ends, its last condition is written.
//
// A pod in the lists with its finalizer on is finished in step 2 by the next pass, one with it off in step 3.
func (p *pass) track(ctx context.Context, dirty bool) error {
	job, status := p.job, &p.job.Status
	held := sets.New[types.UID]()
	for _, pod := range p.pods {
		if tracked(pod) && !p.off.Has(pod.UID) {
			held.Insert(pod.UID)
		}
	}
	if countReleased(status, held) {
		dirty = true
	}
	release, full, added := p.collect()
	dirty = dirty || added
	if isIndexed(job) && p.writeIndexes() {
		dirty = true
	}
	if p.announceEnd() {
		dirty = true
	}
	if dirty {
		if err := p.writeStatus(ctx); err != nil {
			return fmt.Errorf("adding uncounted pods to status: %w", err)
		}
		p.Controller.failures.set(p.key, p.failures)
	}

	released, releaseErr := p.release(ctx, release)
	held.Delete(released...)
	dirty = countReleased(&p.job.Status, held)
	if releaseErr != nil {
		if dirty {
			if err := p.writeStatus(ctx); err != nil {
				return fmt.Errorf("removing uncounted pods from status: %w", err)
			}
		}
		return fmt.Errorf("removing tracking finalizers: %w", releaseErr)
	}
	ended := !full && p.finish()
	if !dirty && !ended {
		return nil
	}
	if err := p.writeStatus(ctx); err != nil {
		return fmt.Errorf("removing uncounted pods from status: %w", err)
	}
	if ended {
		p.finished.Store(p.job.UID, struct{}{})
		p.recordEnd()
	}
	return nil
}

// collect adds ended pods to the uncounted lists, as far as these have room (else full is true), and returns the pods
// whose finalizers may go afterwards.
func (p *pass) collect() (release []*v1.Pod, full, added bool) {
	job := p.job
	uncounted := job.Status.UncountedTerminatedPods
	pods := slices.Clone(p.pods)
	if isIndexed(job) {
		slices.SortStableFunc(pods, func(a, b *v1.Pod) int { return indexOf(a) - indexOf(b) })
	}
	newIndexes := sets.New[int]()
	for _, pod := range pods {
		if !tracked(pod) || p.off.Has(pod.UID) {
			continue // counted by an earlier pass
		}
		failed := p.Controller.failed(pod, job)
		if !p.mayRelease(pod, failed) {
			continue
		}
		release = append(release, pod)
		ix, valid := noIndex, true
		if isIndexed(job) {
			ix, valid = validIndex(job, pod)
		}
		switch {
		case pod.Status.Phase == v1.PodSucceeded && !p.uncountedFailed.Has(pod.UID):
			if isIndexed(job) {
				if valid && !p.doneBefore.has(ix) {
					newIndexes.Insert(ix)
					added = true
				}
			} else if !p.uncountedSucceeded.Has(pod.UID) {
				uncounted.Succeeded = append(uncounted.Succeeded, pod.UID)
				added = true
			}
		case failed || p.end != nil && p.end.Type != batch.JobSuccessCriteriaMet:
			// In a job that has failed every pod that hasn't ended counts as failed.
			if valid && !p.uncountedFailed.Has(pod.UID) && judge(job.Spec.PodFailurePolicy, pod).counts {
				uncounted.Failed = append(uncounted.Failed, pod.UID)
				added = true
			}
		}
		if newIndexes.Len()+len(uncounted.Succeeded)+len(uncounted.Failed) >= maxUncounted {
			full = true
			break
		}
	}
	return release, full, added
}

// mayRelease reports whether nobody needs the pod's finalizer once it is counted.
func (p *pass) mayRelease(pod *v1.Pod, failed bool) bool {
	if p.job.DeletionTimestamp != nil || p.end != nil || pod.Status.Phase == v1.PodSucceeded {
		return true
	}
	if !failed {
		return false
	}
	if ix := indexOf(pod); ix != noIndex {
		if kept, ok := p.unreplaced[ix]; ok && kept.UID == pod.UID {
			return false
		}
	}
	return true
}

// writeIndexes brings the index fields of the status up to date.
func (p *pass) writeIndexes() (changed bool) {
	status := &p.job.Status
	if done := p.done.String(); done != status.CompletedIndexes {
		status.CompletedIndexes, changed = done, true
	}
	status.Succeeded = int32(p.done.total())
	var failed *string
	if p.failedIndexes != nil {
		failed = ptr.To(p.failedIndexes.String())
	}
	if !ptr.Equal(status.FailedIndexes, failed) {
		status.FailedIndexes, changed = failed, true
	}
	return changed
}

// announceEnd writes down how the job will end (FailureTarget, SuccessCriteriaMet) before any pod is let go, and turns
// the end into the condition that follows when all have ended (Failed, Complete).
func (p *pass) announceEnd() (added bool) {
	if p.end == nil {
		return false
	}
	final := batch.JobFailed
	switch p.end.Type {
	case batch.JobSuccessCriteriaMet:
		final = batch.JobComplete
	case batch.JobFailureTarget:
	default:
		return false // announced earlier
	}
	if find(p.job.Status.Conditions, p.end.Type) == nil {
		p.job.Status.Conditions = append(p.job.Status.Conditions, *p.end)
		added = true
	}
	p.end = p.condition(final, p.end.Reason, p.end.Message)
	return added
}

// release takes the finalizers off and returns the UIDs of the pods it is off now.
func (p *pass) release(ctx context.Context, pods []*v1.Pod) ([]types.UID, error) {
	off := make([]bool, len(pods))
	for _, pod := range pods {
		p.released.add(p.key, pod.UID)
	}
	errs := reconciler.Parallel(len(pods), func(i int) error {
		err := p.Controller.pods.PatchPod(ctx, pods[i].Namespace, pods[i].Name, untrack())
		if err != nil {
			p.released.observe(p.key, pods[i].UID)
			if !apierrors.IsNotFound(err) {
				return err
			}
		}
		off[i] = true
		return nil
	})
	var uids []types.UID
	for i, pod := range pods {
		if off[i] {
			uids = append(uids, pod.UID)
		}
	}
	return uids, first(errs)
}

// finish adds the last condition if every pod is counted and has ended.
func (p *pass) finish() bool {
	status := &p.job.Status
	if p.end == nil || p.terminating > 0 {
		return false
	}
	if u := status.UncountedTerminatedPods; u != nil && len(u.Succeeded)+len(u.Failed) > 0 {
		return false
	}
	p.setCondition(p.end.Type, p.end.Status, p.end.Reason, p.end.Message)
	if p.end.Type == batch.JobComplete {
		status.CompletionTime = ptr.To(find(status.Conditions, batch.JobComplete).LastTransitionTime)
	}
	return true
}

func (p *pass) recordEnd() {
	if p.end.Type != batch.JobComplete {
		p.opts.Recorder.Event(p.job, v1.EventTypeWarning, p.end.Reason, p.end.Message)
		return
	}
	if p.job.Spec.Completions != nil && p.job.Status.Succeeded > *p.job.Spec.Completions {
		p.opts.Recorder.Event(p.job, v1.EventTypeWarning, "TooManySucceededPods", "Too many succeeded pods running after completion count reached")
	}
	p.opts.Recorder.Event(p.job, v1.EventTypeNormal, "Completed", "Job completed")
}

func (p *pass) writeStatus(ctx context.Context) error {
	updated, err := p.client.BatchV1().Jobs(p.job.Namespace).UpdateStatus(ctx, p.job, metav1.UpdateOptions{})
	if err != nil {
		return err
	}
	p.job = updated
	return nil
}

// countReleased moves pods that have no finalizer any more from the uncounted lists into the counters.
func countReleased(status *batch.JobStatus, held sets.Set[types.UID]) bool {
	uncounted := status.UncountedTerminatedPods
	if uncounted == nil {
		return false
	}
	move := func(list *[]types.UID, counter *int32) bool {
		before := len(*list)
		left := slices.DeleteFunc(slices.Clone(*list), func(uid types.UID) bool { return !held.Has(uid) })
		if len(left) == before {
			return false
		}
		if len(left) == 0 {
			left = nil
		}
		*list = left
		*counter += int32(before - len(left))
		return true
	}
	succeeded := move(&uncounted.Succeeded, &status.Succeeded)
	failed := move(&uncounted.Failed, &status.Failed)
	return succeeded || failed
}
