package replicaset

import (
	"context"
	"fmt"
	"time"

	apps "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/controller"

	"github.com/coracle-edge/coracle/controlplane/controllers/reconciler"
)

// burst is the largest number of pods created or deleted in one pass, upstream's BurstReplicas. The rest follows when
// the informer has shown these.
const burst = 500

var kind = apps.SchemeGroupVersion.WithKind("ReplicaSet")

// Controller is the ReplicaSet controller.
type Controller struct {
	*reconciler.Reconciler
	client kubernetes.Interface
	opts   reconciler.Options
	pods   controller.PodControlInterface
	// expected holds, per ReplicaSet, what of our own creates and deletes the pod informer has not shown yet. Until it
	// has, no pods are created or deleted.
	expected *controller.UIDTrackingControllerExpectations
	sets     appslisters.ReplicaSetLister
	setIndex cache.Indexer
	podIndex cache.Indexer
}

// New makes the controller and registers what it watches: ReplicaSets and pods. The factory must be started by the caller.
func New(client kubernetes.Interface, factory informers.SharedInformerFactory, opts reconciler.Options) (*Controller, error) {
	opts = opts.WithDefaults()
	setInformer, podInformer := factory.Apps().V1().ReplicaSets(), factory.Core().V1().Pods()
	c := &Controller{
		client:   client,
		opts:     opts,
		pods:     controller.RealPodControl{KubeClient: client, Recorder: opts.Recorder},
		expected: controller.NewUIDTrackingControllerExpectations(controller.NewControllerExpectations()),
		sets:     setInformer.Lister(),
		setIndex: setInformer.Informer().GetIndexer(),
		podIndex: podInformer.Informer().GetIndexer(),
	}
	c.Reconciler = reconciler.New("replicaset", c.reconcile, opts, 0, 0)
	if err := controller.AddPodControllerIndexer(podInformer.Informer()); err != nil {
		return nil, fmt.Errorf("replicaset controller: index pods by owner: %w", err)
	}
	if err := addOwnerIndex(setInformer.Informer()); err != nil {
		return nil, fmt.Errorf("replicaset controller: index ReplicaSets by owner: %w", err)
	}
	if err := c.Watch(setInformer.Informer(), c.setEvents()); err != nil {
		return nil, err
	}
	if err := c.Watch(podInformer.Informer(), c.podEvents().Handler()); err != nil {
		return nil, err
	}
	return c, nil
}

// setEvents enqueues every ReplicaSet that changes. A set that was deleted and made anew under its name starts without
// the old one's expectations.
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
			if o, ok := old.(*apps.ReplicaSet); ok && o.UID != cur.(*apps.ReplicaSet).UID {
				forget(o)
			}
			c.Enqueue(cur)
		},
		DeleteFunc: forget,
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
			sets, err := c.sets.GetPodReplicaSets(pod)
			if err != nil {
				return // none selects it
			}
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
		Changed: func(key string, _, _ *v1.Pod) { c.Add(key) },
	}
}

func (c *Controller) owner(namespace string, ref *metav1.OwnerReference) (*apps.ReplicaSet, bool) {
	if ref.Kind != kind.Kind {
		return nil, false
	}
	set, err := c.sets.ReplicaSets(namespace).Get(ref.Name)
	if err != nil || set.UID != ref.UID {
		return nil, false
	}
	return set, true
}

func (c *Controller) reconcile(ctx context.Context, key string) error {
	logger := klog.FromContext(ctx)
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return nil
	}
	set, err := c.sets.ReplicaSets(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		c.expected.DeleteExpectations(logger, key)
		return nil
	}
	if err != nil {
		return err
	}
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil {
		c.opts.Logger.Error("ReplicaSet has an invalid selector and is left alone; correct spec.selector", "replicaset", key, "error", err)
		return nil
	}
	// Before the pods are read: what is observed from here on is in the list.
	settled := c.expected.SatisfiedExpectations(logger, key)
	related, err := controller.FilterPodsByOwner(c.podIndex, &set.ObjectMeta, kind.Kind, true)
	if err != nil {
		return err
	}
	active, err := c.claim(ctx, set, selector, controller.FilterActivePods(logger, related))
	if err != nil {
		return fmt.Errorf("ReplicaSet %s: claim pods: %w", key, err)
	}
	terminating := controller.FilterClaimedPods(set, selector, controller.FilterTerminatingPods(related))

	var manageErr error
	if set.DeletionTimestamp == nil {
		if settled {
			manageErr = c.manage(ctx, key, set, active)
		} else {
			// Should an event never come, look again when the expectation has run out.
			c.AddAfter(key, controller.ExpectationsTimeout+time.Second)
		}
	}
	now := c.opts.Clock.Now()
	updated, err := c.updateStatus(ctx, set, status(set, active, terminating, manageErr, now))
	if err != nil {
		return fmt.Errorf("ReplicaSet %s: update status: %w", key, err)
	}
	if manageErr != nil {
		return fmt.Errorf("ReplicaSet %s: %w", key, manageErr)
	}
	if updated.Spec.MinReadySeconds > 0 && updated.Status.ReadyReplicas != updated.Status.AvailableReplicas {
		next := time.Duration(updated.Spec.MinReadySeconds) * time.Second
		if check := controller.FindMinNextPodAvailabilityCheck(active, updated.Spec.MinReadySeconds, now, c.opts.Clock); check != nil {
			next = *check
		}
		c.AddAfter(key, next)
	}
	return nil
}

// claim adopts orphans that match and releases own pods that no longer do.
func (c *Controller) claim(ctx context.Context, set *apps.ReplicaSet, selector labels.Selector, pods []*v1.Pod) ([]*v1.Pod, error) {
	canAdopt := controller.RecheckDeletionTimestamp(func(ctx context.Context) (metav1.Object, error) {
		fresh, err := c.client.AppsV1().ReplicaSets(set.Namespace).Get(ctx, set.Name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		if fresh.UID != set.UID {
			return nil, fmt.Errorf("original ReplicaSet %s/%s is gone: got uid %s, wanted %s", set.Namespace, set.Name, fresh.UID, set.UID)
		}
		return fresh, nil
	})
	return controller.NewPodControllerRefManager(c.pods, set, selector, kind, canAdopt).ClaimPods(ctx, pods)
}

// manage creates or deletes as many pods as the number of active ones is off.
func (c *Controller) manage(ctx context.Context, key string, set *apps.ReplicaSet, active []*v1.Pod) error {
	logger := klog.FromContext(ctx)
	switch diff := len(active) - int(*set.Spec.Replicas); {
	case diff < 0:
		want := min(-diff, burst)
		_ = c.expected.ExpectCreations(logger, key, want)
		made, _, err := reconciler.SlowStart(want, func(int) error {
			err := c.pods.CreatePods(ctx, set.Namespace, &set.Spec.Template, set, metav1.NewControllerRef(set, kind))
			if err != nil {
				c.expected.CreationObserved(logger, key)
			}
			if apierrors.HasStatusCause(err, v1.NamespaceTerminatingCause) {
				return nil
			}
			return err
		})
		for range want - made {
			c.expected.CreationObserved(logger, key) // never attempted
		}
		return err
	case diff > 0:
		victims := chooseVictims(active, c.siblings(set), min(diff, burst), c.opts.Clock.Now())
		keys := make([]string, len(victims))
		for i, pod := range victims {
			keys[i] = controller.PodKey(pod)
		}
		_ = c.expected.ExpectDeletions(logger, key, keys)
		errs := reconciler.Parallel(len(victims), func(i int) error {
			err := c.pods.DeletePod(ctx, set.Namespace, victims[i].Name, set)
			if err != nil {
				c.expected.DeletionObserved(logger, key, keys[i])
				if apierrors.IsNotFound(err) {
					return nil
				}
			}
			return err
		})
		if len(errs) > 0 {
			return errs[0]
		}
	}
	return nil
}

// siblings returns the pods of all ReplicaSets that have the same controller as set: during a rollout the old and the
// new pods of a Deployment. Scale-down spreads over them.
func (c *Controller) siblings(set *apps.ReplicaSet) []*v1.Pod {
	ref := metav1.GetControllerOfNoCopy(set)
	if ref == nil {
		return nil
	}
	objs, err := c.setIndex.ByIndex(ownerIndex, string(ref.UID))
	if err != nil {
		return nil
	}
	var pods []*v1.Pod
	for _, obj := range objs {
		sibling, ok := obj.(*apps.ReplicaSet)
		if !ok {
			continue
		}
		owned, err := controller.FilterPodsByOwner(c.podIndex, &sibling.ObjectMeta, kind.Kind, false)
		if err == nil {
			pods = append(pods, owned...)
		}
	}
	return pods
}

// ownerIndex is the name of upstream's index of ReplicaSets by their controller's UID.
const ownerIndex = "controllerUID"

func addOwnerIndex(informer cache.SharedIndexInformer) error {
	if _, ok := informer.GetIndexer().GetIndexers()[ownerIndex]; ok {
		return nil
	}
	return informer.AddIndexers(cache.Indexers{ownerIndex: func(obj any) ([]string, error) {
		set, ok := obj.(*apps.ReplicaSet)
		if !ok {
			return nil, nil
		}
		if ref := metav1.GetControllerOfNoCopy(set); ref != nil {
			return []string{string(ref.UID)}, nil
		}
		return nil, nil
	}})
}

// isReady is upstream's notion of a ready pod.
func isReady(pod *v1.Pod) bool { return podutil.IsPodReady(pod) }
