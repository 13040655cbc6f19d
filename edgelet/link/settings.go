package link

import (
	"fmt"
	"strconv"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/edgelet/state"
)

// What the hub said of the link, as it is kept for the next start.
const (
	settingKeepalive = "link.keepalive" // seconds
	settingJitter    = "link.jitter"    // milliseconds
	settingObjects   = "link.objects"   // URL
	settingClass     = "link.class"
	settingSlot      = "link.slot"
	settingSlots     = "link.slots"
	settingRetry     = "link.retry"  // seconds
	settingGather    = "link.gather" // milliseconds
	settingBudget    = "link.budget" // bytes a day
)

// settings are what the hub last said, and where it never said anything, what is
// usual for the class that the node itself says it has.
type settings struct {
	fleet.LinkClass
	slot   int
	budget uint64
}

func readSettings(s *state.Store, own string) settings {
	classes := fleet.DefaultClasses()
	out := settings{LinkClass: classes.Of(s.Setting(settingClass), own)}
	number := func(name string) (uint64, bool) {
		n, err := strconv.ParseUint(s.Setting(name), 10, 63)
		return n, err == nil
	}
	duration := func(name string, unit, most time.Duration, to *time.Duration) {
		if n, ok := number(name); ok {
			*to = time.Duration(min(n, uint64(most/unit))) * unit
		}
	}
	duration(settingKeepalive, time.Second, fleet.MaxKeepalive, &out.Keepalive)
	duration(settingJitter, time.Millisecond, time.Hour, &out.Jitter)
	duration(settingRetry, time.Second, fleet.MaxKeepalive, &out.Retry)
	duration(settingGather, time.Millisecond, 10*time.Second, &out.Gather)
	out.Keepalive = max(out.Keepalive, fleet.MinKeepalive)
	out.Slots = 1 // a hub that says nothing of slots means the whole window
	if slots, ok := number(settingSlots); ok && slots > 0 && slots < 1<<20 {
		slot, _ := number(settingSlot)
		out.Slots, out.slot = int(slots), int(slot%slots)
	}
	out.budget, _ = number(settingBudget)
	return out
}

// keepSettings makes a Welcome's word durable, in one write if anything in it
// is new. What an older hub doesn't say stays as it was.
func keepSettings(s *state.Store, w *fleet.Welcome) error {
	said := map[string]string{}
	put := func(name string, n uint64) {
		if n != 0 {
			said[name] = strconv.FormatUint(n, 10)
		}
	}
	put(settingKeepalive, uint64(w.GetKeepalive()))
	put(settingJitter, uint64(w.GetReconnectJitter()))
	if u := w.GetObjectsUrl(); u != "" {
		said[settingObjects] = u
	}
	if l := w.GetLink(); l != nil {
		said[settingBudget], said[settingSlot] = "", strconv.FormatUint(uint64(l.GetSlot()), 10)
		put(settingSlots, uint64(l.GetSlots()))
		put(settingRetry, uint64(l.GetRetryMax()))
		put(settingGather, uint64(l.GetGather()))
		put(settingBudget, l.GetDataBudget())
		if l.GetClass() != "" {
			said[settingClass] = l.GetClass()
		}
	}
	if err := s.PutSettings(said); err != nil {
		return fmt.Errorf("settings of the link: %w", err)
	}
	return nil
}

// comeBack is how long to wait after a connection that was in use broke: until
// the node's slot, and a random time within it.
func (s settings) comeBack(random float64) time.Duration {
	return time.Duration((float64(s.slot) + random) * float64(s.Jitter) / float64(max(s.Slots, 1)))
}

// again is how long to wait after so many attempts that failed.
func (s settings) again(failures int, random float64) time.Duration {
	first := max(250*time.Millisecond, s.Retry/64) // on a slow link attempts are dear
	return time.Duration((0.5 + random) * float64(min(first<<min(max(failures-1, 0), 16), s.Retry)))
}

// attempt bounds one attempt to connect: where retries are quick one that hangs
// must not keep the next one from succeeding.
func (s settings) attempt() time.Duration { return min(max(s.Retry, 5*time.Second), connectTimeout) }

// differs is true if a connection with keepalive have is to be replaced by one
// with want.
func differs(have, want time.Duration) bool { return want*4 > have*5 || want*5 < have*4 }
