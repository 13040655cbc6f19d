package fleethub

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

const (
	// returnRate is how many nodes a second may come back together: a TLS
	// handshake, a Hello and its answer cost a small machine some milliseconds.
	returnRate = 250
	// retellEvery is when a node is asked again to take other settings: it obeys
	// at most every 5 s.
	retellEvery = 6 * time.Second
)

// linkSettings are what a node is told of its link.
type linkSettings struct {
	fleet.LinkClass
	budget uint64 // bytes a day, 0: no bound
}

// settingsOf reads label and annotation of the Node; what it doesn't say is as
// the node itself says.
func (h *Hub) settingsOf(n *node) linkSettings {
	said := n.ownClass()
	o, err := h.nodeLister.Get(n.name)
	if err != nil {
		return linkSettings{LinkClass: h.classes.Of(said)}
	}
	label := o.Labels[fleet.LabelLinkClass]
	out := linkSettings{LinkClass: h.classes.Of(label, said)}
	var wrong string
	if _, ok := h.classes[label]; !ok && label != "" {
		wrong = "label " + fleet.LabelLinkClass + "=" + label
	}
	if budget, ok := parseBudget(o); ok {
		out.budget = budget
	} else {
		wrong = "annotation " + fleet.AnnotationDataBudget + "=" + o.Annotations[fleet.AnnotationDataBudget]
	}
	if wrong != n.wrong && wrong != "" {
		h.log.Warn("Node says something of its link that means nothing: want a class of lan, wifi, lte, satellite, and a positive quantity of bytes",
			"node", n.name, "said", wrong, "class", out.Name)
	}
	n.wrong = wrong
	return out
}

// parseBudget reads the annotation; 0 if there is none, false if it is no
// positive number of bytes.
func parseBudget(o *corev1.Node) (uint64, bool) {
	text, ok := o.Annotations[fleet.AnnotationDataBudget]
	if !ok || text == "" {
		return 0, true
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Value() <= 0 {
		return 0, false
	}
	return uint64(q.Value()), true
}

// window is the time over which nodes of a class come back: longer than usual
// where all nodes together would be too many. It grows in doublings, so that a
// node that joins changes nothing for the others.
func (h *Hub) window(class fleet.LinkClass) time.Duration {
	h.mu.Lock()
	nodes := len(h.nodes)
	h.mu.Unlock()
	return window(class, nodes)
}

func window(class fleet.LinkClass, nodes int) time.Duration {
	w := max(class.Jitter, time.Millisecond)
	for need := time.Duration(nodes) * time.Second / returnRate; w < need; {
		w *= 2
	}
	if class.Jitter == 0 && w == time.Millisecond {
		return 0
	}
	return w
}

// adjust brings the peer's times to the node's class. The keepalive is that of
// the connection in use; a Hello says it.
func (h *Hub) adjust(n *node) {
	if now := h.settingsOf(n); now != n.settings {
		n.settings = now
		n.inForce.Store(&now)
	}
	n.mu.Lock()
	n.answer = n.settings.Answer
	n.mu.Unlock()
	if n.peer != nil {
		n.peer.SetTiming(Timing{n.peer.Timing().Keepalive, n.settings.Grace, h.window(n.settings.LinkClass)})
	}
}

// link is the part of a Welcome.
func (n *node) link() *fleet.LinkSettings {
	s := n.settings
	return &fleet.LinkSettings{Class: s.Name, Slots: uint32(s.Slots), Slot: uint32(s.Slot(n.name)), RetryMax: uint32(s.Retry / time.Second),
		Gather: uint32(s.Gather / time.Millisecond), DataBudget: s.budget}
}

// retell asks a node that was told other settings than are in force for a
// Hello: the Welcome that answers it says them. Its pods don't notice.
func (t *turn) retell() {
	h, n := t.h, t.n
	if !n.outdated() || h.now() < n.retellAt {
		return
	}
	h.log.Info("node is told of another link class or data budget", "node", n.name, "class", n.settings.Name, "budget", n.settings.budget)
	// All nodes may be told at once: they answer one after the other.
	h.mu.Lock()
	spread := time.Duration(len(h.nodes)) * time.Second / returnRate
	h.mu.Unlock()
	n.retellAt = h.now() + retellEvery + spread
	h.stats.retold.Add(1)
	t.rebirth(spread)
}

// outdated is true if the node is there and was told other settings.
func (n *node) outdated() bool {
	return n.peer.Confirmed() && n.told != (linkSettings{}) && n.told != n.settings
}

// withClass labels a node with the class that it says itself. A label that is
// there is the administrator's.
func withClass(o *corev1.Node, own string) *corev1.Node {
	if o.Labels[fleet.LabelLinkClass] == "" && fleet.CheckClass(own) == nil {
		o.Labels[fleet.LabelLinkClass] = own
	}
	return o
}

// class in force, empty before the node was first looked at.
func (n *node) class() string {
	if s := n.inForce.Load(); s != nil {
		return s.Name
	}
	return ""
}

// ownClass is what the node itself says, empty if nothing that is known.
func (n *node) ownClass() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.said
}
