package pods

import (
	"fmt"
	"time"
)

// A crashing container's back-off, as upstream's.
const (
	crashBackOff    = 10 * time.Second
	crashBackOffMax = 300 * time.Second
	crashReset      = 2 * crashBackOffMax // a container that ran for so long starts anew
)

// crash is the back-off of one container name.
type crash struct {
	delay   time.Duration
	updated time.Time // when it was last restarted, monotonic
	said    bool      // the event of this delay was written
}

// backOff reports until when a container whose last run was first seen ended at
// must not be started, and the message that says so. Zero means now.
func (w *worker) backOff(name string, ended time.Time) (time.Time, string) {
	c := w.crashes[name]
	if c == nil || ended.Sub(c.updated) > crashReset {
		return time.Time{}, ""
	}
	until := ended.Add(c.delay)
	if !time.Now().Before(until) {
		return time.Time{}, ""
	}
	return until, fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", c.delay, name, describe(w.pod))
}

// noteRestart makes the next back-off longer.
func (w *worker) noteRestart(name string, ended time.Time) {
	c := w.crashes[name]
	switch {
	case c == nil || ended.Sub(c.updated) > crashReset:
		c = &crash{delay: crashBackOff}
		put(&w.crashes, name, c)
	default:
		c.delay = min(2*c.delay, crashBackOffMax)
	}
	c.updated, c.said = time.Now(), false
}
