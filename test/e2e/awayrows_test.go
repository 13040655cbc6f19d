package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	awayDeployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: 1
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      runtimeClassName: wasm
      terminationGracePeriodSeconds: 1
      tolerations: [%[3]s]
      containers: [{name: main, image: %[2]q}]
`
	awayStatefulSet = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: %[1]s}
spec:
  serviceName: %[1]s
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      runtimeClassName: wasm
      terminationGracePeriodSeconds: 1
      containers: [{name: main, image: %[2]q}]
`
	// It ends when finish says so, which nobody but its node notices.
	awayJob = `
apiVersion: batch/v1
kind: Job
metadata: {name: %[1]s}
spec:
  podReplacementPolicy: %[3]s
  backoffLimit: 0
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      runtimeClassName: wasm
      restartPolicy: Never
      terminationGracePeriodSeconds: 1
      volumes: [{name: data, emptyDir: {}}]
      containers: [{name: main, image: %[2]q, args: ["/data/done"], volumeMounts: [{name: data, mountPath: /data}]}]
`
	awayBudget = `
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: guarded}
spec: {minAvailable: 1, selector: {matchLabels: {app: guarded}}}
`
)

// aPod makes a pod of this name for board-2.
func aPod(name string) func(*testing.T, *absence) {
	return func(t *testing.T, a *absence) { a.apply(t, "default", wasmPod(name, a.image)) }
}

// slowly has a pod run on for some seconds when it is to end: time enough to see
// another one beside it.
func slowly(manifest string) string {
	manifest = strings.Replace(manifest, "terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 10", 1)
	return strings.Replace(manifest, "{name: main,", "{name: main, lifecycle: {preStop: {sleep: {seconds: 3}}},", 1)
}

func deleted(name string, flags ...string) func(*testing.T, *absence) {
	return func(t *testing.T, a *absence) {
		a.must(t, append([]string{"delete", "pod", name, "--wait=false"}, flags...)...)
	}
}

func forced(name string) func(*testing.T, *absence) {
	return deleted(name, "--force", "--grace-period=0")
}

func awayRows() []away {
	return []away{{
		name: "nothing", pod: "alone", before: aPod("alone"),
		stays: func(a *absence) error {
			return errors.Join(a.untouched("alone"), a.ready("alone", corev1.ConditionFalse))
		},
		ends: func(a *absence) error {
			return errors.Join(a.untouched("alone"), a.ready("alone", corev1.ConditionTrue))
		},
	}, {
		name: "deployment", pod: "web",
		before: func(t *testing.T, a *absence) {
			a.apply(t, "default", fmt.Sprintf(awayDeployment, "web", a.image, ""))
		},
		stays: func(a *absence) error { return a.untouched("web") },
		ends:  func(a *absence) error { return a.untouched("web") },
	}, {
		name: "toleration ends", pod: "moves",
		before: func(t *testing.T, a *absence) {
			a.apply(t, "default", fmt.Sprintf(awayDeployment, "moves", a.image, "{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}"))
		},
		stays: func(a *absence) error { return errors.Join(a.as("moves", leaving, 1), a.runsOn("moves")) },
		ends:  func(a *absence) error { return errors.Join(a.as("moves", gone, 1), a.stopped("moves")) },
	}, {
		name: "deleted", pod: "deleted", before: aPod("deleted"), act: deleted("deleted"),
		stays: func(a *absence) error { return errors.Join(a.as("deleted", leaving, 0), a.runsOn("deleted")) },
		ends:  func(a *absence) error { return errors.Join(isGone(a.client, "deleted"), a.stopped("deleted")) },
	}, {
		name: "deleted, replaced", pod: "replaced",
		before: func(t *testing.T, a *absence) {
			a.apply(t, "default", fmt.Sprintf(awayDeployment, "replaced", a.image, ""))
		},
		act:   func(t *testing.T, a *absence) { deleted(a.was["replaced"].Name)(t, a) },
		stays: func(a *absence) error { return errors.Join(a.as("replaced", leaving, 1), a.runsOn("replaced")) },
		ends:  func(a *absence) error { return errors.Join(a.as("replaced", gone, 1), a.stopped("replaced")) },
	}, {
		name: "deleted before it began",
		act: func(t *testing.T, a *absence) {
			a.apply(t, "default", wasmPod("unseen", a.image)+"  nodeName: "+absent+"\n")
			uid := a.must(t, "get", "pod", "unseen", "-o", "jsonpath={.metadata.uid}")
			a.must(t, "delete", "pod", "unseen", "--wait=false")
			a.was["unseen"] = &corev1.Pod{}
			a.was["unseen"].UID = types.UID(uid)
		},
		stays: func(a *absence) error { return errors.Join(a.as("unseen", leaving, 0), a.stopped("unseen")) },
		ends: func(a *absence) error {
			events, err := a.kubectl("", "get", "events", "--field-selector", "involvedObject.uid="+string(a.was["unseen"].UID))
			if strings.Contains(events, "Started") {
				err = errors.New(events)
			}
			return errors.Join(err, isGone(a.client, "unseen"), a.stopped("unseen"))
		},
	}, {
		name: "forced", pod: "forced", before: aPod("forced"), act: forced("forced"),
		stays: func(a *absence) error { return errors.Join(isGone(a.client, "forced"), a.runsOn("forced")) },
		ends:  func(a *absence) error { return errors.Join(isGone(a.client, "forced"), a.stopped("forced")) },
	}, {
		name: "forced, same name on the same node", pod: "again",
		before: func(t *testing.T, a *absence) { a.apply(t, "default", slowly(wasmPod("again", a.image))) },
		act: func(t *testing.T, a *absence) {
			forced("again")(t, a)
			a.apply(t, "default", wasmPod("again", a.image)+"  nodeName: "+absent+"\n")
		},
		stays: func(a *absence) error {
			l, err := a.pods("again")
			if err == nil && (len(l) != 1 || l[0].UID == a.was["again"].UID || l[0].Status.Phase != corev1.PodPending) {
				err = errors.New(describe(l))
			}
			return errors.Join(err, a.runsOn("again"))
		},
		ends: func(a *absence) error {
			l, err := a.pods("again")
			if err == nil && (len(l) != 1 || l[0].Status.Phase != corev1.PodRunning) {
				err = errors.New(describe(l))
			}
			if err == nil {
				err = a.runs(absent, string(l[0].UID))
			}
			return errors.Join(err, a.stopped("again"))
		},
	}, {
		name: "statefulset, deleted", pod: "ordinal-0",
		before: func(t *testing.T, a *absence) {
			a.apply(t, "default", slowly(fmt.Sprintf(awayStatefulSet, "ordinal", a.image)))
		},
		act:   deleted("ordinal-0"),
		stays: func(a *absence) error { return errors.Join(a.as("ordinal-0", leaving, 0), a.runsOn("ordinal-0")) },
		ends: func(a *absence) error {
			l, err := a.pods("ordinal-0")
			if err == nil && (len(l) != 1 || l[0].UID == a.was["ordinal-0"].UID || l[0].Status.Phase != corev1.PodRunning) {
				err = errors.New(describe(l))
			}
			return errors.Join(err, a.stopped("ordinal-0"))
		},
	}, {
		name: "statefulset, forced", pod: "doubled-0",
		before: func(t *testing.T, a *absence) {
			a.apply(t, "default", fmt.Sprintf(awayStatefulSet, "doubled", a.image))
		},
		act:   forced("doubled-0"),
		stays: func(a *absence) error { return errors.Join(a.as("doubled-0", gone, 1), a.runsOn("doubled-0")) },
		ends:  func(a *absence) error { return errors.Join(a.as("doubled-0", gone, 1), a.stopped("doubled-0")) },
	}, {
		name: "job finished", pod: "sum",
		before: func(t *testing.T, a *absence) {
			a.apply(t, "default", fmt.Sprintf(awayJob, "sum", a.until, "TerminatingOrFailed"))
		},
		act: func(t *testing.T, a *absence) { a.finish(t, "sum") },
		stays: func(a *absence) error {
			return errors.Join(a.as("sum", kept, 0), a.jobIs("sum", func(s batchv1.JobStatus) bool { return s.Active == 1 && s.Succeeded == 0 }))
		},
		ends: func(a *absence) error { return errors.Join(a.as("sum", kept, 0), a.jobIs("sum", complete)) },
	}, {
		name: "job finished, deleted", pod: "counted",
		before: func(t *testing.T, a *absence) {
			a.apply(t, "default", fmt.Sprintf(awayJob, "counted", a.until, "Failed"))
		},
		act: func(t *testing.T, a *absence) {
			a.finish(t, "counted")
			deleted(a.was["counted"].Name)(t, a)
		},
		stays: func(a *absence) error {
			return errors.Join(a.as("counted", leaving, 0), a.jobIs("counted", func(s batchv1.JobStatus) bool { return s.Failed == 0 && s.Succeeded == 0 }))
		},
		ends: func(a *absence) error { return errors.Join(a.as("counted", gone, 0), a.jobIs("counted", complete)) },
	}, {
		name: "job, forced", pod: "cut",
		before: func(t *testing.T, a *absence) {
			a.apply(t, "default", fmt.Sprintf(awayJob, "cut", a.until, "Failed"))
		},
		act: func(t *testing.T, a *absence) { forced(a.was["cut"].Name)(t, a) },
		stays: func(a *absence) error {
			return errors.Join(a.as("cut", leaving, 0), a.runsOn("cut"), a.jobIs("cut", func(s batchv1.JobStatus) bool { return s.Failed == 0 && s.Succeeded == 0 }))
		},
		ends: func(a *absence) error {
			return errors.Join(a.as("cut", gone, 0), a.stopped("cut"), a.jobIs("cut", func(s batchv1.JobStatus) bool { return s.Failed == 1 && s.Succeeded == 0 }))
		},
	}, {
		name: "finalizer", pod: "held",
		before: func(t *testing.T, a *absence) {
			a.apply(t, "default", strings.Replace(wasmPod("held", a.image), "metadata: {", "metadata: {finalizers: [example.org/never], ", 1))
		},
		act:   deleted("held"),
		stays: func(a *absence) error { return errors.Join(a.as("held", leaving, 0), a.runsOn("held")) },
		ends: func(a *absence) error {
			l, err := a.pods("held")
			if err == nil && (len(l) != 1 || l[0].Status.Phase != corev1.PodFailed || *l[0].DeletionGracePeriodSeconds != 0) {
				err = errors.New(describe(l))
			}
			return errors.Join(err, a.as("held", leaving, 0), a.stopped("held"))
		},
	}, {
		name: "evicted", pod: "evicted", before: aPod("evicted"),
		act: func(t *testing.T, a *absence) {
			if err := evict(t.Context(), a.client, "evicted"); err != nil {
				t.Error(err)
			}
		},
		stays: func(a *absence) error { return errors.Join(a.as("evicted", leaving, 0), a.runsOn("evicted")) },
		ends:  func(a *absence) error { return errors.Join(isGone(a.client, "evicted"), a.stopped("evicted")) },
	}, {
		name: "eviction against a budget", pod: "guarded",
		before: func(t *testing.T, a *absence) {
			a.apply(t, "default", awayBudget)
			aPod("guarded")(t, a)
		},
		act: func(t *testing.T, a *absence) {
			eventually(t, 30*time.Second, func() error { // its controller hears that the pod isn't ready
				b, err := a.client.PolicyV1().PodDisruptionBudgets("default").Get(t.Context(), "guarded", metav1.GetOptions{})
				if err == nil && (b.Status.ExpectedPods != 1 || b.Status.CurrentHealthy != 0) {
					err = fmt.Errorf("%+v", b.Status)
				}
				return err
			})
			if err := evict(t.Context(), a.client, "guarded"); !apierrors.IsTooManyRequests(err) {
				t.Errorf("evicted although none of its app is left: %v", err)
			}
		},
		stays: func(a *absence) error { return a.untouched("guarded") },
		ends:  func(a *absence) error { return a.untouched("guarded") },
	}, {
		name: "drained", pod: "drained", before: aPod("drained"),
		act: func(t *testing.T, a *absence) {
			out, err := a.kubectl("", "drain", absent, "--force", "--pod-selector=app=drained", "--timeout=2s")
			if err == nil || !strings.Contains(out, `error when waiting for pod "drained"`) {
				t.Errorf("drained although nobody can say so: %v\n%s", err, out)
			}
		},
		stays: func(a *absence) error {
			return errors.Join(a.cordoned(), a.as("drained", leaving, 0), a.runsOn("drained"))
		},
		ends: func(a *absence) error {
			return errors.Join(a.cordoned(), isGone(a.client, "drained"), a.stopped("drained"))
		},
	}, {
		name: "namespace deleted", pod: "tenant",
		before: func(t *testing.T, a *absence) {
			a.must(t, "create", "namespace", "tenant")
			a.must(t, "wait", "-n", "tenant", "--for=create", "serviceaccount/default", "--timeout=30s")
			a.apply(t, "tenant", wasmPod("tenant", a.image))
		},
		act:   func(t *testing.T, a *absence) { a.must(t, "delete", "namespace", "tenant", "--wait=false") },
		stays: func(a *absence) error { return errors.Join(a.as("tenant", leaving, 0), a.runsOn("tenant")) },
		ends: func(a *absence) error {
			_, err := a.client.CoreV1().Namespaces().Get(context.Background(), "tenant", metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return a.stopped("tenant")
			}
			return fmt.Errorf("namespace tenant is there (%v)", err)
		},
	}}
}

// finish has the job's pod end, and waits until it has.
func (a *absence) finish(t *testing.T, job string) {
	t.Helper()
	dir := filepath.Join(a.dir, "nodes", absent, "pods", string(a.was[job].UID), "volumes", "kubernetes.io~empty-dir", "data")
	if err := os.WriteFile(filepath.Join(dir, "done"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() error { return a.stopped(job) })
}

// cordoned is nil if board-2 is: what an administrator said of a node stays when
// it reports.
func (a *absence) cordoned() error {
	out, err := a.kubectl("", "get", "node", absent, "-o", "jsonpath={.spec.unschedulable}")
	if err == nil && out != "true" {
		err = fmt.Errorf("%s is no longer cordoned", absent)
	}
	return err
}
