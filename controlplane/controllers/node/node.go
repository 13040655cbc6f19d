package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	kubeletapis "k8s.io/kubelet/pkg/apis"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/controller"
	taintutil "k8s.io/kubernetes/pkg/util/taints"

	"github.com/coracle-edge/coracle/controlplane/api/features"
	"github.com/coracle-edge/coracle/controlplane/controllers/away"
	"github.com/coracle-edge/coracle/controlplane/controllers/reconciler"
)

// Controller is the node controller.
type Controller struct {
	*reconciler.Reconciler
	client   kubernetes.Interface
	opts     reconciler.Options
	nodes    corelisters.NodeLister
	podIndex cache.Indexer

	mu sync.Mutex
	// known remembers nodes that were seen, by name, for the events that say they came and went.
	known map[string]seen
	// started is when the controller was made: older nodes are no news.
	started metav1.Time
}

type seen struct {
	uid            types.UID
	ready, unknown bool
	unschedulable  bool
}

// New makes the controller and registers what it watches: nodes, and pods that are marked. The factory must be started by
// the caller.
func New(client kubernetes.Interface, factory informers.SharedInformerFactory, opts reconciler.Options) (*Controller, error) {
	opts = opts.WithDefaults()
	nodes, pods := factory.Core().V1().Nodes(), factory.Core().V1().Pods().Informer()
	if err := controller.AddPodNodeNameIndexer(pods); err != nil {
		return nil, fmt.Errorf("node controller: index pods by node: %w", err)
	}
	c := &Controller{
		client:   client,
		opts:     opts,
		nodes:    nodes.Lister(),
		podIndex: pods.GetIndexer(),
		known:    map[string]seen{},
		started:  metav1.NewTime(opts.Clock.Now()),
	}
	c.Reconciler = reconciler.New("node", c.reconcile, opts, 0, 0)
	if err := errors.Join(c.Watch(nodes.Informer(), c.Everything()), c.Watch(pods, cache.ResourceEventHandlerFuncs{
		AddFunc: c.podSeen, UpdateFunc: func(_, cur any) { c.podSeen(cur) },
	})); err != nil {
		return nil, err
	}
	return c, nil
}

// podSeen has the mark of a pod looked at once the cache shows it: its node may have come back before.
func (c *Controller) podSeen(obj any) {
	if pod, ok := obj.(*v1.Pod); ok && pod.Spec.NodeName != "" && markedOnly(pod) {
		c.Add(pod.Spec.NodeName)
	}
}

func (c *Controller) reconcile(ctx context.Context, key string) error {
	node, err := c.nodes.Get(key)
	if apierrors.IsNotFound(err) {
		c.noteGone(key)
		return nil
	}
	if err != nil {
		return err
	}
	c.note(node)
	err = errors.Join(c.setTaints(ctx, node), c.setLabels(ctx, node))
	switch cond := condition(node, v1.NodeReady); {
	case cond == nil:
	case cond.Status == v1.ConditionTrue:
		err = errors.Join(err, c.unmarkPods(ctx, node))
	default:
		err = errors.Join(err, c.markPods(ctx, node))
	}
	if err != nil {
		return fmt.Errorf("Node %s: %w", key, err)
	}
	return nil
}

// note records the events that upstream records when a node is first seen, and when it stops being ready; and those that a
// kubelet records of what only the cluster knows here: that the node was away and is back, and that it was cordoned.
func (c *Controller) note(node *v1.Node) {
	cond := condition(node, v1.NodeReady)
	now := seen{uid: node.UID, ready: cond != nil && cond.Status == v1.ConditionTrue,
		unknown: cond != nil && cond.Status == v1.ConditionUnknown, unschedulable: node.Spec.Unschedulable}
	c.mu.Lock()
	before, ok := c.known[node.Name]
	c.known[node.Name] = now
	c.mu.Unlock()
	if ok && before.uid != node.UID {
		c.event(node.Name, before.uid, "RemovingNode", fmt.Sprintf("Node %s event: Removing Node %s from Controller", node.Name, node.Name))
	}
	if !ok && node.CreationTimestamp.Before(&c.started) {
		return // after a start of ours: a thousand nodes would be a thousand writes that say nothing
	}
	if !ok || before.uid != node.UID {
		c.event(node.Name, node.UID, "RegisteredNode", fmt.Sprintf("Node %s event: Registered Node %s in Controller", node.Name, node.Name))
		return
	}
	status := func(reason string) {
		c.event(node.Name, node.UID, reason, fmt.Sprintf("Node %s status is now: %s", node.Name, reason))
	}
	switch {
	case before.ready && !now.ready:
		status("NodeNotReady")
	case before.unknown && now.ready:
		status("NodeReady")
	}
	switch {
	case !before.unschedulable && now.unschedulable:
		status("NodeNotSchedulable")
	case before.unschedulable && !now.unschedulable:
		status("NodeSchedulable")
	}
}

func (c *Controller) noteGone(name string) {
	c.mu.Lock()
	before, ok := c.known[name]
	delete(c.known, name)
	c.mu.Unlock()
	if ok {
		c.event(name, before.uid, "RemovingNode", fmt.Sprintf("Node %s event: Removing Node %s from Controller", name, name))
	}
}

func (c *Controller) event(name string, uid types.UID, reason, message string) {
	ref := &v1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: name, UID: uid}
	c.opts.Recorder.Event(ref, v1.EventTypeNormal, reason, message)
}

// own reports whether a taint is one that follows from conditions: of these keys and effects, and no others, taints are
// taken off.
func own(t *v1.Taint) bool {
	switch t.Key {
	case v1.TaintNodeNotReady, v1.TaintNodeUnreachable:
		return t.Effect == v1.TaintEffectNoSchedule || t.Effect == v1.TaintEffectNoExecute
	case features.TaintContainerdDown, v1.TaintNodeUnschedulable, v1.TaintNodeMemoryPressure, v1.TaintNodeDiskPressure, v1.TaintNodePIDPressure, v1.TaintNodeNetworkUnavailable:
		return t.Effect == v1.TaintEffectNoSchedule
	}
	return false
}

// wantedTaints are the taints that follow from a node's conditions and spec.unschedulable.
func wantedTaints(node *v1.Node) []v1.Taint {
	var taints []v1.Taint
	add := func(key string, effects ...v1.TaintEffect) {
		for _, effect := range effects {
			taints = append(taints, v1.Taint{Key: key, Effect: effect})
		}
	}
	for _, cond := range node.Status.Conditions {
		switch {
		case cond.Type == v1.NodeReady && cond.Status == v1.ConditionFalse:
			add(v1.TaintNodeNotReady, v1.TaintEffectNoSchedule, v1.TaintEffectNoExecute)
		case cond.Type == v1.NodeReady && cond.Status == v1.ConditionUnknown:
			add(v1.TaintNodeUnreachable, v1.TaintEffectNoSchedule, v1.TaintEffectNoExecute)
		case cond.Status != v1.ConditionTrue:
		case cond.Type == v1.NodeMemoryPressure:
			add(v1.TaintNodeMemoryPressure, v1.TaintEffectNoSchedule)
		case cond.Type == v1.NodeDiskPressure:
			add(v1.TaintNodeDiskPressure, v1.TaintEffectNoSchedule)
		case cond.Type == v1.NodePIDPressure:
			add(v1.TaintNodePIDPressure, v1.TaintEffectNoSchedule)
		case cond.Type == v1.NodeNetworkUnavailable:
			add(v1.TaintNodeNetworkUnavailable, v1.TaintEffectNoSchedule)
		case cond.Type == features.ConditionContainerdDown:
			add(features.TaintContainerdDown, v1.TaintEffectNoSchedule)
		}
	}
	if node.Spec.Unschedulable {
		add(v1.TaintNodeUnschedulable, v1.TaintEffectNoSchedule)
	}
	return taints
}

// setTaints writes the node's taints if they differ from what they should be, in one patch that fails if somebody else
// changed the node meanwhile.
func (c *Controller) setTaints(ctx context.Context, node *v1.Node) error {
	wanted := wantedTaints(node)
	changed := false
	var taints []v1.Taint
	for _, t := range node.Spec.Taints {
		if own(&t) && !taintutil.TaintExists(wanted, &t) {
			changed = true
			continue
		}
		taints = append(taints, t)
	}
	for _, t := range wanted {
		if !taintutil.TaintExists(taints, &t) {
			// When it was added decides when a limited toleration of it ends.
			now := metav1.NewTime(c.opts.Clock.Now())
			t.TimeAdded = &now
			taints = append(taints, t)
			changed = true
		}
	}
	if !changed {
		return nil
	}
	tainted := node.DeepCopy()
	tainted.Spec.Taints = taints
	if err := controller.PatchNodeTaints(ctx, c.client, node.Name, node, tainted); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("set taints: %w", err)
	}
	return nil
}

// setLabels gives the beta labels for operating system and architecture the values of the stable ones.
func (c *Controller) setLabels(ctx context.Context, node *v1.Node) error {
	update := map[string]string{}
	for stable, beta := range map[string]string{v1.LabelOSStable: kubeletapis.LabelOS, v1.LabelArchStable: kubeletapis.LabelArch} {
		if value, ok := node.Labels[stable]; ok && node.Labels[beta] != value {
			update[beta] = value
		}
	}
	if len(update) == 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": update}})
	if err != nil {
		return err
	}
	if _, err = c.client.CoreV1().Nodes().Patch(ctx, node.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("set labels: %w", err)
	}
	return nil
}

// markPods sets Ready=False on the node's pods that have Ready=True, once the API itself says that the node isn't ready:
// the cache may be older than a report that has just made both ready again.
func (c *Controller) markPods(ctx context.Context, node *v1.Node) error {
	objs, err := c.podIndex.ByIndex(controller.PodNodeNameKeyIndex, node.Name)
	if err != nil {
		return err
	}
	var ready []*v1.Pod
	for _, obj := range objs {
		if pod, ok := obj.(*v1.Pod); ok && podutil.IsPodReady(pod) && !podutil.IsPodTerminal(pod) {
			ready = append(ready, pod)
		}
	}
	if len(ready) == 0 {
		return nil
	}
	fresh, err := c.client.CoreV1().Nodes().Get(ctx, node.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if cond := condition(fresh, v1.NodeReady); fresh.UID != node.UID || cond == nil || cond.Status == v1.ConditionTrue {
		return nil // the event is on its way
	}
	var errs []error
	for _, pod := range ready {
		marked := pod.DeepCopy()
		_, cond := podutil.GetPodCondition(&marked.Status, v1.PodReady)
		cond.Status = v1.ConditionFalse
		cond.LastTransitionTime = metav1.NewTime(c.opts.Clock.Now())
		_, err := c.client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, marked, metav1.UpdateOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("mark pod %s/%s not ready: %w", pod.Namespace, pod.Name, err))
			continue
		}
		c.opts.Recorder.Event(pod, v1.EventTypeWarning, "NodeNotReady", "Node is not ready")
	}
	return errors.Join(errs...)
}

// markedOnly reports whether nothing but the mark makes a pod not ready: its containers and gates are, and a node that
// says otherwise gives a reason.
func markedOnly(pod *v1.Pod) bool {
	_, cond := podutil.GetPodCondition(&pod.Status, v1.PodReady)
	return cond != nil && cond.Status == v1.ConditionFalse && cond.Reason == "" && away.Standing(pod)
}

// unmarkPods takes the mark off the pods of a node that is ready again. A node says only what has changed since its last
// report, so of a pod that ran on quietly it has nothing to say; what it has overwrites this, as it overwrites the mark.
func (c *Controller) unmarkPods(ctx context.Context, node *v1.Node) error {
	objs, err := c.podIndex.ByIndex(controller.PodNodeNameKeyIndex, node.Name)
	if err != nil {
		return err
	}
	var errs []error
	for _, obj := range objs {
		pod, ok := obj.(*v1.Pod)
		if !ok || !markedOnly(pod) {
			continue
		}
		ready := pod.DeepCopy()
		_, cond := podutil.GetPodCondition(&ready.Status, v1.PodReady)
		cond.Status, cond.LastTransitionTime = v1.ConditionTrue, metav1.NewTime(c.opts.Clock.Now())
		if _, err := c.client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, ready, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("mark pod %s/%s ready again: %w", pod.Namespace, pod.Name, err))
		}
	}
	return errors.Join(errs...)
}

func condition(node *v1.Node, kind v1.NodeConditionType) *v1.NodeCondition {
	for i := range node.Status.Conditions {
		if node.Status.Conditions[i].Type == kind {
			return &node.Status.Conditions[i]
		}
	}
	return nil
}
