package pods

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// ErrRecord is returned when a pod's record can't be read.
var ErrRecord = errors.New("unreadable pod record")

const (
	recordVersion = 1

	recordAdmitted = "admitted"
	recordReason   = "reason"
	recordMessage  = "message"

	recordAllocated = "allocated"
	recordAnew      = "anew"
	recordDisrupt   = "disruption"
	recordActive    = "active"
)

// lostExitCode is what a container is taken to have ended with when nobody saw
// it end.
const lostExitCode = 137

const (
	reasonUnknown      = "ContainerStatusUnknown"
	messageTerminated  = "The container could not be located when the pod was terminated"
	reasonDeadline     = "DeadlineExceeded"
	messageDeadline    = "Pod was active on the node longer than the specified deadline"
	reasonCreating     = "ContainerCreating"
	reasonInitializing = "PodInitializing"
)

// record is what must be known of a pod after a reboot: that it was admitted,
// what was last reported of it (restart counts, exits, start time, and that it
// is over), and what verdict ended it.
type record struct {
	admitted bool
	// reason and message of a verdict: the pod has failed whatever its containers
	// did.
	reason, message string
	// disruption is the message of DisruptionTarget, empty without that condition.
	disruption string
	status     v1.PodStatus
	// anew are containers that ran and are to begin again, by name: see restartAll.
	anew map[string]bool
	// active is how long the pod was, nil without activeDeadlineSeconds.
	active *activity
	// allocated is what the node promised the pod; nil: nothing yet.
	allocated *allocation
}

func (r *record) terminal() bool {
	return r.status.Phase == v1.PodSucceeded || r.status.Phase == v1.PodFailed
}

// encode writes the record as a version byte and a v1.Pod that carries it: the
// generated code is linked anyway, and old readers skip new fields.
func (r *record) encode() ([]byte, error) {
	carrier := v1.Pod{Status: r.status, ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{}}}
	if r.admitted {
		carrier.Annotations[recordAdmitted] = "true"
	}
	if r.reason != "" {
		carrier.Annotations[recordReason] = r.reason
		carrier.Annotations[recordMessage] = r.message
	}
	if r.disruption != "" {
		carrier.Annotations[recordDisrupt] = r.disruption
	}
	if len(r.anew) > 0 {
		carrier.Annotations[recordAnew] = strings.Join(slices.Sorted(maps.Keys(r.anew)), ",")
	}
	if r.active != nil {
		carrier.Annotations[recordActive] = r.active.encode()
	}
	encodeAllocation(r.allocated, &carrier)
	raw, err := carrier.Marshal()
	if err != nil {
		return nil, err
	}
	return append([]byte{recordVersion}, raw...), nil
}

func decodeRecord(raw []byte) (r *record, err error) {
	if len(raw) == 0 {
		return new(record), nil
	}
	if raw[0] != recordVersion {
		return nil, fmt.Errorf("%w: version %d, this agent knows %d", ErrRecord, raw[0], recordVersion)
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrRecord, p)
		}
	}()
	var carrier v1.Pod
	if err := carrier.Unmarshal(raw[1:]); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	var active *activity
	if text, ok := carrier.Annotations[recordActive]; ok {
		if active, err = decodeActivity(text); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrRecord, err)
		}
	}
	var anew map[string]bool
	for name := range strings.SplitSeq(carrier.Annotations[recordAnew], ",") {
		if name != "" {
			if anew == nil {
				anew = map[string]bool{}
			}
			anew[name] = true
		}
	}
	return &record{anew: anew, active: active, status: carrier.Status, admitted: carrier.Annotations[recordAdmitted] == "true",
		reason: carrier.Annotations[recordReason], message: carrier.Annotations[recordMessage],
		disruption: carrier.Annotations[recordDisrupt], allocated: decodeAllocation(&carrier)}, nil
}

// terminationMessage is what was last said of a container's end; empty if nothing was.
func (r *record) terminationMessage(id string) string {
	for _, list := range [][]v1.ContainerStatus{r.status.InitContainerStatuses, r.status.ContainerStatuses, r.status.EphemeralContainerStatuses} {
		for i := range list {
			for _, t := range []*v1.ContainerStateTerminated{list[i].State.Terminated, list[i].LastTerminationState.Terminated} {
				if t != nil && containerIDOf(t.ContainerID) == id {
					return t.Message
				}
			}
		}
	}
	return ""
}

// addLost adds to an observation the containers that the record knows and the
// runtime does not: it was reset, or the board rebooted. They have ended, and if
// nobody saw how, they are taken to have been killed.
func addLost(o *observation, r *record) {
	for _, list := range [][]v1.ContainerStatus{r.status.InitContainerStatuses, r.status.ContainerStatuses, r.status.EphemeralContainerStatuses} {
		for i := range list {
			st := &list[i]
			ended := st.State.Terminated
			switch {
			case ended != nil:
			case st.State.Running != nil:
				ended = &v1.ContainerStateTerminated{ExitCode: lostExitCode, Reason: reasonUnknown, Message: messageTerminated,
					StartedAt: st.State.Running.StartedAt, ContainerID: st.ContainerID}
			default:
				ended = st.LastTerminationState.Terminated
			}
			if ended == nil || r.anew[st.Name] {
				continue
			}
			if got := o.find(st.Name); got != nil && (got.restartCount >= st.RestartCount || got.state == stateRunning) {
				continue
			}
			o.containers = append([]*observedContainer{{
				id: containerIDOf(ended.ContainerID), name: st.Name, image: st.Image, imageRef: st.ImageID, state: stateExited, lost: true,
				started: ended.StartedAt.Time, finished: ended.FinishedAt.Time,
				exitCode: ended.ExitCode, reason: ended.Reason, message: ended.Message, restartCount: st.RestartCount,
			}}, o.containers...)
		}
	}
}

// containerIDOf strips the runtime's name from a container ID of the API.
func containerIDOf(id string) string {
	for i := 0; i+3 <= len(id); i++ {
		if id[i:i+3] == "://" {
			return id[i+3:]
		}
	}
	return id
}

// minimalPod is a pod of which only what the runtime's labels say is known: one
// that isn't desired any more, or whose object can't be read.
func minimalPod(namespace, name, uid string, grace int64) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)},
		Spec: v1.PodSpec{TerminationGracePeriodSeconds: &grace, RestartPolicy: v1.RestartPolicyAlways}}
}

// stamp is a time as the API keeps it: seconds.
func stamp(t time.Time) metav1.Time {
	if t.IsZero() {
		return metav1.Time{}
	}
	return metav1.NewTime(t.Truncate(time.Second))
}
