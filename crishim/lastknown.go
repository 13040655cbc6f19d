package crishim

import (
	"encoding/json"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// lastKnown remembers what containerd last listed, for the time in which it
// doesn't answer. It is written, without sync, when something in it changed:
// it has to survive a SIGKILL of this process, and a reboot makes it void.
type lastKnown struct {
	path string
	boot string
	log  *slog.Logger
	now  func() time.Time

	mu         sync.Mutex
	sandboxes  []*runtimeapi.PodSandbox
	containers []*runtimeapi.Container
	gone       []*runtimeapi.Container // at most keepGone, not in the file
	at         time.Time
	key        string // of what is in the file
}

const keepGone = 32

type lastKnownFile struct {
	Boot       string    `json:"boot"`
	At         time.Time `json:"at"`
	Sandboxes  []byte    `json:"sandboxes"`  // runtimeapi.ListPodSandboxResponse
	Containers []byte    `json:"containers"` // runtimeapi.ListContainersResponse
}

func openLastKnown(path string, log *slog.Logger, now func() time.Time) *lastKnown {
	l := &lastKnown{path: path, log: log, now: now}
	if boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		l.boot = strings.TrimSpace(string(boot))
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return l
	}
	var f lastKnownFile
	var sandboxes runtimeapi.ListPodSandboxResponse
	var containers runtimeapi.ListContainersResponse
	if json.Unmarshal(raw, &f) != nil || f.Boot != l.boot ||
		proto.Unmarshal(f.Sandboxes, &sandboxes) != nil || proto.Unmarshal(f.Containers, &containers) != nil {
		return l
	}
	l.sandboxes, l.containers, l.at = sandboxes.GetItems(), containers.GetContainers(), f.At
	l.key = l.keyLocked()
	return l
}

func (l *lastKnown) sawSandboxes(items []*runtimeapi.PodSandbox) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sandboxes, l.at = items, l.now()
	l.saveLocked()
}

func (l *lastKnown) sawContainers(items []*runtimeapi.Container) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.containers, l.at = items, l.now()
	l.saveLocked()
}

// What we had containerd do is noted at once: it may die before it is listed
// the next time.

func (l *lastKnown) ranSandbox(id string, req *runtimeapi.RunPodSandboxRequest) {
	l.change(func() {
		cfg := req.GetConfig()
		l.sandboxes = append(l.sandboxes, &runtimeapi.PodSandbox{
			Id: id, Metadata: cfg.GetMetadata(), State: runtimeapi.PodSandboxState_SANDBOX_READY, CreatedAt: l.now().UnixNano(),
			Labels: cfg.GetLabels(), Annotations: cfg.GetAnnotations(), RuntimeHandler: req.GetRuntimeHandler(),
		})
	})
}

func (l *lastKnown) createdContainer(id string, req *runtimeapi.CreateContainerRequest) {
	l.change(func() {
		cfg := req.GetConfig()
		l.containers = append(l.containers, &runtimeapi.Container{
			Id: id, PodSandboxId: req.GetPodSandboxId(), Metadata: cfg.GetMetadata(), Image: cfg.GetImage(), ImageRef: cfg.GetImage().GetImage(),
			State: runtimeapi.ContainerState_CONTAINER_CREATED, CreatedAt: l.now().UnixNano(), Labels: cfg.GetLabels(), Annotations: cfg.GetAnnotations(),
		})
	})
}

func (l *lastKnown) containerIs(id string, state runtimeapi.ContainerState) {
	l.change(func() {
		for i, c := range l.containers {
			if c.GetId() == id && c.GetState() != state {
				c = proto.CloneOf(c)
				c.State = state
				l.containers[i] = c
			}
		}
	})
}

func (l *lastKnown) sandboxIs(id string, state runtimeapi.PodSandboxState) {
	l.change(func() {
		for i, s := range l.sandboxes {
			if s.GetId() == id && s.GetState() != state {
				s = proto.CloneOf(s)
				s.State = state
				l.sandboxes[i] = s
			}
		}
	})
}

func (l *lastKnown) removedSandbox(id string) {
	l.change(func() {
		l.sandboxes = slices.DeleteFunc(l.sandboxes, func(s *runtimeapi.PodSandbox) bool { return s.GetId() == id })
		l.containers = slices.DeleteFunc(l.containers, func(c *runtimeapi.Container) bool { return c.GetPodSandboxId() == id })
	})
}

func (l *lastKnown) removedContainer(id string) {
	l.change(func() {
		l.containers = slices.DeleteFunc(l.containers, func(c *runtimeapi.Container) bool {
			if c.GetId() == id {
				l.gone = append(l.gone[max(0, len(l.gone)-keepGone+1):], c)
			}
			return c.GetId() == id
		})
	})
}

// sandboxOf a container; the last ones that were removed are remembered for the
// events that tell of it, which come after the answer to the call.
func (l *lastKnown) sandboxOf(id string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range append(l.containers[:len(l.containers):len(l.containers)], l.gone...) {
		if c.GetId() == id {
			return c.GetPodSandboxId()
		}
	}
	return ""
}

// sawEvent takes over the states that an event of containerd's carries.
func (l *lastKnown) sawEvent(ev *runtimeapi.ContainerEventResponse) {
	for _, c := range ev.GetContainersStatuses() {
		l.containerIs(c.GetId(), c.GetState())
	}
	if s := ev.GetPodSandboxStatus(); s != nil {
		l.sandboxIs(s.GetId(), s.GetState())
	}
}

// change works on copies of the lists: those that were returned stay as they are.
func (l *lastKnown) change(what func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sandboxes, l.containers = slices.Clone(l.sandboxes), slices.Clone(l.containers)
	what()
	l.at = l.now()
	l.saveLocked()
}

// keyLocked changes when an ID or a state does.
func (l *lastKnown) keyLocked() string {
	var b strings.Builder
	for _, s := range l.sandboxes {
		b.WriteString(s.GetId() + s.GetState().String() + ";")
	}
	for _, c := range l.containers {
		b.WriteString(c.GetId() + c.GetState().String() + ";")
	}
	return b.String()
}

func (l *lastKnown) saveLocked() {
	key := l.keyLocked()
	if key == l.key {
		return
	}
	f := lastKnownFile{Boot: l.boot, At: l.at}
	var err error
	if f.Sandboxes, err = proto.Marshal(&runtimeapi.ListPodSandboxResponse{Items: l.sandboxes}); err == nil {
		f.Containers, err = proto.Marshal(&runtimeapi.ListContainersResponse{Containers: l.containers})
	}
	raw, jerr := json.Marshal(f)
	if err == nil && jerr == nil {
		err = os.WriteFile(l.path+".new", raw, 0o600)
	}
	if err == nil {
		err = os.Rename(l.path+".new", l.path)
	}
	if err != nil {
		l.log.Warn("what containerd listed can't be remembered", "err", err)
		return
	}
	l.key = key
}

func (l *lastKnown) stale(annotations map[string]string) map[string]string {
	out := map[string]string{AnnotationStale: l.at.UTC().Format(time.RFC3339)}
	for k, v := range annotations {
		if k != AnnotationStale {
			out[k] = v
		}
	}
	return out
}

func (l *lastKnown) listSandboxes(f *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*runtimeapi.PodSandbox
	for _, s := range l.sandboxes {
		if strings.HasPrefix(s.GetId(), f.GetId()) && hasLabels(s.GetLabels(), f.GetLabelSelector()) &&
			(f.GetState() == nil || f.GetState().GetState() == s.GetState()) {
			s = proto.CloneOf(s)
			s.Annotations = l.stale(s.Annotations)
			out = append(out, s)
		}
	}
	return out
}

func (l *lastKnown) listContainers(f *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*runtimeapi.Container
	for _, c := range l.containers {
		if strings.HasPrefix(c.GetId(), f.GetId()) && strings.HasPrefix(c.GetPodSandboxId(), f.GetPodSandboxId()) &&
			hasLabels(c.GetLabels(), f.GetLabelSelector()) && (f.GetState() == nil || f.GetState().GetState() == c.GetState()) {
			c = proto.CloneOf(c)
			c.Annotations = l.stale(c.Annotations)
			out = append(out, c)
		}
	}
	return out
}

func emptySandboxFilter(f *runtimeapi.PodSandboxFilter) bool {
	return f.GetId() == "" && f.GetState() == nil && len(f.GetLabelSelector()) == 0
}

func emptyContainerFilter(f *runtimeapi.ContainerFilter) bool {
	return f.GetId() == "" && f.GetState() == nil && f.GetPodSandboxId() == "" && len(f.GetLabelSelector()) == 0
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}
