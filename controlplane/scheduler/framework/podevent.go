package framework

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// maxNote is what the API takes for an event's note, in bytes.
const maxNote = 1024

// PodEvent is an event about a pod, by a scheduler; a note that is too long is cut.
func PodEvent(pod *v1.Pod, scheduler, kind, reason, action, note string) *eventsv1.Event {
	now := time.Now()
	if len(note) > maxNote {
		note = note[:maxNote-4] + " ..."
	}
	return &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: fmt.Sprintf("%s.%x", pod.Name, now.UnixNano())},
		EventTime:  metav1.NewMicroTime(now),
		Type:       kind, Reason: reason, Action: action, Note: note,
		ReportingController: scheduler, ReportingInstance: scheduler,
		Regarding: v1.ObjectReference{
			Kind: "Pod", APIVersion: "v1", Namespace: pod.Namespace, Name: pod.Name,
			UID: pod.UID, ResourceVersion: pod.ResourceVersion,
		},
	}
}
