package pods

import (
	"errors"
	"fmt"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/images"
)

// errDebugOCI is why a debug container of an OCI image can't be had (D5).
var errDebugOCI = errors.New("this pod has Wasm containers only: there is no sandbox of containerd's that an OCI container could join; " +
	"debug it with a Wasm image, or debug the node (kubectl debug node/NAME)")

// ephemeral is an ephemeral container as the container it is otherwise. It shares
// the memory of the pod's.
func ephemeral(pod *v1.Pod, i int) *v1.Container {
	return (*v1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
}

// ephemerals are the pod's ephemeral containers.
func ephemerals(pod *v1.Pod) []v1.Container {
	if len(pod.Spec.EphemeralContainers) == 0 {
		return nil
	}
	out := make([]v1.Container, len(pod.Spec.EphemeralContainers))
	for i := range out {
		out[i] = *ephemeral(pod, i)
	}
	return out
}

// joinTarget has an ephemeral container see the processes of the one it is to
// debug, and refuses what can't be.
func joinTarget(pod *v1.Pod, seen *observation, name string, config *runtimeapi.ContainerConfig, sandbox *runtimeapi.PodSandboxConfig, img images.Image) error {
	for i := range pod.Spec.EphemeralContainers {
		e := &pod.Spec.EphemeralContainers[i]
		if e.Name != name {
			continue
		}
		if sandbox.Annotations[AnnotationSandbox] == kindWasm && img.Kind == images.KindOCI {
			return errDebugOCI
		}
		if e.TargetContainerName == "" || img.Kind == images.KindWasm {
			return nil // a module sees no processes, wherever it runs
		}
		target := seen.find(e.TargetContainerName)
		if target == nil || target.lost {
			return fmt.Errorf("unable to find target container %v", e.TargetContainerName)
		}
		if o := config.Linux.SecurityContext.NamespaceOptions; o.Pid == runtimeapi.NamespaceMode_CONTAINER {
			o.Pid, o.TargetId = runtimeapi.NamespaceMode_TARGET, target.id
		}
	}
	return nil
}
