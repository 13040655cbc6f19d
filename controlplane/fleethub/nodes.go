package fleethub

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// NodesPath is where the API server serves NodesHandler.
const NodesPath = "/debug/coracle/nodes"

// NodeState is what the hub knows of one node's link.
type NodeState struct {
	Name      string `json:"name"`
	Presence  string `json:"presence"`
	Session   bool   `json:"session"` // open and confirmed
	Foreign   bool   `json:"foreign,omitempty"`
	LinkClass string `json:"linkClass,omitempty"`
	// Keepalive of the class, seconds; DataBudget in bytes a day, 0 for none.
	Keepalive  float64    `json:"keepalive,omitempty"`
	DataBudget uint64     `json:"dataBudget,omitempty"`
	Heard      *time.Time `json:"heard,omitempty"`
	// Traffic since the hub started, as the hub sees it: received is from the node.
	Traffic fleet.Traffic `json:"traffic"`
}

// Nodes says what is known of all nodes' links, or of the named ones'.
func (h *Hub) Nodes(names ...string) []NodeState {
	h.mu.Lock()
	nodes := make(map[string]*node, len(h.nodes))
	for name, n := range h.nodes {
		if len(names) == 0 || slices.Contains(names, name) {
			nodes[name] = n
		}
	}
	h.mu.Unlock()
	out := make([]NodeState, 0, len(nodes))
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		n := nodes[name]
		s := NodeState{Name: name, Presence: Presence(n.presence.Load()).String(), Session: n.confirmed.Load(),
			Foreign: n.foreign.Load() != nil, Traffic: n.counters.Snapshot()}
		if at := h.heardOf(n); !at.IsZero() {
			at = at.UTC()
			s.Heard = &at
		}
		if l := n.inForce.Load(); l != nil {
			s.LinkClass, s.Keepalive, s.DataBudget = l.Name, l.Keepalive.Seconds(), l.budget
		}
		out = append(out, s)
	}
	return out
}

// NodesHandler serves Nodes as a JSON list; ?node=NAME, once or more, asks for
// these only. Who may ask is the API server's to decide.
func (h *Hub) NodesHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "only GET is served here", http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(h.Nodes(r.URL.Query()["node"]...))
	})
}

// NodeCounters count the traffic of one node; the embedded broker adds what is
// on its socket.
func (h *Hub) NodeCounters(name string) *fleet.Counters { return &h.get(name).counters }

// heardOf is when a node last gave a sign of life: by the broker's word where it
// can tell, else now while its connection stands.
func (h *Hub) heardOf(n *node) time.Time {
	var last time.Time
	if at := n.heard.Load(); at != 0 {
		last = time.Unix(0, at)
	}
	if !n.confirmed.Load() {
		return last
	}
	if _, ok := h.c.Transport.(ear); !ok {
		return h.c.Now()
	}
	if at, ok := h.ear(n.name); ok && at.After(last) {
		last = at
	}
	return last
}

// ear is a Transport that knows when a node's connection last brought anything.
type ear interface {
	Heard(node string) (time.Time, bool)
}

func (h *Hub) ear(name string) (time.Time, bool) {
	if e, ok := h.c.Transport.(ear); ok {
		return e.Heard(name)
	}
	return time.Time{}, false
}
