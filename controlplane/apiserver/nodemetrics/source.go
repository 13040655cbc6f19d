package nodemetrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

const (
	// kubeletPort is the one port that nodes have.
	kubeletPort = "10250"
	// Parallel is how many nodes are asked at the same time.
	Parallel = 16
	// askTimeout bounds one node's answer: a handshake over a satellite takes 3 s, and a
	// node that nobody asked before looks twice, a second apart.
	askTimeout = 20 * time.Second
	// forget is how long an answer is kept that nobody asks for again.
	forget = 15 * time.Minute
	// backOff is how long a node that didn't answer isn't asked again.
	backOff = 10 * time.Second
)

// ErrAway is returned of a node that isn't connected.
var ErrAway = errors.New("the node is away")

// fresh is how old an answer may be by link class: what autoscalers look at every
// 15 s costs some 6 KB each time. Other classes are treated as lan.
var freshByClass = map[string]time.Duration{"lan": 10 * time.Second, "wifi": 15 * time.Second, "lte": time.Minute, "satellite": 5 * time.Minute}

// Fresh is how old an answer of a node may be.
func Fresh(node *corev1.Node) time.Duration {
	if d, ok := freshByClass[node.Labels[fleet.LabelLinkClass]]; ok {
		return d
	}
	return freshByClass[fleet.DefaultClass]
}

// Source asks nodes. Safe for concurrent use.
type Source struct {
	nodes  http.RoundTripper
	logger *slog.Logger
	slots  chan struct{}

	mu      sync.Mutex
	entries map[string]*entry
}

// entry is what is known of one node.
type entry struct {
	turn  chan struct{} // of who asks; others wait for the answer
	asked time.Time     // by somebody
	at    time.Time
	usage *fleet.Usage
	err   error
}

// NewSource returns a Source; nodes speaks with nodes' APIs, hosts are NODE:10250.
func NewSource(nodes http.RoundTripper, logger *slog.Logger) *Source {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Source{nodes: nodes, logger: logger, slots: make(chan struct{}, Parallel), entries: map[string]*entry{}}
}

// Of returns what the nodes use, by name, as far as it could be told until ctx ends.
func (s *Source) Of(ctx context.Context, nodes []*corev1.Node) map[string]*fleet.Usage {
	s.sweep()
	var mu sync.Mutex
	out := make(map[string]*fleet.Usage, len(nodes))
	var all sync.WaitGroup
	work := make(chan *corev1.Node)
	for range min(len(nodes), Parallel) {
		all.Go(func() {
			for node := range work {
				usage, err := s.of(ctx, node)
				if err != nil {
					s.logger.Debug("a node is left out of metrics.k8s.io", "node", node.Name, "err", err)
					continue
				}
				mu.Lock()
				out[node.Name] = usage
				mu.Unlock()
			}
		})
	}
	for _, node := range nodes {
		work <- node
	}
	close(work)
	all.Wait()
	return out
}

// of one node: what is kept of it, or what it says now. Who asks at the same time
// gets the same answer.
func (s *Source) of(ctx context.Context, node *corev1.Node) (*fleet.Usage, error) {
	if away(node) {
		return nil, fmt.Errorf("%w: node %s", ErrAway, node.Name)
	}
	s.mu.Lock()
	e := s.entries[node.Name]
	if e == nil {
		e = &entry{turn: make(chan struct{}, 1)}
		s.entries[node.Name] = e
	}
	e.asked = time.Now()
	s.mu.Unlock()
	select {
	case e.turn <- struct{}{}:
		defer func() { <-e.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	age := time.Since(e.at)
	switch {
	case e.usage != nil && age < Fresh(node):
		return e.usage, nil
	case e.err != nil && age < backOff:
		return nil, e.err
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	// The answer is for all who wait: it doesn't end with who came first.
	usage, err := s.ask(context.WithoutCancel(ctx), node.Name)
	e.at, e.usage, e.err = time.Now(), usage, err
	return usage, err
}

func (s *Source) ask(ctx context.Context, node string) (*fleet.Usage, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+net.JoinHostPort(node, kubeletPort)+fleet.UsagePath, nil)
	if err != nil {
		return nil, err
	}
	response, err := s.nodes.RoundTrip(request)
	if err != nil {
		return nil, fmt.Errorf("what node %s uses: %w", node, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1024))
		return nil, fmt.Errorf("what node %s uses: it answered %s: %s", node, response.Status, text)
	}
	usage, err := fleet.ReadUsage(response.Body)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", node, err)
	}
	return usage, nil
}

// sweep forgets what nobody asks for any more.
func (s *Source) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, e := range s.entries {
		if time.Since(e.asked) > forget {
			delete(s.entries, name)
		}
	}
}

// away: its silence is known already, so it isn't waited for.
func away(node *corev1.Node) bool {
	return !slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status != corev1.ConditionUnknown
	})
}
