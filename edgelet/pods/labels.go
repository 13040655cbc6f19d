package pods

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"strconv"

	v1 "k8s.io/api/core/v1"
)

// Labels and annotations on sandboxes and containers are those of a kubelet:
// crictl, log collectors and a kubelet that takes over know them.
const (
	labelPodName       = "io.kubernetes.pod.name"
	labelPodNamespace  = "io.kubernetes.pod.namespace"
	labelPodUID        = "io.kubernetes.pod.uid"
	labelContainerName = "io.kubernetes.container.name"

	annHash              = "io.kubernetes.container.hash"
	annRestartCount      = "io.kubernetes.container.restartCount"
	annTermMessagePath   = "io.kubernetes.container.terminationMessagePath"
	annTermMessagePolicy = "io.kubernetes.container.terminationMessagePolicy"
	annPreStop           = "io.kubernetes.container.preStopHandler"
	annPorts             = "io.kubernetes.container.ports"
	annDeletionGrace     = "io.kubernetes.pod.deletionGracePeriod"
	annTerminationGrace  = "io.kubernetes.pod.terminationGracePeriod"

	// AnnotationSandbox tells the runtime what kind of sandbox the pod needs (D5).
	AnnotationSandbox = "coracle.dev/sandbox"
	// AnnotationListen lists the sockets a Wasm container is handed, as
	// "0.0.0.0:8080/tcp", comma separated.
	AnnotationListen = "coracle.dev/listen"
)

func sandboxLabels(pod *v1.Pod) map[string]string {
	l := make(map[string]string, len(pod.Labels)+3)
	maps.Copy(l, pod.Labels)
	l[labelPodName], l[labelPodNamespace], l[labelPodUID] = pod.Name, pod.Namespace, string(pod.UID)
	return l
}

func containerLabels(pod *v1.Pod, c *v1.Container) map[string]string {
	return map[string]string{labelPodName: pod.Name, labelPodNamespace: pod.Namespace,
		labelPodUID: string(pod.UID), labelContainerName: c.Name}
}

func containerAnnotations(pod *v1.Pod, c *v1.Container, restartCount int32) map[string]string {
	a := map[string]string{
		annHash:              hashContainer(c),
		annRestartCount:      strconv.Itoa(int(restartCount)),
		annTermMessagePath:   c.TerminationMessagePath,
		annTermMessagePolicy: string(c.TerminationMessagePolicy),
	}
	if g := pod.DeletionGracePeriodSeconds; g != nil {
		a[annDeletionGrace] = strconv.FormatInt(*g, 10)
	}
	if g := pod.Spec.TerminationGracePeriodSeconds; g != nil {
		a[annTerminationGrace] = strconv.FormatInt(*g, 10)
	}
	if c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
		if raw, err := json.Marshal(c.Lifecycle.PreStop); err == nil {
			a[annPreStop] = string(raw)
		}
	}
	if len(c.Ports) > 0 {
		if raw, err := json.Marshal(c.Ports); err == nil {
			a[annPorts] = string(raw)
		}
	}
	return a
}

// hashContainer covers what a running container can't have changed: a kubelet
// restarts a container whose name or image differ from what it runs.
func hashContainer(c *v1.Container) string {
	h := fnv.New32a()
	fmt.Fprintf(h, "%q %q", c.Name, c.Image)
	return strconv.FormatUint(uint64(h.Sum32()), 16)
}

// describe is how messages name a pod: name_namespace(uid).
func describe(pod *v1.Pod) string {
	return fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID)
}

// fieldPath names a container in an event.
func fieldPath(pod *v1.Pod, container string) string {
	for _, s := range []struct {
		list []v1.Container
		path string
	}{{pod.Spec.Containers, "spec.containers{%s}"}, {pod.Spec.InitContainers, "spec.initContainers{%s}"}, {ephemerals(pod), "spec.ephemeralContainers{%s}"}} {
		for i := range s.list {
			if s.list[i].Name == container {
				return fmt.Sprintf(s.path, container)
			}
		}
	}
	return ""
}
