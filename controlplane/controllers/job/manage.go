package job

import (
	"context"
	"fmt"
	"sort"
	"sync/atomic"
	"time"

	batch "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/controller"

	"github.com/coracle-edge/coracle/controlplane/controllers/reconciler"
)

// removeActive deletes the active pods of a job that ends, finalizers kept: they are counted by track. It returns how
// many deletions were accepted.
func (p *pass) removeActive(ctx context.Context) (int32, error) {
	var removed, ready atomic.Int32
	errs := reconciler.Parallel(len(p.active), func(i int) error {
		pod := p.active[i]
		if err := p.Controller.pods.DeletePod(ctx, p.job.Namespace, pod.Name, p.job); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		removed.Add(1)
		if podutil.IsPodReady(pod) {
			ready.Add(1)
		}
		return nil
	})
	p.terminating += removed.Load()
	p.ready -= ready.Load()
	return removed.Load(), first(errs)
}

// manage creates or deletes pods so that as many are active as should be, and returns how many are then. In one pass
// there is either, deletion first.
func (p *pass) manage(ctx context.Context) (int32, error) {
	job, active := p.job, int32(len(p.active))
	if suspended(job) {
		return p.remove(ctx, p.surplus(int(active)))
	}
	want := *job.Spec.Parallelism
	if job.Spec.Completions == nil {
		if p.succeeded > 0 {
			want = active // one success is enough; those that run may end
		}
	} else {
		want = max(0, min(want, *job.Spec.Completions-p.succeeded))
	}
	if victims := p.surplus(int(max(0, active-want))); len(victims) > 0 {
		return p.remove(ctx, victims[:min(len(victims), maxChange)])
	}
	missing := want - active
	if onlyReplaceFailed(job) {
		missing -= p.terminating
	}
	if missing <= 0 {
		return active, nil
	}
	return p.create(ctx, int(min(missing, maxChange)))
}

// surplus returns at least n active pods to delete: in an indexed job first those without a valid index or with one that
// another has, then those least far in starting.
func (p *pass) surplus(n int) []*v1.Pod {
	left := append([]*v1.Pod(nil), p.active...)
	var victims []*v1.Pod
	if isIndexed(p.job) {
		byIndex := map[int][]*v1.Pod{}
		for _, pod := range left {
			if ix, ok := validIndex(p.job, pod); ok {
				byIndex[ix] = append(byIndex[ix], pod)
			} else {
				victims = append(victims, pod)
			}
		}
		left = left[:0]
		for _, pods := range byIndex {
			sort.Sort(controller.ActivePods(pods))
			victims = append(victims, pods[:len(pods)-1]...)
			left = append(left, pods[len(pods)-1])
		}
	}
	if len(victims) < n {
		sort.Sort(controller.ActivePods(left))
		victims = append(victims, left[:n-len(victims)]...)
	}
	return victims
}

// remove deletes pods that aren't wanted any more, finalizer first: they are neither successes nor failures.
func (p *pass) remove(ctx context.Context, victims []*v1.Pod) (int32, error) {
	active := int32(len(p.active))
	if len(victims) == 0 {
		return active, nil
	}
	logger := klog.FromContext(ctx)
	_ = p.expected.ExpectDeletions(logger, p.key, len(victims))
	var removed, ready atomic.Int32
	errs := reconciler.Parallel(len(victims), func(i int) error {
		pod := victims[i]
		var err error
		if tracked(pod) {
			if err = p.Controller.pods.PatchPod(ctx, pod.Namespace, pod.Name, untrack()); err != nil {
				err = fmt.Errorf("removing completion finalizer: %w", err)
			}
		}
		if err == nil {
			err = p.Controller.pods.DeletePod(ctx, p.job.Namespace, pod.Name, p.job)
		}
		if err != nil {
			p.expected.DeletionObserved(logger, p.key)
			if !apierrors.IsNotFound(err) {
				return err
			}
		}
		removed.Add(1)
		if podutil.IsPodReady(pod) {
			ready.Add(1)
		}
		return nil
	})
	p.terminating += removed.Load()
	p.ready -= ready.Load()
	return active - removed.Load(), first(errs)
}

// create makes up to n pods, unless failures before ask to wait.
func (p *pass) create(ctx context.Context, n int) (int32, error) {
	job, active := p.job, int32(len(p.active))
	var wait time.Duration
	var indexes []int
	if !perIndexBackoff(job) {
		wait = p.failures.wait(p.opts.Clock)
	}
	if wait == 0 && isIndexed(job) {
		indexes = p.pendingIndexes(n)
		if perIndexBackoff(job) {
			indexes, wait = p.dueIndexes(indexes)
		}
		n = len(indexes)
	}
	if wait > 0 {
		p.AddAfter(p.key, max(wait, batchDelay))
	}
	if wait > 0 && len(indexes) == 0 || n == 0 {
		return active, nil
	}
	template := job.Spec.Template.DeepCopy()
	if isIndexed(job) {
		addIndexEnv(template)
	}
	if !hasFinalizer(template) {
		template.Finalizers = append(template.Finalizers, batch.JobTrackingFinalizer)
	}
	logger := klog.FromContext(ctx)
	_ = p.expected.ExpectCreations(logger, p.key, n)
	made, ok, err := reconciler.SlowStart(n, func(i int) error {
		own, name := template, ""
		if isIndexed(job) {
			own, name = asIndex(job, template, indexes[i], p.unreplaced[indexes[i]])
		}
		err := p.Controller.pods.CreatePodsWithGenerateName(ctx, job.Namespace, own, job, metav1.NewControllerRef(job, kind), name)
		if err != nil {
			p.expected.CreationObserved(logger, p.key)
		}
		return err
	})
	for range n - made {
		p.expected.CreationObserved(logger, p.key) // never attempted
	}
	if apierrors.HasStatusCause(err, v1.NamespaceTerminatingCause) {
		err = nil
	}
	return active + int32(ok), err
}

// pendingIndexes returns the first n indexes for which nothing runs and which have neither succeeded nor failed.
func (p *pass) pendingIndexes(n int) []int {
	taken := p.done.with(indexesOf(p.active))
	if onlyReplaceFailed(p.job) {
		taken = taken.with(indexesOf(controller.FilterTerminatingPods(p.pods)))
	}
	if p.failedIndexes != nil {
		taken = taken.union(*p.failedIndexes)
	}
	return taken.gaps(n, int(*p.job.Spec.Completions))
}

// dueIndexes returns those of the indexes whose back-off is over; if there is none, how long the first one has to wait.
func (p *pass) dueIndexes(indexes []int) (due []int, wait time.Duration) {
	for _, ix := range indexes {
		left := waitForIndex(p.opts.Clock, p.unreplaced[ix])
		if left == 0 {
			due = append(due, ix)
		} else if wait == 0 || left < wait {
			wait = left
		}
	}
	return due, wait
}

func hasFinalizer(template *v1.PodTemplateSpec) bool {
	return tracked(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Finalizers: template.Finalizers}})
}

func first(errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	return errs[0]
}
