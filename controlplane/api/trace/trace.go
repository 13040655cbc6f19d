package trace

import (
	"container/list"
	"sort"
	"sync"
	"time"
)

// Step is one station on a pod's way. The order of the constants is the order
// in which a pod passes them.
type Step string

const (
	Received         Step = "received"          // apiserver: the request's header was read
	Authenticated    Step = "authenticated"     // apiserver
	Authorized       Step = "authorized"        // apiserver
	Admitted         Step = "admitted"          // apiserver: last mutating admission plugin returned
	Validated        Step = "validated"         // apiserver: strategy and validating admission returned
	Stored           Step = "stored"            // apiserver: etcd acknowledged the create
	Queued           Step = "queued"            // scheduler: took the pod
	Filtered         Step = "filtered"          // scheduler: nodes that fit are known
	Scored           Step = "scored"            // scheduler: a node is chosen
	Bound            Step = "bound"             // apiserver: etcd acknowledged spec.nodeName
	Ordered          Step = "ordered"           // fleethub: order handed to the broker
	NodeStored       Step = "node-stored"       // edgelet: order durable in bbolt
	NodeAcked        Step = "node-acked"        // edgelet: ack handed to the link
	ImageReady       Step = "image-ready"       // edgelet: image present and, for Wasm, compiled
	SandboxCreated   Step = "sandbox-created"   // edgelet: RunPodSandbox returned
	ContainerCreated Step = "container-created" // edgelet: first CreateContainer returned
	ContainerStarted Step = "container-started" // edgelet: first StartContainer returned
	StatusQueued     Step = "status-queued"     // edgelet: status with phase Running in the outbox
	StatusReceived   Step = "status-received"   // fleethub: that status came in
	StatusStored     Step = "status-stored"     // apiserver: etcd acknowledged phase Running
	Observed         Step = "observed"          // a watch client saw phase Running
)

// Steps lists every step in order.
func Steps() []Step {
	return []Step{Received, Authenticated, Authorized, Admitted, Validated, Stored,
		Queued, Filtered, Scored, Bound, Ordered, NodeStored, NodeAcked, ImageReady,
		SandboxCreated, ContainerCreated, ContainerStarted, StatusQueued,
		StatusReceived, StatusStored, Observed}
}

// Event is one step taken. Time is the control plane's clock; for steps taken
// on a node it is derived from the node's monotonic offsets (see [NodeTimes]).
type Event struct {
	Step      Step      `json:"step"`
	Component string    `json:"component"`
	Time      time.Time `json:"time"`
	Detail    string    `json:"detail,omitempty"`
}

// DefaultPods bounds how many pods a Recorder remembers.
const DefaultPods = 256

// Recorder remembers the steps of the most recent pods, by UID. The first event
// of a step wins: a pod passes each step once, what follows are repeats. The
// zero value is not usable; a nil Recorder drops everything. Safe for
// concurrent use.
type Recorder struct {
	mu    sync.Mutex
	limit int
	pods  map[string]*list.Element // by UID
	order *list.List               // front is the oldest
}

type record struct {
	uid    string
	events map[Step]Event
}

// NewRecorder returns a Recorder that remembers the last pods pods
// ([DefaultPods] if pods is not positive).
func NewRecorder(pods int) *Recorder {
	if pods <= 0 {
		pods = DefaultPods
	}
	return &Recorder{limit: pods, pods: map[string]*list.Element{}, order: list.New()}
}

// Record notes that the pod with this UID passed e.Step. A zero e.Time is now.
func (r *Recorder) Record(uid string, e Event) {
	if r == nil || uid == "" {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	el, ok := r.pods[uid]
	if !ok {
		for r.order.Len() >= r.limit {
			oldest := r.order.Remove(r.order.Front()).(*record)
			delete(r.pods, oldest.uid)
		}
		el = r.order.PushBack(&record{uid: uid, events: map[Step]Event{}})
		r.pods[uid] = el
	}
	events := el.Value.(*record).events
	if _, seen := events[e.Step]; !seen {
		events[e.Step] = e
	}
}

// Time returns when the pod passed step, and whether that is known.
func (r *Recorder) Time(uid string, step Step) (time.Time, bool) {
	if r == nil {
		return time.Time{}, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	el, ok := r.pods[uid]
	if !ok {
		return time.Time{}, false
	}
	e, ok := el.Value.(*record).events[step]
	return e.Time, ok
}

// Events returns what is known of the pod, in the order of [Steps]; nil if the
// pod is not, or no longer, remembered.
func (r *Recorder) Events(uid string) []Event {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	el, ok := r.pods[uid]
	if !ok {
		return nil
	}
	known := el.Value.(*record).events
	out := make([]Event, 0, len(known))
	for _, s := range Steps() {
		if e, ok := known[s]; ok {
			out = append(out, e)
		}
	}
	return out
}

// NodeTimes are the steps a pod took on a node, as offsets on the node's
// monotonic clock from the moment the order arrived, so that a board whose
// clock says 1970 is traced as well as any other. Safe for concurrent use.
type NodeTimes struct {
	mu      sync.Mutex
	start   time.Time
	offsets map[Step]time.Duration
}

// NewNodeTimes starts counting at arrived, which must carry a monotonic reading.
func NewNodeTimes(arrived time.Time) *NodeTimes {
	return &NodeTimes{start: arrived, offsets: map[Step]time.Duration{}}
}

// Mark notes step at now. The first mark of a step wins; nil-safe.
func (n *NodeTimes) Mark(step Step, now time.Time) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, seen := n.offsets[step]; !seen {
		n.offsets[step] = now.Sub(n.start)
	}
}

// Offset is one step of a node as it travels in a report.
type Offset struct {
	Step   Step
	Offset time.Duration
}

// Offsets returns the marks by growing offset, or nil.
func (n *NodeTimes) Offsets() []Offset {
	if n == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]Offset, 0, len(n.offsets))
	for s, d := range n.offsets {
		out = append(out, Offset{s, d})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Offset < out[j].Offset })
	return out
}

// Anchor places a node's offsets on the control plane's clock: the node
// measured elapsed between the order's arrival and handing over the report, the
// control plane measured sent and received. What is left over is the two ways
// on the wire, which are taken to be equal.
func Anchor(sent, received time.Time, elapsed time.Duration, offsets []Offset, component string) []Event {
	wire := received.Sub(sent) - elapsed
	if wire < 0 {
		wire = 0
	}
	arrived := sent.Add(wire / 2)
	events := make([]Event, len(offsets))
	for i, o := range offsets {
		at := arrived.Add(o.Offset)
		if at.After(received) {
			at = received
		}
		events[i] = Event{Step: o.Step, Component: component, Time: at}
	}
	return events
}
