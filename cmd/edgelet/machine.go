package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/coracle-edge/coracle/edgelet/devices"
	"github.com/coracle-edge/coracle/edgelet/shutdown"
	"github.com/coracle-edge/coracle/edgelet/state"
)

// What of the machine is given to pods, and how it goes down.

// errPolicy is returned for a resource manager that this agent doesn't have.
var errPolicy = errors.New("this agent doesn't have that policy")

// checkPolicies refuses what would otherwise be taken for granted: a pod that
// needs processors of its own must not find out by being slow.
func (o *options) checkPolicies() error {
	for _, p := range []struct{ flag, have, only string }{
		{"cpu-manager-policy", o.cpuManager, "none"},
		{"memory-manager-policy", o.memoryManager, "None"},
		{"topology-manager-policy", o.topologyManager, "none"},
	} {
		if p.have != p.only {
			return fmt.Errorf("--%s %s: %w; it has %s", p.flag, p.have, errPolicy, p.only)
		}
	}
	return nil
}

// buildDevices needs the state. What it calls back is built later, and nothing
// calls before it runs.
func (a *agent) buildDevices() (err error) {
	dir := a.o.devicePlugins
	if dir == "" && a.o.dataDir != defaultDataDir {
		// Of two agents on one machine each has its plugins, and none a kubelet's.
		dir = filepath.Join(a.o.dataDir, "device-plugins")
	}
	a.devices, err = devices.New(devices.Config{Dir: dir, Store: a.state, Log: a.log,
		Changed:     func() { a.node.Changed() },
		PodsChanged: func(uids []string) { a.pods.Wake(uids) },
		Active:      func(uid string) bool { return a.pods.Has(uid) }})
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
		Bus: a.o.systemBus, Changed: func() { a.node.Changed() }, Flush: a.tellAll, Log: a.log})
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
