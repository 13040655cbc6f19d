package fleethub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// ConditionRefused on a Node is true while the cluster refuses its identity, and
// says why; it is absent otherwise.
const ConditionRefused corev1.NodeConditionType = "coracle.dev/IdentityRefused"

const (
	// farewell is how long a refused node has for ending its connection itself.
	farewell = time.Second
	// refuseEvery bounds how often a refused node is told so.
	refuseEvery = 5 * time.Second
)

// Records is what the hub writes into the records of nodes; noderecord.Store is
// one. All are idempotent, and none touches a node that was readmitted meanwhile.
type Records interface {
	// Registered notes the Node object that stands for a node from now on.
	Registered(ctx context.Context, node, uid string) error
	// Remove keeps a node out whose Node object, of this UID, was deleted.
	Remove(ctx context.Context, node, uid string, at time.Time) error
	// Clone refuses an identity, the key of this fingerprint, that two boards have.
	Clone(ctx context.Context, node, fingerprint, between string, at time.Time) error
}

// standing is how the cluster regards a node.
type standing struct {
	judged  bool
	state   fleet.StandingState
	message string
	sign    []byte // the key it is about
}

func (s standing) refuses() bool { return s.judged && s.proto().Refuses() }
func (s standing) removed() bool { return s.state == fleet.StandingState_REMOVED }

func (s standing) proto() *fleet.Standing {
	return &fleet.Standing{State: s.state, Message: s.message}
}

// reason is the state's name as in conditions and events.
func (s standing) reason() string {
	switch s.state {
	case fleet.StandingState_REVOKED:
		return "Revoked"
	case fleet.StandingState_CLONED:
		return "Cloned"
	case fleet.StandingState_REMOVED:
		return "Removed"
	}
	return "Unknown"
}

// standingOf reads what Config.Keys answered. ok is false if that says nothing
// about the node.
func standingOf(keys NodeKeys, err error) (s standing, ok bool) {
	s.sign, s.judged = keys.Sign, true
	switch {
	case err == nil:
		s.state = fleet.StandingState_GOOD
		return s, true
	case errors.Is(err, enrollment.ErrRevoked):
		s.state = fleet.StandingState_REVOKED
	case errors.Is(err, enrollment.ErrCloned):
		s.state = fleet.StandingState_CLONED
	case errors.Is(err, enrollment.ErrRemoved):
		s.state = fleet.StandingState_REMOVED
	case errors.Is(err, ErrUnknownNode), errors.Is(err, enrollment.ErrNodeUnknown):
		s.state, s.sign = fleet.StandingState_STANDING_UNKNOWN, nil
	default:
		return standing{}, false
	}
	s.message = err.Error()
	return s, true
}

// verifiable are the keys of a node whose word can be verified, be it only to be
// told that it is refused.
func verifiable(keys NodeKeys, err error) (NodeKeys, error) {
	if s, ok := standingOf(keys, err); ok && len(s.sign) > 0 {
		return keys, nil
	}
	return keys, err
}

// RecordChanged has the standing of a node looked at again. It doesn't block.
func (h *Hub) RecordChanged(name string) {
	n := h.find(name)
	if n == nil {
		return // looked at when it says Hello
	}
	n.mu.Lock()
	n.recheck = true
	n.mu.Unlock()
	h.work.Add(name)
}

// judge brings the node's session into step with its record. refused says that
// nothing of the protocol goes on with it.
func (t *turn) judge(recheck bool) (refused bool) {
	h, n := t.h, t.n
	if !recheck {
		return n.standing.refuses()
	}
	keys, err := h.c.Keys(t.ctx, n.name)
	now, ok := standingOf(keys, err)
	if !ok {
		h.log.Warn("the record of a node can't be read", "node", n.name, "error", err)
		return n.standing.refuses()
	}
	before := n.standing
	h.writes.Add(writeKey{n.name, writeRemoval, ""})
	otherKey := len(before.sign) > 0 && len(now.sign) > 0 && !bytes.Equal(before.sign, now.sign)
	n.standing = now
	if otherKey || !before.judged || before.state != now.state {
		t.stale = true
		h.writes.Add(writeKey{n.name, writeStanding, ""})
	}
	switch {
	case now.refuses():
		t.dismiss(now)
		return true
	case otherKey:
		// Another board has the name: what the former one says counts no more.
		n.peer.ForgetBoards()
		t.do(n.peer.Dismiss("another board took its place"))
		n.cutAt = h.now()
		h.work.AddAfter(n.name, time.Millisecond)
	case before.refuses():
		n.peer.ForgetBoards()
		h.log.Info("node is readmitted", "node", n.name)
	case before.judged && before.removed() != now.removed():
		h.log.Info("standing of a node", "node", n.name, "is", now.proto().GetState(), "was", before.proto().GetState(), "reason", now.message)
		if n.peer.Open() {
			t.part().Standing = now.proto()
		}
		if !now.removed() {
			n.mu.Lock()
			n.resendAll = true // its report registers it
			n.mu.Unlock()
		}
	}
	return false
}

// dismiss says why, in the session if there is one, and ends it.
func (t *turn) dismiss(why standing) {
	h, n := t.h, t.n
	h.log.Warn("node is refused", "node", n.name, "reason", why.message)
	if n.peer.Open() {
		t.down = nil
		t.refuse(n.peer.Session())
	}
	t.do(n.peer.Dismiss("the cluster refuses its identity: " + why.reason()))
	n.cutAt = h.now() + farewell
	h.work.AddAfter(n.name, farewell)
}

// refuse is the last word in a session.
func (t *turn) refuse(session fleet.SessionID) {
	var chain [][]byte
	if !t.n.knowsKey {
		chain = t.h.chain()
	}
	t.h.publish(t.n, &fleet.Down{Session: session.Proto(), Standing: t.n.standing.proto()}, chain)
}

// refuseAll answers the Hellos of a node that the cluster refuses: an external
// broker lets it in all the same.
func (t *turn) refuseAll(inbox []message) {
	h, n := t.h, t.n
	for _, m := range inbox {
		h.counters.Refused()
		if m.direction != fleet.DirUp || h.now() < n.refuseAt {
			continue
		}
		var u fleet.Up
		if err := h.codec.Decode(m.direction, n.name, m.payload, t.keys, &u); err != nil || u.GetHello() == nil {
			continue
		}
		n.refuseAt = h.now() + refuseEvery
		n.knowsKey = t.h.knows(u.GetHello())
		t.refuse(fleet.SessionFrom(u.GetSession()))
		n.cutAt = h.now() + farewell
		h.work.AddAfter(n.name, farewell)
	}
}

// cut ends the connection of a node that didn't end it itself.
func (t *turn) cut() {
	if n := t.n; n.cutAt != 0 && t.h.now() >= n.cutAt {
		n.cutAt = 0
		t.h.c.Transport.Disconnect(n.name)
	}
}

// cloned has the identity refused.
func (t *turn) cloned(o Cloned) {
	h, n := t.h, t.n
	between := fmt.Sprintf("board %s and board %s", o.One.name(), o.Other.name())
	h.log.Error("two boards have the identity of one node: both are refused", "node", n.name, "between", between)
	n.mu.Lock()
	n.clones = between
	n.mu.Unlock()
	h.writes.Add(writeKey{n.name, writeClone, ""})
}

func (b Board) name() string {
	text := b.Text
	if text == "" {
		text = "unnamed"
	}
	return fmt.Sprintf("%.120q (start %.8x)", text, b.Boot)
}

func (h *Hub) writeClone(ctx context.Context, n *node) error {
	n.mu.Lock()
	between := n.clones
	n.mu.Unlock()
	if between == "" || h.c.Records == nil {
		return nil
	}
	keys, err := h.c.Keys(ctx, n.name)
	if keys, err = verifiable(keys, err); err != nil {
		return err
	}
	if err := h.c.Records.Clone(ctx, n.name, enrollment.Fingerprint(keys.Sign), between, h.c.Now()); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.clones == between {
		n.clones = ""
	}
	return nil
}

// writeRemoval keeps a node out if the Node that stood for it is no more. The
// informer may be behind: the API is asked.
func (h *Hub) writeRemoval(ctx context.Context, n *node) error {
	keys, err := h.c.Keys(ctx, n.name)
	if err != nil || keys.NodeUID == "" || h.c.Records == nil {
		return nil
	}
	if have, err := h.nodeLister.Get(n.name); err == nil && string(have.UID) == keys.NodeUID {
		return nil
	}
	have, err := h.c.Client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{})
	if err == nil && string(have.UID) == keys.NodeUID {
		return nil
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	h.log.Info("the Node was deleted: its pods are stopped, and it stays out until it is readmitted", "node", n.name)
	return h.c.Records.Remove(ctx, n.name, keys.NodeUID, h.c.Now())
}

// mayRegister says whether a Node may be made of this node's report: it wasn't
// removed, and none was registered that is gone.
func (h *Hub) mayRegister(ctx context.Context, n *node) (outcome, error) {
	keys, err := h.c.Keys(ctx, n.name)
	if s, ok := standingOf(keys, err); ok && s.state != fleet.StandingState_GOOD {
		return rejected("%s", s.message), nil
	}
	if err != nil {
		return outcome{}, err
	}
	if keys.NodeUID == "" || h.c.Records == nil {
		return stored, nil
	}
	if err := h.writeRemoval(ctx, n); err != nil {
		return outcome{}, err
	}
	return outcome{}, fmt.Errorf("node %s: its Node of UID %s is looked for", n.name, keys.NodeUID)
}

// registered notes which Node stands for the node. Another one than that of the
// record was made by somebody else, after ours was deleted.
func (h *Hub) registered(ctx context.Context, n *node, o *corev1.Node) error {
	if h.c.Records == nil {
		return nil
	}
	switch keys, err := h.c.Keys(ctx, n.name); {
	case err != nil || keys.NodeUID == string(o.UID):
		return nil
	case keys.NodeUID != "":
		return h.writeRemoval(ctx, n)
	}
	return h.c.Records.Registered(ctx, n.name, string(o.UID))
}

// writeStanding says in the Node why it is refused, and takes that back.
func (h *Hub) writeStanding(ctx context.Context, n *node) error {
	keys, err := h.c.Keys(ctx, n.name)
	s, ok := standingOf(keys, err)
	if !ok {
		return err
	}
	have, err := h.nodeLister.Get(n.name)
	for try := 0; ; try++ {
		if apierrors.IsNotFound(err) {
			return nil // its Node was deleted: there is nothing to say it in
		}
		if err != nil {
			return err
		}
		next, changed := withRefusal(have, s, h.c.Now())
		if !changed {
			return nil
		}
		if _, err = h.c.Client.CoreV1().Nodes().UpdateStatus(ctx, next, metav1.UpdateOptions{}); err == nil {
			break
		}
		if !apierrors.IsConflict(err) || try == maxConflicts {
			return err
		}
		have, err = h.c.Client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{})
	}
	h.standingEvent(ctx, have, s)
	return nil
}

// withRefusal is the node with the condition that s calls for.
func withRefusal(have *corev1.Node, s standing, now time.Time) (*corev1.Node, bool) {
	c := nodeCondition(have.Status.Conditions, ConditionRefused)
	if !s.refuses() {
		if c == nil {
			return nil, false
		}
		out := have.DeepCopy()
		out.Status.Conditions = slices.DeleteFunc(out.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == ConditionRefused })
		return out, true
	}
	if c != nil && c.Reason == s.reason() && c.Message == s.message {
		return nil, false
	}
	out := have.DeepCopy()
	if c = nodeCondition(out.Status.Conditions, ConditionRefused); c == nil {
		out.Status.Conditions = append(out.Status.Conditions, corev1.NodeCondition{Type: ConditionRefused})
		c = &out.Status.Conditions[len(out.Status.Conditions)-1]
	}
	c.Status, c.Reason, c.Message = corev1.ConditionTrue, s.reason(), s.message
	c.LastTransitionTime, c.LastHeartbeatTime = metav1.NewTime(now), metav1.NewTime(now)
	return out, true
}

// standingEvent tells those who look at events; the condition says the same.
func (h *Hub) standingEvent(ctx context.Context, o *corev1.Node, s standing) {
	now := metav1.NewTime(h.c.Now())
	kind, reason, message := corev1.EventTypeWarning, s.reason(), s.message
	if !s.refuses() {
		kind, reason, message = corev1.EventTypeNormal, "Readmitted", "the node's identity counts again"
	}
	event := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, GenerateName: o.Name + "."},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: o.Name, UID: o.UID},
		Type:           kind, Reason: reason, Message: message, Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source: corev1.EventSource{Component: component}, ReportingController: component, ReportingInstance: component,
	}
	if _, err := h.c.Client.CoreV1().Events(event.Namespace).Create(ctx, event, metav1.CreateOptions{}); err != nil {
		h.log.Warn("event not stored", "node", o.Name, "reason", reason, "error", err)
	}
}
