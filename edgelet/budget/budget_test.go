package budget

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-edge/coracle/edgelet/state"
)

// keeper is a state that counts its writes.
type keeper struct {
	usage  state.Usage // as on the disk
	writes int
	put    state.Usage
}

func (k *keeper) Usage() state.Usage { return k.usage }
func (k *keeper) PutUsage(u state.Usage, now bool) {
	k.put = u
	if now {
		k.writes++
		k.usage = u
	}
}

func signalled(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestWhatIsntUrgentWaitsNearTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(&keeper{}, nil)
		watch := b.Watch()
		b.Count(500, 500)
		if b.Held() || b.Fits(1<<40) != nil {
			t.Error("held without a limit")
		}
		b.Set(10_000)
		if !signalled(watch) {
			t.Error("a new limit isn't told")
		}
		b.Count(4000, 3999)
		if b.Held() || signalled(watch) {
			t.Errorf("held at %+v", b.Status())
		}
		if err := b.Fits(1001); err != nil {
			t.Error(err)
		}
		b.Count(0, 1)
		if !b.Held() || !signalled(watch) {
			t.Errorf("not held at nine tenths: %+v", b.Status())
		}
		if err := b.Fits(1000); err != nil {
			t.Error(err)
		}
		if err := b.Fits(1001); !errors.Is(err, ErrSpent) || !strings.Contains(err.Error(), "coracle.dev/data-budget") {
			t.Errorf("%v", err)
		}
		b.Count(1000, 0)
		if err := b.Fits(0); !errors.Is(err, ErrSpent) {
			t.Errorf("all is used, and %v", err)
		}
		b.Set(20_000)
		if b.Held() || !signalled(watch) || b.Fits(5000) != nil {
			t.Errorf("a larger budget changes nothing: %+v", b.Status())
		}
		b.Set(0)
		if b.Held() || !signalled(watch) {
			t.Error("held without a limit")
		}
	})
}

func TestTheDayEndsByTheMonotonicClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{}
		b := New(k, nil)
		b.Set(1000)
		watch := b.Watch()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.Run(ctx) }()
		time.Sleep(5 * time.Hour)
		b.Count(950, 0)
		<-watch
		start := time.Now()
		<-watch // Run ends it, nobody asks
		if took := time.Since(start); took != 19*time.Hour || b.Held() || b.Status().Used != 0 {
			t.Errorf("the day ended after %s more: %+v", took, b.Status())
		}
		if k.usage.Bytes != 0 {
			t.Errorf("the flash still has %+v", k.usage)
		}
		b.Count(10, 0)
		cancel()
		if err := <-done; err != nil || k.put.Bytes != 10 {
			t.Errorf("%v, the keeper has %+v", err, k.put)
		}
	})
}

// TestADayOverRestarts: what was kept counts on, the time included; a power cut
// loses a part that is bounded.
func TestADayOverRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{}
		b := New(k, nil)
		b.Set(32_000)
		time.Sleep(20 * time.Hour)
		for range 30_000 {
			b.Count(1, 0)
		}
		if !b.Held() {
			t.Fatal("not held")
		}
		if k.writes > keepEvery+2 {
			t.Errorf("%d writes to flash", k.writes)
		}
		b = New(k, nil) // the power was cut
		b.Set(32_000)
		if lost := 30_000 - b.Status().Used; lost < 0 || lost > 1000 {
			t.Errorf("%d bytes were lost", lost)
		}
		if ends := b.Status().Ends; ends > 4*time.Hour+time.Minute {
			t.Errorf("the day lasts %s, four hours were left", ends)
		}
		time.Sleep(4*time.Hour + time.Second)
		if s := b.Status(); s.Used != 0 || s.Held {
			t.Errorf("a day later: %+v", s)
		}
	})
}

// TestABoardThatIsOffAtNight: its own clock needs two days for one; signed time
// doesn't.
func TestABoardThatIsOffAtNight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{}
		hub := time.Date(2026, 5, 1, 8, 0, 0, 0, time.UTC)
		b := New(k, nil)
		b.Set(1000)
		b.Heard(hub)
		time.Sleep(12 * time.Hour)
		b.Count(990, 0)
		k.usage = k.put // in order
		b = New(k, nil)
		b.Set(1000)
		if !b.Held() {
			t.Fatal("a restart ended the day")
		}
		b.Heard(hub.Add(23 * time.Hour))
		if !b.Held() {
			t.Error("the day ended after 23 hours")
		}
		b.Heard(hub.Add(24 * time.Hour))
		if b.Held() || b.Status().Used != 0 || b.Status().Ends != length {
			t.Errorf("a day later by signed time: %+v", b.Status())
		}
		// A hub whose clock went back doesn't make a day of years.
		b.Count(990, 0)
		b.Heard(hub.Add(-1000 * time.Hour))
		if !b.Held() {
			t.Error("a clock that went back ended the day")
		}
		b.Heard(hub.Add(-976*time.Hour + time.Second))
		if b.Held() {
			t.Error("the day doesn't end")
		}
	})
}

func TestWithoutALimitNothingIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{}
		b := New(k, nil)
		for range 100 {
			b.Count(1<<20, 1<<20)
			time.Sleep(time.Hour)
			b.Heard(time.Now())
		}
		if k.writes != 0 || k.put != (state.Usage{}) {
			t.Errorf("%d writes, %+v", k.writes, k.put)
		}
	})
}

// TestWithARealState: an idle node with a budget writes nothing.
func TestWithARealState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s, err := state.Open(path, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	clock := time.Now()
	b := New(s, func() time.Time { return clock })
	b.Set(5 << 20)
	before := s.Written()
	for range 24 * 4 { // keepalives of a day in class satellite
		clock = clock.Add(15 * time.Minute)
		b.Count(24, 24)
	}
	if now := s.Written(); now != before {
		t.Errorf("a day of keepalives wrote %+v, before %+v", now, before)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
