package pods

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// callTimeout bounds a call to the runtime, as a kubelet's runtimeRequestTimeout.
const callTimeout = 2 * time.Minute

type containerState int

const (
	stateCreated containerState = iota
	stateRunning
	stateExited
	stateUnknown
)

// observedContainer is one container, running or not, that the runtime has.
type observedContainer struct {
	id, name, sandbox   string
	image, imageRef     string
	state               containerState
	created             time.Time
	started, finished   time.Time
	exitCode            int32
	reason, message     string
	restartCount        int32
	hash                string
	logPath             string
	annotations         map[string]string
	terminationHostPath string
	user                *v1.ContainerUser
	// lost says that the runtime has nothing of it: it is known from the record.
	lost bool
}

// observation is what the runtime has of a pod, the newest first.
type observation struct {
	sandboxes  []*runtimeapi.PodSandboxStatus
	containers []*observedContainer
}

// find returns the newest container of that name, or nil.
func (o *observation) find(name string) *observedContainer {
	for _, c := range o.containers {
		if c.name == name {
			return c
		}
	}
	return nil
}

// ended returns the newest container of that name that has ended, or nil.
func (o *observation) ended(name string) *observedContainer {
	for _, c := range o.containers {
		if c.name == name && c.state == stateExited {
			return c
		}
	}
	return nil
}

// ips returns the pod's addresses: those of its newest sandbox if that is ready.
func (o *observation) ips() []string {
	if len(o.sandboxes) == 0 || o.sandboxes[0].State != runtimeapi.PodSandboxState_SANDBOX_READY {
		return nil
	}
	return sandboxIPs(o.sandboxes[0])
}

func sandboxIPs(s *runtimeapi.PodSandboxStatus) []string {
	var ips []string
	if s.Network == nil {
		return nil
	}
	if s.Network.Ip != "" {
		ips = append(ips, s.Network.Ip)
	}
	for _, ip := range s.Network.AdditionalIps {
		ips = append(ips, ip.Ip)
	}
	return ips
}

// observe asks the runtime for everything it has of a pod.
func observe(ctx context.Context, rt Runtime, podUID string) (*observation, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	o := new(observation)
	selector := map[string]string{labelPodUID: podUID}
	sandboxes, err := rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: selector}})
	if err != nil {
		return nil, fmt.Errorf("listing sandboxes: %w", err)
	}
	for _, s := range sandboxes.Items {
		resp, err := rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.Id})
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("asking for sandbox %s: %w", s.Id, err)
		}
		if st := resp.GetStatus(); st != nil {
			if st.Metadata == nil {
				st.Metadata = &runtimeapi.PodSandboxMetadata{}
			}
			o.sandboxes = append(o.sandboxes, st)
		}
	}
	slices.SortFunc(o.sandboxes, func(a, b *runtimeapi.PodSandboxStatus) int {
		return cmp.Or(cmp.Compare(b.CreatedAt, a.CreatedAt), cmp.Compare(b.Metadata.Attempt, a.Metadata.Attempt), cmp.Compare(a.Id, b.Id))
	})
	containers, err := rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: selector}})
	if err != nil {
		return nil, fmt.Errorf("listing containers: %w", err)
	}
	for _, c := range containers.Containers {
		resp, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.Id})
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("asking for container %s: %w", c.Id, err)
		}
		if st := resp.GetStatus(); st != nil {
			o.containers = append(o.containers, convertContainer(c.PodSandboxId, st))
		}
	}
	slices.SortFunc(o.containers, func(a, b *observedContainer) int {
		return cmp.Or(b.created.Compare(a.created), cmp.Compare(b.restartCount, a.restartCount), cmp.Compare(a.id, b.id))
	})
	return o, nil
}

func convertContainer(sandbox string, st *runtimeapi.ContainerStatus) *observedContainer {
	c := &observedContainer{
		id: st.Id, name: st.Labels[labelContainerName], sandbox: sandbox,
		image: st.GetImage().GetImage(), imageRef: st.ImageRef,
		created:     time.Unix(0, st.CreatedAt),
		hash:        st.Annotations[annHash],
		logPath:     st.LogPath,
		annotations: st.Annotations,
	}
	if user := st.GetImage().GetUserSpecifiedImage(); user != "" {
		c.image = user
	}
	if c.name == "" {
		c.name = st.GetMetadata().GetName()
	}
	if n, err := strconv.ParseInt(st.Annotations[annRestartCount], 10, 32); err == nil {
		c.restartCount = max(0, int32(n))
	} else {
		c.restartCount = int32(min(st.GetMetadata().GetAttempt(), math.MaxInt32))
	}
	if u := st.GetUser().GetLinux(); u != nil {
		c.user = &v1.ContainerUser{Linux: &v1.LinuxContainerUser{UID: u.Uid, GID: u.Gid, SupplementalGroups: u.SupplementalGroups}}
	}
	switch st.State {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		c.state = stateCreated
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		c.state = stateRunning
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		c.state = stateExited
	default:
		c.state = stateUnknown
	}
	if c.state != stateCreated {
		c.started = time.Unix(0, st.StartedAt) // 1970 of one that could not be started, as a kubelet
	}
	if c.state == stateExited {
		c.exitCode, c.reason, c.message = st.ExitCode, st.Reason, st.Message
		c.finished = time.Unix(0, st.FinishedAt)
	}
	path := st.Annotations[annTermMessagePath]
	for _, m := range st.Mounts {
		if path != "" && m.ContainerPath == path {
			c.terminationHostPath = m.HostPath
		}
	}
	return c
}

func isNotFound(err error) bool { return err != nil && status.Code(err) == codes.NotFound }

// message is a runtime error without the gRPC dressing.
func message(err error) string { return status.Convert(err).Message() }
