package pods

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
)

// maxPodMessages bounds the termination messages of one pod, in bytes.
const maxPodMessages = 12 << 10

// waiting says why a container isn't running.
type waiting struct{ reason, message string }

// statusInput is everything a pod's status is made of.
type statusInput struct {
	pod     *v1.Pod
	seen    *observation // with what was lost added
	record  *record
	waiting map[string]waiting
	// over: the pod's containers have ended and will not be started again, whatever
	// its restart policy.
	over bool
	// restarting: all containers are being removed to begin again.
	restarting  bool
	runtimeName string
	hostIPs     []string
	now         time.Time
	// started and ready answer for a running container; nil says yes. This is where
	// probes come in.
	started, ready func(id string) bool
	// actuated are the resources that a running container has.
	actuated func(c *v1.Container, id string) v1.ResourceRequirements
	resize   resizing
	// health is of the devices that a container has; nil: there are none.
	health func(container string) []v1.ResourceStatus
	// recursive says whether the runtime makes mounts read-only with all below them.
	recursive func() bool
}

// podStatus words what a client sees of the pod, as a kubelet does.
func podStatus(in statusInput) v1.PodStatus {
	pod, old := in.pod, &in.record.status
	s := v1.PodStatus{
		QOSClass:           qosClass(pod),
		StartTime:          old.StartTime,
		ObservedGeneration: pod.Generation,
	}
	if s.StartTime == nil {
		now := stamp(in.now)
		s.StartTime = &now
	}
	setAddresses(&s, in)
	s.InitContainerStatuses = containerStatuses(in, pod.Spec.InitContainers, old.InitContainerStatuses, true)
	s.ContainerStatuses = containerStatuses(in, pod.Spec.Containers, old.ContainerStatuses, false)
	s.EphemeralContainerStatuses = containerStatuses(in, ephemerals(pod), old.EphemeralContainerStatuses, false)
	for i := range s.EphemeralContainerStatuses {
		// Nobody waits for one to be ready; a kubelet leaves both alone.
		s.EphemeralContainerStatuses[i].Ready, s.EphemeralContainerStatuses[i].Started = false, nil
	}
	boundMessages(&s)

	s.Phase = phase(pod, s.InitContainerStatuses, s.ContainerStatuses, in.over)
	if len(in.record.anew) > 0 && !in.over {
		s.Phase = v1.PodRunning // what ended is about to begin again
	}
	switch {
	case in.record.reason != "":
		s.Phase, s.Reason, s.Message = v1.PodFailed, in.record.reason, in.record.message
	case in.record.terminal():
		s.Phase, s.Reason, s.Message = old.Phase, old.Reason, old.Message
	}
	s.Conditions = conditions(in, &s)
	return s
}

func setAddresses(s *v1.PodStatus, in statusInput) {
	if len(in.hostIPs) > 0 {
		s.HostIP = in.hostIPs[0]
		for _, ip := range in.hostIPs {
			s.HostIPs = append(s.HostIPs, v1.HostIP{IP: ip})
		}
	}
	ips := in.seen.ips()
	if in.pod.Spec.HostNetwork && !in.over {
		ips = in.hostIPs
	}
	for _, ip := range ips {
		s.PodIPs = append(s.PodIPs, v1.PodIP{IP: ip})
	}
	if len(s.PodIPs) == 0 && (in.over || in.record.terminal()) {
		s.PodIPs = in.record.status.PodIPs // what it had, as a kubelet keeps it
	}
	if len(s.PodIPs) > 0 {
		s.PodIP = s.PodIPs[0].IP
	}
}

func containerStatuses(in statusInput, specs []v1.Container, previous []v1.ContainerStatus, init bool) []v1.ContainerStatus {
	if len(specs) == 0 {
		return nil
	}
	out := make([]v1.ContainerStatus, 0, len(specs))
	for i := range specs {
		var old *v1.ContainerStatus
		for j := range previous {
			if previous[j].Name == specs[i].Name {
				old = &previous[j]
			}
		}
		out = append(out, containerStatus(in, &specs[i], old, init))
	}
	if !init {
		slices.SortFunc(out, func(a, b v1.ContainerStatus) int { return strings.Compare(a.Name, b.Name) })
	}
	return out
}

func containerStatus(in statusInput, c *v1.Container, old *v1.ContainerStatus, init bool) v1.ContainerStatus {
	s := v1.ContainerStatus{Name: c.Name, Image: c.Image, VolumeMounts: mountStatuses(c, in.recursive)}
	var current, before *observedContainer
	for _, got := range in.seen.containers {
		switch {
		case got.name != c.Name:
		case current == nil:
			current = got
		case before == nil:
			before = got
		}
	}
	if current == nil {
		s.State.Waiting = &v1.ContainerStateWaiting{Reason: reasonCreating}
		if len(in.pod.Spec.InitContainers) > 0 {
			s.State.Waiting.Reason = reasonInitializing
		}
		if init && !isSidecar(c) && anyRegularSeen(in) {
			s.State = v1.ContainerState{Terminated: &v1.ContainerStateTerminated{Reason: "Completed",
				Message: "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally"}}
		}
		if old != nil {
			s.RestartCount, s.LastTerminationState = old.RestartCount, old.LastTerminationState
		}
		if in.record.anew[c.Name] {
			s.State = v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: reasonRestartingAll, Message: messageRestartingAll}}
		}
	} else {
		fillFromRuntime(in, &s, current)
		s.LastTerminationState = lastTermination(in, &s, before, old)
		s.Resources = c.Resources.DeepCopy()
		if current.state == stateRunning && in.actuated != nil {
			r := in.actuated(c, current.id)
			s.Resources = r.DeepCopy()
		}
		s.AllocatedResources = c.Resources.Requests.DeepCopy()
	}
	if in.health != nil && !in.over && !in.record.terminal() {
		s.AllocatedResourcesStatus = in.health(c.Name)
	}
	finished := init && current != nil && current.state == stateExited && current.exitCode == 0 && !isSidecar(c)
	if w, ok := in.waiting[c.Name]; ok && !in.over && !finished && shouldRun(in.pod, c, in.seen) {
		if s.State.Terminated != nil {
			s.LastTerminationState = s.State
		}
		s.State = v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: w.reason, Message: w.message}}
	}
	running := s.State.Running != nil
	switch {
	case init && !isSidecar(c):
		s.Ready = s.State.Terminated != nil && s.State.Terminated.ExitCode == 0
		s.Started = new(bool)
	default:
		started := running && (in.started == nil || in.started(current.id))
		s.Started = &started
		s.Ready = started && (in.ready == nil || in.ready(current.id))
	}
	return s
}

// mountStatuses are what a kubelet says of mounts; the runtime knows no names of
// volumes. recursive says whether the runtime can keep all below a mount from being
// written to; it is asked only where that matters, and nil says no.
func mountStatuses(c *v1.Container, recursive func() bool) []v1.VolumeMountStatus {
	var out []v1.VolumeMountStatus
	for i := range c.VolumeMounts {
		m := &c.VolumeMounts[i]
		st := v1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			mode := v1.RecursiveReadOnlyDisabled
			if mayBeRecursive(m) && recursive != nil && recursive() {
				mode = v1.RecursiveReadOnlyEnabled
			}
			st.RecursiveReadOnly = &mode
		}
		out = append(out, st)
	}
	return out
}

// mayBeRecursive says whether a mount asks to be read-only with all below it, and
// may.
func mayBeRecursive(m *v1.VolumeMount) bool {
	return m.ReadOnly && deref(m.RecursiveReadOnly, v1.RecursiveReadOnlyDisabled) != v1.RecursiveReadOnlyDisabled &&
		deref(m.MountPropagation, v1.MountPropagationNone) == v1.MountPropagationNone
}

func anyRegularSeen(in statusInput) bool {
	for i := range in.pod.Spec.Containers {
		if got := in.seen.find(in.pod.Spec.Containers[i].Name); got != nil && !got.lost {
			return true
		}
	}
	return false
}

func fillFromRuntime(in statusInput, s *v1.ContainerStatus, got *observedContainer) {
	s.RestartCount = got.restartCount
	s.ImageID = got.imageRef
	s.User = got.user
	if got.image != "" {
		s.Image = got.image
	}
	if got.id != "" {
		s.ContainerID = in.runtimeName + "://" + got.id
	}
	switch got.state {
	case stateRunning:
		s.State.Running = &v1.ContainerStateRunning{StartedAt: stamp(got.started)}
	case stateExited:
		s.State.Terminated = &v1.ContainerStateTerminated{ExitCode: got.exitCode, Reason: got.reason, Message: got.message,
			StartedAt: stamp(got.started), FinishedAt: stamp(got.finished), ContainerID: s.ContainerID}
	default:
		s.State.Waiting = &v1.ContainerStateWaiting{}
	}
}

// lastTermination is the end of the container before the current one: from the
// runtime while it has it, else from what was last reported.
func lastTermination(in statusInput, s *v1.ContainerStatus, before *observedContainer, old *v1.ContainerStatus) v1.ContainerState {
	if before != nil && before.state == stateExited {
		var last v1.ContainerStatus
		fillFromRuntime(in, &last, before)
		return last.State
	}
	switch {
	case old == nil:
		return v1.ContainerState{}
	case old.ContainerID == s.ContainerID || old.ContainerID == "":
		return old.LastTerminationState
	case old.State.Terminated != nil:
		return v1.ContainerState{Terminated: old.State.Terminated}
	case old.State.Running != nil:
		return v1.ContainerState{Terminated: &v1.ContainerStateTerminated{ExitCode: lostExitCode, Reason: reasonUnknown,
			Message:   "The container could not be located when the pod was deleted.  The container used to be Running",
			StartedAt: old.State.Running.StartedAt, ContainerID: old.ContainerID}}
	}
	return old.LastTerminationState
}

// boundMessages shares maxPodMessages among the pod's containers.
func boundMessages(s *v1.PodStatus) {
	n := len(s.InitContainerStatuses) + len(s.ContainerStatuses) + len(s.EphemeralContainerStatuses)
	if n == 0 {
		return
	}
	limit := maxPodMessages / n
	for _, list := range [][]v1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			for _, t := range []*v1.ContainerStateTerminated{list[i].State.Terminated, list[i].LastTerminationState.Terminated} {
				if t != nil && len(t.Message) > limit {
					t.Message = strings.ToValidUTF8(t.Message[:limit], "")
				}
			}
		}
	}
}

// phase is upstream's getPhase.
func phase(pod *v1.Pod, inits, apps []v1.ContainerStatus, over bool) v1.PodPhase {
	status := func(list []v1.ContainerStatus, name string) *v1.ContainerStatus {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
		return nil
	}
	pendingInit, pendingSidecar, failedInit := 0, 0, 0
	running, waits, stopped, final, succeeded, unknown := 0, 0, 0, 0, 0, 0
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		s := status(inits, c.Name)
		if isSidecar(c) {
			switch {
			case s == nil:
				unknown++
			case s.State.Running != nil:
				if s.Started == nil || !*s.Started {
					pendingSidecar++
				}
				running++
			case s.State.Waiting != nil && s.LastTerminationState.Terminated == nil:
				pendingSidecar++
				waits++
			}
			continue
		}
		switch {
		case s == nil, s.State.Running != nil:
			pendingInit++
		case s.State.Terminated != nil:
			if s.State.Terminated.ExitCode != 0 && !restartsAfter(pod, c, s.State.Terminated.ExitCode) {
				failedInit++
			} else if s.State.Terminated.ExitCode != 0 {
				pendingInit++
			}
		case s.LastTerminationState.Terminated != nil:
			if code := s.LastTerminationState.Terminated.ExitCode; code != 0 && !restartsAfter(pod, c, code) {
				failedInit++
			} else {
				pendingInit++
			}
		default:
			pendingInit++
		}
	}
	appStarted := false
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		s := status(apps, c.Name)
		switch {
		case s == nil:
			unknown++
		case s.State.Running != nil:
			running++
			appStarted = true
		case s.State.Terminated != nil:
			stopped++
			appStarted = true
			if !restartsAfter(pod, c, s.State.Terminated.ExitCode) {
				final++
			}
			if s.State.Terminated.ExitCode == 0 {
				succeeded++
			}
		case s.LastTerminationState.Terminated != nil:
			stopped++
			appStarted = true
			if !restartsAfter(pod, c, s.LastTerminationState.Terminated.ExitCode) {
				final++
			}
		default:
			waits++
		}
	}
	switch {
	case failedInit > 0:
		return v1.PodFailed
	case over && stopped > 0 && running == 0:
		if stopped == succeeded {
			return v1.PodSucceeded
		}
		return v1.PodFailed
	case pendingInit > 0, pendingSidecar > 0 && !appStarted, waits > 0:
		return v1.PodPending
	case running > 0 && unknown == 0:
		return v1.PodRunning
	case running == 0 && stopped > 0 && unknown == 0:
		switch {
		case stopped != final:
			return v1.PodRunning
		case stopped == succeeded:
			return v1.PodSucceeded
		}
		return v1.PodFailed
	}
	return v1.PodPending
}

// conditions are the kubelet's own, after those that others set.
func conditions(in statusInput, s *v1.PodStatus) []v1.PodCondition {
	var out []v1.PodCondition
	for _, c := range in.pod.Status.Conditions {
		switch c.Type {
		case v1.PodReadyToStartContainers, v1.PodInitialized, v1.PodReady, v1.ContainersReady, v1.PodScheduled, v1.PodResizePending, v1.PodResizeInProgress, v1.AllContainersRestarting:
		default:
			out = append(out, c)
		}
	}
	foreign := out
	set := func(t v1.PodConditionType, ok bool, reason, message string) {
		c := v1.PodCondition{Type: t, Status: v1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: in.pod.Generation}
		if ok {
			c.Status = v1.ConditionTrue
		}
		c.LastTransitionTime = stamp(in.now)
		for _, old := range in.record.status.Conditions {
			if old.Type == t && old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
		}
		out = append(out, c)
	}
	sandboxGone, _, _ := sandboxChanged(in.pod, in.seen)
	set(v1.PodReadyToStartContainers, !sandboxGone && !in.over, "", "")
	ok, reason, message := initialized(in.pod, s)
	if !ok && slices.ContainsFunc(in.record.status.Conditions, func(c v1.PodCondition) bool { return c.Type == v1.PodInitialized && c.Status == v1.ConditionTrue }) {
		ok, reason, message = true, "", "" // once is for good, as upstream has it
	}
	set(v1.PodInitialized, ok, reason, message)
	cok, creason, cmessage := containersReady(in.pod, s)
	if gok, greason, gmessage := gatesReady(in.pod, foreign); cok && !gok {
		set(v1.PodReady, false, greason, gmessage)
	} else {
		set(v1.PodReady, cok, creason, cmessage)
	}
	set(v1.ContainersReady, cok, creason, cmessage)
	set(v1.PodScheduled, true, "", "")
	if couldRestartAll(in.pod) {
		restarting, reason := in.restarting || restartTrigger(in.pod, in.seen) != nil, ""
		switch s.Phase {
		case v1.PodSucceeded:
			restarting, reason = false, "PodCompleted"
		case v1.PodFailed:
			restarting, reason = false, "PodFailed"
		}
		set(v1.AllContainersRestarting, restarting, reason, "")
	}
	for _, c := range []*v1.PodCondition{in.resize.pending, in.resize.inProgress} {
		if c != nil {
			out = append(out, *c)
		}
	}
	if in.record.disruption != "" {
		out = slices.DeleteFunc(out, func(c v1.PodCondition) bool { return c.Type == v1.DisruptionTarget })
		set(v1.DisruptionTarget, true, v1.PodReasonTerminationByKubelet, in.record.disruption)
	}
	return out
}

func initialized(pod *v1.Pod, s *v1.PodStatus) (bool, string, string) {
	if s.Phase == v1.PodSucceeded {
		return true, "PodCompleted", ""
	}
	for i := range s.ContainerStatuses {
		c := &s.ContainerStatuses[i]
		if c.State.Running != nil || c.State.Terminated != nil {
			return true, "", ""
		}
	}
	var incomplete []string
	for i := range pod.Spec.InitContainers {
		st := &s.InitContainerStatuses[i]
		if isSidecar(&pod.Spec.InitContainers[i]) {
			if st.Started == nil || !*st.Started {
				incomplete = append(incomplete, st.Name)
			}
		} else if !st.Ready {
			incomplete = append(incomplete, st.Name)
		}
	}
	if len(incomplete) > 0 {
		return false, "ContainersNotInitialized", fmt.Sprintf("containers with incomplete status: %s", incomplete)
	}
	return true, "", ""
}

func containersReady(pod *v1.Pod, s *v1.PodStatus) (bool, string, string) {
	switch s.Phase {
	case v1.PodSucceeded:
		return false, "PodCompleted", ""
	case v1.PodFailed:
		return false, "PodFailed", ""
	}
	var unready []string
	for i := range pod.Spec.InitContainers {
		if isSidecar(&pod.Spec.InitContainers[i]) && !s.InitContainerStatuses[i].Ready {
			unready = append(unready, pod.Spec.InitContainers[i].Name)
		}
	}
	for i := range pod.Spec.Containers {
		name := pod.Spec.Containers[i].Name
		if !slices.ContainsFunc(s.ContainerStatuses, func(c v1.ContainerStatus) bool { return c.Name == name && c.Ready }) {
			unready = append(unready, name)
		}
	}
	if len(unready) > 0 {
		return false, "ContainersNotReady", fmt.Sprintf("containers with unready status: %s", unready)
	}
	return true, "", ""
}

func gatesReady(pod *v1.Pod, foreign []v1.PodCondition) (bool, string, string) {
	var messages []string
	for _, gate := range pod.Spec.ReadinessGates {
		i := slices.IndexFunc(foreign, func(c v1.PodCondition) bool { return c.Type == gate.ConditionType })
		switch {
		case i < 0:
			messages = append(messages, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.ConditionType))
		case foreign[i].Status != v1.ConditionTrue:
			messages = append(messages, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", gate.ConditionType, foreign[i].Status))
		}
	}
	return len(messages) == 0, "ReadinessGatesNotReady", strings.Join(messages, ", ")
}

// rejected is the status of a pod this node refused.
func rejected(pod *v1.Pod, reason, message string, now time.Time) v1.PodStatus {
	start := stamp(now)
	return v1.PodStatus{Phase: v1.PodFailed, Reason: reason, Message: "Pod was rejected: " + message,
		StartTime: &start, QOSClass: qosClass(pod), ObservedGeneration: pod.Generation}
}

// sameStatus compares as the wire does.
func sameStatus(a, b *v1.PodStatus) bool {
	x, errX := a.Marshal()
	y, errY := b.Marshal()
	return errX == nil && errY == nil && bytes.Equal(x, y)
}
