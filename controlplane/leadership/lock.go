package leadership

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// Annotations of the Lease: where its holder is reached, separated by blanks.
const (
	AnnotationAPI   = "coracle.dev/api-urls"
	AnnotationFleet = "coracle.dev/fleet-urls"
)

// lock is the Lease as client-go's election wants it. Its LeaseLock can say neither
// where the holder is reached nor when a renewal was begun.
type lock struct {
	l      *Leadership
	leases coordinationclient.LeaseInterface
	last   *coordinationv1.Lease
}

var _ resourcelock.Interface = (*lock)(nil)

func (k *lock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	lease, err := k.leases.Get(ctx, k.l.c.Name, metav1.GetOptions{})
	if err != nil {
		return nil, nil, err
	}
	k.last = lease
	record := resourcelock.LeaseSpecToLeaderElectionRecord(&lease.Spec)
	raw, err := json.Marshal(*record)
	return record, raw, err
}

func (k *lock) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	begun := k.l.c.Clock()
	lease, err := k.leases.Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: k.l.c.Namespace, Name: k.l.c.Name, Annotations: k.l.c.Self.annotations()},
		Spec:       resourcelock.LeaderElectionRecordToLeaseSpec(&r),
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	k.last = lease
	k.hold(r, begun)
	return nil
}

func (k *lock) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	if k.last == nil {
		return errors.New("the lease wasn't read yet")
	}
	if r.HolderIdentity != k.l.c.Identity {
		k.l.until.Store(0) // it is given up: nothing more is done in its name
	}
	next := k.last.DeepCopy()
	next.Spec = resourcelock.LeaderElectionRecordToLeaseSpec(&r)
	next.Annotations = k.l.c.Self.annotations()
	begun := k.l.c.Clock()
	lease, err := k.leases.Update(ctx, next, metav1.UpdateOptions{})
	if err != nil {
		return err
	}
	k.last = lease
	k.hold(r, begun)
	return nil
}

// hold counts from before the write was sent: others count from when they see it.
func (k *lock) hold(r resourcelock.LeaderElectionRecord, begun time.Duration) {
	if r.HolderIdentity == k.l.c.Identity {
		k.l.until.Store(int64(begun + k.l.c.Duration - k.l.margin()))
	}
}

// giveUp makes the lease nobody's, if it is ours.
func (k *lock) giveUp(ctx context.Context) error {
	k.l.until.Store(0)
	r, _, err := k.Get(ctx)
	if err != nil || r.HolderIdentity != k.l.c.Identity {
		return err
	}
	now := metav1.Now()
	return k.Update(ctx, resourcelock.LeaderElectionRecord{LeaderTransitions: r.LeaderTransitions, LeaseDurationSeconds: 1, RenewTime: now, AcquireTime: now})
}

func (k *lock) RecordEvent(string) {}
func (k *lock) Identity() string   { return k.l.c.Identity }
func (k *lock) Describe() string   { return k.l.c.Namespace + "/" + k.l.c.Name }

func (a Addresses) annotations() map[string]string {
	return map[string]string{AnnotationAPI: strings.Join(a.API, " "), AnnotationFleet: strings.Join(a.Fleet, " ")}
}

func addressesOf(annotations map[string]string) Addresses {
	return Addresses{API: strings.Fields(annotations[AnnotationAPI]), Fleet: strings.Fields(annotations[AnnotationFleet])}
}
