package node

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Bounds of a [Recorder], those of a kubelet's recorder for one object
// (k8s.io/client-go/tools/record/events_cache.go): so many at once, another one each
// refill, and what repeats within repeatFor is counted. What is counted and not told
// yet is at most maxRepeats texts.
const (
	eventBurst  = 25
	eventRefill = 5 * time.Minute
	repeatFor   = 10 * time.Minute
	maxRepeats  = 32
)

// Event is an event about the node itself.
type Event struct {
	Type, Reason, Message string
	// Count is how often it was so since it was last told; at least 1.
	Count uint32
}

// Recorder bounds what is told of the node. Safe for concurrent use.
//
// Normal events are transitions: each is told, or the last one would be a lie.
// Warnings repeat for as long as nobody helps: one text is told once in ten minutes,
// with how often it was so. Each event is a write to the board's flash.
type Recorder struct {
	put func(Event) error
	log *slog.Logger

	mu      sync.Mutex
	tokens  int
	filled  time.Time // monotonic
	dropped int       // for want of a token, since it was last logged
	repeats map[repeatKey]*repeat
}

type repeatKey struct{ reason, message string }

type repeat struct {
	at    time.Time // when it was told
	since uint32    // how often it was so since
}

// NewRecorder returns one that hands to put what is to be kept until the control
// plane has it.
func NewRecorder(put func(Event) error, log *slog.Logger) *Recorder {
	return &Recorder{put: put, log: log, tokens: eventBurst, repeats: map[repeatKey]*repeat{}}
}

// Event tells of the node.
func (r *Recorder) Event(eventType, reason, message string) {
	e, ok := r.admit(Event{Type: eventType, Reason: reason, Message: message, Count: 1})
	if !ok {
		return
	}
	if err := r.put(e); err != nil {
		r.log.Warn("an event of the node was lost", "reason", reason, "message", message, "err", err)
	}
}

func (r *Recorder) admit(e Event) (Event, bool) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	key := repeatKey{e.Reason, e.Message}
	if e.Type == v1.EventTypeWarning {
		if before := r.repeats[key]; before != nil {
			if now.Sub(before.at) < repeatFor {
				before.since++
				return e, false
			}
			e.Count += before.since
		}
	}
	if r.filled.IsZero() {
		r.filled = now
	}
	if n := int(now.Sub(r.filled) / eventRefill); n > 0 {
		r.tokens = min(r.tokens+n, eventBurst)
		r.filled = r.filled.Add(time.Duration(n) * eventRefill)
	}
	if r.tokens == 0 {
		if r.dropped++; r.dropped == 1 {
			r.log.Warn("too many events of the node, the next are in this log only", "reason", e.Reason, "again", eventRefill-now.Sub(r.filled))
		}
		r.log.Info("not told", "type", e.Type, "reason", e.Reason, "message", e.Message)
		return e, false
	}
	r.tokens, r.dropped = r.tokens-1, 0
	if e.Type == v1.EventTypeWarning {
		r.remember(key, now)
	}
	return e, true
}

// remember needs r.mu.
func (r *Recorder) remember(key repeatKey, now time.Time) {
	for len(r.repeats) >= maxRepeats {
		var oldest repeatKey
		var at time.Time
		for k, one := range r.repeats {
			if at.IsZero() || one.at.Before(at) {
				oldest, at = k, one.at
			}
		}
		delete(r.repeats, oldest)
	}
	r.repeats[key] = &repeat{at: now}
}

// statusEvents are the reasons of the conditions' transitions, as a kubelet names
// them (upstream: pkg/kubelet/nodestatus/setters.go), in its order.
var statusEvents = [...]struct {
	condition v1.NodeConditionType
	on, off   string
}{
	{v1.NodeMemoryPressure, "NodeHasInsufficientMemory", "NodeHasSufficientMemory"},
	{v1.NodeDiskPressure, "NodeHasDiskPressure", "NodeHasNoDiskPressure"},
	{v1.NodePIDPressure, "NodeHasInsufficientPID", "NodeHasSufficientPID"},
	{v1.NodeReady, "NodeReady", "NodeNotReady"},
}

// before is what the node said last, maybe before it was restarted.
type before struct {
	bootID     string
	conditions map[v1.NodeConditionType]v1.ConditionStatus
}

func readBefore(raw []byte) (before, error) {
	var o v1.Node
	if err := o.Unmarshal(raw); err != nil {
		return before{}, fmt.Errorf("what the node said last can't be read: %w", err)
	}
	return beforeOf(&o), nil
}

func beforeOf(o *v1.Node) before {
	b := before{bootID: o.Status.NodeInfo.BootID, conditions: map[v1.NodeConditionType]v1.ConditionStatus{}}
	for _, c := range o.Status.Conditions {
		b.conditions[c.Type] = c.Status
	}
	return b
}

// transitions are the events between what was said and what is. A node that never
// said anything is told of as a kubelet tells of one that registers.
func transitions(name string, was, is before) (out []Event) {
	if was.bootID != "" && is.bootID != "" && was.bootID != is.bootID {
		out = append(out, Event{Type: v1.EventTypeWarning, Reason: "Rebooted", Message: fmt.Sprintf("Node %s has been rebooted, boot id: %s", name, is.bootID)})
	}
	for _, e := range statusEvents {
		have, known := was.conditions[e.condition]
		now, has := is.conditions[e.condition]
		if !has || known && have == now {
			continue
		}
		reason := e.off
		if now == v1.ConditionTrue {
			reason = e.on
		} else if e.condition == v1.NodeReady && !known {
			continue // it was never ready, so it didn't stop being so
		}
		out = append(out, Event{Type: v1.EventTypeNormal, Reason: reason, Message: fmt.Sprintf("Node %s status is now: %s", name, reason)})
	}
	return out
}
