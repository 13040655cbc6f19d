package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"k8s.io/client-go/rest"

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
	// always: also while another control plane works.
	always bool
}

// parts run together and end together.
type parts struct {
	list   []part
	begin  func(ctx context.Context)
	duty   *duty
	aside  func(ctx context.Context) // runs off duty; may be nil
	logger *slog.Logger
}

// newParts builds everything that talks to the API. Their informers are the
// server's one factory.
func newParts(server *apiserver.Server, f *fleet, onDuty *duty, authority *pki.Authority, recorder *trace.Recorder, logger *slog.Logger) (*parts, error) {
	fleetParts, err := f.build(server)
	if err != nil {
		return nil, fmt.Errorf("fleet: %w", err)
	}
	scheduling, err := typedClient(onDuty.gate(server.ClientConfig("system:kube-scheduler")))
	if err != nil {
		return nil, err
	}
	pods := scheduler.New(scheduling, server.Informers(), scheduler.Options{Logger: logger, Trace: recorder})
	deps := controllers.Deps{
		Config: func(user string, groups ...string) *rest.Config {
			return onDuty.gate(server.ClientConfig(user, groups...))
		},
		Factory: server.Informers(),
		Roots: func() controllers.Roots {
			changed := authority.Changed() // first: a change after this look is seen
			return controllers.Roots{CA: authority.RootPEM(), SigningCertFile: authority.CAFile(), SigningKeyFile: authority.CAKeyFile(), Changed: changed}
		},
		ServiceAccountKey: authority.ServiceAccountKey(),
		Logger:            logger,
	}
	all := append(fleetParts,
		part{name: "certificates", run: authority.Run, always: true},
		part{name: "scheduler", run: pods.Run, fatal: true},
		part{name: "controllers", run: func(ctx context.Context) error { return controllers.Run(ctx, deps) }},
	)
	return &parts{list: all, begin: server.Informers().StartWithContext, duty: onDuty, logger: logger}, nil
}

// add takes in one more, before run.
func (p *parts) add(one part) { p.list = append(p.list, one) }

// run runs all parts until ctx ends and all of them have ended, those that aren't
// always to run only on duty. fail is told if one can't go on, or if the duty was
// lost: then what has been done in its name must not go on in this process.
func (p *parts) run(ctx context.Context, fail func(error)) {
	p.begin(ctx)
	var all sync.WaitGroup
	p.start(ctx, &all, true, fail)
	all.Go(func() {
		off, on := context.WithCancel(ctx)
		defer on()
		var aside sync.WaitGroup
		if p.aside != nil && p.duty.lead != nil {
			aside.Go(func() { p.aside(off) })
		}
		if err := p.duty.run(ctx, func(ctx context.Context) {
			on()
			aside.Wait()
			var working sync.WaitGroup
			p.start(ctx, &working, false, fail)
			working.Wait()
		}); err != nil && ctx.Err() == nil {
			fail(err)
		}
	})
	all.Wait()
}

func (p *parts) start(ctx context.Context, group *sync.WaitGroup, always bool, fail func(error)) {
	for _, one := range p.list {
		if one.always == always {
			group.Go(func() { p.supervise(ctx, one, fail) })
		}
	}
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
