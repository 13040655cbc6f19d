package pods

import (
	"context"
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A container whose rule says RestartAllContainers (KEP-5532) takes the pod back
// to where it began, in the sandbox it has: all containers end and are removed,
// and init containers run again. The record says so of each container until it
// has been started again, so that a power cut in between doesn't take what ended
// for what is over.

const (
	reasonRestartingAll  = "RestartingAllContainers"
	messageRestartingAll = "The container is removed because RestartAllContainers in place"
)

// couldRestartAll reports whether a container of the pod has such a rule: then the
// condition AllContainersRestarting says whether it comes to that.
func couldRestartAll(pod *v1.Pod) bool {
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if slices.ContainsFunc(list[i].RestartPolicyRules, func(r v1.ContainerRestartRule) bool {
				return r.Action == v1.ContainerRestartRuleActionRestartAllContainers
			}) {
				return true
			}
		}
	}
	return false
}

// restartTrigger is a container that has ended and asks for all to restart, nil if
// none does.
func restartTrigger(pod *v1.Pod, o *observation) *observedContainer {
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			got := o.find(list[i].Name)
			if got == nil || got.state != stateExited {
				continue
			}
			for _, rule := range list[i].RestartPolicyRules {
				if ruleMatches(&rule, got.exitCode) {
					if rule.Action == v1.ContainerRestartRuleActionRestartAllContainers {
						return got
					}
					break // the first rule that matches is the one
				}
			}
		}
	}
	return nil
}

// restartAll takes the pod back to its beginning, if a container asks for that and
// its back-off is over; else it returns when that will be.
func (w *worker) restartAll(ctx, wait context.Context, seen *observation) (did bool, next time.Time, err error) {
	by := restartTrigger(w.pod, seen)
	if by == nil {
		return false, time.Time{}, nil
	}
	// A pod that does so again and again is slowed down as a container is.
	until, message := w.backOff(by.name, w.exits[by.id])
	if !until.IsZero() {
		put(&w.waiting, by.name, waiting{reasonCrashLoop, message})
		return false, until, nil
	}
	w.noteRestart(by.name, w.exits[by.id])
	delete(w.waiting, by.name)
	w.event("", v1.EventTypeNormal, reasonRestartingAll, fmt.Sprintf("Container %s exited with %d: all containers are restarted", by.name, by.exitCode))
	// From now on what ends is not the pod's end, whatever its restart policy: without
	// this a pod that never restarts would be over once its app containers are.
	w.record.anew = map[string]bool{by.name: true}
	if err := w.stopContainers(ctx, wait, seen); err != nil {
		return false, time.Time{}, err
	}
	if seen, err = w.observe(ctx, false); err != nil {
		return false, time.Time{}, err
	}
	// What they ended with is told, and durable, before it is removed.
	told := w.status(seen, false)
	w.record.anew = map[string]bool{}
	for _, list := range [][]v1.ContainerStatus{told.InitContainerStatuses, told.ContainerStatuses} {
		for i := range list {
			if beginAgain(&list[i]) {
				w.record.anew[list[i].Name] = true
			}
		}
	}
	w.record.status = told
	w.restarting = true
	defer func() { w.restarting = false }()
	if err := w.report(w.status(new(observation), false), false); err != nil {
		return false, time.Time{}, err
	}
	if err := w.keep(); err != nil {
		return false, time.Time{}, err
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for _, c := range seen.containers {
		if c.lost || containerSpec(w.pod, c.name) == nil || isEphemeral(w.pod, c.name) {
			continue
		}
		if _, err := w.m.cfg.Runtime.RemoveContainer(call, &runtimeapi.RemoveContainerRequest{ContainerId: c.id}); err != nil && !isNotFound(err) {
			return false, time.Time{}, fmt.Errorf("removing container %s: %w", c.name, err)
		}
		w.m.removeLogs(w.namespace, w.name, w.uid, c.name, c.restartCount-1) // its own are those before now
	}
	return true, time.Time{}, nil
}

// beginAgain is the status of a container that is removed for that. It reports
// whether it ever ran; otherwise nothing changes.
func beginAgain(s *v1.ContainerStatus) bool {
	ended := s.State.Terminated
	if r := s.State.Running; r != nil {
		ended = &v1.ContainerStateTerminated{ExitCode: lostExitCode, Reason: reasonRestartingAll, Message: messageRestartingAll,
			StartedAt: r.StartedAt, ContainerID: s.ContainerID}
	}
	if ended == nil {
		ended = s.LastTerminationState.Terminated
	}
	if ended == nil {
		return false
	}
	s.LastTerminationState, s.State = v1.ContainerState{Terminated: ended}, v1.ContainerState{}
	s.ContainerID = ""
	s.RestartCount++
	return true
}

// runAnew is the number of a container's next run, if it is to begin again.
func (w *worker) runAnew(name string) int32 {
	if w.record.anew[name] {
		for _, list := range [][]v1.ContainerStatus{w.record.status.InitContainerStatuses, w.record.status.ContainerStatuses} {
			for i := range list {
				if list[i].Name == name {
					return list[i].RestartCount
				}
			}
		}
	}
	return 0
}

func isEphemeral(pod *v1.Pod, name string) bool {
	return slices.ContainsFunc(pod.Spec.EphemeralContainers, func(e v1.EphemeralContainer) bool { return e.Name == name })
}
