package leadership

import (
	"context"
	"errors"
	"sync/atomic"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

type coordinationInterface = coordinationclient.CoordinationV1Interface

type cutCoordination struct {
	coordinationInterface
	cut *atomic.Bool
}

func (c cutCoordination) Leases(ns string) coordinationclient.LeaseInterface {
	return cutLeases{c.coordinationInterface.Leases(ns), c.cut}
}

type cutLeases struct {
	coordinationclient.LeaseInterface
	cut *atomic.Bool
}

var errCut = errors.New("cut off")

func (c cutLeases) Get(ctx context.Context, name string, o metav1.GetOptions) (*coordinationv1.Lease, error) {
	if c.cut.Load() {
		return nil, errCut
	}
	return c.LeaseInterface.Get(ctx, name, o)
}

func (c cutLeases) Update(ctx context.Context, l *coordinationv1.Lease, o metav1.UpdateOptions) (*coordinationv1.Lease, error) {
	if c.cut.Load() {
		return nil, errCut
	}
	return c.LeaseInterface.Update(ctx, l, o)
}
