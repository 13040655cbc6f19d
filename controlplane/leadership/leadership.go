package leadership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
)

var (
	// ErrDeposed is returned by Run when the lease was lost: others may work now.
	// The process should end and begin anew, as one that waits.
	ErrDeposed = errors.New("this control plane lost its lease")
	// ErrNotActive is returned for what only the holder of the lease may do.
	ErrNotActive = errors.New("this control plane isn't the active one")
	// ErrNoLeader is returned when nobody holds the lease.
	ErrNoLeader = errors.New("no control plane is active")
)

// MinDuration is the shortest lease: below it an election of etcd's own leader
// would depose the control plane.
const MinDuration = 3 * time.Second

// Config of a Leadership. Client, Namespace, Name and Identity are required.
type Config struct {
	// Client reads and writes the Lease.
	Client    kubernetes.Interface
	Namespace string
	Name      string
	// Identity is of this process and no other.
	Identity string
	// Self is where this process is reached.
	Self Addresses
	// Duration is how long others wait after the last renewal. It is renewed five
	// times as often. 10 s if zero.
	Duration time.Duration
	// Clock is monotonic and runs on while the process is frozen and the machine
	// sleeps; nil is CLOCK_BOOTTIME.
	Clock  func() time.Duration
	Logger *slog.Logger
}

// Addresses of a control plane, in the order in which to try them.
type Addresses struct {
	// API and Fleet are https:// URLs.
	API, Fleet []string
}

// Leadership competes for the lease, once.
type Leadership struct {
	c    Config
	lock *lock
	// until is up to when, on Clock, the lease may be counted on, in nanoseconds.
	until atomic.Int64
}

// New returns a Leadership that doesn't compete before Run.
func New(c Config) (*Leadership, error) {
	if c.Client == nil || c.Namespace == "" || c.Name == "" || c.Identity == "" {
		return nil, errors.New("leadership: Client, Namespace, Name and Identity are needed")
	}
	if c.Duration == 0 {
		c.Duration = 10 * time.Second
	}
	if c.Duration < MinDuration {
		return nil, fmt.Errorf("leadership: a lease of %v is too short, at least %v", c.Duration, MinDuration)
	}
	if c.Clock == nil {
		c.Clock = bootTime
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Leadership{c: c}
	l.lock = &lock{l: l, leases: c.Client.CoordinationV1().Leases(c.Namespace)}
	return l, nil
}

// bootTime counts from the machine's start, suspends included.
func bootTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		// Linux has it since 2.6.39. Without a clock nothing may be counted on.
		return 1<<63 - 1
	}
	return time.Duration(t.Nano())
}

// Held says whether the lease is held and can't have been taken yet.
func (l *Leadership) Held() bool {
	return l.c.Clock() < time.Duration(l.until.Load())
}

// margin is what Held keeps from the lease's end for clocks that run at other
// speeds, and for what is under way.
func (l *Leadership) margin() time.Duration { return l.c.Duration / 10 }

// Run competes until ctx ends. Once the lease is won it calls lead, whose context
// ends when ctx does. When lead has returned then, the lease is released, so that a
// successor needn't wait. If the lease is lost Run returns ErrDeposed at once: lead's
// context has ended, and the caller ends the process.
func (l *Leadership) Run(ctx context.Context, lead func(ctx context.Context)) error {
	// The election outlives ctx, until what was done in its name has ended.
	election, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	leading := make(chan struct{})
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:          l.lock,
		LeaseDuration: l.c.Duration,
		RenewDeadline: l.c.Duration * 2 / 3,
		RetryPeriod:   l.c.Duration / 5,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { close(leading) },
			OnStoppedLeading: func() {},
		},
		Name: l.c.Name, // not ReleaseOnCancel: it would wait for an API that it was cut from
	})
	if err != nil {
		return fmt.Errorf("leadership: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		elector.Run(election)
	}()
	select {
	case <-ctx.Done():
		release()
		<-ended
		return nil
	case <-leading:
	case <-ended:
		return fmt.Errorf("%w: the election ended", ErrDeposed)
	}
	l.c.Logger.Info("this control plane is the active one", "lease", l.c.Namespace+"/"+l.c.Name, "identity", l.c.Identity)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		lead(ctx)
	}()
	select {
	case <-ended:
		l.until.Store(0)
		return fmt.Errorf("%w %s/%s: it couldn't be renewed within %v, or another has it", ErrDeposed, l.c.Namespace, l.c.Name, l.c.Duration)
	case <-done:
	}
	release()
	<-ended
	giveUp, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveUpWithin)
	defer cancel()
	if err := l.lock.giveUp(giveUp); err != nil {
		l.c.Logger.Info("the lease isn't given up: a successor has to wait for its end", "err", err)
	}
	return nil
}

// giveUpWithin is how long a process that ends tries to spare its successor the wait.
const giveUpWithin = 2 * time.Second

// Leader is who holds the lease.
type Leader struct {
	Identity string
	Addresses
	// Self: it is this process.
	Self bool
}

// Leader asks the API who works; ErrNoLeader if nobody does. That its lease may have
// run out is found out by asking it for something.
func (l *Leadership) Leader(ctx context.Context) (Leader, error) {
	lease, err := l.lock.leases.Get(ctx, l.c.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return Leader{}, ErrNoLeader
	}
	if err != nil {
		return Leader{}, fmt.Errorf("lease %s/%s: %w", l.c.Namespace, l.c.Name, err)
	}
	holder := ""
	if lease.Spec.HolderIdentity != nil {
		holder = *lease.Spec.HolderIdentity
	}
	if holder == "" {
		return Leader{}, ErrNoLeader
	}
	return Leader{Identity: holder, Addresses: addressesOf(lease.Annotations), Self: holder == l.c.Identity}, nil
}

// Gate lets a client's writes through only while the lease is held. Reads and
// watches go on: they do no harm, and caches stay warm.
func (l *Leadership) Gate(c *rest.Config) *rest.Config {
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return &gate{next: next, held: l.Held} })
	return c
}

type gate struct {
	next http.RoundTripper
	held func() bool
}

func (g *gate) RoundTrip(r *http.Request) (*http.Response, error) {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
	default:
		if !g.held() {
			if r.Body != nil {
				_ = r.Body.Close()
			}
			return nil, fmt.Errorf("%w: %s %s is not done", ErrNotActive, r.Method, r.URL.Path)
		}
	}
	return g.next.RoundTrip(r)
}
