package pods

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/probes"
)

// actions is what has to be done to a pod next. Starting follows killing.
type actions struct {
	// stopPod: all containers and the sandbox are to be stopped; if createSandbox is
	// set too, a new one follows.
	stopPod       bool
	createSandbox bool
	sandboxID     string
	attempt       uint32
	init          []int // indexes into spec.initContainers to start, in this order
	containers    []int // indexes into spec.containers to start
	ephemeral     []int // indexes into spec.ephemeralContainers to start
	kill          map[string]killOrder
	update        []string // running containers whose resources the runtime is to be told of
}

// killOrder says why one container, by ID, is to be stopped.
type killOrder struct {
	name, message string
	grace         *int64 // seconds, instead of the pod's
}

func (a *actions) none() bool {
	return !a.stopPod && !a.createSandbox && len(a.init)+len(a.containers)+len(a.ephemeral)+len(a.kill)+len(a.update) == 0
}

// verdicts are what the probes say of running containers.
type verdicts interface {
	// Started: the startup probe, if there is one, succeeded.
	Started(containerID string) bool
	// Failing: the container must be restarted; kind is the probe that says so.
	Failing(containerID string) (kind probes.Kind, yes bool)
}

// computeActions decides what to do next. It follows upstream's
// computePodActions, with one difference: whether a pod ran before is known
// from the record, too (see observedContainer.lost), so a runtime that forgot
// everything in a reboot doesn't make a pod that ran to its end run again.
func computeActions(pod *v1.Pod, o *observation, probe verdicts, resizes func(c *v1.Container, id string) (update, restart bool)) actions {
	changed, attempt, id := sandboxChanged(pod, o)
	a := actions{stopPod: changed && len(o.sandboxes) > 0, createSandbox: changed, sandboxID: id, attempt: attempt,
		kill: map[string]killOrder{}}
	if changed {
		computeFresh(pod, o, &a)
		return a
	}
	// They don't wait for the pod to be initialised, and none is started twice.
	for i := range pod.Spec.EphemeralContainers {
		if o.find(pod.Spec.EphemeralContainers[i].Name) == nil {
			a.ephemeral = append(a.ephemeral, i)
		}
	}
	initialized := computeInit(pod, o, &a, probe, resizes)
	if a.stopPod || !initialized {
		return a
	}
	kept := 0
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		got := o.find(c.Name)
		if got == nil || got.state != stateRunning {
			if shouldRun(pod, c, o) {
				a.containers = append(a.containers, i)
				if got != nil && got.state == stateUnknown {
					a.kill[got.id] = killOrder{name: c.Name, message: "Container is in \"unknown\" state, try killing it before restart"}
				}
			}
			continue
		}
		message, restart := "", mayRestart(pod, c)
		var grace *int64
		if got.hash != "" && got.hash != hashContainer(c) {
			message, restart = fmt.Sprintf("Container %s definition changed", c.Name), true
		} else if which, bad := failed(probe, got.id); bad {
			message, grace = fmt.Sprintf("Container %s failed %s probe", c.Name, which), probeGrace(c, which)
		} else if update, again := resizes(c, got.id); again {
			message, restart = fmt.Sprintf("Container %s resize requires restart", c.Name), true
		} else {
			if update {
				a.update = append(a.update, c.Name)
			}
			kept++
			continue
		}
		if restart {
			message += ", will be restarted"
			a.containers = append(a.containers, i)
		}
		a.kill[got.id] = killOrder{c.Name, message, grace}
	}
	if kept == 0 && len(a.containers) == 0 {
		a.stopPod, a.init, a.ephemeral = true, nil, nil
	}
	return a
}

func failed(probe verdicts, id string) (string, bool) {
	kind, yes := probe.Failing(id)
	return strings.ToLower(kind.String()), yes
}

func mayRestart(pod *v1.Pod, c *v1.Container) bool {
	if c.RestartPolicy != nil {
		return *c.RestartPolicy != v1.ContainerRestartPolicyNever
	}
	return pod.Spec.RestartPolicy != v1.RestartPolicyNever
}

// computeFresh decides what follows when there is no sandbox to go on with.
func computeFresh(pod *v1.Pod, o *observation, a *actions) {
	if ranToItsEnd(pod, o) {
		a.createSandbox = false
		return
	}
	var start []int
	ran := false
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		got := o.find(c.Name)
		ran = ran || got != nil
		if got != nil && got.state == stateExited && !restartsAfter(pod, c, got.exitCode) {
			continue
		}
		start = append(start, i)
	}
	if len(start) == 0 && ran {
		a.createSandbox = false
		return
	}
	if len(pod.Spec.InitContainers) > 0 {
		a.init = []int{0}
		return
	}
	a.containers = start
}

// ranToItsEnd reports whether a pod that never restarts has had its run: an app
// container was started once, or an init container failed.
func ranToItsEnd(pod *v1.Pod, o *observation) bool {
	if pod.Spec.RestartPolicy != v1.RestartPolicyNever {
		return false
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if got := o.find(c.Name); got != nil && !isSidecar(c) && got.state == stateExited && got.exitCode != 0 &&
			!restartsAfter(pod, c, got.exitCode) {
			return true
		}
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		got := o.find(c.Name)
		if got == nil || got.state == stateCreated || mayRestart(pod, c) || len(c.RestartPolicyRules) > 0 {
			continue
		}
		return true
	}
	return false
}

// sandboxChanged reports whether a new sandbox is needed, with which attempt
// number, and the one there is.
func sandboxChanged(pod *v1.Pod, o *observation) (bool, uint32, string) {
	if len(o.sandboxes) == 0 {
		return true, 0, ""
	}
	ready := 0
	for _, s := range o.sandboxes {
		if s.State == runtimeapi.PodSandboxState_SANDBOX_READY {
			ready++
		}
	}
	newest := o.sandboxes[0]
	attempt := newest.Metadata.Attempt
	switch {
	case ready > 1, newest.State != runtimeapi.PodSandboxState_SANDBOX_READY:
		return true, attempt + 1, newest.Id
	case !pod.Spec.HostNetwork && newest.Network != nil && newest.Network.Ip == "" && requiresIP(newest):
		return true, attempt + 1, newest.Id
	}
	return false, attempt, newest.Id
}

// requiresIP: a sandbox that shares the node's network has no address of its own
// to report, also when it was not the pod that asked for that: a board without
// CNI, or without root, has only one network.
func requiresIP(s *runtimeapi.PodSandboxStatus) bool {
	return s.GetLinux().GetNamespaces().GetOptions().GetNetwork() == runtimeapi.NamespaceMode_POD &&
		s.Annotations[AnnotationSandbox] != "wasm"
}

// computeInit adds what init containers need and reports whether the app
// containers may run. It looks from the last to the first, because the runtime
// may have forgotten those that are long done.
func computeInit(pod *v1.Pod, o *observation, a *actions, probe verdicts, resizes func(c *v1.Container, id string) (update, restart bool)) bool {
	if len(pod.Spec.InitContainers) == 0 {
		return true
	}
	initialized := false
	for i := range pod.Spec.Containers {
		if got := o.find(pod.Spec.Containers[i].Name); got != nil && !got.lost &&
			(got.state == stateCreated || got.state == stateRunning ||
				(got.state == stateExited && got.sandbox == a.sandboxID)) {
			initialized = true
		}
	}
	passed := initialized // what comes before this one has been initialised
	last := len(pod.Spec.InitContainers) - 1
	for i := last; i >= 0; i-- {
		c := &pod.Spec.InitContainers[i]
		got := o.find(c.Name)
		if got != nil && (got.lost || (got.sandbox != a.sandboxID && got.state != stateRunning)) {
			got = nil // of an earlier sandbox: initialisation starts anew in this one
		}
		sidecar := isSidecar(c)
		if got == nil {
			if passed && sidecar {
				a.init = append(a.init, i)
			}
			continue
		}
		if passed && !sidecar {
			continue
		}
		switch got.state {
		case stateCreated:
			a.init = append(a.init, i)
		case stateRunning:
			update, again := resizes(c, got.id)
			if update && !again {
				a.update = append(a.update, c.Name)
			}
			if !sidecar {
				break
			}
			switch {
			case !probe.Started(got.id): // what comes after waits for it
			case i == last:
				initialized = true
			case !passed:
				a.init = append(a.init, i+1)
			}
			if got.hash != "" && got.hash != hashContainer(c) {
				a.kill[got.id] = killOrder{name: c.Name, message: fmt.Sprintf("Init container %s definition changed", c.Name)}
				a.init = append(a.init, i)
			} else if which, bad := failed(probe, got.id); bad {
				a.kill[got.id] = killOrder{name: c.Name, message: fmt.Sprintf("Init container %s failed %s probe", c.Name, which), grace: probeGrace(c, which)}
				a.init = append(a.init, i)
			} else if again {
				a.kill[got.id] = killOrder{name: c.Name, message: fmt.Sprintf("Container %s resize requires restart", c.Name)}
				a.init = append(a.init, i)
			}
		case stateExited:
			switch {
			case sidecar:
				a.init = append(a.init, i)
			case got.exitCode != 0:
				if !restartsAfter(pod, c, got.exitCode) {
					a.stopPod, a.init = true, nil
					return false
				}
				a.init = append(a.init, i)
			case i == last:
				initialized = true
			default:
				a.init = append(a.init, i+1)
			}
		default:
			if !sidecar && !mayRestart(pod, c) {
				a.stopPod, a.init = true, nil
				return false
			}
			a.kill[got.id] = killOrder{name: c.Name, message: "Init container is in \"unknown\" state, try killing it before restart"}
			a.init = append(a.init, i)
		}
		passed = true
	}
	if !passed {
		a.init = append(a.init, 0)
	}
	for l, r := 0, len(a.init)-1; l < r; l, r = l+1, r-1 {
		a.init[l], a.init[r] = a.init[r], a.init[l]
	}
	return initialized
}
