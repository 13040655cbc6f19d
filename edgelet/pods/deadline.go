package pods

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Uptime says which boot of the machine this is, and how long ago it was: a clock
// that nobody sets and that goes on while the machine sleeps.
type Uptime func() (boot string, up time.Duration, err error)

// kernelUptime is the kernel's.
func kernelUptime() (string, time.Duration, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", 0, err
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return "", 0, fmt.Errorf("CLOCK_BOOTTIME: %w", err)
	}
	return strings.TrimSpace(string(id)), time.Duration(ts.Nano()), nil
}

// activity is how long a pod with activeDeadlineSeconds has been active, in a
// record. Boards have no clock of their own and wake up in the past, so it is
// counted on the machine's uptime: what the wall clock is set to, forth or back,
// ends nothing and puts off nothing. The time that a board was off isn't counted,
// as nobody knows how long it was; a kubelet takes the wall clock's word for it.
type activity struct {
	boot  string        // of the machine, in which the rest was written
	since time.Duration // the uptime at which the pod's age was 0; negative after a reboot
	spent time.Duration // the age when this was written: what is left of it after a reboot
}

// encode and decodeActivity are for a record's annotation.
func (a *activity) encode() string {
	return fmt.Sprintf("%s %d %d", a.boot, int64(a.since), int64(a.spent))
}

var errActivity = errors.New("not how long a pod was active")

func decodeActivity(s string) (*activity, error) {
	a := new(activity)
	if n, err := fmt.Sscanf(s, "%s %d %d", &a.boot, &a.since, &a.spent); n != 3 || err != nil || a.spent < 0 {
		return nil, fmt.Errorf("%w: %q", errActivity, s)
	}
	return a, nil
}

// activitySteps is how often in its life the age of such a pod is written: a power
// cut prolongs it by at most one step.
const activitySteps = 10

// overdue reports whether the pod's activeDeadlineSeconds are over, or when to look
// again. What it counts on is durable when it returns.
func (w *worker) overdue() (bool, time.Time, error) {
	limit, start := w.pod.Spec.ActiveDeadlineSeconds, w.record.status.StartTime
	if limit == nil || start == nil {
		return false, time.Time{}, nil
	}
	boot, up, err := w.m.cfg.Uptime()
	if err != nil {
		return false, time.Time{}, fmt.Errorf("how long pod %s/%s was active isn't known: %w", w.namespace, w.name, err)
	}
	deadline := time.Duration(*limit) * time.Second
	step := max(deadline/activitySteps, time.Second)
	a := w.record.active
	switch {
	case a == nil:
		age := time.Since(w.born)
		if w.takenOver { // from an agent that had no reason to count
			age = max(w.m.cfg.Now().Sub(start.Time), 0)
		}
		a = &activity{boot: boot, since: up - age, spent: age}
	case a.boot != boot:
		a = &activity{boot: boot, since: up - a.spent, spent: a.spent}
	case up-a.since >= a.spent+step:
		a = &activity{boot: boot, since: a.since, spent: up - a.since}
	}
	if a != w.record.active {
		w.record.active = a
		if err := w.keep(); err != nil {
			return false, time.Time{}, err
		}
	}
	age := up - a.since
	if age >= deadline {
		return true, time.Time{}, nil
	}
	return false, time.Now().Add(min(deadline-age, max(a.spent+step-age, time.Millisecond))), nil
}
