package main

import (
	"log/slog"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/node"
	"github.com/coracle-edge/coracle/edgelet/oom"
)

// What the kernel's log says of a process that was killed is told of the node, in a
// kubelet's words.
func TestSystemOOMIsAnEventOfTheNode(t *testing.T) {
	var told []node.Event
	log := slog.New(slog.DiscardHandler)
	a := &agent{log: log, events: node.NewRecorder(func(e node.Event) error { told = append(told, e); return nil }, log)}
	a.systemOOM(oom.Victim{PID: 4711, Name: "hog"})
	want := node.Event{Type: v1.EventTypeWarning, Reason: "SystemOOM", Message: "System OOM encountered, victim process: hog, pid: 4711", Count: 1}
	if len(told) != 1 || told[0] != want {
		t.Errorf("told %+v, want %+v", told, want)
	}
}
