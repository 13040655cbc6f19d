package main

import (
	"context"
	"fmt"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/edgelet/identity"
	"github.com/coracle-edge/coracle/edgelet/pods"
)

// maxJoinRetry bounds the pause before a refused join line is tried again: what
// refused it (a name that is taken, a token that isn't there) may be put right on
// the other side, at some time.
const maxJoinRetry = time.Hour

// refusal is why the node isn't what its join line says, for those who ask.
type refusal struct {
	Reason string     `json:"reason"`
	Since  time.Time  `json:"since"`
	Again  *time.Time `json:"again,omitempty"` // nil: not until edgelet is started again
}

// ensureJoined returns the node's identity, joining with --join if it has none.
// It returns nil, nil when ctx ended first.
//
// A line that is refused ends edgelet if nothing runs here: somebody sits at a
// screen, or a supervisor starts it again. Where pods run they go on (D7), and
// the reason is said again and again.
func (a *agent) ensureJoined(ctx context.Context) (*identity.Identity, error) {
	have := a.id.Load()
	if have != nil && a.o.join == "" {
		return have, nil
	}
	since := a.now()
	for first, wait := true, a.o.joinRetry; ; first, wait = false, min(2*wait, maxJoinRetry) {
		id, err := a.join(ctx)
		if ctx.Err() != nil {
			return nil, nil
		}
		if err == nil {
			a.id.Store(id)
			a.refused.Store(nil)
			return id, nil
		}
		pods := a.looksAfter(ctx)
		if pods == 0 && first {
			return nil, err
		}
		if have != nil {
			a.refused.Store(&refusal{Reason: err.Error(), Since: since})
			a.log.Error("the join line is not followed: this board stays the node that it is, and its pods go on", "node", have.NodeName, "pods", pods, "err", err)
			return have, nil
		}
		again := a.now().Add(wait)
		a.refused.Store(&refusal{Reason: err.Error(), Since: since, Again: &again})
		a.log.Error("this board has not joined the cluster; its pods go on without. To join with another line, start edgelet again with it, the pods won't notice",
			"node", a.name, "pods", pods, "again", wait, "err", err)
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(wait):
		}
	}
}

func (a *agent) join(ctx context.Context) (*identity.Identity, error) {
	line, err := enrollment.ParseLine(a.o.join)
	if err != nil {
		return nil, fmt.Errorf("--join: %w", err)
	}
	return identity.Join(a.metered(ctx), identity.JoinOptions{Options: a.identityOptions(), Line: line, NodeName: a.name})
}

// setStatic gives the pods of the folder to the manager, and notes how many there
// are.
func (a *agent) setStatic(list []pods.Object) {
	a.pods.SetStatic(list)
	if a.staticPods.Swap(int64(len(list))) < 0 {
		close(a.staticRead)
	}
}

// looksAfter returns how many pods this node has to keep running, those of its
// folder and those that it was once ordered to run.
func (a *agent) looksAfter(ctx context.Context) int {
	select {
	case <-ctx.Done():
		return 0
	case <-a.staticRead:
	}
	n := int(a.staticPods.Load())
	for _, p := range a.pods.Pods() {
		if !p.Static {
			n++
		}
	}
	return n
}
