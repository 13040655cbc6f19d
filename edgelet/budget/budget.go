package budget

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/coracle-edge/coracle/edgelet/state"
)

// ErrSpent is returned for what doesn't fit into the rest of the day's data.
var ErrSpent = errors.New("data budget")

// putEvery is how often the state is told of the count, to go along with
// whatever it writes.
const putEvery = time.Minute

// Keeper keeps the count; edgelet/state does.
type Keeper interface {
	Usage() state.Usage
	PutUsage(u state.Usage, now bool)
}

// Budget of a node. Safe for concurrent use.
type Budget struct {
	keeper Keeper
	now    func() time.Time

	mu      sync.Mutex
	day     day
	at      time.Time // up to when time was counted, with a monotonic reading
	put     time.Time // when the keeper was last told
	watches []chan struct{}
	kick    chan struct{} // capacity 1: Run has to think again
}

// New begins where the keeper's count ends; there is no limit before Set. now is
// a clock with a monotonic reading; nil means time.Now.
func New(keeper Keeper, now func() time.Time) *Budget {
	if now == nil {
		now = time.Now
	}
	u := keeper.Usage()
	return &Budget{keeper: keeper, now: now, day: day{Usage: u, kept: u.Bytes}, at: now(), put: now(), kick: make(chan struct{}, 1)}
}

// Watch returns a channel that gets a signal when what is held changes, or what
// Status says of it.
func (b *Budget) Watch() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := make(chan struct{}, 1)
	b.watches = append(b.watches, c)
	return c
}

// Count is told bytes that were sent and received.
func (b *Budget) Count(sent, received int) {
	b.change(func(d *day) bool { return d.spend(int64(max(sent, 0) + max(received, 0))) })
}

// Set changes the limit, in bytes a day; 0 is none.
func (b *Budget) Set(limit uint64) {
	b.change(func(d *day) bool {
		d.limit = int64(min(limit, math.MaxInt64))
		return false
	})
}

// Heard takes a time that the hub has signed.
func (b *Budget) Heard(t time.Time) {
	b.change(func(d *day) bool {
		held := d.held()
		return d.heard(t) && held
	})
}

// Held is true if what isn't urgent has to wait.
func (b *Budget) Held() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.day.held()
}

// Fits returns an error, for people, if n more bytes don't fit into the day.
func (b *Budget) Fits(n int64) error {
	s := b.Status()
	if s.Limit == 0 || s.Used+n <= s.Limit && s.Used < s.Limit {
		return nil
	}
	return fmt.Errorf("%w: %d of %d bytes of this node's day are used, %d more don't fit; the day ends in %s, or raise the Node's annotation coracle.dev/data-budget",
		ErrSpent, s.Used, s.Limit, n, s.Ends.Round(time.Minute))
}

// Status of a budget.
type Status struct {
	Limit int64 `json:"limit"` // bytes a day; 0: none
	Used  int64 `json:"used"`  // of the day
	Held  bool  `json:"held"`
	// Ends is how long the day lasts, at most.
	Ends time.Duration `json:"ends"`
}

// Status returns what was used.
func (b *Budget) Status() Status {
	b.change(func(*day) bool { return false })
	b.mu.Lock()
	defer b.mu.Unlock()
	return Status{b.day.limit, b.day.Bytes, b.day.held(), length - b.day.Elapsed}
}

// change lets the time go by and does what is asked; if something is held that
// wasn't, or the reverse, or the limit is another, those who watch are told.
func (b *Budget) change(do func(*day) (keep bool)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	held, limit := b.day.held(), b.day.limit
	passed := now.Sub(b.at)
	b.at = now
	keep := b.day.pass(passed) && held
	keep = do(&b.day) || keep
	if b.day.limit > 0 && (keep || now.Sub(b.put) >= putEvery) {
		b.put = now
		b.keeper.PutUsage(b.day.Usage, keep)
	}
	if held == b.day.held() && limit == b.day.limit {
		return
	}
	signal(b.kick)
	for _, c := range b.watches {
		signal(c)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run ends what is held when its day ends, and leaves the count with the keeper
// when ctx does.
func (b *Budget) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		s := b.Status()
		if s.Held {
			timer.Reset(max(s.Ends, time.Millisecond))
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.day.limit > 0 {
				b.keeper.PutUsage(b.day.Usage, false) // the state is closed after us
			}
			return nil
		case <-b.kick:
		case <-timer.C:
		}
	}
}
