package fleethub

import (
	"context"
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/api/localvolumes"
	"github.com/coracle-edge/coracle/controlplane/api/trace"
)

// podHandler keeps which pods are bound to which node.
type podHandler struct{ h *Hub }

func (p podHandler) OnAdd(obj any, _ bool) { p.change(nil, obj) }
func (p podHandler) OnUpdate(old, obj any) { p.change(old, obj) }
func (p podHandler) OnDelete(obj any) {
	if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = last.Obj
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok || pod.Spec.NodeName == "" {
		return
	}
	h := p.h
	h.see(revisionOf(pod.ResourceVersion))
	h.mu.Lock()
	if have := h.bound[pod.Spec.NodeName][podKey(pod)]; have != nil && have.UID == pod.UID {
		delete(h.bound[pod.Spec.NodeName], podKey(pod))
		if len(h.bound[pod.Spec.NodeName]) == 0 {
			delete(h.bound, pod.Spec.NodeName)
		}
	}
	h.mu.Unlock()
	if isMirror(pod) {
		h.repeatReport(pod.Spec.NodeName, pod.Annotations[annotationMirror])
		return
	}
	h.dirty(pod.Spec.NodeName)
}

func (p podHandler) change(old, obj any) {
	pod, ok := obj.(*corev1.Pod)
	if before, was := old.(*corev1.Pod); ok && was && before.UID != pod.UID {
		// A list after a gap in the watch: nobody saw that one pod went and another of
		// its name came, perhaps to another node.
		p.OnDelete(before)
		old = nil
	}
	if !ok || pod.Spec.NodeName == "" {
		return
	}
	h := p.h
	h.see(revisionOf(pod.ResourceVersion))
	if pod.Status.Phase == corev1.PodRunning {
		h.c.Trace.Record(string(pod.UID), trace.Event{Step: trace.Observed, Component: component, Time: h.c.Now()})
	}
	h.mu.Lock()
	pods := h.bound[pod.Spec.NodeName]
	if pods == nil {
		pods = map[types.NamespacedName]*corev1.Pod{}
		h.bound[pod.Spec.NodeName] = pods
	}
	pods[podKey(pod)] = pod
	n := h.nodes[pod.Spec.NodeName]
	h.mu.Unlock()
	if n != nil {
		n.caughtUp(pod)
	}
	if isMirror(pod) {
		if before, ok := old.(*corev1.Pod); pod.DeletionTimestamp != nil && (!ok || before.DeletionTimestamp == nil) {
			h.repeatReport(pod.Spec.NodeName, pod.Annotations[annotationMirror])
		}
		return
	}
	h.dirty(pod.Spec.NodeName)
}

// refHandler tells the nodes whose pods refer to an object.
type refHandler struct {
	h    *Hub
	kind string
}

func (r refHandler) OnAdd(obj any, _ bool) { r.OnUpdate(nil, obj) }
func (r refHandler) OnUpdate(_, obj any) {
	if pv, ok := obj.(*corev1.PersistentVolume); ok {
		r.h.release(pv, localvolumes.ToRemove(pv))
	}
	r.change(obj)
}
func (r refHandler) OnDelete(obj any) {
	if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = last.Obj
	}
	if pv, ok := obj.(*corev1.PersistentVolume); ok {
		r.h.release(pv, false)
	}
	r.change(obj)
}

func (r refHandler) change(obj any) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return
	}
	if secret, ok := obj.(*corev1.Secret); ok && secret.Namespace == Namespace && secret.Name == RecordName {
		r.h.seeRecord(secret)
	}
	r.h.changed(m.GetResourceVersion(), ref{r.kind, m.GetNamespace(), m.GetName()})
}

// release notes whether a volume's node is to remove its folder. The node gets such
// a volume although no pod of its leads there any more.
func (h *Hub) release(pv *corev1.PersistentVolume, released bool) {
	name, r := localvolumes.Node(pv), ref{kindVolume, "", pv.Name}
	if name == "" {
		return
	}
	h.mu.Lock()
	was := h.released[name][r]
	switch {
	case released && h.released[name] == nil:
		h.released[name] = map[ref]bool{r: true}
	case released:
		h.released[name][r] = true
	case was:
		if delete(h.released[name], r); len(h.released[name]) == 0 {
			delete(h.released, name)
		}
	}
	h.mu.Unlock()
	if was != released {
		h.dirty(name)
	}
}

// changed has what the nodes should have computed anew that use one of refs.
func (h *Hub) changed(revision string, refs ...ref) {
	h.see(revisionOf(revision))
	h.mu.Lock()
	names := map[string]bool{}
	for _, r := range refs {
		maps.Copy(names, h.users[r])
	}
	h.mu.Unlock()
	for name := range names {
		h.dirty(name)
	}
}

// nodeHandler makes peers of nodes that the API knows.
type nodeHandler struct{ h *Hub }

func (n nodeHandler) OnAdd(obj any, _ bool) {
	o, ok := obj.(*corev1.Node)
	if !ok {
		return
	}
	n.h.see(revisionOf(o.ResourceVersion))
	n.h.get(o.Name)
	if n.h.live.Load() {
		n.h.dirty(o.Name)
	}
}

func (n nodeHandler) OnUpdate(old, obj any) {
	o, ok := obj.(*corev1.Node)
	if !ok {
		return
	}
	n.h.see(revisionOf(o.ResourceVersion))
	before, ok := old.(*corev1.Node)
	if !ok || before.Labels[fleet.LabelLinkClass] != o.Labels[fleet.LabelLinkClass] ||
		before.Annotations[fleet.AnnotationDataBudget] != o.Annotations[fleet.AnnotationDataBudget] {
		n.h.work.Add(o.Name)
	}
	// Another hub, or this one a moment ago, wrote that it's away.
	if saidAway(o) {
		n.h.contradict(o.Name)
	}
}

func (n nodeHandler) OnDelete(obj any) {
	if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = last.Obj
	}
	if o, ok := obj.(*corev1.Node); ok {
		n.h.RecordChanged(o.Name) // of its Node, that is
	}
}

// contradict has the API say that a node is there, if it is: it says that it's away.
func (h *Hub) contradict(name string) {
	n := h.find(name)
	if n == nil {
		return
	}
	n.mu.Lock()
	n.contradict = true
	n.mu.Unlock()
	h.work.Add(name)
}

// seeRecord notices that another hub has begun, and tells all peers.
func (h *Hub) seeRecord(secret *corev1.Secret) {
	if !h.live.Load() {
		return // Run looks at it
	}
	r, err := readReign(secret)
	if err != nil || r.Number < h.reign.Number {
		return // of before this hub began: the number is raised with every one, whatever the incarnation
	}
	if r.Incarnation == h.reign.Incarnation && r.Number == h.reign.Number || h.deposed.Swap(true) {
		return
	}
	h.log.Error("another control plane has taken over: this one gives no orders any more", "epoch", h.reign.Number, "its", r.Number)
	h.mu.Lock()
	defer h.mu.Unlock()
	for name := range h.nodes {
		h.work.Add(name)
	}
}

// dirty has what a node should have computed anew.
func (h *Hub) dirty(name string) {
	n := h.find(name)
	if n == nil {
		return // computed when it says Hello
	}
	n.mu.Lock()
	n.stale = true
	n.mu.Unlock()
	h.work.Add(name)
}

// repeatReport asks a node for a report that it has given.
func (h *Hub) repeatReport(name, uid string) {
	n := h.find(name)
	if n == nil {
		return
	}
	n.mu.Lock()
	n.ask = append(n.ask, uid)
	n.mu.Unlock()
	h.work.Add(name)
}

// get returns a node's state and makes it if there is none.
func (h *Hub) get(name string) *node {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.nodes[name]
	if n == nil {
		n = newNode(name)
		h.nodes[name] = n
	}
	return n
}

// expect makes the peer of a node that the API knows, if it is one of ours.
func (h *Hub) expect(ctx context.Context, name string) {
	keys, err := h.c.Keys(ctx, name)
	if _, err = verifiable(keys, err); err != nil {
		h.log.Debug("node isn't ours", "node", name, "reason", err)
		return
	}
	n := h.get(name)
	n.mu.Lock()
	n.expected = true
	n.stale = true
	n.mu.Unlock()
	n.presence.Store(int32(Unsure))
	h.work.Add(name)
}

// compute says what a node should have. It runs on the node's worker.
func (h *Hub) compute(n *node) Desired {
	revision := h.revision.Load()
	if n.standing.removed() {
		h.reindex(n, nil)
		n.objects, n.revision = map[string]object{}, revision
		return Desired{}
	}
	h.mu.Lock()
	pods := make([]*corev1.Pod, 0, len(h.bound[n.name]))
	for _, pod := range h.bound[n.name] {
		if !isMirror(pod) {
			pods = append(pods, pod)
		}
	}
	refs := map[ref]bool{}
	maps.Copy(refs, h.released[n.name])
	h.mu.Unlock()
	objects := make(map[string]object, len(n.objects))
	add := func(o object, err error) {
		if err != nil {
			h.log.Error("object can't be ordered", "node", n.name, "error", err)
			return
		}
		objects[o.uid] = o
	}
	for _, pod := range pods {
		add(h.encoder.describe(ref{"Pod", pod.Namespace, pod.Name}, pod, pod, n.objects[string(pod.UID)]))
		maps.Copy(refs, references(pod))
		servicesOf(pod, refs)
	}
	// The index first: a change after this look is seen by the handler. What claims
	// lead to is looked up anew once it's in the index, until nothing is added.
	for known := -1; known != len(refs); {
		known = len(refs)
		h.reindex(n, maps.Clone(refs))
		h.storage.follow(n.name, refs)
	}
	for r := range refs {
		switch r.kind {
		case "ConfigMap":
			if o, err := h.mapLister.ConfigMaps(r.namespace).Get(r.name); err == nil {
				add(h.encoder.describe(r, o, o, n.objects[string(o.UID)]))
			}
		case "Secret":
			if o, err := h.secretList.Secrets(r.namespace).Get(r.name); err == nil {
				add(h.encoder.describe(r, o, o, n.objects[string(o.UID)]))
			}
		case kindService, kindServices:
			for _, o := range h.services(r) {
				add(h.encoder.describe(ref{kindService, o.Namespace, o.Name}, o, o, n.objects[string(o.UID)]))
			}
		case "RuntimeClass":
			if o, err := h.classLister.Get(r.name); err == nil {
				add(h.encoder.describe(r, o, o, n.objects[string(o.UID)]))
			}
		default:
			if o, ok := h.storage.get(r); ok {
				add(h.encoder.describe(r, o, o, n.objects[string(o.GetUID())]))
			}
		}
	}
	n.objects, n.revision = objects, revision
	desired := make(Desired, len(objects))
	for uid, o := range objects {
		desired[uid] = Item{Hash: o.hash, Size: o.size, Later: o.kind == "Pod"}
	}
	return desired
}

func (h *Hub) reindex(n *node, refs map[ref]bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for r := range n.refs {
		if !refs[r] {
			if delete(h.users[r], n.name); len(h.users[r]) == 0 {
				delete(h.users, r)
			}
		}
	}
	for r := range refs {
		if h.users[r] == nil {
			h.users[r] = map[string]bool{}
		}
		h.users[r][n.name] = true
	}
	n.refs = refs
}
