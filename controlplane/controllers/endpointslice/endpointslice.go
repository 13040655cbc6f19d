package endpointslice

import (
	"context"
	"errors"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
	slices "k8s.io/endpointslice"
	"k8s.io/endpointslice/topologycache"
	sliceutil "k8s.io/endpointslice/util"
	"k8s.io/klog/v2"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"

	"github.com/coracle-edge/coracle/controlplane/controllers/away"
	"github.com/coracle-edge/coracle/controlplane/controllers/reconciler"
)

const (
	// ManagedBy is the value of label endpointslice.kubernetes.io/managed-by, upstream's, by which everybody knows the
	// slices of Services.
	ManagedBy = "endpointslice-controller.k8s.io"
	// perSlice is how many endpoints a slice holds, upstream's default.
	perSlice = 100
	// sliceDelay gathers changes that somebody else made to slices.
	sliceDelay = time.Second
	// Back-off of a Service whose slices could not be written.
	minBackoff, maxBackoff = time.Second, 1000 * time.Second
)

// errStale is returned when the informer doesn't show our last write yet.
var errStale = errors.New("EndpointSlice informer cache is out of date")

// Controller is the EndpointSlice controller; its keys are Services.
type Controller struct {
	*reconciler.Reconciler
	opts     reconciler.Options
	services corelisters.ServiceLister
	pods     corelisters.PodLister
	slices   discoverylisters.EndpointSliceLister
	nodes    corelisters.NodeLister

	writer   *slices.Reconciler
	written  *sliceutil.EndpointSliceTracker // generations of our last writes
	triggers *sliceutil.TriggerTimeTracker
	topology *topologycache.TopologyCache
}

// New makes the controller and registers what it watches: Services, pods, EndpointSlices and nodes. The factory must be
// started by the caller.
func New(client kubernetes.Interface, factory informers.SharedInformerFactory, opts reconciler.Options) (*Controller, error) {
	opts = opts.WithDefaults()
	core, sliceInformer := factory.Core().V1(), factory.Discovery().V1().EndpointSlices()
	c := &Controller{
		opts:     opts,
		services: core.Services().Lister(),
		pods:     core.Pods().Lister(),
		slices:   sliceInformer.Lister(),
		nodes:    core.Nodes().Lister(),
		written:  sliceutil.NewEndpointSliceTracker(),
		triggers: sliceutil.NewTriggerTimeTracker(),
		topology: topologycache.NewTopologyCache(),
	}
	c.writer = slices.NewReconciler(client, c.nodes, perSlice, c.written, c.topology, opts.Recorder, ManagedBy,
		slices.WithPreferSameTrafficDistributionEnabled(true))
	c.Reconciler = reconciler.New("endpointslice", c.reconcile, opts, minBackoff, maxBackoff)
	transitions, err := away.Transitions(core.Pods().Informer(), func(pod *v1.Pod) { c.podChanged(nil, pod) })
	if err != nil {
		return nil, fmt.Errorf("endpointslice controller: %w", err)
	}
	for _, w := range []struct {
		informer cache.SharedIndexInformer
		handler  cache.ResourceEventHandler
	}{
		{core.Services().Informer(), c.Everything()},
		{core.Pods().Informer(), cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { c.podChanged(nil, obj) },
			UpdateFunc: c.podChanged,
			DeleteFunc: func(obj any) { c.podChanged(obj, nil) },
		}},
		{sliceInformer.Informer(), c.sliceEvents()},
		{core.Nodes().Informer(), both{transitions, c.topologyEvents()}},
	} {
		if err := c.Watch(w.informer, w.handler); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// podChanged enqueues the Services that select the pod, or selected it before.
func (c *Controller) podChanged(old, cur any) {
	key := sliceutil.GetPodUpdateProjectionKey(old, cur)
	if key == nil {
		return
	}
	services, err := sliceutil.GetServicesToUpdate(c.services, key)
	if err != nil {
		c.opts.Logger.Warn("can't tell which Services select a pod", "namespace", key.Namespace, "error", err)
		return
	}
	for service := range services {
		c.Add(service)
	}
}

// sliceEvents enqueues the Service of a slice of ours that somebody else changed or deleted.
func (c *Controller) sliceEvents() cache.ResourceEventHandler {
	enqueue := func(slice *discovery.EndpointSlice) {
		if key, err := slices.ServiceControllerKey(slice); err == nil {
			c.AddAfter(key, sliceDelay)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			slice := obj.(*discovery.EndpointSlice)
			if c.writer.ManagedByController(slice) && c.written.ShouldSync(slice) {
				enqueue(slice)
			}
		},
		UpdateFunc: func(oldObj, curObj any) {
			old, cur := oldObj.(*discovery.EndpointSlice), curObj.(*discovery.EndpointSlice)
			switch {
			case old.Labels[discovery.LabelServiceName] != cur.Labels[discovery.LabelServiceName]:
				enqueue(old)
				enqueue(cur)
			case c.writer.ManagedByChanged(old, cur), c.writer.ManagedByController(cur) && c.written.ShouldSync(cur):
				enqueue(cur)
			}
		},
		DeleteFunc: func(obj any) {
			if tomb, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = tomb.Obj
			}
			slice, ok := obj.(*discovery.EndpointSlice)
			if ok && c.writer.ManagedByController(slice) && c.written.Has(slice) && !c.written.HandleDeletion(slice) {
				enqueue(slice)
			}
		},
	}
}

// topologyEvents tells the cache behind topology hints which nodes are there, and enqueues Services whose hints no longer
// fit. It matters only to Services with the annotation service.kubernetes.io/topology-mode.
func (c *Controller) topologyEvents() cache.ResourceEventHandler {
	refresh := func() {
		nodes, err := c.nodes.List(labels.Everything())
		if err != nil {
			return
		}
		c.topology.SetNodes(klog.Background(), nodes)
		for _, key := range c.topology.GetOverloadedServices() {
			c.Add(key)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			if obj.(*v1.Node).Labels[v1.LabelTopologyZone] != "" {
				refresh()
			}
		},
		UpdateFunc: func(oldObj, curObj any) {
			old, cur := oldObj.(*v1.Node), curObj.(*v1.Node)
			zone := cur.Labels[v1.LabelTopologyZone]
			if old.Labels[v1.LabelTopologyZone] != zone || zone != "" && ready(old) != ready(cur) {
				refresh()
			}
		},
		DeleteFunc: func(obj any) {
			if node, ok := obj.(*v1.Node); !ok || node.Labels[v1.LabelTopologyZone] != "" {
				refresh()
			}
		},
	}
}

// both is two handlers in one: each that an informer has costs a queue and two goroutines.
type both [2]cache.ResourceEventHandler

func (b both) OnAdd(obj any, initial bool) { b[0].OnAdd(obj, initial); b[1].OnAdd(obj, initial) }
func (b both) OnUpdate(old, cur any)       { b[0].OnUpdate(old, cur); b[1].OnUpdate(old, cur) }
func (b both) OnDelete(obj any)            { b[0].OnDelete(obj); b[1].OnDelete(obj) }

func ready(node *v1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == v1.NodeReady {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}

func (c *Controller) reconcile(ctx context.Context, key string) error {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return nil
	}
	service, err := c.services.Services(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		c.triggers.DeleteService(namespace, name)
		c.writer.DeleteService(namespace, name)
		c.written.DeleteService(namespace, name)
		return nil // its slices are garbage collected
	}
	if err != nil {
		return err
	}
	if service.Spec.Type == v1.ServiceTypeExternalName || service.Spec.Selector == nil {
		return nil // whoever made it makes its slices
	}
	pods, err := c.pods.Pods(namespace).List(labels.Set(service.Spec.Selector).AsSelectorPreValidated())
	if err != nil {
		return err
	}
	existing, err := c.slices.EndpointSlices(namespace).List(labels.Set{
		discovery.LabelServiceName: name, discovery.LabelManagedBy: ManagedBy,
	}.AsSelectorPreValidated())
	if err != nil {
		return err
	}
	live := existing[:0]
	for _, slice := range existing {
		if slice.DeletionTimestamp == nil {
			live = append(live, slice)
		}
	}
	if c.written.StaleSlices(service, live) {
		return fmt.Errorf("Service %s: %w", key, errStale)
	}
	trigger := c.triggers.ComputeEndpointLastChangeTriggerTime(namespace, service, pods)
	if err := c.writer.Reconcile(klog.FromContext(ctx), service, c.asHeard(pods), live, trigger); err != nil {
		c.opts.Recorder.Eventf(service, v1.EventTypeWarning, "FailedToUpdateEndpointSlices",
			"Error updating Endpoint Slices for Service %s/%s: %v", namespace, name, err)
		return fmt.Errorf("Service %s: %w", key, err)
	}
	return nil
}

// asHeard returns the pods with those of away nodes as not ready. The given ones are the informer's and stay as they are.
func (c *Controller) asHeard(pods []*v1.Pod) []*v1.Pod {
	gone := away.Nodes{Lister: c.nodes}
	out := make([]*v1.Pod, len(pods))
	for i, pod := range pods {
		out[i] = pod
		if !podutil.IsPodReady(pod) || !gone.HasPod(pod) {
			continue
		}
		unready := *pod
		unready.Status.Conditions = append([]v1.PodCondition(nil), pod.Status.Conditions...)
		for j := range unready.Status.Conditions {
			if cond := &unready.Status.Conditions[j]; cond.Type == v1.PodReady {
				cond.Status = v1.ConditionFalse
			}
		}
		out[i] = &unready
	}
	return out
}
