package shutdown

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coracle-edge/coracle/edgelet/pods"
)

// ErrPeriods is returned for grace periods that can't be kept.
var ErrPeriods = errors.New("grace periods of a shutdown")

// systemCriticalPriority is scheduling.SystemCriticalPriority.
const systemCriticalPriority = 2 * 1000000000

// Period is how long pods of a priority, up to that of the next Period, have to
// end. They are ended from the lowest priority to the highest.
type Period struct {
	Priority int32
	Grace    time.Duration
}

// Periods makes the list out of a kubelet's two settings: of total, the last
// critical is for critical pods. Nil if total is 0.
func Periods(total, critical time.Duration) ([]Period, error) {
	switch {
	case total < 0, critical < 0:
		return nil, fmt.Errorf("%w: %s and %s can't be negative", ErrPeriods, total, critical)
	case total == 0 && critical > 0:
		return nil, fmt.Errorf("%w: %s for critical pods are part of the whole period, which is 0", ErrPeriods, critical)
	case critical > total:
		return nil, fmt.Errorf("%w: %s for critical pods are part of the whole period, which is %s", ErrPeriods, critical, total)
	case total == 0:
		return nil, nil
	case total < time.Second, critical > 0 && critical < time.Second:
		return nil, fmt.Errorf("%w: a second at least", ErrPeriods)
	}
	return []Period{{0, total - critical}, {systemCriticalPriority, critical}}, nil
}

// ParsePeriods reads PRIORITY=PERIOD, with commas between them.
func ParsePeriods(list string) ([]Period, error) {
	var out []Period
	for _, item := range strings.Split(list, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		p, d, ok := strings.Cut(item, "=")
		priority, err := strconv.ParseInt(p, 10, 32)
		grace, err2 := time.ParseDuration(d)
		if !ok || err != nil || err2 != nil || grace < 0 {
			return nil, fmt.Errorf("%w: %q is not PRIORITY=PERIOD, as in 0=20s", ErrPeriods, item)
		}
		if slices.ContainsFunc(out, func(o Period) bool { return o.Priority == int32(priority) }) {
			return nil, fmt.Errorf("%w: priority %d has two", ErrPeriods, priority)
		}
		if grace > math.MaxInt64-total(out) {
			return nil, fmt.Errorf("%w: together they are longer than %s", ErrPeriods, time.Duration(math.MaxInt64))
		}
		out = append(out, Period{int32(priority), grace})
	}
	slices.SortFunc(out, func(a, b Period) int { return int(int64(a.Priority) - int64(b.Priority)) })
	return out, nil
}

// total is how long all of them together may take.
func total(periods []Period) time.Duration {
	var sum time.Duration
	for _, p := range periods {
		sum += p.Grace
	}
	return sum
}

// group shares pods out: each belongs to the period of the highest priority that
// isn't higher than its own, or to the first one.
func group(periods []Period, all []pods.Active) [][]pods.Active {
	out := make([][]pods.Active, len(periods))
	for _, p := range all {
		at := 0
		for i := range periods {
			if periods[i].Priority <= p.Priority {
				at = i
			}
		}
		out[at] = append(out[at], p)
	}
	return out
}
