package job

import (
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
)

// Back-off before a failed pod is replaced: doubled with each failure since the last success.
const (
	podBackoff    = 10 * time.Second
	podBackoffMax = 10 * time.Minute
)

// failures counts a job's pod failures since its last success. It is kept in memory only: after a restart the first
// replacement comes without delay.
type failures struct {
	count int32
	last  time.Time
}

// wait returns how long is left of the back-off.
func (f failures) wait(c clock.PassiveClock) time.Duration {
	if f.count == 0 {
		return 0
	}
	delay := podBackoff
	for i := int32(1); i < f.count && delay < podBackoffMax; i++ {
		delay *= 2
	}
	return max(0, min(delay, podBackoffMax)-c.Since(f.last))
}

// after returns f with pods that have just ended added in the order in which they ended.
func (f failures) after(succeeded, failed []*v1.Pod) failures {
	var lastSuccess time.Time
	for _, pod := range succeeded {
		if t := finishTime(pod); t.After(lastSuccess) {
			lastSuccess = t
		}
	}
	if len(succeeded) > 0 {
		f = failures{}
	}
	for _, pod := range failed {
		t := finishTime(pod)
		if len(succeeded) > 0 && !t.After(lastSuccess) {
			continue
		}
		f.count++
		if t.After(f.last) {
			f.last = t
		}
	}
	return f
}

// waitForIndex is the back-off of one index; lastFailed is its failed pod that has not been replaced yet, or nil.
func waitForIndex(c clock.PassiveClock, lastFailed *v1.Pod) time.Duration {
	if lastFailed == nil {
		return 0
	}
	counted, ignored := failureCount(lastFailed)
	return failures{count: counted + ignored + 1, last: finishTime(lastFailed)}.wait(c)
}

// finishTime is when the last container ended; if that isn't known, when the pod stopped being ready, was deleted, or
// was made.
func finishTime(pod *v1.Pod) time.Time {
	sidecars := sets.New[string]()
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			sidecars.Insert(c.Name)
		}
	}
	statuses := slices.Clone(pod.Status.ContainerStatuses)
	for _, s := range pod.Status.InitContainerStatuses {
		if sidecars.Has(s.Name) {
			statuses = append(statuses, s)
		}
	}
	var latest time.Time
	for _, s := range statuses {
		if s.State.Terminated == nil || s.State.Terminated.FinishedAt.IsZero() {
			latest = time.Time{}
			break
		}
		if s.State.Terminated.FinishedAt.After(latest) {
			latest = s.State.Terminated.FinishedAt.Time
		}
	}
	if !latest.IsZero() {
		return latest
	}
	if _, c := podutil.GetPodCondition(&pod.Status, v1.PodReady); c != nil && c.Status == v1.ConditionFalse && !c.LastTransitionTime.IsZero() {
		return c.LastTransitionTime.Time
	}
	if pod.DeletionTimestamp != nil {
		return deletedAt(pod)
	}
	return pod.CreationTimestamp.Time
}

// deletedAt is when the deletion was asked for: the timestamp is the end of the grace period.
func deletedAt(pod *v1.Pod) time.Time {
	return pod.DeletionTimestamp.Add(-time.Duration(ptr.Deref(pod.DeletionGracePeriodSeconds, 0)) * time.Second)
}

// failureStore holds the failures of each job by its key.
type failureStore struct {
	mu    sync.Mutex
	byKey map[string]failures
}

func (s *failureStore) get(key string) failures {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byKey[key]
}

func (s *failureStore) set(key string, f failures) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.count == 0 {
		delete(s.byKey, key)
		return
	}
	if s.byKey == nil {
		s.byKey = map[string]failures{}
	}
	s.byKey[key] = f
}
