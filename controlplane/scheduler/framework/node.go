package framework

import (
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// NodeInfo is a node with the pods that are, or are about to be, on it. The
// cache changes it copy-on-write, so what a plugin is shown stays as it is for
// the whole cycle.
type NodeInfo struct {
	Node        *v1.Node // shared with the informer
	Pods        []*Pod
	Allocatable Resources
	Requested   Resources // sum over Pods of what they ask for
	Scored      Resources // sum over Pods with defaults, for scoring
	// AntiAffinity and Affine are those of Pods with required anti-affinity,
	// and with any pod (anti-)affinity.
	AntiAffinity []*Pod
	Affine       []*Pod
	ports        []hostPort
}

type hostPort struct {
	ip       string
	protocol v1.Protocol
	port     int32
}

const anyIP = "0.0.0.0"

func portOf(p v1.ContainerPort) hostPort {
	h := hostPort{p.HostIP, p.Protocol, p.HostPort}
	if h.ip == "" || h.ip == "::" {
		h.ip = anyIP
	}
	if h.protocol == "" {
		h.protocol = v1.ProtocolTCP
	}
	return h
}

func (a hostPort) conflicts(b hostPort) bool {
	return a.port == b.port && a.protocol == b.protocol && (a.ip == b.ip || a.ip == anyIP || b.ip == anyIP)
}

// NewNodeInfo returns a node with pods on it. node may be nil while only pods
// of it are known.
func NewNodeInfo(node *v1.Node, pods ...*Pod) *NodeInfo {
	n := &NodeInfo{}
	if node != nil {
		n.SetNode(node)
	}
	for _, p := range pods {
		n.Add(p)
	}
	return n
}

// Name is the node's name, "" if the node is unknown.
func (n *NodeInfo) Name() string {
	if n.Node == nil {
		return ""
	}
	return n.Node.Name
}

// SetNode replaces the node's object.
func (n *NodeInfo) SetNode(node *v1.Node) {
	n.Node = node
	n.Allocatable = ResourcesOf(node.Status.Allocatable)
}

// Add puts a pod onto the node.
func (n *NodeInfo) Add(p *Pod) {
	n.Pods = append(n.Pods, p)
	if len(p.AntiAffinity) > 0 {
		n.AntiAffinity = append(n.AntiAffinity, p)
	}
	if p.HasAffinity() {
		n.Affine = append(n.Affine, p)
	}
	for _, port := range p.Ports {
		n.ports = append(n.ports, portOf(port))
	}
	n.Requested.add(&p.Requests, 1)
	n.Scored.add(&p.Scored, 1)
}

// Remove takes the pod with this UID off the node; it says whether it was there.
func (n *NodeInfo) Remove(uid types.UID) bool {
	is := func(p *Pod) bool { return p.UID == uid }
	i := slices.IndexFunc(n.Pods, is)
	if i < 0 {
		return false
	}
	p := n.Pods[i]
	n.Pods = slices.Delete(n.Pods, i, i+1)
	n.AntiAffinity = slices.DeleteFunc(n.AntiAffinity, is)
	n.Affine = slices.DeleteFunc(n.Affine, is)
	for _, port := range p.Ports {
		if j := slices.Index(n.ports, portOf(port)); j >= 0 {
			n.ports = slices.Delete(n.ports, j, j+1)
		}
	}
	n.Requested.add(&p.Requests, -1)
	n.Scored.add(&p.Scored, -1)
	return true
}

// PortTaken says whether a host port is in use by a pod of the node.
func (n *NodeInfo) PortTaken(p v1.ContainerPort) bool {
	h := portOf(p)
	return slices.ContainsFunc(n.ports, h.conflicts)
}

// PortsConflict says whether two pods can't share a node for a host port.
func PortsConflict(a, b []v1.ContainerPort) bool {
	for _, x := range a {
		for _, y := range b {
			if portOf(x).conflicts(portOf(y)) {
				return true
			}
		}
	}
	return false
}

// Clone returns a copy that can be changed without changing n.
func (n *NodeInfo) Clone() *NodeInfo {
	c := *n
	c.Pods = slices.Clone(n.Pods)
	c.AntiAffinity = slices.Clone(n.AntiAffinity)
	c.Affine = slices.Clone(n.Affine)
	c.ports = slices.Clone(n.ports)
	c.Requested = n.Requested.clone()
	c.Scored = n.Scored.clone()
	return &c
}

// Cluster is what is known of all nodes at the start of a cycle.
type Cluster struct {
	Nodes []*NodeInfo
	// Nominated are pods of no lower priority for which room is being made, on whatever
	// node: what there is only one of in the cluster is theirs.
	Nominated []*Pod
	index     map[string]int // name to place in Nodes
	images    func(name string) int
}

// NewCluster returns a Cluster of these nodes. imageNodes says on how many
// nodes an image is; nil counts from the nodes themselves.
func NewCluster(nodes []*NodeInfo, imageNodes func(name string) int) *Cluster {
	c := &Cluster{Nodes: nodes, index: make(map[string]int, len(nodes)), images: imageNodes}
	for i, n := range nodes {
		c.index[n.Name()] = i
	}
	if imageNodes == nil {
		c.images = c.countImage
	}
	return c
}

// Replace puts another NodeInfo in place of the node of the same name. Only the
// owner of the Cluster may call it.
func (c *Cluster) Replace(n *NodeInfo) {
	if i, ok := c.index[n.Name()]; ok {
		c.Nodes[i] = n
	}
}

// With returns a copy of the cluster in which n stands for the node of its name.
func (c *Cluster) With(n *NodeInfo) *Cluster {
	o := *c
	o.Nodes = slices.Clone(c.Nodes)
	o.Replace(n)
	return &o
}

// Get returns a node by name, nil if it isn't there.
func (c *Cluster) Get(name string) *NodeInfo {
	if i, ok := c.index[name]; ok {
		return c.Nodes[i]
	}
	return nil
}

// ImageNodes says how many nodes have the image.
func (c *Cluster) ImageNodes(name string) int { return c.images(name) }

func (c *Cluster) countImage(name string) int {
	count := 0
	for _, n := range c.Nodes {
		for i := range n.Node.Status.Images {
			if slices.Contains(n.Node.Status.Images[i].Names, name) {
				count++
				break
			}
		}
	}
	return count
}
