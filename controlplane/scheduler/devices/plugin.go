package devices

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	resourcelisters "k8s.io/client-go/listers/resource/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/dynamic-resource-allocation/cel"
	"k8s.io/dynamic-resource-allocation/deviceclass/extendedresourcecache"
	"k8s.io/dynamic-resource-allocation/resourceslice/tracker"
	"k8s.io/klog/v2"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

const (
	// DefaultFilterTimeout is how long the allocator may look for devices for one
	// node (DynamicResourcesArgs.filterTimeout upstream).
	DefaultFilterTimeout = 10 * time.Second
	// DefaultBindingTimeout is how long a device may take to become ready for its
	// pod (DynamicResourcesArgs.bindingTimeout upstream).
	DefaultBindingTimeout = 10 * time.Minute
	// expressions is how many compiled CEL selectors are kept.
	expressions = 10
)

// Plugin is DynamicResources: it filters nodes by what devices the pod's claims can
// have there, prefers those that have the alternatives named first, reserves the
// devices, and writes their allocation before the pod is bound.
type Plugin struct {
	client         kubernetes.Interface
	factory        informers.SharedInformerFactory
	gates          Gates
	filterTimeout  time.Duration
	bindingTimeout time.Duration

	mu    sync.Mutex
	watch *watch              // nil before Watch
	kinds *classes            // nil before a pod asks for a class's devices
	have  *inventory          // nil before a pod has claims
	plans map[types.UID]*plan // of pods between Reserve and PostBind, by UID
}

// watch is what [Plugin.Watch] was given.
type watch struct {
	ctx   context.Context
	start func()
	tell  func(framework.Event)
	all   sync.WaitGroup // ends after ctx
}

// classes are the cluster's device classes.
type classes struct {
	resourcelisters.DeviceClassLister
	// byResource finds the class behind an extended resource.
	byResource *extendedresourcecache.ExtendedResourceCache
	known      chan struct{} // closed when all that exist are
}

// List is what the allocator wants to call.
func (c *classes) List() ([]*resourceapi.DeviceClass, error) {
	return c.DeviceClassLister.List(labels.Everything())
}

// inventory is what there is of devices and who has them.
type inventory struct {
	claims    *claims
	slices    *tracker.Tracker
	selectors *cel.Cache
	known     chan struct{} // closed when all that exist are
}

// New returns the plugin. It asks factory for informers only when a pod needs them.
func New(client kubernetes.Interface, factory informers.SharedInformerFactory, gates Gates) *Plugin {
	return &Plugin{
		client: client, factory: factory, gates: gates,
		filterTimeout: DefaultFilterTimeout, bindingTimeout: DefaultBindingTimeout,
		plans: map[types.UID]*plan{},
	}
}

func (*Plugin) Name() string { return "DynamicResources" }

// Watch keeps what is needed to watch classes, claims and slices later.
func (p *Plugin) Watch(ctx context.Context, start func(), tell func(framework.Event)) (stop func()) {
	w := &watch{ctx: ctx, start: start, tell: tell}
	p.mu.Lock()
	p.watch = w
	p.mu.Unlock()
	return func() {
		p.mu.Lock()
		p.watch, p.kinds, p.have = nil, nil, nil
		p.mu.Unlock()
		w.all.Wait()
	}
}

var errNotWatching = errors.New("devices: a pod was asked about before Watch")

// classes returns the device classes and whether all are known. The first call
// begins to watch them.
func (p *Plugin) classes() (*classes, bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kinds != nil {
		return p.kinds, closed(p.kinds.known), nil
	}
	if p.watch == nil {
		return nil, false, errNotWatching
	}
	w := p.watch
	kind := p.factory.Resource().V1().DeviceClasses()
	tell := func(obj any) {
		if class, ok := obj.(*resourceapi.DeviceClass); ok {
			w.tell(framework.Event{Kind: framework.ClassChanged, DeviceClass: class})
		}
	}
	c := &classes{DeviceClassLister: kind.Lister(), known: make(chan struct{})}
	c.byResource = extendedresourcecache.NewExtendedResourceCache(klog.Background(), cache.ResourceEventHandlerFuncs{
		AddFunc: tell, UpdateFunc: func(_, o any) { tell(o) },
	})
	w.follow(kind.Informer(), c.byResource, func() { close(c.known) })
	p.kinds = c
	return c, false, nil
}

// inventory returns what there is of devices and whether all is known. The first
// call begins to watch claims and slices.
func (p *Plugin) inventory() (*inventory, bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.have != nil {
		return p.have, closed(p.have.known), nil
	}
	if p.watch == nil {
		return nil, false, errNotWatching
	}
	w := p.watch
	v1kinds := p.factory.Resource().V1()
	slicesOf, err := tracker.StartTracker(w.ctx, tracker.Options{
		EnableDeviceTaintRules:   p.gates.TaintRules,
		EnableConsumableCapacity: p.gates.ConsumableCapacity,
		SliceInformer:            v1kinds.ResourceSlices(),
		TaintInformer:            p.factory.Resource().V1beta2().DeviceTaintRules(),
		ClassInformer:            v1kinds.DeviceClasses(),
		KubeClient:               p.client,
	})
	if err != nil {
		return nil, false, err
	}
	w.all.Go(func() {
		<-w.ctx.Done()
		slicesOf.Stop()
	})
	have := &inventory{
		claims: newClaims(v1kinds.ResourceClaims().Lister(), p.gates.ConsumableCapacity),
		slices: slicesOf,
		// Its compiler is a large thing: built by the first pod that may need it.
		selectors: cel.NewCache(expressions, cel.Features{
			EnableConsumableCapacity: p.gates.ConsumableCapacity, EnableListTypeAttributes: p.gates.ListTypeAttributes,
		}),
		known: make(chan struct{}),
	}
	var unknown atomic.Int32
	unknown.Store(2)
	known := func() {
		if unknown.Add(-1) == 0 {
			close(have.known)
		}
	}
	changed := func(any) { w.tell(framework.Event{Kind: framework.DevicesChanged}) }
	w.follow(v1kinds.ResourceClaims().Informer(), handleClaims(have.claims, w.tell), known)
	w.follow(slicesOf, cache.ResourceEventHandlerFuncs{AddFunc: changed, UpdateFunc: func(_, o any) { changed(o) }}, known)
	p.have = have
	return have, false, nil
}

// source is an informer, or what is derived from several.
type source interface {
	AddEventHandler(cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error)
}

// follow adds a handler until the watch ends, starts the informer, and calls known
// when the handler has been told of all that exists. It doesn't block.
func (w *watch) follow(from source, handler cache.ResourceEventHandler, known func()) {
	w.all.Go(func() {
		handle, err := from.AddEventHandler(handler)
		if err != nil {
			utilruntime.HandleErrorWithContext(w.ctx, err, "devices are not watched")
			return
		}
		w.start()
		select {
		case <-handle.HasSyncedChecker().Done():
			known()
			w.tell(framework.Event{Kind: framework.DevicesChanged})
		case <-w.ctx.Done():
		}
		<-w.ctx.Done()
		if informer, ok := from.(cache.SharedIndexInformer); ok {
			_ = informer.RemoveEventHandler(handle)
		}
	})
}

// handleClaims tells of claims after they are seen.
func handleClaims(s *claims, tell func(framework.Event)) cache.ResourceEventHandler {
	see := func(before, after *resourceapi.ResourceClaim) {
		s.seen(before, after)
		tell(framework.Event{Kind: framework.ClaimChanged, OldDevices: before, Devices: after})
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { see(nil, o.(*resourceapi.ResourceClaim)) },
		UpdateFunc: func(a, b any) { see(a.(*resourceapi.ResourceClaim), b.(*resourceapi.ResourceClaim)) },
		DeleteFunc: func(o any) {
			if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = gone.Obj
			}
			if c, ok := o.(*resourceapi.ResourceClaim); ok {
				see(c, nil)
			}
		},
	}
}

func closed(ch chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// Backs says whether a device class stands behind an extended resource, so that a
// node without the resource itself may still have it.
func (p *Plugin) Backs(name v1.ResourceName) bool {
	p.mu.Lock()
	c := p.kinds
	p.mu.Unlock()
	return c != nil && c.byResource.GetDeviceClass(name) != nil
}

// MayHelp follows upstream's hints.
func (p *Plugin) MayHelp(pod *framework.Pod, ev framework.Event) bool {
	switch ev.Kind {
	case framework.NodeChanged:
		return ev.OldNode == nil || !labels.Equals(ev.OldNode.Labels, ev.Node.Labels) ||
			!equality.Semantic.DeepEqual(ev.OldNode.Status.Allocatable, ev.Node.Status.Allocatable)
	case framework.ClassChanged, framework.DevicesChanged:
		return true
	case framework.PodChanged:
		_, err := p.claimsOf(pod)
		return err == nil
	case framework.PodLeft:
		// One that wasn't bound after all gives back what it was promised.
		return ev.OldPod == nil && asks(framework.NewPod(ev.Pod))
	case framework.ClaimChanged:
		return p.claimMayHelp(pod, ev.OldDevices, ev.Devices)
	}
	return false
}

func (p *Plugin) claimMayHelp(pod *framework.Pod, before, after *resourceapi.ResourceClaim) bool {
	own, err := p.claimsOf(pod)
	if err != nil {
		return false // another change is needed
	}
	if before != nil && before.Status.Allocation != nil && (after == nil || after.Status.Allocation == nil) {
		return true // devices are free again
	}
	if after == nil || !slices.ContainsFunc(own, func(c *resourceapi.ResourceClaim) bool { return c.UID == after.UID }) {
		return false
	}
	return before == nil || !equality.Semantic.DeepEqual(before.Status, after.Status)
}

// claimsOf is [claims.of] if claims are watched.
func (p *Plugin) claimsOf(pod *framework.Pod) ([]*resourceapi.ResourceClaim, error) {
	if len(pod.Spec.ResourceClaims) == 0 {
		return nil, nil
	}
	p.mu.Lock()
	have := p.have
	p.mu.Unlock()
	if have == nil {
		return nil, nil
	}
	return have.claims.of(pod.Pod)
}

func (p *Plugin) planOf(uid types.UID) *plan {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.plans[uid]
}

// takePlan returns the plan of a pod and forgets it.
func (p *Plugin) takePlan(uid types.UID) *plan {
	p.mu.Lock()
	defer p.mu.Unlock()
	pl := p.plans[uid]
	delete(p.plans, uid)
	return pl
}

// logged is for what can't be told otherwise. At the scheduler's end nothing is:
// its successor finds what was left.
func logged(ctx context.Context, err error, what string, pod *framework.Pod) {
	if err != nil && ctx.Err() == nil {
		utilruntime.HandleErrorWithContext(ctx, err, what, "pod", pod.Key())
	}
}
