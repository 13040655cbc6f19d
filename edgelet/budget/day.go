package budget

import (
	"time"

	"github.com/coracle-edge/coracle/edgelet/state"
)

const (
	// length of a day.
	length = 24 * time.Hour
	// holdAt is the part of the budget, in percent, at which what isn't urgent
	// waits: the rest is for what is.
	holdAt = 90
	// keepEvery is the part of the budget, as a divisor, after whose use the count
	// is written to flash: a power cut loses no more than that, and a day costs no
	// more than so many writes.
	keepEvery = 32
)

// day is the account. Its methods look at no clock.
type day struct {
	state.Usage
	limit int64 // bytes; 0: none
	kept  int64 // bytes that the flash knows of
}

// spend counts bytes; keep says that it is time for the flash.
func (d *day) spend(n int64) (keep bool) {
	before := d.held()
	d.Bytes += n
	if d.limit == 0 {
		return false
	}
	if d.held() != before || d.Bytes-d.kept >= max(d.limit/keepEvery, 1) {
		d.kept = d.Bytes
		return true
	}
	return false
}

// pass lets time go by on the monotonic clock; ended says that a new day began.
func (d *day) pass(t time.Duration) (ended bool) {
	d.Elapsed += max(t, 0)
	if d.Elapsed < length {
		return false
	}
	if !d.Began.IsZero() {
		d.Began = d.Began.Add(d.Elapsed / length * length)
	}
	d.Elapsed %= length
	d.Bytes, d.kept = 0, 0
	return true
}

// heard takes an authenticated time.
func (d *day) heard(t time.Time) (ended bool) {
	t = t.UTC().Truncate(time.Second)
	switch {
	case d.Began.IsZero(), t.Before(d.Began): // not known, or the hub's clock went back
		d.Began = t.Add(-d.Elapsed).Truncate(time.Second)
		return false
	case t.Sub(d.Began) < length:
		return false
	}
	d.Began, d.Elapsed, d.Bytes, d.kept = t, 0, 0, 0
	return true
}

func (d *day) held() bool { return d.limit > 0 && d.Bytes >= d.limit-d.limit/100*(100-holdAt) }
