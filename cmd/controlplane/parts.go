package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/controlplane/apiserver"
	"github.com/coracle-edge/coracle/controlplane/controllers"
	"github.com/coracle-edge/coracle/controlplane/pki"
	"github.com/coracle-edge/coracle/controlplane/scheduler"
)

const (
	firstBackoff = time.Second
	lastBackoff  = time.Minute
)

// errEnded is what a part is charged with that ended though nobody asked it to.
var errEnded = errors.New("ended by itself")

// part is one of the things that run beside the API server.
type part struct {
	name string
	run  func(ctx context.Context) error
	// fatal: it can't be begun again, so its end is the process's.
	fatal bool
}

// parts run together and end together.
type parts struct {
	list   []part
	begin  func(ctx context.Context)
	logger *slog.Logger
}

// newParts builds everything that talks to the API. Their informers are the
// server's one factory.
func newParts(server *apiserver.Server, f *fleet, authority *pki.Authority, recorder *trace.Recorder, logger *slog.Logger) (*parts, error) {
	fleetParts, err := f.build(server)
	if err != nil {
		return nil, fmt.Errorf("fleet: %w", err)
	}
	scheduling, err := typedClient(server.ClientConfig("system:kube-scheduler"))
	if err != nil {
		return nil, err
	}
	pods := scheduler.New(scheduling, server.Informers(), scheduler.Options{Logger: logger, Trace: recorder})
	deps := controllers.Deps{
		Config:          server.ClientConfig,
		Factory:         server.Informers(),
		RootCA:          authority.RootPEM(),
		SigningCertFile: authority.CAFile(), SigningKeyFile: authority.CAKeyFile(),
		ServiceAccountKey: authority.ServiceAccountKey(),
		Logger:            logger,
	}
	all := append(fleetParts,
		part{name: "certificates", run: authority.Run},
		part{name: "scheduler", run: pods.Run, fatal: true},
		part{name: "controllers", run: func(ctx context.Context) error { return controllers.Run(ctx, deps) }},
	)
	return &parts{list: all, begin: server.Informers().StartWithContext, logger: logger}, nil
}

// add takes in one more, before run.
func (p *parts) add(one part) { p.list = append(p.list, one) }

// run runs all parts until ctx ends and all of them have ended. fail is told if
// one can't go on.
func (p *parts) run(ctx context.Context, fail func(error)) {
	p.begin(ctx)
	var all sync.WaitGroup
	for _, one := range p.list {
		all.Go(func() { p.supervise(ctx, one, fail) })
	}
	all.Wait()
}

// supervise begins a part again, with back-off, whenever it ends.
func (p *parts) supervise(ctx context.Context, one part, fail func(error)) {
	for backoff := firstBackoff; ; backoff = min(2*backoff, lastBackoff) {
		err := once(ctx, one)
		if ctx.Err() != nil {
			return
		}
		if one.fatal {
			fail(fmt.Errorf("%s: %w", one.name, err))
			return
		}
		p.logger.Error("part failed, will be started again", "part", one.name, "err", err, "in", backoff)
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff):
		}
	}
}

// once runs a part and makes an error of every way in which it may end.
func once(ctx context.Context, one part) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	if err := one.run(ctx); err != nil {
		return err
	}
	return errEnded
}
