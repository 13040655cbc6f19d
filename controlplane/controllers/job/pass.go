package job

import (
	"context"
	"fmt"
	"time"

	batch "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/klog/v2"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/controller"
	"k8s.io/kubernetes/pkg/features"
	"k8s.io/utils/ptr"
)

// pass is one reconciliation of one job.
type pass struct {
	*Controller
	key string
	job *batch.Job // a copy; its status is built here

	pods   []*v1.Pod // all of the job's, as the informer shows them
	active []*v1.Pod
	// off are pods that the informer shows with a finalizer which we have removed.
	off sets.Set[types.UID]
	// Ended pods that are in the status by UID only, because their finalizer may still be there.
	uncountedSucceeded, uncountedFailed sets.Set[types.UID]

	succeeded, failedPods int32 // with everything that has ended by now
	ready, terminating    int32
	failures              failures

	// Of indexed jobs: succeeded by the status, by now, and failed with backoffLimitPerIndex.
	doneBefore, done intervals
	failedIndexes    *intervals
	// unreplaced is, per index, the failed pod whose finalizer stays until the pod that replaces it has taken over its count.
	unreplaced map[int]*v1.Pod

	// end is the condition that the job ends with, nil while it runs.
	end *batch.JobCondition
}

func (p *pass) run(ctx context.Context) error {
	job := p.job
	if job.Status.UncountedTerminatedPods == nil {
		job.Status.UncountedTerminatedPods = &batch.UncountedTerminatedPods{}
	}
	// Before the pods are read: what is observed from here on is in the list.
	settled := p.expected.SatisfiedExpectations(klog.FromContext(ctx), p.key)
	if !settled {
		p.AddAfter(p.key, controller.ExpectationsTimeout+time.Second)
	}
	var err error
	if p.pods, err = p.claim(ctx); err != nil {
		return fmt.Errorf("claim pods: %w", err)
	}
	p.survey()
	if job.Status.StartTime == nil && !suspended(job) {
		job.Status.StartTime = ptr.To(p.now())
	}
	p.judgeEnd()

	var manageErr error
	active := int32(len(p.active))
	suspensionChanged := false
	if p.end != nil {
		var removed int32
		removed, manageErr = p.removeActive(ctx)
		if removed != active || !settled {
			p.end = nil // there may be pods that the informer doesn't show yet
		}
		active -= removed
	} else {
		managed := settled && job.DeletionTimestamp == nil
		if managed {
			active, manageErr = p.manage(ctx)
		}
		if p.allDone(active) {
			p.end = p.condition(batch.JobSuccessCriteriaMet, batch.JobReasonCompletionsReached, "Reached expected number of succeeded pods")
		} else if managed {
			suspensionChanged = p.noteSuspension()
		}
	}
	changed := suspensionChanged || active != job.Status.Active || !ptr.Equal(job.Status.Ready, &p.ready) || !ptr.Equal(job.Status.Terminating, &p.terminating)
	job.Status.Active, job.Status.Ready, job.Status.Terminating = active, ptr.To(p.ready), ptr.To(p.terminating)
	if err := p.track(ctx, changed); err != nil {
		return fmt.Errorf("tracking status: %w", err)
	}
	return manageErr
}

// claim returns the job's pods, having adopted orphans that match (with finalizer) and released those that no longer do.
func (p *pass) claim(ctx context.Context) ([]*v1.Pod, error) {
	job := p.job
	selector, err := metav1.LabelSelectorAsSelector(job.Spec.Selector)
	if err != nil {
		return nil, err
	}
	pods, err := controller.FilterPodsByOwner(p.podIndex, &job.ObjectMeta, kind.Kind, true)
	if err != nil {
		return nil, err
	}
	canAdopt := controller.RecheckDeletionTimestamp(func(ctx context.Context) (metav1.Object, error) {
		fresh, err := p.client.BatchV1().Jobs(job.Namespace).Get(ctx, job.Name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		if fresh.UID != job.UID {
			return nil, fmt.Errorf("original Job %s is gone: got uid %s, wanted %s", p.key, fresh.UID, job.UID)
		}
		return fresh, nil
	})
	pods, err = controller.NewPodControllerRefManager(p.Controller.pods, job, selector, kind, canAdopt, batch.JobTrackingFinalizer).ClaimPods(ctx, pods)
	if err != nil {
		return nil, err
	}
	for i, pod := range pods {
		if !metav1.IsControlledBy(pod, job) && !tracked(pod) { // just adopted: the informer shows it as it was
			pods[i] = pod.DeepCopy()
			pods[i].Finalizers = append(pods[i].Finalizers, batch.JobTrackingFinalizer)
		}
	}
	return pods, nil
}

// survey counts.
func (p *pass) survey() {
	status := &p.job.Status
	p.off = p.released.of(p.key)
	p.uncountedSucceeded = sets.New(status.UncountedTerminatedPods.Succeeded...)
	p.uncountedFailed = sets.New(status.UncountedTerminatedPods.Failed...)
	p.active = controller.FilterActivePods(klog.Background(), p.pods)
	p.terminating = controller.CountTerminatingPods(p.pods)
	for _, pod := range p.active {
		if podutil.IsPodReady(pod) {
			p.ready++
		}
	}
	var succeeded, failed []*v1.Pod
	ignored := 0
	for _, pod := range p.pods {
		if !p.counting(pod) {
			continue
		}
		switch {
		case pod.Status.Phase == v1.PodSucceeded && !p.uncountedSucceeded.Has(pod.UID):
			succeeded = append(succeeded, pod)
		case p.Controller.failed(pod, p.job) && !p.uncountedFailed.Has(pod.UID):
			failed = append(failed, pod)
			if !judge(p.job.Spec.PodFailurePolicy, pod).counts {
				ignored++
			}
		}
	}
	p.succeeded = status.Succeeded + int32(len(succeeded)) + int32(p.uncountedSucceeded.Len())
	p.failedPods = status.Failed + int32(len(failed)-ignored) + int32(p.uncountedFailed.Len())
	p.failures = p.Controller.failures.get(p.key).after(succeeded, failed)
	if isIndexed(p.job) {
		p.surveyIndexes()
	}
}

// counting reports whether a pod is one that has not been counted: it has its finalizer, and in an indexed job an index.
func (p *pass) counting(pod *v1.Pod) bool {
	if !tracked(pod) || p.off.Has(pod.UID) {
		return false
	}
	if isIndexed(p.job) {
		_, ok := validIndex(p.job, pod)
		return ok
	}
	return true
}

func (p *pass) surveyIndexes() {
	job, completions := p.job, int(*p.job.Spec.Completions)
	p.doneBefore = parseIntervals(job.Status.CompletedIndexes, completions)
	newlyDone, newlyFailed := sets.New[int](), sets.New[int]()
	for _, pod := range p.pods {
		ix, ok := validIndex(job, pod)
		if !ok || !tracked(pod) {
			continue
		}
		if pod.Status.Phase == v1.PodSucceeded {
			newlyDone.Insert(ix)
		}
		if perIndexBackoff(job) && p.indexFailed(pod) {
			newlyFailed.Insert(ix)
		}
	}
	p.done = p.doneBefore.with(newlyDone)
	p.succeeded = int32(p.done.total())
	if !perIndexBackoff(job) {
		return
	}
	failed := parseIntervals(ptr.Deref(job.Status.FailedIndexes, ""), completions).with(newlyFailed)
	p.failedIndexes = &failed
	p.unreplaced = map[int]*v1.Pod{}
	running := indexesOf(p.active)
	for _, pod := range p.pods {
		if !p.counting(pod) || !p.Controller.failed(pod, job) {
			continue
		}
		ix := indexOf(pod)
		if p.done.has(ix) || failed.has(ix) || running.Has(ix) {
			continue // nobody needs its count any more
		}
		if last, ok := p.unreplaced[ix]; !ok || total(last) <= total(pod) && !finishTime(pod).Before(finishTime(last)) {
			p.unreplaced[ix] = pod
		}
	}
}

func total(pod *v1.Pod) int32 {
	counted, ignored := failureCount(pod)
	return counted + ignored
}

// indexFailed reports whether a pod's failure is the last one that its index may have.
func (p *pass) indexFailed(pod *v1.Pod) bool {
	if !p.Controller.failed(pod, p.job) {
		return false
	}
	v := judge(p.job.Spec.PodFailurePolicy, pod)
	counted, _ := failureCount(pod)
	return v.failIndex || v.counts && counted >= *p.job.Spec.BackoffLimitPerIndex
}

// judgeEnd finds the reason for the job to end, if there is one, other than that its completions are reached. What an
// earlier pass decided stands.
func (p *pass) judgeEnd() {
	job := p.job
	if cond := find(job.Status.Conditions, batch.JobSuccessCriteriaMet); cond != nil && cond.Status == v1.ConditionTrue {
		p.end = cond.DeepCopy()
		return
	}
	if cond := find(job.Status.Conditions, batch.JobFailureTarget); cond != nil && cond.Status == v1.ConditionTrue {
		p.end = p.condition(batch.JobFailed, cond.Reason, cond.Message)
		return
	}
	for _, pod := range p.pods {
		if p.Controller.failed(pod, job) {
			if v := judge(job.Spec.PodFailurePolicy, pod); v.failJob != "" {
				p.end = p.condition(batch.JobFailureTarget, batch.JobReasonPodFailurePolicy, v.failJob)
				return
			}
		}
	}
	switch {
	case p.failedPods > *job.Spec.BackoffLimit || p.restartsExceeded():
		p.end = p.condition(batch.JobFailureTarget, batch.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit")
		return
	case p.deadlinePassed():
		p.end = p.condition(batch.JobFailureTarget, batch.JobReasonDeadlineExceeded, "Job was active longer than specified deadline")
		return
	}
	if !isIndexed(job) {
		return
	}
	if p.failedIndexes != nil {
		switch n := p.failedIndexes.total(); {
		case job.Spec.MaxFailedIndexes != nil && n > int(*job.Spec.MaxFailedIndexes):
			p.end = p.condition(batch.JobFailureTarget, batch.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes")
			return
		case n > 0 && n+p.done.total() >= int(*job.Spec.Completions):
			p.end = p.condition(batch.JobFailureTarget, batch.JobReasonFailedIndexes, "Job has failed indexes")
			return
		}
	}
	if message, ok := succeeds(job.Spec.SuccessPolicy, int(*job.Spec.Completions), p.done); ok {
		p.end = p.condition(batch.JobSuccessCriteriaMet, batch.JobReasonSuccessPolicy, message)
	}
}

// restartsExceeded reports whether the containers of pods that restart in place did so too often.
func (p *pass) restartsExceeded() bool {
	if p.job.Spec.Template.Spec.RestartPolicy != v1.RestartPolicyOnFailure {
		return false
	}
	restarts := int32(0)
	for _, pod := range p.pods {
		if pod.Status.Phase != v1.PodRunning && pod.Status.Phase != v1.PodPending {
			continue
		}
		for _, list := range [][]v1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
			for i := range list {
				restarts += list[i].RestartCount
			}
		}
	}
	if *p.job.Spec.BackoffLimit == 0 {
		return restarts > 0
	}
	return restarts >= *p.job.Spec.BackoffLimit
}

// deadlinePassed reports whether the job was active for too long, and else comes back when it will have been.
func (p *pass) deadlinePassed() bool {
	job := p.job
	if job.Spec.ActiveDeadlineSeconds == nil || job.Status.StartTime == nil || suspended(job) {
		return false
	}
	left := time.Duration(*job.Spec.ActiveDeadlineSeconds)*time.Second - p.opts.Clock.Since(job.Status.StartTime.Time)
	if left > 0 {
		p.AddAfter(p.key, left)
	}
	return left <= 0
}

// allDone reports whether the job is complete: with a number of completions when that many succeeded, without one when
// any pod did; and nothing runs any more.
func (p *pass) allDone(active int32) bool {
	if active != 0 {
		return false
	}
	if p.job.Spec.Completions == nil {
		return p.succeeded > 0
	}
	return p.succeeded >= *p.job.Spec.Completions
}

// noteSuspension brings condition Suspended and the start time up to date.
func (p *pass) noteSuspension() bool {
	status := &p.job.Status
	if suspended(p.job) {
		if !p.setCondition(batch.JobSuspended, v1.ConditionTrue, "JobSuspended", "Job suspended") {
			return false
		}
		p.opts.Recorder.Event(p.job, v1.EventTypeNormal, "Suspended", "Job suspended")
		if utilfeature.DefaultFeatureGate.Enabled(features.MutableSchedulingDirectivesForSuspendedJobs) {
			status.StartTime = nil
		}
		return true
	}
	if !p.setCondition(batch.JobSuspended, v1.ConditionFalse, "JobResumed", "Job resumed") {
		return false
	}
	p.opts.Recorder.Event(p.job, v1.EventTypeNormal, "Resumed", "Job resumed")
	status.StartTime = ptr.To(p.now()) // the deadline is for time spent active
	return true
}

// setCondition updates a condition, or adds it unless its status is False, which absence says as well.
func (p *pass) setCondition(kind batch.JobConditionType, status v1.ConditionStatus, reason, message string) bool {
	conditions := &p.job.Status.Conditions
	if cond := find(*conditions, kind); cond != nil {
		if cond.Status == status && cond.Reason == reason && cond.Message == message {
			return false
		}
		*cond = *p.condition(kind, reason, message)
		cond.Status = status
		return true
	}
	if status == v1.ConditionFalse {
		return false
	}
	cond := p.condition(kind, reason, message)
	cond.Status = status
	*conditions = append(*conditions, *cond)
	return true
}

func (p *pass) condition(kind batch.JobConditionType, reason, message string) *batch.JobCondition {
	now := p.now()
	return &batch.JobCondition{Type: kind, Status: v1.ConditionTrue, LastProbeTime: now, LastTransitionTime: now, Reason: reason, Message: message}
}

func (p *pass) now() metav1.Time { return metav1.NewTime(p.opts.Clock.Now()) }

func find(list []batch.JobCondition, kind batch.JobConditionType) *batch.JobCondition {
	for i := range list {
		if list[i].Type == kind {
			return &list[i]
		}
	}
	return nil
}
