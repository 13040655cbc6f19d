package deployment

import (
	"context"
	"fmt"
	"reflect"

	apps "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/controller"
	"k8s.io/kubernetes/pkg/controller/deployment/util"

	"github.com/coracle-edge/coracle/controlplane/controllers/away"
	"github.com/coracle-edge/coracle/controlplane/controllers/reconciler"
)

var kind = apps.SchemeGroupVersion.WithKind("Deployment")

// Controller is the Deployment controller.
type Controller struct {
	*reconciler.Reconciler
	client      kubernetes.Interface
	opts        reconciler.Options
	deployments appslisters.DeploymentLister
	sets        appslisters.ReplicaSetLister
	podIndex    cache.Indexer
	nodes       away.Nodes
}

// New makes the controller and registers what it watches: Deployments, ReplicaSets, deletions of pods, and nodes going
// away and coming back. The factory must be started by the caller.
func New(client kubernetes.Interface, factory informers.SharedInformerFactory, opts reconciler.Options) (*Controller, error) {
	opts = opts.WithDefaults()
	pods, nodes := factory.Core().V1().Pods().Informer(), factory.Core().V1().Nodes()
	c := &Controller{
		client:      client,
		opts:        opts,
		deployments: factory.Apps().V1().Deployments().Lister(),
		sets:        factory.Apps().V1().ReplicaSets().Lister(),
		podIndex:    pods.GetIndexer(),
		nodes:       away.Nodes{Lister: nodes.Lister()},
	}
	c.Reconciler = reconciler.New("deployment", c.reconcile, opts, 0, 0)
	if err := controller.AddPodControllerIndexer(pods); err != nil {
		return nil, fmt.Errorf("deployment controller: index pods by owner: %w", err)
	}
	transitions, err := away.Transitions(pods, func(pod *v1.Pod) {
		if d := c.ofPod(pod); d != nil {
			c.Enqueue(d)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("deployment controller: %w", err)
	}
	for _, w := range []struct {
		informer cache.SharedIndexInformer
		handler  cache.ResourceEventHandler
	}{
		{factory.Apps().V1().Deployments().Informer(), c.Everything()},
		{factory.Apps().V1().ReplicaSets().Informer(), c.setEvents()},
		{pods, cache.ResourceEventHandlerFuncs{DeleteFunc: c.podGone}},
		{nodes.Informer(), transitions},
	} {
		if err := c.Watch(w.informer, w.handler); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// setEvents enqueues the Deployment that controls a changed ReplicaSet, and for an orphan those that select it.
func (c *Controller) setEvents() cache.ResourceEventHandler {
	ofOwner := func(set *apps.ReplicaSet) {
		if d := c.ofSet(set); d != nil {
			c.Enqueue(d)
		}
	}
	orphan := func(set *apps.ReplicaSet) {
		matching, _ := util.GetDeploymentsForReplicaSet(c.deployments, set)
		for _, d := range matching {
			c.Enqueue(d)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			set := obj.(*apps.ReplicaSet)
			if metav1.GetControllerOfNoCopy(set) != nil {
				ofOwner(set)
			} else if set.DeletionTimestamp == nil {
				orphan(set)
			}
		},
		UpdateFunc: func(oldObj, curObj any) {
			old, cur := oldObj.(*apps.ReplicaSet), curObj.(*apps.ReplicaSet)
			oldRef, curRef := metav1.GetControllerOfNoCopy(old), metav1.GetControllerOfNoCopy(cur)
			moved := !reflect.DeepEqual(oldRef, curRef)
			if moved {
				ofOwner(old)
			}
			if curRef != nil {
				ofOwner(cur)
			} else if moved || !reflect.DeepEqual(old.Labels, cur.Labels) {
				orphan(cur)
			}
		},
		DeleteFunc: func(obj any) {
			if tomb, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = tomb.Obj
			}
			if set, ok := obj.(*apps.ReplicaSet); ok {
				ofOwner(set)
			}
		},
	}
}

// podGone enqueues a Deployment that may be waiting for its last old pod to go.
func (c *Controller) podGone(obj any) {
	if tomb, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = tomb.Obj
	}
	if pod, ok := obj.(*v1.Pod); ok {
		if d := c.ofPod(pod); d != nil && d.Spec.Strategy.Type == apps.RecreateDeploymentStrategyType {
			c.Enqueue(d)
		}
	}
}

func (c *Controller) ofSet(set *apps.ReplicaSet) *apps.Deployment {
	ref := metav1.GetControllerOfNoCopy(set)
	if ref == nil || ref.Kind != kind.Kind {
		return nil
	}
	d, err := c.deployments.Deployments(set.Namespace).Get(ref.Name)
	if err != nil || d.UID != ref.UID {
		return nil
	}
	return d
}

func (c *Controller) ofPod(pod *v1.Pod) *apps.Deployment {
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref == nil || ref.Kind != "ReplicaSet" {
		return nil
	}
	set, err := c.sets.ReplicaSets(pod.Namespace).Get(ref.Name)
	if err != nil || set.UID != ref.UID {
		return nil
	}
	return c.ofSet(set)
}

func (c *Controller) reconcile(ctx context.Context, key string) error {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return nil
	}
	cached, err := c.deployments.Deployments(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	d := cached.DeepCopy()
	if reflect.DeepEqual(d.Spec.Selector, &metav1.LabelSelector{}) {
		c.opts.Recorder.Eventf(d, v1.EventTypeWarning, "SelectingAll", "This deployment is selecting all pods. A non-empty selector is required.")
		if d.Status.ObservedGeneration < d.Generation {
			d.Status.ObservedGeneration = d.Generation
			_, err = c.client.AppsV1().Deployments(namespace).UpdateStatus(ctx, d, metav1.UpdateOptions{})
		}
		return err
	}
	if err := c.roll(ctx, d); err != nil {
		return fmt.Errorf("Deployment %s: %w", key, err)
	}
	return nil
}

// roll takes d, a copy that it may change, one step towards its spec. Scaling comes before rolling out: a Deployment
// scaled in the middle of a rollout keeps its proportions.
func (c *Controller) roll(ctx context.Context, d *apps.Deployment) error {
	sets, err := c.claim(ctx, d)
	if err != nil {
		return fmt.Errorf("claim ReplicaSets: %w", err)
	}
	pods, err := c.podsOf(sets)
	if err != nil {
		return err
	}
	count := c.reckon(sets, pods)
	if d.DeletionTimestamp != nil {
		newSet, old, err := c.revisions(ctx, d, sets, false)
		if err != nil {
			return err
		}
		return c.writeStatus(ctx, d, calculateStatus(d, newSet, append(old, newSet), c.now()))
	}
	if err := c.notePause(ctx, d); err != nil {
		return err
	}
	if d.Spec.Paused {
		return c.scaleOnly(ctx, d, sets)
	}
	if rollbackTo(d) != nil {
		return c.rollback(ctx, d, sets)
	}
	scaling, err := c.isScaling(ctx, d, sets)
	if err != nil {
		return err
	}
	if scaling {
		return c.scaleOnly(ctx, d, sets)
	}
	switch d.Spec.Strategy.Type {
	case apps.RecreateDeploymentStrategyType:
		return c.recreate(ctx, d, sets, pods, count)
	case apps.RollingUpdateDeploymentStrategyType:
		return c.rollingUpdate(ctx, d, sets, count)
	}
	return fmt.Errorf("unexpected deployment strategy type: %s", d.Spec.Strategy.Type)
}

// claim returns the ReplicaSets of d, having adopted orphans that match and released those that no longer do.
func (c *Controller) claim(ctx context.Context, d *apps.Deployment) ([]*apps.ReplicaSet, error) {
	all, err := c.sets.ReplicaSets(d.Namespace).List(labels.Everything())
	if err != nil {
		return nil, err
	}
	selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil {
		return nil, fmt.Errorf("invalid label selector in spec.selector: %w", err)
	}
	canAdopt := controller.RecheckDeletionTimestamp(func(ctx context.Context) (metav1.Object, error) {
		fresh, err := c.client.AppsV1().Deployments(d.Namespace).Get(ctx, d.Name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		if fresh.UID != d.UID {
			return nil, fmt.Errorf("original Deployment %s/%s is gone: got uid %s, wanted %s", d.Namespace, d.Name, fresh.UID, d.UID)
		}
		return fresh, nil
	})
	control := controller.RealRSControl{KubeClient: c.client, Recorder: c.opts.Recorder}
	return controller.NewReplicaSetControllerRefManager(control, d, selector, kind, canAdopt).ClaimReplicaSets(ctx, all)
}

// podsOf returns the pods of each ReplicaSet, whatever their phase, those being deleted among them.
func (c *Controller) podsOf(sets []*apps.ReplicaSet) (map[types.UID][]*v1.Pod, error) {
	pods := make(map[types.UID][]*v1.Pod, len(sets))
	for _, set := range sets {
		owned, err := controller.FilterPodsByOwner(c.podIndex, &set.ObjectMeta, "ReplicaSet", false)
		if err != nil {
			return nil, err
		}
		pods[set.UID] = owned
	}
	return pods, nil
}

func (c *Controller) now() metav1.Time { return metav1.NewTime(c.opts.Clock.Now()) }
