package daemonset

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	apps "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/controller"
	"k8s.io/kubernetes/pkg/controller/daemon"
	"k8s.io/kubernetes/pkg/controller/daemon/util"

	"github.com/coracle-edge/coracle/controlplane/controllers/away"
	"github.com/coracle-edge/coracle/controlplane/controllers/reconciler"
)

const (
	// burst is the largest number of pods created or deleted in one pass, upstream's BurstReplicas.
	burst = 250
	// nodeDelay gathers node changes: when a thousand boards come back within seconds, each DaemonSet looks at all of them
	// ten times a second and not a thousand times.
	nodeDelay = 100 * time.Millisecond
	// Back-off of deleting failed pods on a node, which a node that refuses the pod would otherwise make a loop of.
	failedMin, failedMax = time.Second, 15 * time.Minute
	failedForget         = time.Minute
)

var kind = apps.SchemeGroupVersion.WithKind("DaemonSet")

// Controller is the DaemonSet controller.
type Controller struct {
	*reconciler.Reconciler
	client   kubernetes.Interface
	opts     reconciler.Options
	pods     controller.PodControlInterface
	expected *controller.UIDTrackingControllerExpectations
	sets     appslisters.DaemonSetLister
	history  appslisters.ControllerRevisionLister
	nodes    corelisters.NodeLister
	podIndex cache.Indexer

	failed   *flowcontrol.Backoff
	sweepMu  sync.Mutex
	sweeping time.Time // when failed was last swept
}

// New makes the controller and registers what it watches: DaemonSets, their ControllerRevisions, pods and nodes. The
// factory must be started by the caller.
func New(client kubernetes.Interface, factory informers.SharedInformerFactory, opts reconciler.Options) (*Controller, error) {
	opts = opts.WithDefaults()
	appsV1, pods, nodes := factory.Apps().V1(), factory.Core().V1().Pods().Informer(), factory.Core().V1().Nodes()
	c := &Controller{
		client:   client,
		opts:     opts,
		pods:     controller.RealPodControl{KubeClient: client, Recorder: opts.Recorder},
		expected: controller.NewUIDTrackingControllerExpectations(controller.NewControllerExpectations()),
		sets:     appsV1.DaemonSets().Lister(),
		history:  appsV1.ControllerRevisions().Lister(),
		nodes:    nodes.Lister(),
		podIndex: pods.GetIndexer(),
		failed:   flowcontrol.NewBackOff(failedMin, failedMax),
		sweeping: opts.Clock.Now(),
	}
	c.failed.Clock = opts.Clock
	c.Reconciler = reconciler.New("daemonset", c.reconcile, opts, 0, 0)
	if err := controller.AddPodControllerIndexer(pods); err != nil {
		return nil, fmt.Errorf("daemonset controller: index pods by owner: %w", err)
	}
	for _, w := range []struct {
		informer cache.SharedIndexInformer
		handler  cache.ResourceEventHandler
	}{
		{appsV1.DaemonSets().Informer(), c.setEvents()},
		{appsV1.ControllerRevisions().Informer(), c.historyEvents()},
		{pods, c.podEvents().Handler()},
		{nodes.Informer(), c.nodeEvents()},
	} {
		if err := c.Watch(w.informer, w.handler); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *Controller) setEvents() cache.ResourceEventHandler {
	forget := func(obj any) {
		if key, err := controller.KeyFunc(obj); err == nil {
			c.expected.DeleteExpectations(klog.Background(), key)
			c.Add(key)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: c.Enqueue,
		UpdateFunc: func(old, cur any) {
			if o, ok := old.(*apps.DaemonSet); ok && o.UID != cur.(*apps.DaemonSet).UID {
				forget(o)
			}
			c.Enqueue(cur)
		},
		DeleteFunc: forget,
	}
}

// historyEvents enqueues the DaemonSet of a revision that changed by another hand, and those that may adopt an orphan.
func (c *Controller) historyEvents() cache.ResourceEventHandler {
	visit := func(rev *apps.ControllerRevision) {
		if ref := metav1.GetControllerOfNoCopy(rev); ref != nil {
			if set, ok := c.owner(rev.Namespace, ref); ok {
				c.Enqueue(set)
			}
			return
		}
		if rev.DeletionTimestamp != nil {
			return
		}
		sets, _ := c.sets.GetHistoryDaemonSets(rev)
		for _, set := range sets {
			c.Enqueue(set)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			// Owned ones are our own creations: their DaemonSet is being reconciled just now.
			if rev := obj.(*apps.ControllerRevision); metav1.GetControllerOfNoCopy(rev) == nil {
				visit(rev)
			}
		},
		UpdateFunc: func(oldObj, curObj any) {
			old, cur := oldObj.(*apps.ControllerRevision), curObj.(*apps.ControllerRevision)
			if !reflect.DeepEqual(metav1.GetControllerOfNoCopy(old), metav1.GetControllerOfNoCopy(cur)) {
				visit(old)
			}
			visit(cur)
		},
		DeleteFunc: func(obj any) {
			if tomb, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = tomb.Obj
			}
			if rev, ok := obj.(*apps.ControllerRevision); ok && metav1.GetControllerOfNoCopy(rev) != nil {
				visit(rev)
			}
		},
	}
}

func (c *Controller) podEvents() reconciler.PodEvents {
	return reconciler.PodEvents{
		Owner: func(namespace string, ref *metav1.OwnerReference) (string, bool) {
			set, ok := c.owner(namespace, ref)
			if !ok {
				return "", false
			}
			return namespace + "/" + set.Name, true
		},
		Orphan: func(pod *v1.Pod) {
			sets, _ := c.sets.GetPodDaemonSets(pod)
			for _, set := range sets {
				c.Enqueue(set)
			}
		},
		Created: func(key string, _ *v1.Pod) {
			c.expected.CreationObserved(klog.Background(), key)
			c.Add(key)
		},
		Deleted: func(key string, pod *v1.Pod, _ bool) {
			c.expected.DeletionObserved(klog.Background(), key, controller.PodKey(pod))
			c.Add(key)
		},
		Changed: func(key string, old, cur *v1.Pod) {
			c.Add(key)
			if podutil.IsPodReady(old) || !podutil.IsPodReady(cur) {
				return
			}
			if ref := metav1.GetControllerOfNoCopy(cur); ref != nil {
				if set, ok := c.owner(cur.Namespace, ref); ok && set.Spec.MinReadySeconds > 0 {
					c.AddAfter(key, time.Duration(set.Spec.MinReadySeconds)*time.Second+time.Second)
				}
			}
		},
	}
}

func (c *Controller) nodeEvents() cache.ResourceEventHandler {
	all := func(any) {
		sets, err := c.sets.List(labels.Everything())
		if err != nil {
			return
		}
		for _, set := range sets {
			c.AddAfter(set.Namespace+"/"+set.Name, nodeDelay)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: all,
		UpdateFunc: func(oldObj, curObj any) {
			old, cur := oldObj.(*v1.Node), curObj.(*v1.Node)
			if away.Node(old) != away.Node(cur) || !apiequality.Semantic.DeepEqual(old.Labels, cur.Labels) ||
				!apiequality.Semantic.DeepEqual(old.Spec.Taints, cur.Spec.Taints) {
				all(cur)
			}
		},
		DeleteFunc: all,
	}
}

func (c *Controller) owner(namespace string, ref *metav1.OwnerReference) (*apps.DaemonSet, bool) {
	if ref.Kind != kind.Kind {
		return nil, false
	}
	set, err := c.sets.DaemonSets(namespace).Get(ref.Name)
	if err != nil || set.UID != ref.UID {
		return nil, false
	}
	return set, true
}

func (c *Controller) reconcile(ctx context.Context, key string) error {
	c.sweep()
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return nil
	}
	set, err := c.sets.DaemonSets(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		c.expected.DeleteExpectations(klog.FromContext(ctx), key)
		return nil
	}
	if err != nil {
		return err
	}
	if reflect.DeepEqual(set.Spec.Selector, &metav1.LabelSelector{}) {
		c.opts.Recorder.Eventf(set, v1.EventTypeWarning, daemon.SelectingAllReason, "This daemon set is selecting all pods. A non-empty selector is required.")
		return nil
	}
	if set.DeletionTimestamp != nil {
		return nil // its history may be gone already, so nothing true can be said of it any more
	}
	if err := c.run(ctx, key, set); err != nil {
		return fmt.Errorf("DaemonSet %s: %w", key, err)
	}
	return nil
}

func (c *Controller) run(ctx context.Context, key string, set *apps.DaemonSet) error {
	current, old, err := c.revisions(ctx, set)
	if err != nil {
		return fmt.Errorf("revisions: %w", err)
	}
	hash := current.Labels[apps.DefaultDaemonSetUniqueLabelKey]
	sites, err := c.sites(ctx, set)
	if err != nil {
		return err
	}
	if !c.expected.SatisfiedExpectations(klog.FromContext(ctx), key) {
		c.AddAfter(key, controller.ExpectationsTimeout+time.Second)
		// Without the generation: it has not been acted on.
		return c.writeStatus(ctx, set, sites, hash, set.Status.ObservedGeneration)
	}
	err = c.manage(ctx, key, set, sites, hash)
	if err == nil && c.expected.SatisfiedExpectations(klog.FromContext(ctx), key) {
		if set.Spec.UpdateStrategy.Type == apps.RollingUpdateDaemonSetStrategyType {
			err = c.rollingUpdate(ctx, key, set, sites, hash)
		}
		if err == nil {
			err = c.trimHistory(ctx, set, old)
		}
	}
	return errors.Join(err, c.writeStatus(ctx, set, sites, hash, set.Generation))
}

// site is one node as one DaemonSet sees it.
type site struct {
	name string
	node *v1.Node // nil: the node doesn't exist (any more)
	away bool
	run  bool // a pod should run here if there is none
	keep bool // a pod that runs here may stay
	pods []*v1.Pod
}

// sites returns all nodes, and those that don't exist but have pods, by name, with the set's pods on them. Pods that have
// ended and are being deleted are left out. Claiming of orphans happens here.
func (c *Controller) sites(ctx context.Context, set *apps.DaemonSet) ([]*site, error) {
	pods, err := c.claim(ctx, set)
	if err != nil {
		return nil, fmt.Errorf("claim pods: %w", err)
	}
	nodes, err := c.nodes.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	byName := make(map[string]*site, len(nodes))
	for _, node := range nodes {
		s := &site{name: node.Name, node: node, away: isAway(node)}
		seen := node
		if s.away {
			seen = withoutAwayTaints(node)
		}
		s.run, s.keep = daemon.NodeShouldRunDaemonPod(klog.FromContext(ctx), seen, set)
		byName[node.Name] = s
	}
	for _, pod := range pods {
		if podutil.IsPodTerminal(pod) && pod.DeletionTimestamp != nil {
			continue // held by a finalizer; nothing left to do for us
		}
		name, err := util.GetTargetNodeName(pod)
		if err != nil {
			continue
		}
		s := byName[name]
		if s == nil {
			s = &site{name: name}
			byName[name] = s
		}
		s.pods = append(s.pods, pod)
	}
	sites := make([]*site, 0, len(byName))
	for _, s := range byName {
		slices.SortFunc(s.pods, olderFirst)
		sites = append(sites, s)
	}
	slices.SortFunc(sites, func(a, b *site) int { return cmp.Compare(a.name, b.name) })
	return sites, nil
}

func (c *Controller) claim(ctx context.Context, set *apps.DaemonSet) ([]*v1.Pod, error) {
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil {
		return nil, err
	}
	pods, err := controller.FilterPodsByOwner(c.podIndex, &set.ObjectMeta, kind.Kind, true)
	if err != nil {
		return nil, err
	}
	return controller.NewPodControllerRefManager(c.pods, set, selector, kind, c.canAdopt(set)).ClaimPods(ctx, pods)
}

func (c *Controller) canAdopt(set *apps.DaemonSet) func(context.Context) error {
	return controller.RecheckDeletionTimestamp(func(ctx context.Context) (metav1.Object, error) {
		fresh, err := c.client.AppsV1().DaemonSets(set.Namespace).Get(ctx, set.Name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		if fresh.UID != set.UID {
			return nil, fmt.Errorf("original DaemonSet %s/%s is gone: got uid %s, wanted %s", set.Namespace, set.Name, fresh.UID, set.UID)
		}
		return fresh, nil
	})
}

// isAway reports whether a node is away, or has come back but for its taint.
func isAway(node *v1.Node) bool {
	return away.Node(node) || slices.ContainsFunc(node.Spec.Taints, func(t v1.Taint) bool { return t.Key == v1.TaintNodeUnreachable })
}

// withoutAwayTaints is the node as it would be if it weren't away.
func withoutAwayTaints(node *v1.Node) *v1.Node {
	seen := *node
	seen.Spec.Taints = nil
	for _, t := range node.Spec.Taints {
		if t.Key != v1.TaintNodeUnreachable && t.Key != v1.TaintNodeNotReady {
			seen.Spec.Taints = append(seen.Spec.Taints, t)
		}
	}
	return &seen
}

// olderFirst orders pods that have a node before those that have none, then by age.
func olderFirst(a, b *v1.Pod) int {
	if x, y := a.Spec.NodeName == "", b.Spec.NodeName == ""; x != y {
		if x {
			return 1
		}
		return -1
	}
	if n := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); n != 0 {
		return n
	}
	return cmp.Compare(a.Name, b.Name)
}

// sweep forgets back-offs that have run out.
func (c *Controller) sweep() {
	c.sweepMu.Lock()
	defer c.sweepMu.Unlock()
	if c.opts.Clock.Since(c.sweeping) > failedForget {
		c.sweeping = c.opts.Clock.Now()
		c.failed.GC()
	}
}
