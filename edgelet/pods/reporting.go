package pods

import (
	"context"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/controlplane/api/trace"
)

// reportNow reports what is, looking once more if something was done since.
func (w *worker) reportNow(ctx context.Context, seen *observation, again bool) error {
	if again {
		var err error
		if seen, err = w.observe(ctx, false); err != nil {
			return err
		}
	}
	return w.report(w.status(seen, false), false)
}

// report makes a status durable, as record and for the control plane, if it
// changed.
func (w *worker) report(s v1.PodStatus, gone bool) error {
	if !gone && w.reported.Load() != nil && sameStatus(w.reported.Load(), &s) {
		return nil
	}
	w.record.status = s
	// A pod that is over must not run again even if the power is cut now, so its
	// record goes first. Otherwise the report does: nobody waits for the flash.
	if w.record.terminal() && !gone {
		if err := w.keep(); err != nil {
			return err
		}
	}
	w.mu.Lock()
	o := w.object
	w.mu.Unlock()
	r := Report{Namespace: w.namespace, Name: w.name, UID: w.uid, Status: &s, Gone: gone}
	if o != nil {
		r.Trace = o.Trace
		if o.Static {
			r.Mirror = o.Raw
		}
	}
	if s.Phase == v1.PodRunning {
		r.Trace.Mark(trace.StatusQueued, time.Now())
	}
	if err := w.m.cfg.Store.Report(r); err != nil {
		return fmt.Errorf("reporting pod %s/%s: %w", w.namespace, w.name, err)
	}
	w.reported.Store(&s)
	if gone {
		return nil
	}
	w.count(&s)
	return w.keep()
}

// keep makes the record durable.
func (w *worker) keep() error {
	raw, err := w.record.encode()
	if err != nil {
		return err
	}
	if err := w.m.cfg.Store.PutRecord(w.uid, raw); err != nil {
		return fmt.Errorf("keeping the record of pod %s/%s: %w", w.namespace, w.name, err)
	}
	return nil
}

func (w *worker) reject(reason, message string) error {
	w.event("", v1.EventTypeWarning, reason, message)
	w.record.admitted = true
	w.record.reason, w.record.message = reason, "Pod was rejected: "+message
	return w.report(rejected(w.pod, reason, message, w.m.cfg.Now()), false)
}

// event journals an event about the pod or, if container is not empty, about a
// container of it.
func (w *worker) event(container, eventType, reason, message string) {
	w.eventOften(container, eventType, reason, message, 1)
}

// eventOften tells of what was so count times.
func (w *worker) eventOften(container, eventType, reason, message string, count uint32) {
	e := Event{Namespace: w.namespace, Name: w.name, UID: w.uid, Type: eventType, Reason: reason, Message: message, Time: w.m.cfg.Now(), Count: count}
	if container != "" && w.pod != nil {
		e.FieldPath = fieldPath(w.pod, container)
	}
	w.journal(e)
}

func (w *worker) journal(e Event) {
	if err := w.m.cfg.Store.Event(e); err != nil {
		w.m.log.Warn("an event was lost", "pod", w.namespace+"/"+w.name, "reason", e.Reason, "err", err)
	}
}

func (w *worker) mark(step trace.Step) {
	w.mu.Lock()
	o := w.object
	w.mu.Unlock()
	if o != nil {
		o.Trace.Mark(step, time.Now())
	}
}
