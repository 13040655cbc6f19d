package crishim

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hub passes events on to subscribers. Each has a queue keyed by container:
// one that is slow gets the latest of each, and memory is bounded by what
// there is.
type hub struct {
	mu     sync.Mutex
	subs   map[*subscriber]struct{}
	closed bool
}

type subscriber struct {
	wake   chan struct{} // capacity 1
	mu     sync.Mutex
	order  []string
	latest map[string]*runtimeapi.ContainerEventResponse
}

func newHub() *hub { return &hub{subs: map[*subscriber]struct{}{}} }

func (h *hub) publish(ev *runtimeapi.ContainerEventResponse) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		s.put(ev)
	}
}

func (s *subscriber) put(ev *runtimeapi.ContainerEventResponse) {
	s.mu.Lock()
	id := ev.GetContainerId()
	if _, ok := s.latest[id]; ok {
		s.order = slices.DeleteFunc(s.order, func(o string) bool { return o == id })
	}
	s.order = append(s.order, id) // after what has happened meanwhile
	s.latest[id] = ev
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscriber) take() *runtimeapi.ContainerEventResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.order) == 0 {
		return nil
	}
	id := s.order[0]
	s.order = s.order[1:]
	ev := s.latest[id]
	delete(s.latest, id)
	return ev
}

func (h *hub) subscribe() *subscriber {
	s := &subscriber{wake: make(chan struct{}, 1), latest: map[string]*runtimeapi.ContainerEventResponse{}}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		close(s.wake)
		return s
	}
	h.subs[s] = struct{}{}
	return s
}

func (h *hub) unsubscribe(s *subscriber) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.subs, s)
}

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for s := range h.subs {
		close(s.wake)
		delete(h.subs, s)
	}
}

// each calls emit for every event until ctx ends, the hub closes or emit fails.
func (h *hub) each(ctx context.Context, s *subscriber, emit func(*runtimeapi.ContainerEventResponse) error) error {
	defer h.unsubscribe(s)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, open := <-s.wake:
			for ev := s.take(); ev != nil; ev = s.take() {
				if err := emit(ev); err != nil {
					return err
				}
			}
			if !open {
				return nil
			}
		}
	}
}

// Events subscribes to changes of containers and sandboxes of both kinds. The
// subscription stands when Events returns; the channel is closed when ctx ends
// or the Service closes. A reader that is slow gets the latest event of each
// container. While containerd doesn't answer its events are missing, and when
// it answers again they are not made up for: list now and then.
func (s *Service) Events(ctx context.Context) <-chan *runtimeapi.ContainerEventResponse {
	out := make(chan *runtimeapi.ContainerEventResponse)
	sub := s.events.subscribe()
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		defer close(out)
		_ = s.events.each(ctx, sub, func(ev *runtimeapi.ContainerEventResponse) error {
			ev = s.complete(ctx, ev)
			select {
			case out <- ev:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			case <-s.done:
				return context.Canceled
			}
		})
	}()
	return out
}

// complete adds containerd's part to an event that names no more of its sandbox
// than the ID: of a Wasm container in a sandbox of containerd's, or of a container
// that was removed. Kubelets take the statuses of an event for the whole pod's, and
// ignore an event without a sandbox's status.
func (s *Service) complete(ctx context.Context, ev *runtimeapi.ContainerEventResponse) *runtimeapi.ContainerEventResponse {
	sb := ev.GetPodSandboxStatus()
	if s.oci == nil || sb.GetId() == "" || sb.GetMetadata() != nil {
		return ev
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	ev = proto.CloneOf(ev) // others have it, too
	st, err := s.oci.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sb.GetId()})
	if err != nil {
		ev.PodSandboxStatus = nil
		return ev
	}
	ev.PodSandboxStatus = st.GetStatus()
	ev.ContainersStatuses = append(s.oci.Statuses(ctx, sb.GetId()), ev.ContainersStatuses...)
	if ev.GetContainerEventType() == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT {
		// containerd tells of it before its CRI has forgotten it.
		ev.ContainersStatuses = slices.DeleteFunc(ev.ContainersStatuses, func(st *runtimeapi.ContainerStatus) bool { return st.GetId() == ev.GetContainerId() })
	}
	return ev
}

// GetContainerEvents streams events to a kubelet.
func (s *Service) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	return s.events.each(stream.Context(), s.events.subscribe(), func(ev *runtimeapi.ContainerEventResponse) error {
		return stream.Send(s.complete(stream.Context(), ev))
	})
}

// followContainerd passes containerd's events on, and subscribes again when it
// comes back.
func (s *Service) followContainerd(ctx context.Context) {
	wait := 100 * time.Millisecond
	for {
		err := s.oci.Events(ctx, func() { wait = 100 * time.Millisecond }, func(ev *runtimeapi.ContainerEventResponse) {
			s.last.sawEvent(ev)
			if id := ev.GetPodSandboxStatus().GetId(); id != "" {
				ev.ContainersStatuses = append(ev.ContainersStatuses, s.wasm.StatusesOf(id)...)
			} else if id := s.last.sandboxOf(ev.GetContainerId()); id != "" {
				// Removed: what is left of its pod is told when the event is given out.
				ev.PodSandboxStatus = &runtimeapi.PodSandboxStatus{Id: id}
				ev.ContainersStatuses = s.wasm.StatusesOf(id)
			}
			s.events.publish(ev)
		})
		if ctx.Err() != nil {
			return
		}
		s.log.Debug("containerd's events ended", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, 5*time.Second)
	}
}
