package wasm

import (
	"sync"
	"time"
)

// What a container's log may take of the disk: logRate bytes a second, and logBurst at
// once. A guest that writes more waits for its own output; nobody else does. A card
// would be full, or worn out, long before a kubelet rotates.
const (
	logRate  = 1 << 20
	logBurst = 4 << 20
)

// throttle is a bucket of bytes that fills with time.
type throttle struct {
	mu    sync.Mutex
	spent float64 // over what has come in; at most logBurst without waiting
	at    time.Time
	held  bool // it had to wait, once
}

// spend notes bytes that were written and gives how long to wait before more.
func (t *throttle) spend(n int, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.at.IsZero() {
		t.spent = max(0, t.spent-now.Sub(t.at).Seconds()*logRate)
	}
	t.at = now
	t.spent += float64(n)
	if t.spent <= logBurst {
		return 0
	}
	t.held = true
	return time.Duration((t.spent - logBurst) / logRate * float64(time.Second))
}

// wasHeld says whether the container ever had to wait.
func (t *throttle) wasHeld() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.held
}

// heldMessage is in the status of a container whose log was held back.
const heldMessage = "it writes its log faster than a megabyte a second, and waits for it"

// pause until more may be written, or until the pump is to end.
func (p *logPump) pause() {
	p.mu.Lock()
	n := p.written
	p.written = 0
	p.mu.Unlock()
	wait := p.throttle.spend(n, time.Now())
	if wait <= 0 {
		return
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.ending:
	}
}
