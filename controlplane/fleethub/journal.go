package fleethub

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// writeJournal makes Events of the journal's events, as many as the node may
// have, and releases what was sent. What isn't stored stays readable on the node.
func (h *Hub) writeJournal(ctx context.Context, n *node) error {
	n.mu.Lock()
	j := n.journal
	n.mu.Unlock()
	if j == nil {
		return nil
	}
	for _, g := range j.GetGaps() {
		h.log.Warn("journal entries were lost on the node", "node", n.name, "boot", g.GetBoot(), "from", g.GetFrom(), "to", g.GetTo())
	}
	// Those that were stored are counted at once: the next try finds that they are.
	var became [entries]int64
	var ack fleet.JournalAck
	raise := func(boot, seq uint64) {
		if boot > ack.Boot || boot == ack.Boot && seq > ack.Seq {
			ack.Boot, ack.Seq = boot, seq
		}
	}
	for _, g := range j.GetGaps() {
		raise(g.GetBoot(), g.GetTo())
		if lost := g.GetTo() - g.GetFrom(); lost < 1<<32 { // the node's word
			became[entryLost] += int64(lost) + 1
		}
	}
	client, err := h.as(n)
	if err != nil {
		return err
	}
	for _, e := range j.GetEntries() {
		raise(e.GetBoot(), e.GetSeq())
		if e.GetKind() != "event" {
			became[entryOther]++
			continue
		}
		if !h.mayStoreEvent(n) {
			became[entryKept]++
			continue
		}
		event := h.event(n, j.store, e)
		_, err := client.Events(event.Namespace).Create(ctx, event, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			h.returnToken(n)
		}
		if err == nil {
			h.stats.journal[entryStored].Add(1)
		}
		if err == nil || apierrors.IsAlreadyExists(err) {
			continue
		}
		if _, known := final(err); !known {
			h.returnToken(n)
			return err // those before are found to exist next time
		}
		became[entryRefused]++
		h.log.Debug("event not stored", "node", n.name, "event", event.Name, "error", err)
	}
	for what, count := range became {
		h.stats.journal[what].Add(count)
	}
	if kept := became[entryKept]; kept > 0 {
		h.log.Info("events not stored, they are in the node's journal", "node", n.name, "events", kept)
	}
	n.mu.Lock()
	newer := n.journal != j
	if !newer {
		n.journal = nil
	}
	mine := n.store == j.store // else nobody is left to be answered
	n.mu.Unlock()
	if newer {
		h.writes.Add(writeKey{n.name, writeJournal, ""})
	}
	if mine {
		h.answer(n, func() { n.jack = &ack })
	}
	return nil
}

// mayStoreEvent takes one of the node's tokens.
func (h *Hub) mayStoreEvent(n *node) bool {
	now := h.c.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.filled.IsZero() {
		n.tokens = float64(h.c.Events)
	} else {
		n.tokens = min(n.tokens+float64(now.Sub(n.filled))/float64(h.c.EventInterval), float64(h.c.Events))
	}
	n.filled = now
	if n.tokens < 1 {
		return false
	}
	n.tokens--
	return true
}

func (h *Hub) returnToken(n *node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tokens++
}

// event makes the same Event of the same entry whenever it comes.
func (h *Hub) event(n *node, store string, e *fleet.JournalEntry) *corev1.Event {
	now := h.c.Now()
	at := time.Unix(0, e.GetWall())
	if at.After(now) || at.Before(now.Add(-365*24*time.Hour)) {
		at = now // the node's clock is wrong
	}
	namespace := e.GetNamespace()
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	source := e.GetComponent()
	if source == "" {
		source = "kubelet"
	}
	kind, name, uid := e.GetObjectKind(), e.GetName(), e.GetUid()
	if kind == "" {
		kind, name, uid = "Node", n.name, n.name // as the kubelet names its own node
	}
	count := int32(max(e.GetCount(), 1))
	return &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace,
			Name:      fmt.Sprintf("%.200s.%x.%x.%x", name, store, e.GetBoot(), e.GetSeq()),
		},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: kind, Namespace: e.GetNamespace(), Name: name, UID: types.UID(uid), FieldPath: e.GetFieldPath()},
		Reason:         e.GetReason(), Message: e.GetMessage(), Type: e.GetType(), Count: count,
		Source:         corev1.EventSource{Component: source, Host: n.name},
		FirstTimestamp: metav1.NewTime(at), LastTimestamp: metav1.NewTime(at),
		ReportingController: source, ReportingInstance: n.name,
	}
}
