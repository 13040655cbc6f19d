package pods

import v1 "k8s.io/api/core/v1"

// What follows are decisions that must be upstream's to the word; test/kubelet
// holds them against upstream's own functions.

// RestartsAfter reports whether a container runs again after it ended with an
// exit code (k8s.io/kubernetes/pkg/api/v1/pod, ContainerShouldRestart).
func RestartsAfter(pod *v1.Pod, c *v1.Container, exitCode int32) bool {
	return restartsAfter(pod, c, exitCode)
}

// ReadyConditions are the conditions Initialized, ContainersReady and Ready of a
// pod with this status (k8s.io/kubernetes/pkg/kubelet/status/generate.go). Those
// of the pod's readiness gates are read from pod.Status.
func ReadyConditions(pod *v1.Pod, s *v1.PodStatus) []v1.PodCondition {
	condition := func(t v1.PodConditionType, ok bool, reason, message string) v1.PodCondition {
		c := v1.PodCondition{Type: t, Status: v1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: pod.Generation}
		if ok {
			c.Status = v1.ConditionTrue
		}
		return c
	}
	var out []v1.PodCondition
	ok, reason, message := initialized(pod, s)
	out = append(out, condition(v1.PodInitialized, ok, reason, message))
	ok, reason, message = containersReady(pod, s)
	contained := condition(v1.ContainersReady, ok, reason, message)
	if gates, greason, gmessage := gatesReady(pod, pod.Status.Conditions); ok && !gates {
		ok, reason, message = false, greason, gmessage
	}
	return append(out, contained, condition(v1.PodReady, ok, reason, message))
}
