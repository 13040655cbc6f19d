package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/boards"
	"github.com/coracle-edge/coracle/edgelet/evict"
	"github.com/coracle-edge/coracle/edgelet/node"
	"github.com/coracle-edge/coracle/edgelet/oom"
	"github.com/coracle-edge/coracle/edgelet/state"
	"github.com/coracle-edge/coracle/edgelet/stats"
)

// What this node says of itself, and what happened to it.

func (a *agent) buildNode() (err error) {
	labels, err := keyValues(a.o.labels)
	if err != nil {
		return err
	}
	machine := boards.This(a.o.dataDir)
	machine.Floor = a.state.TimeFloor()
	reserved, err := a.o.resources.reserved()
	if err != nil {
		return err
	}
	thresholds, err := a.o.resources.thresholds(int64(stats.ReadMemory("/proc").MemoryTotal))
	if err != nil {
		return err
	}
	c := node.Config{Name: a.name, Machine: machine, Runtime: a.runtime, Report: a.state.PutNodeReport, Before: a.state.NodeReport().GetNode(), Event: a.events.Event,
		Labels: labels, Root: os.Geteuid() == 0, MaxPods: a.o.maxPods, Features: features(), More: a.budgetCondition(), Storage: a.storage, Log: a.log, Now: a.now,
		Reserved: reserved, Pressure: a.pressure, Keeps: func(capacity v1.ResourceList) v1.ResourceList { return evict.Keeps(thresholds, capacity) },
		Devices: a.devices.Resources, Unschedulable: !a.o.registerSchedulable}
	if c.Taints, err = node.ParseTaints(a.o.registerTaints); err != nil {
		return fmt.Errorf("--register-with-taints: %w", err)
	}
	if a.shutdown != nil {
		c.ShuttingDown = a.shutdown.ShuttingDown
	}
	if ips := split(a.o.nodeIP); len(ips) > 0 {
		for _, ip := range ips {
			if _, err := netip.ParseAddr(ip); err != nil {
				return fmt.Errorf("--node-ip: %w; give IP addresses of this board, with commas between them", err)
			}
		}
		c.IPs = func() []string { return ips }
	}
	if a.node, err = node.New(c); errors.Is(err, node.ErrLabel) {
		return fmt.Errorf("--node-labels: %w", err)
	}
	return err
}

// putNodeEvent keeps an event of the node until the control plane has it: one that
// names no object is of the node that sends it.
func (a *agent) putNodeEvent(e node.Event) error {
	return a.state.Journal(state.Entry{Kind: state.EntryEvent, Type: e.Type, Reason: e.Reason, Message: e.Message, Component: "kubelet", Count: e.Count})
}

// systemOOM tells that the machine had no memory left for a process.
func (a *agent) systemOOM(v oom.Victim) {
	a.log.Warn("the machine ran out of memory, the kernel killed a process", "name", v.Name, "pid", v.PID)
	a.events.Event(v1.EventTypeWarning, "SystemOOM", v.Message())
}

// features are what this agent can do that another may not, in the form of
// status.declaredFeatures.
func features() []string {
	return []string{"RestartAllContainersOnContainerExits", "Sidecars", "StaticPods", "Wasm"}
}
