package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/coracle-edge/coracle/edgelet/devices"
	"github.com/coracle-edge/coracle/edgelet/node"
	"github.com/coracle-edge/coracle/edgelet/pods"
	"github.com/coracle-edge/coracle/edgelet/shutdown"
	"github.com/coracle-edge/coracle/edgelet/state"
)

// What of the machine is given to pods, and how it goes down.

// checkValues reads what is read again when it is needed: a wrong value is to be said
// before anything is made on the disk and a line to join is used.
func (o *options) checkValues() error {
	var errs []error
	check := func(flag string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("--%s: %w", flag, err))
		}
	}
	_, err := node.ParseTaints(o.registerTaints)
	check("register-with-taints", err)
	check("allowed-unsafe-sysctls", pods.CheckSysctls(split(o.unsafeSysctls)))
	_, err = shutdown.Periods(o.shutdownGrace, o.shutdownCritical)
	check("shutdown-grace-period", err)
	_, err = shutdown.ParsePeriods(o.shutdownByPriority)
	check("shutdown-grace-period-by-pod-priority", err)
	_, reserved := o.resources.reserved() // these name their flags
	_, thresholds := o.resources.thresholds(math.MaxInt64)
	_, labels := keyValues(o.labels)
	_, policies := o.policies() // and these
	if reserved != nil {
		policies = nil // it says the same
	}
	return errors.Join(append(errs, reserved, thresholds, labels, policies)...)
}

// buildDevices needs the state. What it calls back is built later, and nothing
// calls before it runs.
func (a *agent) buildDevices() (err error) {
	a.devices, err = devices.New(devices.Config{Dir: a.o.devicePlugins, Store: a.state, Log: a.log,
		Changed:     func() { a.node.Changed() },
		PodsChanged: func(uids []string) { a.pods.Wake(uids) },
		Nodes:       a.nodes(),
		Active:      func(uid string) bool { return a.pods.Present(uid) }})
	return err
}

// buildShutdown leaves a.shutdown nil if no grace was given.
func (a *agent) buildShutdown() error {
	periods, err := shutdown.Periods(a.o.shutdownGrace, a.o.shutdownCritical)
	if err != nil {
		return fmt.Errorf("--shutdown-grace-period: %w", err)
	}
	if a.o.shutdownByPriority != "" {
		if periods, err = shutdown.ParsePeriods(a.o.shutdownByPriority); err != nil {
			return fmt.Errorf("--shutdown-grace-period-by-pod-priority: %w", err)
		}
	}
	if len(periods) == 0 {
		return nil
	}
	a.shutdown, err = shutdown.New(shutdown.Config{Pods: func() shutdown.Pods { return a.pods }, Periods: periods, Resume: a.o.shutdownResume,
		Bus: a.o.systemBus, Changed: func() { a.node.Changed() }, Event: a.events.Event, Flush: a.tellAll, Log: a.log})
	return err
}

// tellAll returns once the control plane has what was reported, or ctx is over.
// All of it is durable: what it doesn't hear now it hears after the start.
func (a *agent) tellAll(ctx context.Context) {
	if err := a.state.Sync(); err != nil {
		a.log.Error("the last reports may be lost with the machine", "err", err)
	}
	l := a.link.Load()
	if l == nil || !l.of().Live {
		return
	}
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		if !slices.ContainsFunc(a.state.Reports(), func(r state.ReportRef) bool { return !r.Acked }) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
