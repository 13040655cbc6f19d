package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/utils/ptr"

	"github.com/coracle-edge/coracle/controlplane/fleethub"
)

// errCutOff ends a control plane that is active and can't be reached by the nodes.
var errCutOff = errors.New("nodes come to another control plane and none is heard here: this one gives its lease up")

const (
	// knockLease is renewed by control planes that wait, when nodes come to them.
	// Nothing of it is read but that it changed: no clock is compared.
	knockLease = "coracle-knocks"
	knockEvery = 2 * time.Second
	// knockCounts is how long a knock counts: nodes that nobody takes come again
	// within the longest wait of a lan's.
	knockCounts = 15 * time.Second
	// lookEvery is how often the active control plane looks whom it hears. It is
	// below the grace of a broken connection.
	lookEvery = 200 * time.Millisecond
	// allGone is how long nobody is called away after all connections broke together:
	// nodes that can go elsewhere do so at once.
	allGone = 10 * time.Second
	// noticed is above what a node needs, after 1.3 keepalives, to notice that nobody
	// answers, and to go elsewhere.
	noticed = 15 * time.Second
	// brokerGone is how long an external broker may be out of reach.
	brokerGone = 30 * time.Second
)

// knocks tells the active control plane that nodes came to this one, which waits.
type knocks struct {
	leases   coordinationclient.LeaseInterface
	identity string
	logger   *slog.Logger
	came     chan struct{} // capacity 1
}

func newKnocks(leases coordinationclient.LeaseInterface, identity string, logger *slog.Logger) *knocks {
	return &knocks{leases: leases, identity: identity, logger: logger, came: make(chan struct{}, 1)}
}

// knock doesn't block.
func (k *knocks) knock() {
	select {
	case k.came <- struct{}{}:
	default:
	}
}

// run passes knocks on until ctx ends, at most every knockEvery.
func (k *knocks) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.came:
		}
		if err := k.renew(ctx); err != nil && ctx.Err() == nil {
			k.logger.Info("the active control plane isn't told that nodes come here", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(knockEvery):
		}
	}
}

func (k *knocks) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, knockEvery)
	defer cancel()
	for {
		spec := coordinationv1.LeaseSpec{HolderIdentity: &k.identity, RenewTime: ptr.To(metav1.NowMicro())}
		have, err := k.leases.Get(ctx, knockLease, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			_, err = k.leases.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: knockLease}, Spec: spec}, metav1.CreateOptions{})
		case err == nil:
			next := have.DeepCopy()
			next.Spec = spec
			_, err = k.leases.Update(ctx, next, metav1.UpdateOptions{})
		}
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			return err // another one that waits may have been faster
		}
	}
}

// doubt is the active control plane's whether it is cut off from the nodes.
type doubt struct {
	reach  func() fleethub.Reach
	now    func() time.Time
	knocks func(ctx context.Context, heard func()) // calls heard at each knock, until ctx ends
	logger *slog.Logger

	knocked atomic.Int64 // when the last knock came, Unix nanoseconds
	hold    atomic.Bool
	cut     atomic.Bool // run has found it out

	sessions int           // before anything was in doubt
	each     time.Duration // the shortest keepalive of these
	since    time.Time     // the first knock of those that go on, zero: none
	gone     time.Time     // all sessions; zero: there are some, or never were
	broker   time.Time     // when the way to it was lost; zero: it is there, or never was
	reached  bool          // the broker was
}

// Hold says that nobody is to be called away now.
func (d *doubt) Hold() bool { return d.hold.Load() }

// run watches until ctx ends, or it is clear that this control plane is cut off.
func (d *doubt) run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.knocks(ctx, func() { d.knocked.Store(d.now().UnixNano()) })
	}()
	defer func() { stop(); <-ended }()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			d.hold.Store(false)
			return nil
		case <-tick.C:
		}
		hold, err := d.look()
		if hold && !d.hold.Load() {
			d.logger.Warn("this control plane may be cut off from the nodes: none is called away for now", "sessions", d.sessions)
		}
		d.hold.Store(hold || err != nil)
		if err != nil {
			// What was to be said of nodes that are away stays unsaid: the successor
			// finds out.
			d.cut.Store(true)
			return err
		}
	}
}

// look judges by what is heard now.
func (d *doubt) look() (hold bool, err error) {
	now, r := d.now(), d.reach()
	switch {
	case r.Broker:
		d.reached, d.broker = true, time.Time{}
	case d.reached && d.broker.IsZero():
		d.broker = now
	case d.reached && now.Sub(d.broker) >= brokerGone:
		return true, fmt.Errorf("%w (its way to the broker is lost)", errCutOff)
	}
	if r.Sessions > 0 {
		d.gone = time.Time{}
	} else if d.sessions > 0 && d.gone.IsZero() {
		d.gone = now
	}
	last := time.Unix(0, d.knocked.Load())
	switch knocking := d.knocked.Load() != 0 && now.Sub(last) < knockCounts; {
	case !knocking:
		d.since = time.Time{}
	case d.since.IsZero():
		d.since = last
	}
	// Whoever was heard since the first knock shows that it's the node that knocks
	// whose way here is broken, not ours to all.
	cutOff := !d.since.IsZero() && r.Heard.Before(d.since) && d.sessions > 0
	if cutOff && 2*r.Sessions < d.sessions {
		return true, errCutOff
	}
	// Of nodes that are there one is heard within the shortest keepalive. They notice
	// later than we do that nothing comes through.
	silence := now.Sub(r.Heard)
	quiet := d.sessions > 0 && silence > d.each*5/4 && silence < d.each*13/10+noticed
	gone := !d.gone.IsZero() && now.Sub(d.gone) < allGone
	if !cutOff && !quiet && r.Sessions > 0 {
		d.sessions, d.each = r.Sessions, r.Keepalive
	}
	return cutOff || quiet || gone, nil
}

// watchKnocks calls heard whenever the Lease changes, until ctx ends.
func watchKnocks(leases coordinationclient.LeaseInterface) func(ctx context.Context, heard func()) {
	return func(ctx context.Context, heard func()) {
		var version string
		for first := true; ; first = false {
			if lease, err := leases.Get(ctx, knockLease, metav1.GetOptions{}); err == nil && lease.ResourceVersion != version {
				version = lease.ResourceVersion
				if !first { // what was there before is of another time
					heard()
				}
			}
			w, err := leases.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + knockLease, ResourceVersion: version})
			if err == nil {
				stop := context.AfterFunc(ctx, w.Stop)
				for e := range w.ResultChan() {
					if lease, ok := e.Object.(*coordinationv1.Lease); ok && lease.ResourceVersion != version {
						version = lease.ResourceVersion
						heard()
					}
				}
				stop()
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
		}
	}
}
