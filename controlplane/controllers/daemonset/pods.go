package daemonset

import (
	"context"
	"fmt"

	apps "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/klog/v2"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/controller"
	"k8s.io/kubernetes/pkg/controller/daemon"
	"k8s.io/kubernetes/pkg/controller/daemon/util"

	"github.com/coracle-edge/coracle/controlplane/controllers/reconciler"
)

// manage brings every node to as many pods as it should have: one, or with surge at most an old and a new one.
func (c *Controller) manage(ctx context.Context, key string, set *apps.DaemonSet, sites []*site, hash string) error {
	var create []string
	var remove []*v1.Pod
	for _, s := range sites {
		switch {
		case s.node == nil:
			// Pod garbage collection deletes bound pods of a node that is gone, not those still waiting to be bound.
			for _, pod := range s.pods {
				if pod.Spec.NodeName == "" && pod.DeletionTimestamp == nil {
					remove = append(remove, pod)
				}
			}
		case !s.keep:
			for _, pod := range s.pods {
				if pod.DeletionTimestamp == nil {
					remove = append(remove, pod)
				}
			}
		case s.away:
		case s.run && len(s.pods) == 0:
			create = append(create, s.name)
		default:
			missing, excess := c.prune(key, set, s, hash)
			if missing && s.run {
				create = append(create, s.name)
			}
			remove = append(remove, excess...)
		}
	}
	return c.change(ctx, key, set, create, remove, hash)
}

// prune looks at a node that may keep its pod. It returns pods to delete: ended ones, and those that are too many; and,
// with surge, whether there is no pod left but some being deleted, so that a new one may be created beside these.
func (c *Controller) prune(key string, set *apps.DaemonSet, s *site, hash string) (missing bool, excess []*v1.Pod) {
	var running []*v1.Pod
	for _, pod := range s.pods {
		switch {
		case pod.DeletionTimestamp != nil:
		case pod.Status.Phase == v1.PodFailed:
			if c.mayRemoveFailed(key, set, s) {
				c.opts.Recorder.Eventf(set, v1.EventTypeWarning, daemon.FailedDaemonPodReason,
					"Found failed daemon pod %s/%s on node %s, will try to kill it", pod.Namespace, pod.Name, s.name)
				excess = append(excess, pod)
			}
		case pod.Status.Phase == v1.PodSucceeded:
			c.opts.Recorder.Eventf(set, v1.EventTypeNormal, daemon.SucceededDaemonPodReason,
				"Found succeeded daemon pod %s/%s on node %s, will try to delete it", pod.Namespace, pod.Name, s.name)
			excess = append(excess, pod)
		default:
			running = append(running, pod)
		}
	}
	if !util.AllowsSurge(set) {
		if len(running) > 1 {
			excess = append(excess, running[1:]...)
		}
		return false, excess
	}
	if len(running) <= 1 {
		return len(running) == 0, excess
	}
	// Two pods may stay: the oldest of this revision while it isn't available, and the oldest of another while it is ready.
	var current, other *v1.Pod
	for _, pod := range running {
		switch isCurrent := pod.Labels[apps.ControllerRevisionHashLabelKey] == hash; {
		case isCurrent && current == nil:
			current = pod
		case !isCurrent && other == nil:
			other = pod
		default:
			excess = append(excess, pod)
		}
	}
	if current != nil && other != nil && (!podutil.IsPodReady(other) || c.available(current, set)) {
		excess = append(excess, other)
	}
	return false, excess
}

// mayRemoveFailed paces the deletion of failed pods on a node.
func (c *Controller) mayRemoveFailed(key string, set *apps.DaemonSet, s *site) bool {
	id := fmt.Sprintf("%s/%d/%s", set.UID, set.Status.ObservedGeneration, s.name)
	now := c.opts.Clock.Now()
	if c.failed.IsInBackOffSinceUpdate(id, now) {
		c.AddAfter(key, c.failed.Get(id))
		return false
	}
	c.failed.Next(id, now)
	return true
}

func (c *Controller) available(pod *v1.Pod, set *apps.DaemonSet) bool {
	return podutil.IsPodAvailable(pod, set.Spec.MinReadySeconds, metav1.NewTime(c.opts.Clock.Now()))
}

// change creates a pod on each of the named nodes and deletes the given pods. Creating starts small, so that pods which
// will all be refused alike aren't all tried.
func (c *Controller) change(ctx context.Context, key string, set *apps.DaemonSet, create []string, remove []*v1.Pod, hash string) error {
	create, remove = create[:min(len(create), burst)], remove[:min(len(remove), burst)]
	if len(create)+len(remove) == 0 {
		return nil
	}
	logger := klog.FromContext(ctx)
	keys := make([]string, len(remove))
	for i, pod := range remove {
		keys[i] = controller.PodKey(pod)
	}
	_ = c.expected.ExpectDeletions(logger, key, keys)
	c.expected.RaiseExpectations(logger, key, len(create), 0)

	generation, err := util.GetTemplateGeneration(set)
	if err != nil {
		generation = nil // the hash identifies the template as well
	}
	template := util.CreatePodTemplate(set.Spec.Template, generation, hash)
	made, _, createErr := reconciler.SlowStart(len(create), func(i int) error {
		own := template.DeepCopy()
		// The scheduler binds it, and only to this node.
		own.Spec.Affinity = util.ReplaceDaemonSetPodNodeNameNodeAffinity(own.Spec.Affinity, create[i])
		err := c.pods.CreatePods(ctx, set.Namespace, own, set, metav1.NewControllerRef(set, kind))
		if err != nil {
			c.expected.CreationObserved(logger, key)
		}
		if apierrors.HasStatusCause(err, v1.NamespaceTerminatingCause) {
			return nil
		}
		return err
	})
	for range len(create) - made {
		c.expected.CreationObserved(logger, key) // never attempted
	}
	errs := reconciler.Parallel(len(remove), func(i int) error {
		err := c.pods.DeletePod(ctx, set.Namespace, remove[i].Name, set)
		if err != nil {
			c.expected.DeletionObserved(logger, key, keys[i])
			if apierrors.IsNotFound(err) {
				return nil
			}
		}
		return err
	})
	return utilerrors.NewAggregate(append(errs, createErr))
}
