package cache

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

var (
	// ErrKnown is returned when a pod is assumed that is on a node already.
	ErrKnown = errors.New("pod is on a node already")
	// ErrNoNode is returned when a pod is assumed onto a node that is gone.
	ErrNoNode = errors.New("node is not known")
)

// DefaultExpiry is how long after its binding an assumed pod is held without
// having been seen on its node. It must outlast any delay of the informers:
// too short a time gives a room away twice.
const DefaultExpiry = 15 * time.Minute

// Cache is safe for concurrent use, except that [Cache.Snapshot] and the use of
// what it returns belong to one goroutine.
type Cache struct {
	expiry time.Duration

	mu     sync.Mutex
	nodes  map[string]*entry
	pods   map[types.UID]*podState
	images map[string]int // on how many nodes each image is
	// assumed are those of pods whose binding ended, in the order of deadlines.
	expiring []*podState

	cluster *framework.Cluster // what Snapshot returned last
	dirty   map[string]bool    // nodes whose NodeInfo in cluster is out of date
	members bool               // nodes came or went since
}

type entry struct {
	info   *framework.NodeInfo
	shared bool // info is in a snapshot: copy before changing
}

type podState struct {
	pod      *framework.Pod
	node     string
	assumed  bool
	deadline time.Time // zero while the binding runs
}

// New returns an empty cache. expiry 0 means [DefaultExpiry].
func New(expiry time.Duration) *Cache {
	if expiry <= 0 {
		expiry = DefaultExpiry
	}
	return &Cache{
		expiry: expiry,
		nodes:  map[string]*entry{}, pods: map[types.UID]*podState{}, images: map[string]int{},
		dirty: map[string]bool{}, members: true,
	}
}

// SetNode adds or replaces a node.
func (c *Cache) SetNode(node *v1.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	info := c.change(node.Name)
	if info.Node == nil {
		c.members = true
	} else {
		c.countImages(info.Node, -1)
	}
	info.SetNode(node)
	c.countImages(node, 1)
}

// RemoveNode forgets a node; the pods on it are remembered until they are gone
// too, for the case that the node comes back.
func (c *Cache) RemoveNode(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.nodes[name]
	if !ok || e.info.Node == nil {
		return
	}
	c.countImages(e.info.Node, -1)
	c.members = true
	info := c.change(name)
	info.Node = nil
	info.Allocatable = framework.Resources{}
	c.dropEmpty(name)
}

// SetPod tells of a pod that is bound to a node. It confirms an assumed pod.
func (c *Cache) SetPod(pod *v1.Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(pod.UID)
	c.add(&podState{pod: framework.NewPod(pod), node: pod.Spec.NodeName})
}

// RemovePod tells that a pod is gone or has ended, wherever it was, assumed
// ones included.
func (c *Cache) RemovePod(uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(uid)
}

// Assume puts a pod onto the node that was chosen for it.
func (c *Cache) Assume(pod *framework.Pod, node string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.pods[pod.UID]; ok {
		return fmt.Errorf("assume pod %s on node %s: on %s: %w", pod.Key(), node, s.node, ErrKnown)
	}
	if e, ok := c.nodes[node]; !ok || e.info.Node == nil {
		return fmt.Errorf("assume pod %s on node %s: %w", pod.Key(), node, ErrNoNode)
	}
	c.add(&podState{pod: pod, node: node, assumed: true})
	return nil
}

// Bound tells that the API server took the binding of an assumed pod. From then
// on it expires unless it is seen.
func (c *Cache) Bound(uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.pods[uid]; ok && s.assumed && s.deadline.IsZero() {
		s.deadline = time.Now().Add(c.expiry)
		c.expiring = append(c.expiring, s)
	}
}

// Forget undoes Assume after a binding failed. It says whether the pod was
// still assumed; a pod seen on a node in the meantime stays.
func (c *Cache) Forget(uid types.UID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.pods[uid]; !ok || !s.assumed {
		return false
	}
	c.remove(uid)
	return true
}

// Assigned says whether the pod is on a node, assumed or seen.
func (c *Cache) Assigned(uid types.UID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.pods[uid]
	return ok
}

// Snapshot brings the cluster up to date and returns it. The same Cluster is
// returned each time; NodeInfos in it are never changed, only replaced by the
// next Snapshot.
func (c *Cache) Snapshot() *framework.Cluster {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(time.Now())
	if c.members {
		infos := make([]*framework.NodeInfo, 0, len(c.nodes))
		for _, e := range c.nodes {
			if e.info.Node != nil {
				e.shared = true
				infos = append(infos, e.info)
			}
		}
		slices.SortFunc(infos, byName)
		c.cluster = framework.NewCluster(infos, c.imageNodes)
		c.members = false
	} else {
		for name := range c.dirty {
			if e := c.nodes[name]; e != nil && e.info.Node != nil {
				e.shared = true
				c.cluster.Replace(e.info)
			}
		}
	}
	clear(c.dirty)
	return c.cluster
}

// Stats are sizes, for tests and metrics.
type Stats struct{ Nodes, Pods, Assumed int }

// Stats counts what the cache holds.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Stats{Pods: len(c.pods)}
	for _, e := range c.nodes {
		if e.info.Node != nil {
			s.Nodes++
		}
	}
	for _, p := range c.pods {
		if p.assumed {
			s.Assumed++
		}
	}
	return s
}

// byName sorts by name: any fixed order will do, the scheduler starts each
// cycle at another node.
func byName(a, b *framework.NodeInfo) int {
	if a.Node.Name < b.Node.Name {
		return -1
	}
	return 1
}

func (c *Cache) add(s *podState) {
	c.change(s.node).Add(s.pod)
	c.pods[s.pod.UID] = s
}

func (c *Cache) remove(uid types.UID) {
	s, ok := c.pods[uid]
	if !ok {
		return
	}
	delete(c.pods, uid)
	c.change(s.node).Remove(uid)
	c.dropEmpty(s.node)
}

// change returns the NodeInfo of a node to be changed now.
func (c *Cache) change(name string) *framework.NodeInfo {
	e, ok := c.nodes[name]
	if !ok {
		e = &entry{info: framework.NewNodeInfo(nil)}
		c.nodes[name] = e
	}
	if e.shared {
		e.info = e.info.Clone()
		e.shared = false
	}
	c.dirty[name] = true
	return e.info
}

func (c *Cache) dropEmpty(name string) {
	if e := c.nodes[name]; e != nil && e.info.Node == nil && len(e.info.Pods) == 0 {
		delete(c.nodes, name)
	}
}

func (c *Cache) expire(now time.Time) {
	for len(c.expiring) > 0 && !now.Before(c.expiring[0].deadline) {
		s := c.expiring[0]
		c.expiring = c.expiring[1:]
		if c.pods[s.pod.UID] == s && s.assumed {
			c.remove(s.pod.UID)
		}
	}
	if len(c.expiring) == 0 {
		c.expiring = nil
	}
}

func (c *Cache) countImages(node *v1.Node, by int) {
	for i := range node.Status.Images {
		for _, name := range node.Status.Images[i].Names {
			if c.images[name] += by; c.images[name] == 0 {
				delete(c.images, name)
			}
		}
	}
}

func (c *Cache) imageNodes(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.images[name]
}
