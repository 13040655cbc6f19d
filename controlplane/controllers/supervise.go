package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"

	"k8s.io/utils/clock"
)

var (
	// ErrEnded is returned for a controller that ended though nobody asked it to.
	ErrEnded = errors.New("controller ended by itself")
	// ErrPanic is returned (wrapped) for a controller that panicked.
	ErrPanic = errors.New("controller panicked")
)

// supervisor keeps one controller running.
type supervisor struct {
	name   string
	clock  clock.WithTicker
	logger *slog.Logger
}

// run runs the controller until ctx ends. When it ends earlier, for whatever reason, the log says why, and it is started
// again after a back-off that doubles.
func (s supervisor) run(ctx context.Context, start func(context.Context) error) {
	backoff := firstBackoff
	for ctx.Err() == nil {
		began := s.clock.Now()
		err := s.once(ctx, start)
		if ctx.Err() != nil {
			return
		}
		if s.clock.Since(began) > steady {
			backoff = firstBackoff
		}
		s.logger.Error("controller failed, will be started again", "controller", s.name, "error", err, "in", backoff)
		timer := s.clock.NewTimer(backoff)
		select {
		case <-timer.C():
		case <-ctx.Done():
			timer.Stop()
			return
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

// once runs the controller and turns every way to end into an error.
func (s supervisor) once(ctx context.Context, start func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v\n%s", ErrPanic, p, debug.Stack())
		}
	}()
	// A run's own context: whatever it left behind ends with it.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := start(ctx); err != nil {
		return err
	}
	return ErrEnded
}
