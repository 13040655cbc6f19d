package fleethub

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

type writeKind int

const (
	writePod writeKind = iota
	writeNode
	writeJournal
	writeAway
	writePending
	writeBack
	writeStanding
	writeRemoval
	writeClone
)

// writeKey is one thing to be written; what is written is the newest there is.
type writeKey struct {
	node string
	kind writeKind
	uid  string
}

const writeTimeout = 30 * time.Second

func (h *Hub) writeLoop(ctx context.Context) {
	for {
		key, quit := h.writes.Get()
		if quit || ctx.Err() != nil {
			return
		}
		h.write(ctx, key)
		h.writes.Done(key)
	}
}

// write does one thing; what failed for now is tried again with growing waits.
func (h *Hub) write(ctx context.Context, key writeKey) {
	n := h.find(key.node)
	if n == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	var err error
	switch key.kind {
	case writePod:
		err = h.writeReport(ctx, n, key.uid)
	case writeNode:
		err = h.writeNodeReport(ctx, n)
	case writeJournal:
		err = h.writeJournal(ctx, n)
	case writeAway:
		err = h.writeAway(ctx, n)
	case writePending:
		err = h.writePending(ctx, n)
	case writeBack:
		err = h.writeBack(ctx, n)
	case writeStanding:
		err = h.writeStanding(ctx, n)
	case writeRemoval:
		err = h.writeRemoval(ctx, n)
	case writeClone:
		err = h.writeClone(ctx, n)
	}
	if err == nil {
		h.writes.Forget(key)
		return
	}
	if tries := h.writes.NumRequeues(key); tries == 3 || tries == 10 {
		h.log.Warn("not written yet", "node", key.node, "uid", key.uid, "tries", tries, "error", err)
	}
	h.writes.AddRateLimited(key)
}

// final sorts an error of the API: nil means try again.
func final(err error) (fleet.Verdict, bool) {
	switch {
	case apierrors.IsNotFound(err):
		return fleet.Verdict_OBSOLETE, true
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsForbidden(err),
		apierrors.IsRequestEntityTooLargeError(err), apierrors.IsMethodNotSupported(err):
		return fleet.Verdict_REJECTED, true
	}
	return fleet.Verdict_VERDICT_UNKNOWN, false
}

// verdict queues an answer; several travel together.
func (h *Hub) verdict(n *node, uid string, stamp *fleet.Stamp, v fleet.Verdict, message string) {
	h.stats.verdicts[v].Add(1)
	h.answer(n, func() {
		n.verdicts = append(n.verdicts, &fleet.ReportVerdict{Uid: uid, Stamp: stamp, Verdict: v, Message: message})
	})
}

// answer has what queue adds sent with the next message, or when the first of
// what waits has waited as long as the node's class says.
func (h *Hub) answer(n *node, queue func()) {
	n.mu.Lock()
	queue()
	wait := n.answer
	if n.answerAt == 0 {
		n.answerAt = h.now() + wait
	}
	n.mu.Unlock()
	h.work.AddAfter(n.name, wait)
}

// as returns the client that acts as the node.
func (h *Hub) as(n *node) (corev1client.CoreV1Interface, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.client == nil {
		c, err := h.c.NodeClient(n.name)
		if err != nil {
			return nil, fmt.Errorf("client of node %s: %w", n.name, err)
		}
		n.client = c
	}
	return n.client, nil
}

// NodeClients makes Config.NodeClient of a function that makes configurations for
// a user; only the core group's client is made, because there is one per node.
func NodeClients(config func(user string, groups ...string) *rest.Config) func(node string) (corev1client.CoreV1Interface, error) {
	return func(node string) (corev1client.CoreV1Interface, error) {
		c := rest.CopyConfig(config(fleet.NodeUserPrefix+node, "system:nodes"))
		c.QPS, c.Burst = -1, 0 // the hub's workers are the limit
		c.ContentType = "application/vnd.kubernetes.protobuf"
		c.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
		return corev1client.NewForConfig(c)
	}
}
