package probes

import (
	"container/heap"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
)

// slowAfter is from how long a run on a probe counts as slow.
const slowAfter = time.Second

// Events of one probe are bounded as a kubelet's recorder bounds those of one
// object: so many at once, then one in so long.
const (
	eventBurst  = 25
	eventRefill = 5 * time.Minute
)

// probe is one probe of one running container.
type probe struct {
	of   *container
	kind Kind
	spec *v1.Probe

	due     time.Time // monotonic
	index   int       // in the queue, -1 if it isn't there
	running bool
	stopped bool // it is not to run again
	isSlow  bool // its last run was
	proven  bool // it has run, and was not slow

	result Result // thresholds applied
	last   Result // of the last run
	run    int32  // how often in a row
	counts Counts

	said   string // the last event
	saidAt time.Time
	tokens int
	filled time.Time
}

func (p *probe) period() time.Duration {
	return time.Duration(max(p.spec.PeriodSeconds, 1)) * time.Second
}

func (p *probe) timeout() time.Duration {
	return time.Duration(max(p.spec.TimeoutSeconds, 1)) * time.Second
}

// queue orders probes by when they are due.
type queue []*probe

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}
func (q *queue) Push(x any) {
	p := x.(*probe)
	p.index = len(*q)
	*q = append(*q, p)
}
func (q *queue) Pop() any {
	old := *q
	p := old[len(old)-1]
	old[len(old)-1] = nil
	p.index = -1
	*q = old[:len(old)-1]
	return p
}

func (q *queue) remove(p *probe) {
	if p.index >= 0 {
		heap.Remove(q, p.index)
	}
}

// scheduleFirstLocked schedules the first run of a container's probe. Containers
// that ran before the agent did are spread over a period, as upstream does, so
// that a restart isn't a burst.
func (m *Manager) scheduleFirstLocked(p *probe) {
	now := time.Now()
	at := p.of.since.Add(time.Duration(p.spec.InitialDelaySeconds) * time.Second)
	if at.Before(now) {
		at = now
	}
	if p.of.adopted {
		at = at.Add(time.Duration(rand.Float64() * float64(p.period())))
	}
	m.scheduleLocked(p, at)
}

func (m *Manager) scheduleLocked(p *probe, at time.Time) {
	if p.stopped || p.running {
		return
	}
	m.queue.remove(p)
	p.due = at
	heap.Push(&m.queue, p)
}

func (m *Manager) wake() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// Run runs probes when they are due until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	for {
		if next := m.startDue(ctx, &wg); next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(time.Until(next), time.Millisecond))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.kick:
		case <-timer.C:
		}
	}
}

// startDue starts what is due and returns when to look again, zero if a kick will
// say.
func (m *Manager) startDue(ctx context.Context, wg *sync.WaitGroup) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	waiting := m.parked
	m.parked = nil
	for {
		var p *probe
		switch {
		case m.inFlight >= m.cfg.Parallel:
			m.parked = append(m.parked, waiting...)
			return time.Time{} // who ends will kick
		case len(waiting) > 0:
			p, waiting = waiting[0], waiting[1:]
		case len(m.queue) > 0 && !m.queue[0].due.After(now):
			p = heap.Pop(&m.queue).(*probe)
		case len(m.queue) > 0:
			return m.queue[0].due
		default:
			return time.Time{}
		}
		if p.stopped {
			continue
		}
		// Of the slots those that are known to be slow have half, and with those of
		// which nothing is known yet three quarters: thousands that hang, all at once,
		// delay no probe that was quick the last time.
		if p.isSlow && m.slow >= max(m.cfg.Parallel/2, 1) || !p.proven && m.unproven >= max(m.cfg.Parallel*3/4, 1) {
			m.parked = append(m.parked, p)
			continue
		}
		p.running = true
		m.inFlight++
		slot := slot{slow: p.isSlow, unproven: !p.proven}
		if slot.slow {
			m.slow++
		}
		if slot.unproven {
			m.unproven++
		}
		target := target{podUID: p.of.pod.uid, host: p.of.pod.ip, c: p.of, probe: p}
		wg.Go(func() { m.runOne(ctx, target, slot) })
	}
}

// target is what a run must know, taken while the lock was held.
type target struct {
	podUID, host string
	c            *container
	probe        *probe
}

// slot is as what a run was counted when it began.
type slot struct{ slow, unproven bool }

func (m *Manager) runOne(ctx context.Context, t target, slot slot) {
	started := time.Now()
	verdict, output, err := m.check.retrying(ctx, t)
	took := time.Since(started)

	event, changed := m.ended(ctx, t, slot, started, took, verdict, output, err)
	if event != nil {
		m.cfg.Event(*event)
	}
	if changed {
		m.cfg.Changed(t.podUID)
	}
}

// ended takes in one run, and schedules the next.
func (m *Manager) ended(ctx context.Context, t target, slot slot, started time.Time, took time.Duration, v verdict, output string, err error) (event *Event, changed bool) {
	m.mu.Lock()
	defer m.wake()
	defer m.mu.Unlock()
	m.inFlight--
	if slot.slow {
		m.slow--
	}
	if slot.unproven {
		m.unproven--
	}
	p := t.probe
	p.running = false
	p.isSlow = took >= slowAfter
	p.proven = !p.isSlow
	if p.stopped || ctx.Err() != nil {
		return nil, false
	}
	p.counts.add(v, err)
	event = eventOf(t, v, output, err)
	if err == nil {
		changed = m.concludeLocked(t, v)
	}
	// As a ticker: what took longer than its period runs again at once.
	at, now := p.due.Add(p.period()), started.Add(took)
	if at.Before(now) {
		at = now
	}
	m.scheduleLocked(p, at)
	return event, changed
}

// concludeLocked applies the thresholds, as upstream's worker does, and reports
// whether the probe's result is another one now.
func (m *Manager) concludeLocked(t target, v verdict) bool {
	p := t.probe
	result := Failure
	if v == succeeded || v == warned {
		result = Success
	}
	if p.last == result {
		p.run++
	} else {
		p.last, p.run = result, 1
	}
	if (result == Failure && p.run < p.spec.FailureThreshold) || (result == Success && p.run < p.spec.SuccessThreshold) {
		return false
	}
	changed := p.result != result
	p.result = result
	if p.kind == Startup || (p.kind == Liveness && result == Failure) {
		p.stopped = true // the next container of that name is asked again
	}
	if p.kind == Startup && result == Success {
		for _, kind := range []Kind{Readiness, Liveness} {
			if other := t.c.probes[kind]; other != nil && other.index < 0 {
				m.scheduleFirstLocked(other)
			}
		}
	}
	return changed
}

// eventOf is what a client wants to see of a run, in a kubelet's words; nil if
// there is nothing to be told.
func eventOf(t target, v verdict, output string, err error) *Event {
	p := t.probe
	reason, text := "Unhealthy", ""
	switch {
	case err != nil:
		text = fmt.Sprintf("%s probe errored and resulted in %s state: %s", p.kind, v, err)
	case v == warned:
		reason, text = "ProbeWarning", fmt.Sprintf("%s probe warning: %s", p.kind, output)
	case v == failed:
		text = fmt.Sprintf("%s probe failed: %s", p.kind, output)
	default:
		p.said = "" // the next failure is news
		return nil
	}
	if !p.maySay(text, time.Now()) {
		return nil
	}
	return &Event{PodUID: t.podUID, Path: t.c.path, Type: v1.EventTypeWarning, Reason: reason, Message: text}
}

// maySay lets through what is new, within the burst, and what was said long ago:
// each event is a write to the board's flash.
func (p *probe) maySay(text string, now time.Time) bool {
	if p.said == text && now.Sub(p.saidAt) < eventRefill {
		return false
	}
	if n := int(now.Sub(p.filled) / eventRefill); n > 0 && !p.filled.IsZero() {
		p.tokens = min(p.tokens+n, eventBurst)
		p.filled = now
	} else if p.filled.IsZero() {
		p.filled = now
	}
	if p.tokens == 0 {
		return false
	}
	p.tokens--
	p.said, p.saidAt = text, now
	return true
}
