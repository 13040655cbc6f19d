package oci

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Events calls emit for each start, end and removal of an OCI container or
// sandbox, until ctx ends or containerd goes away. It uses containerd's own
// events, which 1.6 has too (GetContainerEvents came with 1.7), and asks its
// CRI for the statuses. ready is called when the subscription stands.
func (c *Client) Events(ctx context.Context, ready func(), emit func(*runtimeapi.ContainerEventResponse)) error {
	stream, err := eventsapi.NewEventsClient(c.conn).Subscribe(ctx, &eventsapi.SubscribeRequest{Filters: []string{
		`namespace==` + namespace + `,topic=="/tasks/start"`,
		`namespace==` + namespace + `,topic=="/tasks/exit"`,
		`namespace==` + namespace + `,topic=="/containers/create"`,
		`namespace==` + namespace + `,topic=="/containers/delete"`,
	}})
	if err != nil {
		return fmt.Errorf("containerd events: %w", c.unavailable(err))
	}
	ready()
	for {
		env, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("containerd events: %w", c.unavailable(err))
		}
		id, t := parseEvent(env.GetTopic(), env.GetEvent().GetValue())
		if id == "" {
			continue
		}
		at := time.Now()
		if ts := env.GetTimestamp(); ts != nil {
			at = ts.AsTime()
		}
		emit(c.event(ctx, id, t, at))
	}
}

// parseEvent returns the container or sandbox that an event is of, empty for what
// concerns neither.
func parseEvent(topic string, raw []byte) (id string, t runtimeapi.ContainerEventType) {
	switch topic {
	case "/tasks/start":
		ev := &events.TaskStart{}
		if proto.Unmarshal(raw, ev) == nil {
			id, t = ev.GetContainerID(), runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
		}
	case "/tasks/exit":
		ev := &events.TaskExit{}
		if proto.Unmarshal(raw, ev) == nil && ev.GetID() == ev.GetContainerID() { // else an exec's
			id, t = ev.GetContainerID(), runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
		}
	case "/containers/create":
		ev := &events.ContainerCreate{}
		if proto.Unmarshal(raw, ev) == nil {
			id, t = ev.GetID(), runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
		}
	case "/containers/delete":
		ev := &events.ContainerDelete{}
		if proto.Unmarshal(raw, ev) == nil {
			id, t = ev.GetID(), runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
		}
	}
	return id, t
}

// event completes an event with the statuses of its pod. containerd's CRI
// hears of an event at the same time as we do, so it is given a moment to take
// note of it.
func (c *Client) event(ctx context.Context, id string, t runtimeapi.ContainerEventType, at time.Time) *runtimeapi.ContainerEventResponse {
	ev := &runtimeapi.ContainerEventResponse{ContainerId: id, ContainerEventType: t, CreatedAt: at.UnixNano()}
	if t == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT {
		return ev
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	sandbox := id
	for wait := 2 * time.Millisecond; ; wait *= 2 {
		settled := false
		if st, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id}); err == nil {
			settled = settles(t, st.GetStatus().GetState())
			if sandbox == id {
				if list, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: id}}); err == nil && len(list.GetContainers()) == 1 {
					sandbox = list.GetContainers()[0].GetPodSandboxId()
				}
			}
		}
		if st, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox}); err == nil {
			ev.PodSandboxStatus = st.GetStatus()
			if sandbox == id {
				ready := st.GetStatus().GetState() == runtimeapi.PodSandboxState_SANDBOX_READY
				settled = ready != (t == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
			}
		}
		if settled || wait > 300*time.Millisecond {
			ev.ContainersStatuses = c.Statuses(ctx, ev.GetPodSandboxStatus().GetId())
			return ev
		}
		select {
		case <-ctx.Done():
			return ev
		case <-time.After(wait):
		}
	}
}

// Statuses of all containers of a sandbox: kubelets take those of an event for
// the whole pod's. One that goes meanwhile is left out.
func (c *Client) Statuses(ctx context.Context, sandbox string) (out []*runtimeapi.ContainerStatus) {
	if sandbox == "" {
		return nil
	}
	list, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: sandbox}})
	if err != nil {
		return nil
	}
	for _, item := range list.GetContainers() {
		if st, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: item.GetId()}); err == nil {
			out = append(out, st.GetStatus())
		}
	}
	return out
}

func settles(t runtimeapi.ContainerEventType, s runtimeapi.ContainerState) bool {
	switch t {
	case runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT:
		return s != runtimeapi.ContainerState_CONTAINER_CREATED
	case runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT:
		return s == runtimeapi.ContainerState_CONTAINER_EXITED
	}
	return true
}

func imageStatusRequest(name string) *runtimeapi.ImageStatusRequest {
	return &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}}
}
