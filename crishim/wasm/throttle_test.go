package wasm

import (
	"testing"
	"time"
)

func TestThrottle(t *testing.T) {
	var b throttle
	now := time.Now()
	if wait := b.spend(logBurst, now); wait != 0 || b.wasHeld() {
		t.Errorf("a burst waits %v", wait)
	}
	if wait := b.spend(logRate/2, now); wait != time.Second/2 || !b.wasHeld() {
		t.Errorf("half a second's bytes more wait %v", wait)
	}
	now = now.Add(time.Second / 2)
	if wait := b.spend(0, now); wait != 0 {
		t.Errorf("after that %v", wait)
	}
	now = now.Add(time.Hour)
	if wait := b.spend(logBurst+1, now); wait <= 0 || wait > time.Millisecond {
		t.Errorf("an hour of silence lets more than a burst through: %v", wait)
	}
}
