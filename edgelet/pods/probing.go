package pods

import (
	"context"
	"errors"
	"time"

	v1 "k8s.io/api/core/v1"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-edge/coracle/edgelet/probes"
)

func (m *Manager) newProbes() *probes.Manager {
	return probes.New(probes.Config{Exec: m.execProbe, Changed: m.probeChanged, Event: m.probeEvent, Log: m.log})
}

// execProbe runs a probe's command. The runtime ends it; should it not, the call
// ends some time after, as a kubelet's does.
func (m *Manager) execProbe(ctx context.Context, id string, command []string, timeout time.Duration) ([]byte, int32, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout+callTimeout)
	defer cancel()
	resp, err := m.cfg.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: int64(timeout / time.Second)})
	if err != nil {
		if status.Code(err) == codes.DeadlineExceeded {
			return nil, 0, context.DeadlineExceeded
		}
		return nil, 0, errors.New(message(err))
	}
	return append(resp.Stdout, resp.Stderr...), resp.ExitCode, nil
}

func (m *Manager) probeChanged(uid string) {
	m.mu.Lock()
	w := m.workers[uid]
	m.mu.Unlock()
	if w != nil {
		w.signal()
	}
}

func (m *Manager) probeEvent(e probes.Event) {
	m.mu.Lock()
	w := m.workers[e.PodUID]
	m.mu.Unlock()
	if w == nil {
		return
	}
	w.journal(Event{Namespace: w.namespace, Name: w.name, UID: w.uid, FieldPath: e.Path,
		Type: e.Type, Reason: e.Reason, Message: e.Message, Time: m.cfg.Now()})
}

// watchProbes tells the probes which containers of the pod run now.
func (w *worker) watchProbes(seen *observation, terminating bool) {
	p := probes.Pod{UID: w.uid, Terminating: terminating, IP: w.probeHost(seen)}
	for _, got := range seen.containers {
		spec := containerSpec(w.pod, got.name)
		if got.state != stateRunning || spec == nil || !hasProbes(spec) || (isInit(w.pod, got.name) && !isSidecar(spec)) {
			continue
		}
		c := probes.Container{Name: got.name, ID: got.id, Path: fieldPath(w.pod, got.name), Spec: spec, Expand: staticExpansion(spec)}
		if r := w.runOf(got.id); r != nil && !r.started.IsZero() {
			c.Age = time.Since(r.started)
		} else {
			// The board's clock may have jumped since: an age below zero is none.
			c.Adopted, c.Age = true, w.m.cfg.Now().Sub(got.started)
			if s := w.lastReported(got.name, got.id); s != nil {
				c.Started, c.Ready = s.Started != nil && *s.Started, s.Ready
			}
		}
		p.Containers = append(p.Containers, c)
	}
	if len(p.Containers) == 0 && !w.probed {
		return
	}
	w.probed = len(p.Containers) > 0
	w.m.probes.Watch(p)
}

// probeHost is where a pod's probes go: its address, the node's if it has none of
// its own, this machine if there is no other.
func (w *worker) probeHost(seen *observation) string {
	ips := seen.ips()
	if w.pod.Spec.HostNetwork {
		ips = w.m.cfg.Node.HostIPs()
	}
	if len(ips) == 0 {
		return "127.0.0.1"
	}
	return ips[0]
}

// lastReported is what was last reported of a container, nil if it was another
// run of it.
func (w *worker) lastReported(name, id string) *v1.ContainerStatus {
	for _, list := range [][]v1.ContainerStatus{w.record.status.ContainerStatuses, w.record.status.InitContainerStatuses} {
		for i := range list {
			if s := &list[i]; s.Name == name && containerIDOf(s.ContainerID) == id {
				return s
			}
		}
	}
	return nil
}

func hasProbes(c *v1.Container) bool {
	return c.StartupProbe != nil || c.ReadinessProbe != nil || c.LivenessProbe != nil
}

// staticExpansion replaces references to variables that have a literal value, as
// upstream does in the commands of probes; nil if there is none.
func staticExpansion(c *v1.Container) func(string) string {
	literals := map[string]string{}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			literals[e.Name] = e.Value
		}
	}
	if len(literals) == 0 {
		return nil
	}
	return func(s string) string {
		return expand(s, func(name string) (string, bool) { v, ok := literals[name]; return v, ok })
	}
}

// probeGrace is the grace that a probe gives a container it ends, nil if the
// pod's applies (KEP-2238).
func probeGrace(c *v1.Container, which string) *int64 {
	switch {
	case which == "startup" && c.StartupProbe != nil:
		return c.StartupProbe.TerminationGracePeriodSeconds
	case which == "liveness" && c.LivenessProbe != nil:
		return c.LivenessProbe.TerminationGracePeriodSeconds
	}
	return nil
}
