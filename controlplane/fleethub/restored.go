package fleethub

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// ConditionRestorePending is on a Node that belongs to the cluster as it was
// before etcd was put back: it keeps what it runs and gets no orders. It goes when
// an operator has settled it.
const ConditionRestorePending corev1.NodeConditionType = "RestorePending"

// Restore says that etcd was put back to an earlier time on purpose.
type Restore struct {
	ID string `json:"id"`
	// Incarnation that begins with it, hex.
	Incarnation string `json:"-"`
	// Snapshot is its file's name, if that is known, and Revision up to where it goes.
	Snapshot string    `json:"snapshot,omitempty"`
	Revision int64     `json:"revision,omitempty"`
	At       time.Time `json:"at"`
}

// Running is a pod that a node has.
type Running struct {
	UID string `json:"uid"`
	// Namespace and Name are empty until the node has said them.
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
}

// Unsettled is a node that isn't of this incarnation of the cluster, or has seen a
// later time of it.
type Unsettled struct {
	Node string `json:"node"`
	// There: it has a session.
	There bool `json:"there"`
	// Incarnation that it belongs to, hex.
	Incarnation string `json:"incarnation"`
	// Later: it is of this very incarnation. Then etcd was put back without a word,
	// or this hub was deposed.
	Later bool `json:"later,omitempty"`
	// Unknown are the pods that it has and the cluster hasn't.
	Unknown []Running `json:"unknown,omitempty"`
	// Missing are the pods that the cluster has bound to it and it hasn't.
	Missing []Running `json:"missing,omitempty"`
	// Incomplete: it has more than it said.
	Incomplete bool `json:"incomplete,omitempty"`
}

// Standing is what became of a restore.
type Standing struct {
	// Incarnation of the cluster, hex.
	Incarnation string `json:"incarnation"`
	// Restore is nil if etcd was never put back.
	Restore *Restore `json:"restore,omitempty"`
	// Confirmed: nodes that come from before the restore are adopted as they come.
	Confirmed bool        `json:"confirmed,omitempty"`
	Unsettled []Unsettled `json:"unsettled,omitempty"`
	// Away are nodes that haven't spoken since this hub began: what they run isn't
	// known.
	Away []string `json:"away,omitempty"`
}

// runs is what a foreign node said that it has.
type runs struct {
	pods     map[string]Running // by UID, without mirrors and what is gone
	complete bool
}

// foreignHello keeps what a node of another incarnation runs, and has it asked for
// all reports: what was stored of them is of a later time than etcd.
func (n *node) foreignHello(h *fleet.Hello) {
	r := &runs{pods: map[string]Running{}, complete: h.GetRunningComplete()}
	for _, p := range h.GetRunning() {
		if p.GetUid() != "" && !p.GetMirror() && !p.GetGone() {
			r.pods[p.GetUid()] = Running{p.GetUid(), p.GetNamespace(), p.GetName()}
		}
	}
	n.runs, n.resendAll = r, true
}

// foreignReport learns names, which a Hello leaves out; n.mu is held.
func (n *node) foreignReport(r *fleet.PodReport) {
	switch {
	case n.runs == nil || len(r.GetMirror()) > 0:
	case r.GetGone():
		delete(n.runs.pods, r.GetUid())
	default:
		n.runs.pods[r.GetUid()] = Running{r.GetUid(), r.GetNamespace(), r.GetName()}
	}
}

// Standing says which nodes still wait for an operator's word.
func (h *Hub) Standing() Standing {
	if !h.live.Load() {
		return Standing{}
	}
	out := Standing{Incarnation: hex.EncodeToString([]byte(h.reign.Incarnation)), Restore: h.reign.restore, Confirmed: h.follow.Load()}
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, n := range h.nodes {
		theirs := n.foreign.Load()
		switch {
		case theirs != nil:
			out.Unsettled = append(out.Unsettled, h.unsettled(name, n, *theirs))
		case n.known.Load() && !n.spoke.Load():
			out.Away = append(out.Away, name)
		}
	}
	slices.SortFunc(out.Unsettled, func(a, b Unsettled) int { return strings.Compare(a.Node, b.Node) })
	slices.Sort(out.Away)
	return out
}

// unsettled is called with h.mu held.
func (h *Hub) unsettled(name string, n *node, theirs string) Unsettled {
	u := Unsettled{Node: name, There: n.confirmed.Load(), Incarnation: hex.EncodeToString([]byte(theirs)), Later: theirs == h.reign.Incarnation}
	bound := map[string]*corev1.Pod{}
	for _, pod := range h.bound[name] {
		if !isMirror(pod) {
			bound[string(pod.UID)] = pod
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.runs == nil {
		u.Incomplete = true
		return u
	}
	u.Incomplete = !n.runs.complete
	for uid, r := range n.runs.pods {
		if bound[uid] == nil {
			u.Unknown = append(u.Unknown, r)
		}
	}
	for uid, pod := range bound {
		if _, has := n.runs.pods[uid]; !has && n.runs.complete && !terminal(pod.Status.Phase) {
			u.Missing = append(u.Missing, Running{uid, pod.Namespace, pod.Name})
		}
	}
	for _, list := range [][]Running{u.Unknown, u.Missing} {
		slices.SortFunc(list, func(a, b Running) int {
			return strings.Compare(a.Namespace+"/"+a.Name+"/"+a.UID, b.Namespace+"/"+b.Name+"/"+b.UID)
		})
	}
	return u
}

// AwaitPods waits until the hub has seen that pods with these UIDs are bound to a
// node: adopted before, the node would be told that they are gone.
func (h *Hub) AwaitPods(ctx context.Context, name string, uids []string) error {
	for {
		h.mu.Lock()
		seen := map[string]bool{}
		for _, pod := range h.bound[name] {
			seen[string(pod.UID)] = true
		}
		h.mu.Unlock()
		missing := slices.IndexFunc(uids, func(uid string) bool { return !seen[uid] })
		if missing < 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("pod %s of node %s: the hub hasn't seen it: %w", uids[missing], name, context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Repeat asks a node for its reports of these pods, also if they were answered for.
func (h *Hub) Repeat(name string, uids []string) {
	for _, uid := range uids {
		h.repeatReport(name, uid)
	}
}

// ErrNotRestored is returned by Confirm if etcd was never put back.
var ErrNotRestored = errors.New("etcd was not put back")

// Confirm is an operator's word that the cluster is as etcd has it now: every node
// of before the restore is adopted, now or when it comes, and stops what the
// cluster doesn't know. It is durable, and holds until the next restore.
func (h *Hub) Confirm(ctx context.Context) error {
	if !h.live.Load() || h.reign.restore == nil {
		return ErrNotRestored
	}
	secrets := h.c.Client.CoreV1().Secrets(Namespace)
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		record, err := secrets.Get(ctx, RecordName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		record = record.DeepCopy()
		record.Data[keyConfirmed] = []byte(h.reign.restore.ID)
		_, err = secrets.Update(ctx, record, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("confirming the restore in secret %s/%s: %w", Namespace, RecordName, err)
	}
	h.follow.Store(true)
	h.mu.Lock()
	defer h.mu.Unlock()
	for name := range h.nodes {
		h.work.Add(name)
	}
	return nil
}

// settle adopts a node of before a restore that was confirmed, and keeps the
// Node's condition in step with what it is.
func (t *turn) settle() {
	h, n := t.h, t.n
	var now *string
	if n.peer.IsForeign() {
		theirs := n.peer.Theirs().Incarnation
		now = &theirs
		if theirs != h.reign.Incarnation && h.follow.Load() {
			t.do(n.peer.Adopt(h.now()))
		}
	}
	was := n.foreign.Swap(now)
	if (was == nil) == (now == nil) {
		return
	}
	if now == nil {
		n.mu.Lock()
		n.runs = nil
		n.mu.Unlock()
		h.log.Info("node belongs to this incarnation of the cluster now", "node", n.name)
	}
	h.writes.Add(writeKey{n.name, writePending, ""})
}

// pendingMessage says what an operator has to know.
func (h *Hub) pendingMessage(theirs string) string {
	if theirs == h.reign.Incarnation {
		return "The node has carried out orders of a later time than etcd knows, which was put back without a word. It keeps what it runs and gets no orders; see `coracle restore status`."
	}
	return "The node belongs to the cluster as it was before etcd was put back to an earlier time. It keeps what it runs and gets no orders until that is settled; see `coracle restore status`."
}

// writePending puts the condition on the Node, or takes it away.
func (h *Hub) writePending(ctx context.Context, n *node) error {
	have, err := h.nodeLister.Get(n.name)
	for try := 0; ; try++ {
		if apierrors.IsNotFound(err) {
			return nil // it is looked at again when the node is registered
		}
		if err != nil {
			return err
		}
		next := h.withPending(have, n.foreign.Load())
		if next == nil {
			return nil
		}
		if _, err = h.c.Client.CoreV1().Nodes().UpdateStatus(ctx, next, metav1.UpdateOptions{}); err == nil {
			return nil
		}
		if !apierrors.IsConflict(err) || try == maxConflicts {
			return err
		}
		have, err = h.c.Client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{})
	}
}

// withPending returns nil if nothing is to be changed.
func (h *Hub) withPending(have *corev1.Node, theirs *string) *corev1.Node {
	is := nodeCondition(have.Status.Conditions, ConditionRestorePending)
	if theirs == nil {
		if is == nil {
			return nil
		}
		next := have.DeepCopy()
		next.Status.Conditions = slices.DeleteFunc(next.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == ConditionRestorePending })
		return next
	}
	message := h.pendingMessage(*theirs)
	if is != nil && is.Status == corev1.ConditionTrue && is.Message == message {
		return nil
	}
	next := have.DeepCopy()
	next.Status.Conditions = slices.DeleteFunc(next.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == ConditionRestorePending })
	now := metav1.NewTime(h.c.Now())
	next.Status.Conditions = append(next.Status.Conditions, corev1.NodeCondition{Type: ConditionRestorePending, Status: corev1.ConditionTrue,
		LastHeartbeatTime: now, LastTransitionTime: now, Reason: "OtherIncarnation", Message: message})
	return next
}

// pendingDiffers says whether the Node's condition isn't what it should be.
func (h *Hub) pendingDiffers(name string, theirs *string) bool {
	have, err := h.nodeLister.Get(name)
	return err == nil && h.withPending(have, theirs) != nil
}

// Ref names something that a pod refers to.
type Ref struct{ Kind, Namespace, Name string }

// References lists what a pod on a node refers to and the node gets with it.
func References(pod *corev1.Pod) map[Ref]bool {
	out := map[Ref]bool{}
	for r := range references(pod) {
		out[Ref{r.kind, r.namespace, r.name}] = true
	}
	return out
}
