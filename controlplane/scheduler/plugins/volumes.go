package plugins

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/component-helpers/storage/volume"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// ErrVolumesTakenBack is returned by PreBind when what was chosen for a claim
// was undone, such as by a provisioner that has no room on the node.
var ErrVolumesTakenBack = errors.New("the node chosen for a claim was taken back")

// DefaultVolumeWait is how long PreBind waits for claims to be bound.
const DefaultVolumeWait = 10 * time.Minute

// volumePoll is how often PreBind looks at claims in the informer's cache while
// it waits: in memory only.
const volumePoll = 200 * time.Millisecond

// Volumes refuses nodes that a pod's bound volumes can't be reached from, and
// for claims that wait for their first consumer finds a volume, or a class that
// makes one, for the node. Once the node is chosen it tells the volume
// controllers by the claim's selected-node annotation or the volume's claimRef,
// and waits for them before the pod is bound. A claim that only one pod at a
// time may use is given to one.
type Volumes struct {
	client  kubernetes.Interface
	claims  corelisters.PersistentVolumeClaimLister
	volumes corelisters.PersistentVolumeLister
	classes storagelisters.StorageClassLister
	room    capacities
	wait    time.Duration

	mu     sync.Mutex
	chosen map[string]*choice // by pod UID
}

// choice is what Reserve chose for a pod.
type choice struct {
	static  map[string]*v1.PersistentVolume // volume by claim's key
	dynamic []string                        // keys of claims to be provisioned
	seen    map[string]bool                 // keys of claims whose selected node was seen; used by PreBind only
}

// NewVolumes returns the plugin.
func NewVolumes(client kubernetes.Interface, factory informers.SharedInformerFactory) *Volumes {
	core := factory.Core().V1()
	return &Volumes{
		client:  client,
		claims:  core.PersistentVolumeClaims().Lister(),
		volumes: core.PersistentVolumes().Lister(),
		classes: factory.Storage().V1().StorageClasses().Lister(),
		room:    capacities{factory.Storage().V1().CSIDrivers().Lister(), factory.Storage().V1().CSIStorageCapacities().Lister()},
		wait:    DefaultVolumeWait,
		chosen:  map[string]*choice{},
	}
}

func (*Volumes) Name() string { return "VolumeBinding" }

// claimNames returns the claims that a pod's volumes name.
func claimNames(pod *v1.Pod) (names []string) {
	for i := range pod.Spec.Volumes {
		vol := &pod.Spec.Volumes[i]
		switch {
		case vol.PersistentVolumeClaim != nil:
			names = append(names, vol.PersistentVolumeClaim.ClaimName)
		case vol.Ephemeral != nil:
			names = append(names, pod.Name+"-"+vol.Name)
		}
	}
	return names
}

// volumeState is what a pod's claims ask for.
type volumeState struct {
	*Volumes
	bound   []*v1.PersistentVolume
	waiting []*v1.PersistentVolumeClaim // for the pod's node, smallest first
	free    []*v1.PersistentVolume      // volumes not promised to others
	oneUser map[string]bool             // names of ReadWriteOncePod claims
	taken   bool                        // one of them has its user
}

func (p *Volumes) PrepareFilter(_ context.Context, pod *framework.Pod, cluster *framework.Cluster) (framework.Filter, *framework.Status) {
	names := claimNames(pod.Pod)
	if len(names) == 0 {
		return nil, nil
	}
	s := &volumeState{Volumes: p, oneUser: map[string]bool{}}
	for _, name := range names {
		if status := s.claim(pod, name); status != nil {
			return nil, status
		}
	}
	s.taken = s.inUse(pod, cluster)
	if len(s.waiting) > 0 {
		slices.SortFunc(s.waiting, func(a, b *v1.PersistentVolumeClaim) int {
			x, y := a.Spec.Resources.Requests[v1.ResourceStorage], b.Spec.Resources.Requests[v1.ResourceStorage]
			return x.Cmp(y)
		})
		s.free = p.free(string(pod.UID))
	}
	return s, nil
}

// claim sorts one claim into the state, or refuses the pod everywhere for it.
func (s *volumeState) claim(pod *framework.Pod, name string) *framework.Status {
	claim, err := s.claims.PersistentVolumeClaims(pod.Namespace).Get(name)
	switch {
	case apierrors.IsNotFound(err):
		if ephemeral(pod.Pod, name) {
			return framework.Exclude(fmt.Sprintf("waiting for ephemeral volume controller to create the persistentvolumeclaim %q", name))
		}
		return framework.Exclude(fmt.Sprintf("persistentvolumeclaim %q not found", name))
	case err != nil:
		return framework.Fail(fmt.Errorf("persistentvolumeclaim %q: %w", name, err))
	case ephemeral(pod.Pod, name) && !metav1.IsControlledBy(claim, pod):
		return framework.Exclude(fmt.Sprintf("PVC %s/%s was not created for pod %s (pod is not owner)", claim.Namespace, claim.Name, pod.Key()))
	case claim.DeletionTimestamp != nil:
		return framework.Exclude(fmt.Sprintf("persistentvolumeclaim %q is being deleted", name))
	case claim.Status.Phase == v1.ClaimLost:
		return framework.Exclude(fmt.Sprintf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, claim.Spec.VolumeName))
	}
	if slices.Contains(claim.Spec.AccessModes, v1.ReadWriteOncePod) {
		s.oneUser[name] = true
	}
	if claim.Spec.VolumeName != "" {
		if !fullyBound(claim) {
			return framework.Exclude("pod has unbound immediate PersistentVolumeClaims")
		}
		v, err := s.volumes.Get(claim.Spec.VolumeName)
		if apierrors.IsNotFound(err) {
			return framework.Exclude("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)")
		}
		if err != nil {
			return framework.Fail(fmt.Errorf("persistentvolume %q: %w", claim.Spec.VolumeName, err))
		}
		s.bound = append(s.bound, v)
		return nil
	}
	delayed, err := volume.IsDelayBindingMode(claim, s.classes)
	if err != nil {
		return framework.Exclude(fmt.Sprintf("persistentvolumeclaim %q: %v", name, err))
	}
	if !delayed {
		return framework.Exclude("pod has unbound immediate PersistentVolumeClaims")
	}
	s.waiting = append(s.waiting, claim)
	return nil
}

// inUse says whether another pod uses a claim that only one may use.
func (s *volumeState) inUse(pod *framework.Pod, cluster *framework.Cluster) bool {
	if len(s.oneUser) == 0 || cluster == nil {
		return false
	}
	uses := func(other *framework.Pod) bool {
		return other.Namespace == pod.Namespace && other.UID != pod.UID &&
			slices.ContainsFunc(claimNames(other.Pod), func(name string) bool { return s.oneUser[name] })
	}
	for _, n := range cluster.Nodes {
		if slices.ContainsFunc(n.Pods, uses) {
			return true
		}
	}
	// Who has made the user leave is the next one; without that, whoever asks first on
	// another node would have it, and be made to leave in turn.
	return slices.ContainsFunc(cluster.Nominated, uses)
}

// Filter is that of a cluster of one node.
func (p *Volumes) Filter(ctx context.Context, pod *framework.Pod, node *framework.NodeInfo) *framework.Status {
	f, status := p.PrepareFilter(ctx, pod, framework.NewCluster([]*framework.NodeInfo{node}, nil))
	if status != nil || f == nil {
		return status
	}
	return f.Filter(ctx, pod, node)
}

func (s *volumeState) Filter(_ context.Context, _ *framework.Pod, node *framework.NodeInfo) *framework.Status {
	// Of each node and not of all at once: preemption asks again without the user, node
	// by node (upstream: volumerestrictions).
	if s.taken {
		return framework.Refuse("node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod")
	}
	for _, v := range s.bound {
		if err := volume.CheckNodeAffinity(v, node.Node.Labels); err != nil {
			return framework.Exclude("node(s) didn't match PersistentVolume's node affinity")
		}
	}
	_, status := s.choose(node.Node)
	return status
}

// choose finds volumes or classes for the claims that wait.
func (s *volumeState) choose(node *v1.Node) (*choice, *framework.Status) {
	const none = "node(s) didn't find available persistent volumes to bind"
	c := &choice{static: map[string]*v1.PersistentVolume{}, seen: map[string]bool{}}
	taken := map[string]*v1.PersistentVolume{}
	for _, claim := range s.waiting {
		key := claim.Namespace + "/" + claim.Name
		// A provisioner is at work for a node: no volume that exists is looked for.
		if selected := claim.Annotations[volume.AnnSelectedNode]; selected != "" {
			if selected != node.Name {
				return nil, framework.Exclude(none)
			}
			c.dynamic = append(c.dynamic, key)
			continue
		}
		v, err := volume.FindMatchingVolume(claim, s.free, node, taken, true, true)
		if err != nil {
			return nil, framework.Fail(fmt.Errorf("persistentvolumeclaim %q: %w", key, err))
		}
		if v != nil {
			taken[v.Name] = v
			c.static[key] = v
			continue
		}
		class, err := s.classes.Get(volume.GetPersistentVolumeClaimClass(claim))
		if err != nil || class.Provisioner == "" || class.Provisioner == volume.NotSupportedProvisioner || !allows(class, node) {
			return nil, framework.Exclude(none)
		}
		enough, err := s.room.enough(claim, class, node)
		if err != nil {
			return nil, framework.Fail(fmt.Errorf("persistentvolumeclaim %q: %w", key, err))
		}
		if !enough {
			return nil, framework.Exclude("node(s) did not have enough free storage")
		}
		c.dynamic = append(c.dynamic, key)
	}
	return c, nil
}

// allows says whether the class makes volumes for the node's topology.
func allows(class *storagev1.StorageClass, node *v1.Node) bool {
	if len(class.AllowedTopologies) == 0 {
		return true
	}
	for _, term := range class.AllowedTopologies {
		ok := true
		for _, e := range term.MatchLabelExpressions {
			ok = ok && slices.Contains(e.Values, node.Labels[e.Key])
		}
		if ok {
			return true
		}
	}
	return false
}

// free returns the volumes that aren't promised to a pod other than uid.
func (p *Volumes) free(uid string) []*v1.PersistentVolume {
	all, err := p.volumes.List(labels.Everything())
	if err != nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	promised := map[string]bool{}
	for other, c := range p.chosen {
		if other != uid {
			for _, v := range c.static {
				promised[v.Name] = true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(v *v1.PersistentVolume) bool { return promised[v.Name] })
}

// Reserve promises volumes to the pod.
func (p *Volumes) Reserve(ctx context.Context, pod *framework.Pod, node *framework.NodeInfo) *framework.Status {
	f, status := p.PrepareFilter(ctx, pod, nil)
	if status != nil || f == nil {
		return status
	}
	c, status := f.(*volumeState).choose(node.Node)
	if status != nil || len(c.static)+len(c.dynamic) == 0 {
		return status
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.chosen[string(pod.UID)] = c
	return nil
}

// Unreserve takes the promise back. What was written stays: another try finds it.
func (p *Volumes) Unreserve(_ context.Context, pod *framework.Pod, _ string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.chosen, string(pod.UID))
}

// Waits says that PreBind may take long.
func (p *Volumes) Waits(pod *framework.Pod) bool { return p.choice(pod) != nil }

func (p *Volumes) choice(pod *framework.Pod) *choice {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.chosen[string(pod.UID)]
}

// PreBind writes the choice and waits until the volume controllers have bound
// every claim.
func (p *Volumes) PreBind(ctx context.Context, pod *framework.Pod, node string) error {
	c := p.choice(pod)
	if c == nil {
		return nil
	}
	for _, name := range claimNames(pod.Pod) {
		key := pod.Namespace + "/" + name
		if err := p.write(ctx, pod.Namespace, name, c.static[key], slices.Contains(c.dynamic, key), node); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, p.wait, fmt.Errorf("claims not bound after %v", p.wait))
	defer cancel()
	for {
		done, err := p.allBound(pod, c, node)
		if err != nil {
			return err
		}
		if done {
			// Bound claims no longer wait, so the promise is kept by them.
			p.Unreserve(ctx, pod, node)
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(volumePoll):
		}
	}
}

func (p *Volumes) write(ctx context.Context, namespace, name string, v *v1.PersistentVolume, provision bool, node string) error {
	if v == nil && !provision {
		return nil
	}
	claim, err := p.claims.PersistentVolumeClaims(namespace).Get(name)
	if err != nil {
		return fmt.Errorf("persistentvolumeclaim %s/%s: %w", namespace, name, err)
	}
	if v != nil {
		changed, dirty, err := volume.GetBindVolumeToClaim(v, claim)
		if err != nil || !dirty {
			return err
		}
		if _, err := p.client.CoreV1().PersistentVolumes().Update(ctx, changed, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("persistentvolume %s for claim %s/%s: %w", v.Name, namespace, name, err)
		}
		return nil
	}
	if claim.Annotations[volume.AnnSelectedNode] == node {
		return nil
	}
	changed := claim.DeepCopy()
	metav1.SetMetaDataAnnotation(&changed.ObjectMeta, volume.AnnSelectedNode, node)
	if _, err := p.client.CoreV1().PersistentVolumeClaims(namespace).Update(ctx, changed, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("persistentvolumeclaim %s/%s: selecting node %s: %w", namespace, name, node, err)
	}
	return nil
}

// allBound looks at the informer's cache, which may be behind what was written:
// only what was seen set and is gone again counts as taken back.
func (p *Volumes) allBound(pod *framework.Pod, c *choice, node string) (bool, error) {
	for _, name := range claimNames(pod.Pod) {
		claim, err := p.claims.PersistentVolumeClaims(pod.Namespace).Get(name)
		if err != nil {
			return false, fmt.Errorf("persistentvolumeclaim %s/%s: %w", pod.Namespace, name, err)
		}
		if fullyBound(claim) {
			continue
		}
		selected, set := claim.Annotations[volume.AnnSelectedNode]
		if set && selected != node {
			return false, fmt.Errorf("persistentvolumeclaim %s/%s: %w: node %s is selected", claim.Namespace, name, ErrVolumesTakenBack, selected)
		}
		key := pod.Namespace + "/" + name
		if set {
			c.seen[key] = true
		} else if c.seen[key] {
			return false, fmt.Errorf("persistentvolumeclaim %s/%s: %w", claim.Namespace, name, ErrVolumesTakenBack)
		}
		return false, nil
	}
	return true, nil
}

func fullyBound(claim *v1.PersistentVolumeClaim) bool {
	return claim.Spec.VolumeName != "" && metav1.HasAnnotation(claim.ObjectMeta, volume.AnnBindCompleted)
}

func ephemeral(pod *v1.Pod, name string) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v v1.Volume) bool { return v.Ephemeral != nil && pod.Name+"-"+v.Name == name })
}

func (p *Volumes) MayHelp(pod *framework.Pod, ev framework.Event) bool {
	switch ev.Kind {
	case framework.VolumeEvent:
		if ev.Claim == "" {
			return true
		}
		for _, name := range claimNames(pod.Pod) {
			if ev.Claim == pod.Namespace+"/"+name {
				return true
			}
		}
	case framework.NodeChanged:
		return ev.OldNode == nil || !labels.Equals(ev.OldNode.Labels, ev.Node.Labels)
	case framework.PodLeft:
		return ev.OldPod == nil && ev.Pod.Namespace == pod.Namespace && len(claimNames(ev.Pod)) > 0
	}
	return false
}
