package job

import (
	"fmt"
	"slices"
	"testing"
	"time"

	batch "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/coracle-edge/coracle/controlplane/controllers/fixture"
)

var sumLabels = map[string]string{"job": "sum"}

func newJob(change func(*batch.Job)) *batch.Job {
	job := &batch.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "sum", UID: "job", Generation: 1, CreationTimestamp: metav1.NewTime(fixture.Start().Add(-time.Hour))},
		Spec: batch.JobSpec{
			Completions: ptr.To(int32(1)), Parallelism: ptr.To(int32(1)), BackoffLimit: ptr.To(int32(6)),
			Selector: &metav1.LabelSelector{MatchLabels: sumLabels},
			Template: v1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: sumLabels}, Spec: v1.PodSpec{
				RestartPolicy: v1.RestartPolicyNever, Containers: []v1.Container{{Name: "c", Image: "i"}},
			}},
		},
		Status: batch.JobStatus{StartTime: ptr.To(metav1.NewTime(fixture.Start().Add(-time.Hour)))},
	}
	if change != nil {
		change(job)
	}
	return job
}

// podOf is a pod of the job with its finalizer, on node "here".
func podOf(name string, options ...fixture.PodOption) *v1.Pod {
	return fixture.Pod(name, newJob(nil), "Job", append([]fixture.PodOption{
		fixture.On("here"), fixture.Labelled(sumLabels), fixture.Finalized(batch.JobTrackingFinalizer),
	}, options...)...)
}

func index(ix int) fixture.PodOption {
	return fixture.Annotated(map[string]string{batch.JobCompletionIndexAnnotation: fmt.Sprint(ix)})
}

func exited(code int32, ago time.Duration) fixture.PodOption {
	return func(p *v1.Pod) {
		phase := v1.PodFailed
		if code == 0 {
			phase = v1.PodSucceeded
		}
		fixture.Phase(phase)(p)
		p.Status.ContainerStatuses = []v1.ContainerStatus{{Name: "c", State: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{
			ExitCode: code, FinishedAt: metav1.NewTime(fixture.Start().Add(-ago)),
		}}}}
	}
}

func indexed(n int32) func(*batch.Job) {
	return func(j *batch.Job) {
		j.Spec.CompletionMode, j.Spec.Completions, j.Spec.Parallelism = ptr.To(batch.IndexedCompletion), &n, &n
	}
}

type world struct {
	*fixture.World
	*Controller
}

func newWorld(t *testing.T, job *batch.Job, nodes []*v1.Node, pods ...*v1.Pod) *world {
	t.Helper()
	objects := []runtime.Object{job}
	if nodes == nil {
		nodes = []*v1.Node{fixture.Node("here", v1.ConditionTrue), fixture.Node("gone", v1.ConditionUnknown)}
	}
	for _, n := range nodes {
		objects = append(objects, n)
	}
	for _, p := range pods {
		objects = append(objects, p)
	}
	w := fixture.New(t, objects...)
	c, err := New(w.Client, w.Factory, w.Options())
	if err != nil {
		t.Fatal(err)
	}
	w.Sync()
	return &world{w, c}
}

func (w *world) stored(t *testing.T) *batch.Job {
	t.Helper()
	job, err := w.Client.BatchV1().Jobs("ns").Get(t.Context(), "sum", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return job
}

func reasons(job *batch.Job) (out []string) {
	for _, c := range job.Status.Conditions {
		if c.Status == v1.ConditionTrue {
			out = append(out, string(c.Type)+"/"+c.Reason)
		}
	}
	return out
}

func TestOnePass(t *testing.T) {
	soon, long := time.Second, 30*time.Minute
	failJob := func(j *batch.Job) {
		j.Spec.PodFailurePolicy = &batch.PodFailurePolicy{Rules: []batch.PodFailurePolicyRule{
			{Action: batch.PodFailurePolicyActionFailJob, OnExitCodes: &batch.PodFailurePolicyOnExitCodesRequirement{Operator: batch.PodFailurePolicyOnExitCodesOpIn, Values: []int32{42}}},
			{Action: batch.PodFailurePolicyActionIgnore, OnPodConditions: []batch.PodFailurePolicyOnPodConditionsPattern{{Type: v1.DisruptionTarget, Status: v1.ConditionTrue}}},
		}}
	}
	for _, c := range []struct {
		name    string
		job     func(*batch.Job)
		nodes   []*v1.Node
		pods    []*v1.Pod
		created int
		deleted []string
		counts  string // active ready terminating succeeded failed
		conds   []string
	}{{
		name: "starts", created: 1, counts: "1 0 0 0 0",
	}, {
		name: "parallelism", job: func(j *batch.Job) { j.Spec.Completions, j.Spec.Parallelism = ptr.To(int32(5)), ptr.To(int32(3)) },
		pods: []*v1.Pod{podOf("a")}, created: 2, counts: "3 1 0 0 0",
	}, {
		name: "complete", pods: []*v1.Pod{podOf("a", exited(0, soon))},
		counts: "0 0 0 1 0", conds: []string{"SuccessCriteriaMet/CompletionsReached", "Complete/CompletionsReached"},
	}, {
		name: "a pod whose finalizer is off was counted before", job: func(j *batch.Job) { j.Status.Failed = 1 },
		pods: []*v1.Pod{podOf("a", exited(1, long), func(p *v1.Pod) { p.Finalizers = nil })}, created: 1, counts: "1 0 0 0 1",
	}, {
		name: "interrupted after the UIDs were written", job: func(j *batch.Job) {
			j.Status.UncountedTerminatedPods = &batch.UncountedTerminatedPods{Failed: []types.UID{"uid-of-a", "uid-of-gone"}}
		}, pods: []*v1.Pod{podOf("a", exited(1, long))}, created: 1, counts: "1 0 0 0 2",
	}, {
		name: "a failed pod is replaced after the back-off", pods: []*v1.Pod{podOf("a", exited(1, long))}, created: 1, counts: "1 0 0 0 1",
	}, {
		name: "a failed pod isn't replaced before", pods: []*v1.Pod{podOf("a", exited(1, soon))}, counts: "0 0 0 0 1",
	}, {
		name: "back-off limit", job: func(j *batch.Job) { j.Spec.BackoffLimit = ptr.To(int32(1)) },
		pods:   []*v1.Pod{podOf("a", exited(1, long)), podOf("b", exited(1, long))},
		counts: "0 0 0 0 2", conds: []string{"FailureTarget/BackoffLimitExceeded", "Failed/BackoffLimitExceeded"},
	}, {
		name: "a job that failed ends once its pods have", job: func(j *batch.Job) {
			j.Spec.BackoffLimit, j.Spec.Completions, j.Spec.Parallelism = ptr.To(int32(0)), ptr.To(int32(2)), ptr.To(int32(2))
		}, pods: []*v1.Pod{podOf("a", exited(1, long)), podOf("b")}, deleted: []string{"b"},
		counts: "0 0 1 0 2", conds: []string{"FailureTarget/BackoffLimitExceeded"},
	}, {
		name: "restarts in place count, too", job: func(j *batch.Job) {
			j.Spec.Template.Spec.RestartPolicy, j.Spec.BackoffLimit = v1.RestartPolicyOnFailure, ptr.To(int32(3))
		}, pods: []*v1.Pod{podOf("a", func(p *v1.Pod) { p.Status.ContainerStatuses = []v1.ContainerStatus{{RestartCount: 3}} })}, deleted: []string{"a"},
		counts: "0 0 1 0 1", conds: []string{"FailureTarget/BackoffLimitExceeded"},
	}, {
		name: "active deadline", job: func(j *batch.Job) { j.Spec.ActiveDeadlineSeconds = ptr.To(int64(60)) }, pods: []*v1.Pod{podOf("a")}, deleted: []string{"a"},
		counts: "0 0 1 0 1", conds: []string{"FailureTarget/DeadlineExceeded"},
	}, {
		name: "suspended: pods go and aren't failures", job: func(j *batch.Job) { j.Spec.Suspend = ptr.To(true) }, pods: []*v1.Pod{podOf("a")}, deleted: []string{"a"},
		counts: "0 0 1 0 0", conds: []string{"Suspended/JobSuspended"},
	}, {
		name: "fewer wanted: the one that isn't ready goes", job: func(j *batch.Job) { j.Spec.Completions = ptr.To(int32(5)) },
		pods: []*v1.Pod{podOf("a"), podOf("b", fixture.NeverReady)}, deleted: []string{"b"}, counts: "1 1 1 0 0",
	}, {
		name: "failure policy: fails the job", job: failJob, pods: []*v1.Pod{podOf("a", exited(42, long))},
		counts: "0 0 0 0 1", conds: []string{"FailureTarget/PodFailurePolicy", "Failed/PodFailurePolicy"},
	}, {
		name: "failure policy: ignores a disruption", job: failJob,
		pods: []*v1.Pod{podOf("a", exited(1, long), func(p *v1.Pod) {
			p.Status.Conditions = append(p.Status.Conditions, v1.PodCondition{Type: v1.DisruptionTarget, Status: v1.ConditionTrue})
		})},
		created: 1, counts: "1 0 0 0 0",
	}, {
		name: "deleted: replaced and failed at once", pods: []*v1.Pod{podOf("a", fixture.Deleting)}, created: 1, counts: "1 0 1 0 1",
	}, {
		name: "deleted: with replacement policy Failed neither", job: func(j *batch.Job) { j.Spec.PodReplacementPolicy = ptr.To(batch.Failed) },
		pods: []*v1.Pod{podOf("a", fixture.Deleting)}, counts: "0 0 1 0 0",
	}, {
		name: "indexed", job: indexed(4), pods: []*v1.Pod{podOf("a", index(0), exited(0, soon)), podOf("b", index(2))}, created: 2, counts: "3 1 0 1 0",
	}, {
		name: "indexed: doubled and wrong indexes go", job: indexed(2),
		pods:    []*v1.Pod{podOf("a", index(0)), podOf("b", index(0), fixture.NeverReady), podOf("c", index(7)), podOf("d")},
		deleted: []string{"b", "c", "d"}, counts: "1 1 3 0 0",
	}, {
		name: "success policy", job: func(j *batch.Job) {
			indexed(4)(j)
			j.Spec.SuccessPolicy = &batch.SuccessPolicy{Rules: []batch.SuccessPolicyRule{{SucceededIndexes: ptr.To("0-1"), SucceededCount: ptr.To(int32(1))}}}
		}, pods: []*v1.Pod{podOf("a", index(1), exited(0, soon)), podOf("b", index(2))}, deleted: []string{"b"},
		counts: "0 0 1 1 0", conds: []string{"SuccessCriteriaMet/SuccessPolicy"},
	}, {
		name: "back-off per index: that index fails, the others go on", job: func(j *batch.Job) {
			indexed(2)(j)
			j.Spec.BackoffLimitPerIndex = ptr.To(int32(0))
		}, pods: []*v1.Pod{podOf("a", index(0), exited(1, long))}, created: 1, counts: "1 0 0 0 1",
	}, {
		name: "another controller's", job: func(j *batch.Job) { j.Spec.ManagedBy = ptr.To("example.com/queue") }, pods: []*v1.Pod{podOf("a", exited(0, soon))}, counts: "0 0 0 0 0",
	}, {
		name: "away: the pod may have finished there, no second one", pods: []*v1.Pod{podOf("a", fixture.On("gone"), fixture.Unheard)}, counts: "1 0 0 0 0",
	}, {
		name: "away and deleted: replaced, but not failed", job: func(j *batch.Job) { j.Spec.BackoffLimit = ptr.To(int32(0)) },
		pods: []*v1.Pod{podOf("a", fixture.On("gone"), fixture.Unheard, fixture.Deleting)}, created: 1, counts: "1 0 1 0 0",
	}, {
		name: "away and deleted, with replacement policy Failed: neither", job: func(j *batch.Job) { j.Spec.PodReplacementPolicy = ptr.To(batch.Failed) },
		pods: []*v1.Pod{podOf("a", fixture.On("gone"), fixture.Unheard, fixture.Deleting)}, counts: "0 0 1 0 0",
	}, {
		name: "away and deleted by force: gone for good", pods: []*v1.Pod{podOf("a", fixture.On("gone"), fixture.Unheard, fixture.Deleting, func(p *v1.Pod) { p.DeletionGracePeriodSeconds = ptr.To(int64(0)) })},
		created: 1, counts: "1 0 1 0 1",
	}, {
		name: "back since the deletion: its report is awaited", nodes: []*v1.Node{func() *v1.Node {
			n := fixture.Node("here", v1.ConditionTrue)
			n.Status.Conditions[0].LastTransitionTime = metav1.NewTime(fixture.Start().Add(-10 * time.Second))
			return n
		}()}, pods: []*v1.Pod{podOf("a", fixture.Unheard, fixture.Deleting)}, created: 1, counts: "1 0 1 0 0",
	}, {
		name: "back, and it had succeeded", job: func(j *batch.Job) { j.Spec.BackoffLimit = ptr.To(int32(0)) },
		pods:    []*v1.Pod{podOf("a", fixture.Deleting, exited(0, long)), podOf("replacement")},
		deleted: []string{"replacement"}, counts: "0 0 1 1 0", conds: []string{"SuccessCriteriaMet/CompletionsReached"},
	}, {
		name: "its Node was deleted: nobody will tell", nodes: []*v1.Node{}, pods: []*v1.Pod{podOf("a", fixture.Deleting)}, created: 1, counts: "1 0 1 0 1",
	}, {
		name: "indexed and away: the index isn't taken twice", job: indexed(2), pods: []*v1.Pod{podOf("a", index(1), fixture.On("gone"), fixture.Unheard)}, created: 1, counts: "2 0 0 0 0",
	}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, newJob(c.job), c.nodes, c.pods...)
			if err := w.reconcile(t.Context(), "ns/sum"); err != nil {
				t.Fatal(err)
			}
			if got := len(w.Created("pods")); got != c.created {
				t.Errorf("%d pods created, want %d", got, c.created)
			}
			if got := w.Deleted("pods"); !slices.Equal(got, c.deleted) {
				t.Errorf("deleted %v, want %v", got, c.deleted)
			}
			job := w.stored(t)
			s := job.Status
			if got := fmt.Sprint(s.Active, ptr.Deref(s.Ready, 0), ptr.Deref(s.Terminating, 0), s.Succeeded, s.Failed); got != c.counts {
				t.Errorf("active, ready, terminating, succeeded, failed: %s, want %s", got, c.counts)
			}
			if got := reasons(job); !slices.Equal(got, c.conds) {
				t.Errorf("conditions %v, want %v", got, c.conds)
			}
			if u := s.UncountedTerminatedPods; u != nil && len(u.Failed)+len(u.Succeeded) > 0 {
				t.Errorf("uncounted %+v", u)
			}
		})
	}
}

// The way of a pod that was deleted while its node was away, to the job's end.
func TestSuccessThatNobodySaw(t *testing.T) {
	w := newWorld(t, newJob(func(j *batch.Job) { j.Spec.BackoffLimit = ptr.To(int32(0)) }), nil,
		podOf("a", fixture.On("gone"), fixture.Unheard, fixture.Deleting))
	pass := func() {
		t.Helper()
		if err := w.reconcile(t.Context(), "ns/sum"); err != nil {
			t.Fatal(err)
		}
		stored := w.stored(t)
		w.Eventually("the informer shows the status", func() bool {
			job, err := w.jobs.Jobs("ns").Get("sum")
			return err == nil && equality.Semantic.DeepEqual(job.Status, stored.Status)
		})
	}
	pass()
	w.Eventually("the informer shows the replacement", func() bool { return len(w.podIndex.List()) == 2 })
	if got := w.stored(t).Status; got.Failed != 0 || got.Active != 1 {
		t.Fatalf("status %+v", got)
	}
	// The node is back and tells.
	pod, err := w.Client.CoreV1().Pods("ns").Get(t.Context(), "a", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.ResourceVersion = "2"
	exited(0, time.Hour)(pod)
	if _, err := w.Client.CoreV1().Pods("ns").UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.Eventually("the informer shows the success", func() bool {
		pod, err := w.podList.Pods("ns").Get("a")
		return err == nil && pod.Status.Phase == v1.PodSucceeded
	})
	pass()
	pod, err = w.Client.CoreV1().Pods("ns").Get(t.Context(), "a", metav1.GetOptions{})
	if err != nil || len(pod.Finalizers) > 0 {
		t.Errorf("finalizers %v, %v", pod.Finalizers, err)
	}
	if got := w.Deleted("pods"); len(got) != 1 {
		t.Errorf("deleted %v, want the replacement", got)
	}
	if got := w.stored(t).Status; got.Succeeded != 1 || got.Failed != 0 {
		t.Errorf("status %+v", got)
	}
}

func TestPodsOfIndexedJobs(t *testing.T) {
	w := newWorld(t, newJob(func(j *batch.Job) {
		indexed(2)(j)
		j.Spec.BackoffLimitPerIndex = ptr.To(int32(3))
	}), nil, podOf("a", index(1), exited(1, time.Hour), fixture.Annotated(map[string]string{batch.JobIndexFailureCountAnnotation: "1"})))
	if err := w.reconcile(t.Context(), "ns/sum"); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, obj := range w.Created("pods") {
		pod := obj.(*v1.Pod)
		ix := pod.Annotations[batch.JobCompletionIndexAnnotation]
		got[ix] = pod.Annotations[batch.JobIndexFailureCountAnnotation]
		if pod.Labels[batch.JobCompletionIndexAnnotation] != ix || pod.Spec.Hostname != "sum-"+ix || pod.GenerateName != "sum-"+ix+"-" || !tracked(pod) {
			t.Errorf("pod %+v", pod.ObjectMeta)
		}
		if env := pod.Spec.Containers[0].Env; len(env) != 1 || env[0].Name != "JOB_COMPLETION_INDEX" {
			t.Errorf("env %v", env)
		}
	}
	if len(got) != 2 || got["0"] != "0" || got["1"] != "2" {
		t.Errorf("failure counts by index %v, want 0:0 and 1:2", got)
	}
	// The failed pod keeps its finalizer until its replacement, which took its count over, is seen.
	pod, err := w.Client.CoreV1().Pods("ns").Get(t.Context(), "a", metav1.GetOptions{})
	if err != nil || !tracked(pod) {
		t.Errorf("finalizers %v, %v", pod.Finalizers, err)
	}
}

func TestOrphansLoseTheirFinalizer(t *testing.T) {
	finished := func(j *batch.Job) {
		j.Status.Conditions = []batch.JobCondition{{Type: batch.JobComplete, Status: v1.ConditionTrue}}
	}
	for _, c := range []struct {
		name string
		job  func(*batch.Job)
		pod  *v1.Pod
		off  bool
	}{
		{"its job runs", nil, podOf("a"), false},
		{"its job is finished", finished, podOf("a"), true},
		{"it has no owner", nil, podOf("a", func(p *v1.Pod) { p.OwnerReferences = nil }), true},
		{"its owner was another job of this name", nil, podOf("a", func(p *v1.Pod) { p.OwnerReferences[0].UID = "earlier" }), true},
		{"its owner isn't a Job", nil, podOf("a", func(p *v1.Pod) { p.OwnerReferences[0].Kind = "Batch" }), false},
		{"its job is another controller's", func(j *batch.Job) { finished(j); j.Spec.ManagedBy = ptr.To("x") }, podOf("a"), false},
	} {
		for _, key := range []string{orphanPrefix + "ns/a", orphanPrefix + orphanSelector + "ns/job=sum"} {
			t.Run(c.name+" "+key, func(t *testing.T) {
				w := newWorld(t, newJob(c.job), nil, c.pod.DeepCopy())
				if err := w.reconcile(t.Context(), key); err != nil {
					t.Fatal(err)
				}
				pod, err := w.Client.CoreV1().Pods("ns").Get(t.Context(), "a", metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if off := !tracked(pod); off != c.off {
					t.Errorf("finalizer off: %v, want %v", off, c.off)
				}
			})
		}
	}
}

func TestRunningJobIsLeftInPeace(t *testing.T) {
	for name, pod := range map[string]*v1.Pod{"here": podOf("a"), "away": podOf("a", fixture.On("gone"), fixture.Unheard)} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, newJob(nil), nil, pod)
			if err := w.reconcile(t.Context(), "ns/sum"); err != nil {
				t.Fatal(err)
			}
			w.Eventually("the informer shows the status", func() bool {
				job, err := w.jobs.Jobs("ns").Get("sum")
				return err == nil && job.Status.Active == 1
			})
			w.Writes()
			w.Clock.Step(24 * time.Hour)
			if err := w.reconcile(t.Context(), "ns/sum"); err != nil {
				t.Fatal(err)
			}
			if got := w.Writes(); len(got) != 0 {
				t.Errorf("writes %v", got)
			}
		})
	}
}
