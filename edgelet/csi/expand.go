package csi

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-edge/coracle/edgelet/rawcall"
)

// What becomes of [Manager.Expand] besides success (upstream: pkg/volume/csi/expander.go).
var (
	// ErrNoExpansion is returned when the driver has no part in growing volumes.
	ErrNoExpansion = errors.New("the driver doesn't grow volumes on nodes")
	// ErrBusy is returned when the driver doesn't grow a volume while it is in use.
	ErrBusy = errors.New("not while the volume is in use")
	// ErrInfeasible is returned when the driver says that it can never be done.
	ErrInfeasible = errors.New("it can't be done")
	// ErrUncertain is returned when it may yet have been done, or was never begun.
	ErrUncertain = errors.New("it is not known whether it was done")
)

// Expand has the driver make the file system of a published volume as large as
// bytes.
func (m *Manager) Expand(ctx context.Context, v *Volume, bytes int64) error {
	d, err := m.driver(v.Driver)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUncertain, err)
	case !d.caps.has(capExpand):
		return fmt.Errorf("driver %s: %w", v.Driver, ErrNoExpansion)
	}
	staging, target := m.paths(v)
	if !d.caps.has(capStage) {
		staging = ""
	}
	unlock, err := m.lock(ctx, v.Driver+"^"+v.Handle)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUncertain, err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	raw, err := d.call(ctx, "NodeExpandVolume", v.expandRequest(target, staging, bytes, d.caps))
	if err != nil {
		return &expansionError{expansionKind(err), fmt.Errorf("Expander.NodeExpand failed to expand the volume : %w", err)}
	}
	if _, err := capacityOf(raw); err != nil {
		return fmt.Errorf("%w: NodeExpandVolume of volume %s: %w", ErrUncertain, v.Name, err)
	}
	return nil
}

// expansionError reads as upstream's and is of a kind.
type expansionError struct{ kind, err error }

func (e *expansionError) Error() string        { return e.err.Error() }
func (e *expansionError) Unwrap() error        { return e.err }
func (e *expansionError) Is(target error) bool { return target == e.kind }

// expansionKind says what kind of failure an answer of a driver is, nil for one
// that is to be tried again.
func expansionKind(err error) error {
	switch status.Code(err) {
	case codes.FailedPrecondition:
		return ErrBusy
	case codes.InvalidArgument, codes.OutOfRange, codes.NotFound:
		return ErrInfeasible
	}
	if !rawcall.Final(err) {
		return ErrUncertain
	}
	return nil
}
