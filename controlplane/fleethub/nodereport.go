package fleethub

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/pkg/apis/core/v1/helper"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/api/localvolumes"
)

// AnnotationLabels lists the labels that the node gave itself, so that one it no
// longer has goes and an administrator's stay.
const AnnotationLabels = "coracle.dev/node-labels"

// writeNodeReport registers the node, or brings its labels and status up to what
// it reports, and answers.
func (h *Hub) writeNodeReport(ctx context.Context, n *node) error {
	n.mu.Lock()
	r := n.node
	n.mu.Unlock()
	if r == nil {
		return nil
	}
	o, err := h.storeNode(ctx, n, r)
	if err == nil && o == stored {
		err = h.writeStorage(ctx, n, r)
	}
	if err != nil {
		v, known := final(err)
		if !known || v == fleet.Verdict_OBSOLETE {
			return err // a node that was deleted meanwhile is made again
		}
		o = outcome{v, err.Error()}
	}
	n.mu.Lock()
	newer := n.node != r
	if !newer {
		n.node = nil
	}
	went := n.went
	n.mu.Unlock()
	if went != "" {
		// It went while this was being written, and what says so may have been first.
		h.writes.Add(writeKey{n.name, writeAway, ""})
	}
	if newer {
		h.writes.Add(writeKey{n.name, writeNode, ""})
	}
	if o.verdict == fleet.Verdict_REJECTED {
		h.log.Warn("report of the node rejected", "node", n.name, "reason", o.message)
	}
	h.verdict(n, "", r.GetStamp(), o.verdict, o.message)
	if n.foreign.Load() != nil {
		h.writes.Add(writeKey{n.name, writePending, ""}) // the Node may be new
	}
	return nil
}

func (h *Hub) storeNode(ctx context.Context, n *node, r *fleet.NodeReport) (outcome, error) {
	var said corev1.Node
	if err := said.Unmarshal(r.GetNode()); err != nil {
		return rejected("report of node %s can't be read: %v", n.name, err), nil
	}
	if _, err := takeStorage(&said); err != nil {
		return rejected("%v", err), nil
	}
	client, err := h.as(n)
	if err != nil {
		return outcome{}, err
	}
	stamp := fleet.StampFrom(r.GetStamp())
	have, err := h.nodeLister.Get(n.name)
	for try := 0; ; try++ {
		// Each time: what it said before it was refused must not follow what says so.
		if keys, keyErr := h.c.Keys(ctx, n.name); keyErr != nil {
			if s, ok := standingOf(keys, keyErr); ok && s.refuses() {
				return rejected("%s", s.message), nil
			}
		}
		if apierrors.IsNotFound(err) {
			if o, err := h.mayRegister(ctx, n); err != nil || o != stored {
				return o, err
			}
			var made *corev1.Node
			made, err = client.Nodes().Create(ctx, withClass(newNodeObject(n.name, &said, stamp, h.c.Now()), n.ownClass()), metav1.CreateOptions{})
			if err == nil {
				h.log.Info("node registered", "node", n.name)
				return stored, h.registered(ctx, n, made)
			}
			if !apierrors.IsAlreadyExists(err) {
				return outcome{}, err
			}
			// The informer is behind.
			have, err = client.Nodes().Get(ctx, n.name, metav1.GetOptions{})
		}
		if err != nil {
			return outcome{}, err
		}
		if err := h.registered(ctx, n, have); err != nil {
			return outcome{}, err
		}
		if before, err := fleet.ParseStamp(have.Annotations[AnnotationReport]); err == nil && before != stamp && !stamp.Obsoletes(before) {
			return obsolete("report %s is older than %s", stamp, before), nil
		}
		next := withClass(mergeNode(have, &said, stamp, h.c.Now()), n.ownClass())
		if equality.Semantic.DeepEqual(have, next) {
			return stored, nil
		}
		if _, err = client.Nodes().UpdateStatus(ctx, next, metav1.UpdateOptions{}); err == nil {
			return stored, nil
		}
		if !(apierrors.IsConflict(err) || apierrors.IsForbidden(err)) || try == maxConflicts {
			return outcome{}, err
		}
		refused, behind := err, have.ResourceVersion
		have, err = client.Nodes().Get(ctx, n.name, metav1.GetOptions{})
		if err == nil && apierrors.IsForbidden(refused) && have.ResourceVersion == behind {
			return outcome{}, refused
		}
		// NodeRestriction looks before versions are compared: to it, taints that
		// the informer hasn't seen yet are taints that the node takes away.
	}
}

// newNodeObject is what a kubelet creates when it registers.
func newNodeObject(name string, said *corev1.Node, stamp fleet.StampID, now time.Time) *corev1.Node {
	out := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: *said.Spec.DeepCopy()}
	return mergeNode(out, said, stamp, now)
}

// mergeNode brings labels, annotations and status of have to what the node says.
// Spec is the cluster's from registration on.
func mergeNode(have, said *corev1.Node, stamp fleet.StampID, now time.Time) *corev1.Node {
	out := have.DeepCopy()
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	if out.Annotations == nil {
		out.Annotations = map[string]string{}
	}
	for _, label := range strings.Split(out.Annotations[AnnotationLabels], ",") {
		if _, still := said.Labels[label]; !still {
			delete(out.Labels, label)
		}
	}
	own := make([]string, 0, len(said.Labels))
	for k, v := range said.Labels {
		out.Labels[k] = v
		own = append(own, k)
	}
	slices.Sort(own)
	for k, v := range said.Annotations {
		out.Annotations[k] = v
	}
	// Of these a node may say no more; the last is what a hub stores that doesn't know it.
	for _, key := range []string{annotationNodeID, localvolumes.AnnotationDir, localvolumes.AnnotationGone} {
		if said.Annotations[key] == "" {
			delete(out.Annotations, key)
		}
	}
	out.Annotations[AnnotationLabels] = strings.Join(own, ",")
	out.Annotations[AnnotationReport] = stamp.String()

	status := *said.Status.DeepCopy()
	status.Conditions = nil
	for _, c := range have.Status.Conditions {
		if nodeCondition(said.Status.Conditions, c.Type) == nil {
			status.Conditions = append(status.Conditions, c) // somebody else's
		}
	}
	for _, c := range said.Status.Conditions {
		c.LastHeartbeatTime = metav1.NewTime(now)
		c.LastTransitionTime = metav1.NewTime(now)
		if before := nodeCondition(have.Status.Conditions, c.Type); before != nil && before.Status == c.Status {
			c.LastTransitionTime = before.LastTransitionTime
		}
		status.Conditions = append(status.Conditions, c)
	}
	// Attachments and devices in use by volumes are controllers'.
	status.VolumesAttached = have.Status.VolumesAttached
	keepForeignResources(&status, &have.Status)
	out.Status = status
	return out
}

// keepForeignResources keeps the extended resources that an administrator or
// another program put into the node's status, as a kubelet does. One that a device
// plugin of the node had is never left out by the node: it is 0 when it is gone.
func keepForeignResources(status, have *corev1.NodeStatus) {
	for name, q := range have.Capacity {
		if _, said := status.Capacity[name]; said || !helper.IsExtendedResourceName(name) {
			continue
		}
		if status.Capacity == nil {
			status.Capacity = corev1.ResourceList{}
		}
		if status.Allocatable == nil {
			status.Allocatable = corev1.ResourceList{}
		}
		status.Capacity[name], status.Allocatable[name] = q, q
	}
}

func nodeCondition(list []corev1.NodeCondition, kind corev1.NodeConditionType) *corev1.NodeCondition {
	i := slices.IndexFunc(list, func(c corev1.NodeCondition) bool { return c.Type == kind })
	if i < 0 {
		return nil
	}
	return &list[i]
}

// The conditions that upstream's node lifecycle controller makes Unknown, and its
// words.
var (
	awayConditions = []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure}
	awayReason     = "NodeStatusUnknown"
	awayMessage    = "Kubelet stopped posting node status."
)

// holdRetry is how often it is asked whether nodes may be called away.
const holdRetry = 500 * time.Millisecond

// writeAway writes the transition of a node to away, once, with the hub's own
// identity.
func (h *Hub) writeAway(ctx context.Context, n *node) error {
	reason := func() string {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.went
	}
	why := reason()
	if why != "" && h.c.Hold != nil && h.c.Hold() {
		h.writes.AddAfter(writeKey{n.name, writeAway, ""}, holdRetry)
		return nil
	}
	since := ""
	if at := n.heard.Load(); at != 0 {
		since = fmt.Sprintf(" Last heard of at %s:", time.Unix(0, at).UTC().Format(time.RFC3339))
	}
	message := fmt.Sprintf("%s%s %s.", awayMessage, since, why)
	have, err := h.nodeLister.Get(n.name)
	for try, live := 0, false; ; try++ {
		if apierrors.IsNotFound(err) || h.deposed.Load() || reason() == "" {
			return nil // there is no such node, it isn't ours to say, or it is back
		}
		if err != nil {
			return err
		}
		next, changed := awayNode(have, message, h.c.Now())
		if !changed && !live {
			// The informer may not know yet that the node was back for a moment.
			live = true
			have, err = h.c.Client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{})
			continue
		}
		if !changed {
			return nil
		}
		if _, err = h.c.Client.CoreV1().Nodes().UpdateStatus(ctx, next, metav1.UpdateOptions{}); err == nil {
			h.called(n, have)
			return nil
		}
		if !apierrors.IsConflict(err) || try == maxConflicts {
			return err
		}
		have, err = h.c.Client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{})
	}
}

func awayNode(have *corev1.Node, message string, now time.Time) (*corev1.Node, bool) {
	if ready := nodeCondition(have.Status.Conditions, corev1.NodeReady); ready != nil && ready.Status == corev1.ConditionUnknown {
		return nil, false // whoever wrote it, it is said
	}
	out := have.DeepCopy()
	for _, kind := range awayConditions {
		c := nodeCondition(out.Status.Conditions, kind)
		if c == nil {
			if kind != corev1.NodeReady {
				continue
			}
			out.Status.Conditions = append(out.Status.Conditions, corev1.NodeCondition{Type: kind})
			c = &out.Status.Conditions[len(out.Status.Conditions)-1]
		}
		c.Status, c.Reason, c.Message = corev1.ConditionUnknown, awayReason, message
		c.LastTransitionTime = metav1.NewTime(now)
	}
	return out, true
}
