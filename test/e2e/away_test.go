package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	there  = "board-1"
	absent = "board-2"
)

// absence is a cluster of two nodes, of which board-2 goes and comes back.
type absence struct {
	*cluster
	image, until string // one that runs on, one that ends when a file is there
	// was is each pod as it ran before board-2 went, by its object's name.
	was map[string]*corev1.Pod
}

// away is a row of docs/away.md that the whole system shows: something that
// happens while a node is away. Each does its part at the same absence.
type away struct {
	name string
	// pod that must run on board-2 before it goes: its name, or the label app of one
	// with a generated name. None: "".
	pod string
	// before makes what the row is about, while only board-2 takes pods.
	before func(*testing.T, *absence)
	// act is what happens while the node is away. Nil: nothing.
	act func(*testing.T, *absence)
	// stays is what the API and the boards then show until the node returns, through
	// the end and the start of the control plane.
	stays func(*absence) error
	// ends is how it ends once the node has returned.
	ends func(*absence) error
}

// What happens to pods of a node that is away, and when it returns. One absence
// for all: the agent is frozen, its guests run on, and the control plane is killed
// meanwhile. docs/away.md says what each row is.
func TestAway(t *testing.T) {
	c := newCluster(t, "--nodes=2", "--no-example", "--controlplane-arg=--node-keepalive=5s")
	a := &absence{cluster: c, was: map[string]*corev1.Pod{},
		image: push(t, c, cModule(t, "ticker"), "ticker"), until: push(t, c, cModule(t, "until"), "until")}
	c.must(t, "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
	rows := awayRows()

	c.must(t, "cordon", there)
	for _, r := range rows {
		if r.before != nil {
			r.before(t, a)
		}
	}
	for _, r := range rows {
		if r.pod != "" {
			a.was[r.pod] = a.awaitRunning(t, r.pod)
		}
	}
	c.must(t, "uncordon", there)

	agent := c.pid(t, absent)
	if err := syscall.Kill(agent, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(agent, syscall.SIGCONT) })
	c.must(t, "wait", "--for=condition=Ready=Unknown", "node/"+absent, "--timeout=30s")
	for _, r := range rows {
		if r.act != nil {
			r.act(t, a)
		}
	}
	stays := func(r away) {
		if r.stays == nil {
			return
		}
		t.Run(r.name+" while away", func(t *testing.T) { eventually(t, 60*time.Second, func() error { return r.stays(a) }) })
	}
	for _, r := range rows {
		stays(r)
	}
	c.kill(t, "controlplane")
	eventually(t, 60*time.Second, func() error {
		_, err := c.client.CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	c.must(t, "wait", "--for=condition=Ready", "node/"+there, "--timeout=60s")
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		for _, r := range rows {
			if r.stays == nil {
				continue
			}
			if err := r.stays(a); err != nil {
				t.Errorf("%s, after the control plane was killed: %v", r.name, err)
			}
		}
	}

	twins := a.watchForTwins(t)
	if err := syscall.Kill(agent, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c.must(t, "wait", "--for=condition=Ready", "node/"+absent, "--timeout=60s")
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { eventually(t, 60*time.Second, func() error { return r.ends(a) }) })
	}
	twins()
	t.Run("finalizer, agent started anew", a.finalizerAcrossAStart)
	t.Run("forced, node there", a.forcedWhileThere)
}

// guestsOf lists the processes of a pod's containers, by their cgroup.
func (a *absence) guestsOf(board, uid string) (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range names {
		if cmdline, _ := os.ReadFile(name); !strings.HasPrefix(string(cmdline), "wasmrunner\x00guest\x00") {
			continue
		}
		groups, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "cgroup"))
		for line := range strings.Lines(string(groups)) {
			if strings.Contains(line, "/"+board+"/") && strings.Contains(line, "/pod"+uid+"/") {
				pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}

// runs is nil if the pod has one process on the board.
func (a *absence) runs(board, uid string) error {
	if pids := a.guestsOf(board, uid); len(pids) != 1 {
		return fmt.Errorf("%d processes of pod %s on %s, want one", len(pids), uid, board)
	}
	return nil
}

// stopped is nil if the pod as it was before the absence has no process left.
func (a *absence) stopped(name string) error {
	if uid := string(a.was[name].UID); len(a.guestsOf(absent, uid)) > 0 {
		return fmt.Errorf("%s (%s) still runs on %s", name, uid, absent)
	}
	return nil
}

// pods that are, or are labelled, name.
func (a *absence) pods(name string) ([]corev1.Pod, error) {
	if p, err := a.client.CoreV1().Pods("default").Get(context.Background(), name, metav1.GetOptions{}); err == nil {
		return []corev1.Pod{*p}, nil
	} else if !apierrors.IsNotFound(err) {
		return nil, err
	}
	l, err := a.client.CoreV1().Pods("").List(context.Background(), metav1.ListOptions{LabelSelector: "app=" + name})
	if err != nil {
		return nil, err
	}
	return l.Items, nil
}

func (a *absence) awaitRunning(t *testing.T, name string) (pod *corev1.Pod) {
	t.Helper()
	eventually(t, 60*time.Second, func() error {
		l, err := a.pods(name)
		if err != nil {
			return err
		}
		if len(l) != 1 || l[0].Status.Phase != corev1.PodRunning || l[0].Spec.NodeName != absent {
			return fmt.Errorf("%s: %d pods: %s", name, len(l), describe(l))
		}
		pod = &l[0]
		return a.runs(absent, string(pod.UID))
	})
	return pod
}

func describe(l []corev1.Pod) string {
	var out []string
	for _, p := range l {
		out = append(out, fmt.Sprintf("%s (%s) on %s is %s, being deleted: %v", p.Name, p.UID, p.Spec.NodeName, p.Status.Phase, p.DeletionTimestamp != nil))
	}
	return strings.Join(out, "; ")
}

// as checks the pods that are, or are labelled, name: whether the one of before is
// there, being deleted, or gone; and how many others run on board-1.
func (a *absence) as(name string, old state, successors int) error {
	l, err := a.pods(name)
	if err != nil {
		return err
	}
	found, running := gone, 0
	for _, p := range l {
		switch {
		case p.UID == a.was[name].UID && p.DeletionTimestamp != nil:
			found = leaving
		case p.UID == a.was[name].UID:
			found = kept
		case p.Status.Phase == corev1.PodRunning && p.Spec.NodeName == there && p.DeletionTimestamp == nil:
			running++
			if err := a.runs(there, string(p.UID)); err != nil {
				return err
			}
		}
	}
	if found != old || running != successors || len(l) != successors+map[state]int{kept: 1, leaving: 1}[old] {
		return fmt.Errorf("%s: the pod %s is %s, want %s; %d successors run, want %d: %s", name, a.was[name].UID, found, old, running, successors, describe(l))
	}
	return nil
}

type state string

const (
	kept    state = "kept"
	leaving state = "being deleted"
	gone    state = "gone"
)

// untouched is nil if the pod runs in the container that it ran in, in one process.
func (a *absence) untouched(name string) error {
	l, err := a.pods(name)
	if err != nil {
		return err
	}
	was := a.was[name]
	if len(l) != 1 || l[0].UID != was.UID || l[0].DeletionTimestamp != nil || len(l[0].Status.ContainerStatuses) != 1 {
		return fmt.Errorf("%s: %s", name, describe(l))
	}
	if now, before := l[0].Status.ContainerStatuses[0], was.Status.ContainerStatuses[0]; now.ContainerID != before.ContainerID || now.RestartCount != 0 {
		return fmt.Errorf("%s was in container %s, is in %s, restarted %d times", name, before.ContainerID, now.ContainerID, now.RestartCount)
	}
	return a.runs(absent, string(was.UID))
}

func (a *absence) ready(name string, want corev1.ConditionStatus) error {
	l, err := a.pods(name)
	if err != nil {
		return err
	}
	for _, p := range l {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status != want {
				return fmt.Errorf("%s: Ready is %s, want %s", p.Name, c.Status, want)
			}
		}
	}
	return nil
}

// runsOn is nil if the pod of before still runs on board-2, whatever the API says.
func (a *absence) runsOn(name string) error { return a.runs(absent, string(a.was[name].UID)) }

// watchForTwins looks, until the returned function is called, for a StatefulSet's
// pod, or one that was made again by hand on the same node, that runs beside its
// successor.
func (a *absence) watchForTwins(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	look := func() error {
		for _, name := range []string{"ordinal-0", "again"} {
			p, err := a.client.CoreV1().Pods("default").Get(ctx, name, metav1.GetOptions{})
			if err != nil || p.UID == a.was[name].UID {
				continue
			}
			// The successor first: what is seen of the former then is later.
			successor := len(a.guestsOf(there, string(p.UID))) + len(a.guestsOf(absent, string(p.UID)))
			if former := a.guestsOf(absent, string(a.was[name].UID)); successor > 0 && len(former) > 0 {
				return fmt.Errorf("two pods %s run at the same time", name)
			}
		}
		return nil
	}
	go func() {
		for ctx.Err() == nil {
			if err := look(); err != nil {
				done <- err
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		done <- nil
	}()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// A pod whose finalizer never goes is not started again, also not by an agent that
// starts anew and finds it among what it should have; and it goes with the
// finalizer.
func (a *absence) finalizerAcrossAStart(t *testing.T) {
	a.kill(t, absent)
	a.must(t, "wait", "--for=condition=Ready", "node/"+absent, "--timeout=60s")
	// A pod that comes later runs: so the agent has looked at all it should have.
	a.apply(t, "default", wasmPod("later", a.image)+"  nodeName: "+absent+"\n")
	a.must(t, "wait", "--for=jsonpath={.status.phase}=Running", "pod/later", "--timeout=60s")
	if err := errors.Join(a.stopped("held"), a.as("held", leaving, 0)); err != nil {
		t.Error(err)
	}
	a.must(t, "patch", "pod", "held", "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
	a.must(t, "wait", "--for=delete", "pod/held", "--timeout=30s")
	if err := a.untouched("alone"); err != nil {
		t.Error(err)
	}
}

// A pod that is deleted by force while its node is there is out of the API at once,
// and stopped as soon as the node hears of it.
func (a *absence) forcedWhileThere(t *testing.T) {
	uid := a.must(t, "get", "pod", "later", "-o", "jsonpath={.metadata.uid}")
	if err := a.runs(absent, uid); err != nil {
		t.Fatal(err)
	}
	a.must(t, "delete", "pod", "later", "--force", "--grace-period=0", "--wait=false")
	if _, err := a.client.CoreV1().Pods("default").Get(t.Context(), "later", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("still in the API: %v", err)
	}
	eventually(t, 30*time.Second, func() error {
		if pids := a.guestsOf(absent, uid); len(pids) > 0 {
			return fmt.Errorf("processes %v run on", pids)
		}
		return nil
	})
}

func isGone(c kubernetes.Interface, name string) error {
	_, err := c.CoreV1().Pods("default").Get(context.Background(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("pod %s is there (%v)", name, err)
}

// jobIs is nil if the job says what it should and has that many pods.
func (a *absence) jobIs(name string, check func(batchv1.JobStatus) bool) error {
	j, err := a.client.BatchV1().Jobs("default").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if !check(j.Status) {
		return fmt.Errorf("job %s: %+v", name, j.Status)
	}
	return nil
}

func complete(s batchv1.JobStatus) bool {
	return s.Succeeded == 1 && s.Failed == 0 && slices.ContainsFunc(s.Conditions, func(c batchv1.JobCondition) bool {
		return c.Type == batchv1.JobComplete && c.Status == corev1.ConditionTrue
	})
}

func evict(ctx context.Context, c kubernetes.Interface, name string) error {
	return c.PolicyV1().Evictions("default").Evict(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}})
}
