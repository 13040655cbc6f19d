package fleethub

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/api/trace"
)

const maxConflicts = 5

// outcome of writing a report.
type outcome struct {
	verdict fleet.Verdict
	message string
}

var stored = outcome{verdict: fleet.Verdict_STORED}

func obsolete(format string, args ...any) outcome {
	return outcome{fleet.Verdict_OBSOLETE, fmt.Sprintf(format, args...)}
}

func rejected(format string, args ...any) outcome {
	return outcome{fleet.Verdict_REJECTED, fmt.Sprintf(format, args...)}
}

// writeReport writes the newest report of one pod and answers it. An error means
// that nothing can be said yet.
func (h *Hub) writeReport(ctx context.Context, n *node, uid string) error {
	n.mu.Lock()
	r := n.reports[uid]
	n.mu.Unlock()
	if r == nil {
		return nil
	}
	o, err := h.storeReport(ctx, n, r)
	if err != nil {
		v, known := final(err)
		if !known || h.mayBeEarly(err, writeKey{n.name, writePod, uid}) {
			return err
		}
		o = outcome{v, err.Error()}
	}
	n.mu.Lock()
	newer := n.reports[uid] != r
	if !newer {
		delete(n.reports, uid)
	}
	n.mu.Unlock()
	if newer {
		h.writes.Add(writeKey{n.name, writePod, uid})
	}
	if o.verdict == fleet.Verdict_REJECTED {
		h.log.Warn("report rejected", "node", n.name, "pod", r.GetNamespace()+"/"+r.GetName(), "uid", uid, "reason", o.message)
	}
	h.verdict(n, uid, r.GetStamp(), o.verdict, o.message)
	return nil
}

// wrote keeps what the API answered until the informer has it: of a thousand
// nodes with three pods each that would be 20 MB else.
func (h *Hub) wrote(n *node, pod *corev1.Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	// The informer has what it knows before it tells us, see caughtUp.
	if have, err := h.podLister.Pods(pod.Namespace).Get(pod.Name); err == nil && have.UID == pod.UID && revisionOf(have.ResourceVersion) >= revisionOf(pod.ResourceVersion) {
		return
	}
	n.written[string(pod.UID)] = pod
}

// caughtUp drops what the informer now has.
func (n *node) caughtUp(pod *corev1.Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if w := n.written[string(pod.UID)]; w != nil && revisionOf(w.ResourceVersion) <= revisionOf(pod.ResourceVersion) {
		delete(n.written, string(pod.UID))
	}
}

// mayBeEarly: the Node authorizer learns which pods are a node's from a watch of
// its own, so it may deny for a moment what it will allow.
func (h *Hub) mayBeEarly(err error, key writeKey) bool {
	return apierrors.IsForbidden(err) && h.writes.NumRequeues(key) < 6
}

func (h *Hub) storeReport(ctx context.Context, n *node, r *report) (outcome, error) {
	var status corev1.PodStatus
	if err := status.Unmarshal(r.GetStatus()); err != nil {
		return rejected("status of pod %s/%s can't be read: %v", r.GetNamespace(), r.GetName(), err), nil
	}
	h.traceReport(r, &status)
	client, err := h.as(n)
	if err != nil {
		return outcome{}, err
	}
	pod, err := h.podLister.Pods(r.GetNamespace()).Get(r.GetName())
	if err != nil {
		pod = nil
	}
	if len(r.GetMirror()) > 0 || pod != nil && pod.Annotations[annotationMirror] == r.GetUid() {
		return h.storeMirror(ctx, n, client, r, pod, &status)
	}
	if pod == nil || string(pod.UID) != r.GetUid() {
		return obsolete("the cluster has no pod %s/%s with UID %s", r.GetNamespace(), r.GetName(), r.GetUid()), nil
	}
	n.mu.Lock()
	if w := n.written[r.GetUid()]; w != nil && revisionOf(w.ResourceVersion) > revisionOf(pod.ResourceVersion) {
		pod = w
	}
	n.mu.Unlock()
	return h.storeStatus(ctx, n, client, r, pod, &status)
}

// storeStatus writes the status into this pod or a later version of it, and then,
// if all of it is gone from the node, deletes the pod.
func (h *Hub) storeStatus(ctx context.Context, n *node, client corev1client.CoreV1Interface, r *report, pod *corev1.Pod, status *corev1.PodStatus) (outcome, error) {
	stamp := fleet.StampFrom(r.GetStamp())
	for try := 0; ; try++ {
		if pod.Spec.NodeName != n.name {
			return obsolete("pod %s/%s is bound to node %q", pod.Namespace, pod.Name, pod.Spec.NodeName), nil
		}
		before, err := fleet.ParseStamp(pod.Annotations[AnnotationReport])
		switch {
		case err == nil && before == stamp:
			return h.finish(ctx, n, client, r, pod)
		case err == nil && !stamp.Obsoletes(before):
			return obsolete("report %s is older than %s", stamp, before), nil
		}
		if len(r.GetStatus()) == 0 {
			return h.finish(ctx, n, client, r, pod)
		}
		merged := mergeStatus(pod, status, h.c.Now())
		if terminal(pod.Status.Phase) && merged.Phase != pod.Status.Phase {
			return obsolete("pod %s/%s is %s for good", pod.Namespace, pod.Name, pod.Status.Phase), nil
		}
		next := pod.DeepCopy()
		next.Status = merged
		if next.Annotations == nil {
			next.Annotations = map[string]string{}
		}
		next.Annotations[AnnotationReport] = stamp.String()
		written, err := client.Pods(pod.Namespace).UpdateStatus(ctx, next, metav1.UpdateOptions{})
		if err == nil {
			h.wrote(n, written)
			return h.finish(ctx, n, client, r, written)
		}
		if !apierrors.IsConflict(err) || try == maxConflicts {
			return outcome{}, err
		}
		if pod, err = client.Pods(r.GetNamespace()).Get(ctx, r.GetName(), metav1.GetOptions{}); err != nil {
			return outcome{}, err
		}
		if string(next.UID) != string(pod.UID) {
			return obsolete("pod %s/%s was replaced", r.GetNamespace(), r.GetName()), nil
		}
	}
}

// finish deletes a pod that the node is rid of, if it is to be deleted.
func (h *Hub) finish(ctx context.Context, n *node, client corev1client.CoreV1Interface, r *report, pod *corev1.Pod) (outcome, error) {
	if !r.GetGone() {
		return stored, nil
	}
	if pod.DeletionTimestamp == nil {
		return obsolete("pod %s/%s is not being deleted", pod.Namespace, pod.Name), nil
	}
	return stored, deletePod(ctx, client, pod)
}

// deletePod ends a pod in the API: grace 0, this UID only.
func deletePod(ctx context.Context, client corev1client.CoreV1Interface, pod *corev1.Pod) error {
	zero := int64(0)
	uid := pod.UID
	err := client.Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &uid},
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // another pod of this name
	}
	return err
}

// storeMirror keeps the API's image of a static pod as the kubelet does
// (pkg/kubelet/pod/mirror_client.go): created by the node, told by its hash,
// deleted and made again when someone deletes it.
func (h *Hub) storeMirror(ctx context.Context, n *node, client corev1client.CoreV1Interface, r *report, pod *corev1.Pod, status *corev1.PodStatus) (outcome, error) {
	if pod != nil && !isMirror(pod) {
		return rejected("static pod %s/%s: a pod of that name exists", r.GetNamespace(), r.GetName()), nil
	}
	if r.GetGone() {
		if pod == nil || pod.Annotations[annotationMirror] != r.GetUid() {
			return stored, nil
		}
		return stored, deletePod(ctx, client, pod)
	}
	if pod != nil && (pod.DeletionTimestamp != nil || pod.Annotations[annotationMirror] != r.GetUid()) {
		if err := deletePod(ctx, client, pod); err != nil {
			return outcome{}, err
		}
		pod = nil
	}
	if pod == nil {
		owner, err := h.nodeLister.Get(n.name)
		if err != nil {
			if keys, err := h.c.Keys(ctx, n.name); errors.Is(err, enrollment.ErrRemoved) && len(keys.Sign) > 0 {
				return rejected("%v", err), nil // it is asked for again when the node is readmitted
			}
			return outcome{}, fmt.Errorf("mirror of static pod %s/%s: node %s isn't registered yet", r.GetNamespace(), r.GetName(), n.name)
		}
		var manifest corev1.Pod
		if err := manifest.Unmarshal(r.GetMirror()); err != nil {
			return rejected("static pod %s/%s can't be read: %v", r.GetNamespace(), r.GetName(), err), nil
		}
		pod, err = client.Pods(r.GetNamespace()).Create(ctx, mirrorOf(&manifest, r, owner), metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return outcome{}, err // the informer is behind: again
		}
		if err != nil {
			return outcome{}, err
		}
	}
	return h.storeStatus(ctx, n, client, r, pod, status)
}

func mirrorOf(static *corev1.Pod, r *report, owner *corev1.Node) *corev1.Pod {
	controller := true
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: r.GetNamespace(), Name: r.GetName(), Labels: static.Labels, Annotations: map[string]string{},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: owner.Name, UID: owner.UID, Controller: &controller}},
		},
		Spec: *static.Spec.DeepCopy(),
	}
	for k, v := range static.Annotations {
		pod.Annotations[k] = v
	}
	pod.Annotations[annotationHash] = r.GetUid()
	pod.Annotations[annotationMirror] = r.GetUid()
	pod.Spec.NodeName = owner.Name
	return pod
}

// traceReport records the node's steps, and that the status came in, once the
// pod runs (or has run).
func (h *Hub) traceReport(r *report, status *corev1.PodStatus) {
	if status.Phase != corev1.PodRunning && !terminal(status.Phase) {
		return
	}
	if !r.sent.IsZero() && len(r.GetTrace()) > 0 {
		offsets := make([]trace.Offset, 0, len(r.GetTrace()))
		for _, o := range r.GetTrace() {
			offsets = append(offsets, trace.Offset{Step: trace.Step(o.GetStep()), Offset: time.Duration(o.GetOffset())})
		}
		for _, e := range trace.Anchor(r.sent, r.at, time.Duration(r.GetElapsed()), offsets, "edgelet") {
			h.c.Trace.Record(r.GetUid(), e)
		}
	}
	h.c.Trace.Record(r.GetUid(), trace.Event{Step: trace.StatusReceived, Component: component, Time: r.at})
}

func terminal(p corev1.PodPhase) bool { return p == corev1.PodSucceeded || p == corev1.PodFailed }

// dropped conditions go when the node stops saying them; all others that it
// doesn't say stay: they are somebody else's.
var dropped = map[corev1.PodConditionType]bool{corev1.PodResizePending: true, corev1.PodResizeInProgress: true}

// mergeStatus is what to store when the node says status, as the kubelet's
// mergePodStatus (pkg/kubelet/status): what others own stays. Times of transition
// come from the node's clock only where that can be right.
func mergeStatus(pod *corev1.Pod, said *corev1.PodStatus, now time.Time) corev1.PodStatus {
	old := pod.Status
	out := *said.DeepCopy()
	for i := range out.Conditions {
		c := &out.Conditions[i]
		before := condition(old.Conditions, c.Type)
		switch {
		case before != nil && before.Status == c.Status:
			c.LastTransitionTime = before.LastTransitionTime
		case !plausible(c.LastTransitionTime.Time, pod.CreationTimestamp.Time, now):
			c.LastTransitionTime = metav1.NewTime(now)
		}
	}
	for _, c := range old.Conditions {
		if condition(out.Conditions, c.Type) == nil && !dropped[c.Type] {
			out.Conditions = append(out.Conditions, c)
		}
	}
	if terminal(out.Phase) {
		for i := range out.Conditions {
			c := &out.Conditions[i]
			if (c.Type == corev1.PodReady || c.Type == corev1.ContainersReady) && c.Status == corev1.ConditionTrue {
				c.Status, c.LastTransitionTime = corev1.ConditionFalse, metav1.NewTime(now)
				c.Reason = "PodCompleted"
				if out.Phase == corev1.PodFailed {
					c.Reason = "PodFailed"
				}
			}
		}
	}
	if old.StartTime != nil {
		out.StartTime = old.StartTime
	} else if out.StartTime != nil && !plausible(out.StartTime.Time, pod.CreationTimestamp.Time, now) {
		t := metav1.NewTime(now)
		out.StartTime = &t
	}
	if out.QOSClass == "" {
		out.QOSClass = old.QOSClass
	}
	out.NominatedNodeName = old.NominatedNodeName
	out.ResourceClaimStatuses = old.ResourceClaimStatuses
	out.ExtendedResourceClaimStatus = old.ExtendedResourceClaimStatus
	return out
}

func plausible(t, created, now time.Time) bool {
	return !t.Before(created.Add(-time.Minute)) && !t.After(now.Add(5*time.Minute))
}

func condition(list []corev1.PodCondition, kind corev1.PodConditionType) *corev1.PodCondition {
	i := slices.IndexFunc(list, func(c corev1.PodCondition) bool { return c.Type == kind })
	if i < 0 {
		return nil
	}
	return &list[i]
}
