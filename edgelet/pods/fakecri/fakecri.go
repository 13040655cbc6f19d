package fakecri

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Plan is what a container does when it is started.
type Plan struct {
	// RunFor is how long it runs before it ends by itself; negative: forever.
	RunFor   time.Duration
	ExitCode int32
	// Message is written to the termination log, Log to its log.
	Message, Log string
	// IgnoreTerm makes it sit out the grace until it is killed.
	IgnoreTerm bool
	// TermAfter is how long it takes to end when asked.
	TermAfter time.Duration
	// StartError keeps it from being started, as a command that isn't there: containerd
	// then has it as ended.
	StartError string
}

// Forever is the plan of a service.
func Forever() Plan { return Plan{RunFor: -1} }

// Exit is the plan of a program that ends at once.
func Exit(code int32) Plan { return Plan{ExitCode: code} }

type container struct {
	*runtimeapi.ContainerStatus
	sandbox string
	plan    Plan
	ended   chan struct{}
}

// Runtime is the fake. Its zero value is not usable. Fields are set before use
// or under [Runtime.Set].
type Runtime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	mu         sync.Mutex
	serial     int
	sandboxes  map[string]*runtimeapi.PodSandboxStatus
	containers map[string]*container
	images     map[string]string // name to kind
	registry   map[string]string
	events     map[int]chan *runtimeapi.ContainerEventResponse
	plans      map[string]Plan
	fail       map[string]error
	hang       map[string]bool
	calls      []string
	noEvents   bool
	stops      map[string]int64
	configs    map[string]*runtimeapi.ContainerConfig
	sandboxCfg map[string]*runtimeapi.PodSandboxConfig
	handlers   map[string]string
	nextIP     int
	uses       uint64
	slow       map[string]time.Duration
	lag        time.Duration
	hangIf     map[string]func(string) bool
	now, most  map[string]int
	execs      map[string]func(string) (*runtimeapi.ExecSyncResponse, error)
	handled    []*runtimeapi.RuntimeHandler
	features   *runtimeapi.RuntimeFeatures
	conditions []*runtimeapi.RuntimeCondition
}

// New returns a runtime without images.
func New() *Runtime {
	r := &Runtime{images: map[string]string{}, registry: map[string]string{}, plans: map[string]Plan{},
		execs: map[string]func(string) (*runtimeapi.ExecSyncResponse, error){},
		slow:  map[string]time.Duration{}, hangIf: map[string]func(string) bool{}, now: map[string]int{}, most: map[string]int{},
		fail: map[string]error{}, hang: map[string]bool{}, events: map[int]chan *runtimeapi.ContainerEventResponse{}, stops: map[string]int64{}}
	r.forget()
	return r
}

func (r *Runtime) forget() {
	r.sandboxes = map[string]*runtimeapi.PodSandboxStatus{}
	r.containers = map[string]*container{}
	r.configs = map[string]*runtimeapi.ContainerConfig{}
	r.sandboxCfg = map[string]*runtimeapi.PodSandboxConfig{}
	r.handlers = map[string]string{}
}

// AddImage makes an image present. kind is "wasm" or "oci".
func (r *Runtime) AddImage(name, kind string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.images[name] = kind
}

// AddRemote makes an image one that can be pulled.
func (r *Runtime) AddRemote(name, kind string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.registry[name] = kind
}

// Plan says what containers of this name do from now on.
func (r *Runtime) Plan(container string, p Plan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.plans[container] = p
}

// Fail makes a method fail until it is called with nil.
func (r *Runtime) Fail(method string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail[method] = err
}

// Hang makes a method not return before its context ends.
func (r *Runtime) Hang(method string, yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hang[method] = yes
}

// Answer says what a command, its words joined by spaces, answers in a container.
// answer must not call the Runtime.
func (r *Runtime) Answer(command string, answer func(containerID string) (*runtimeapi.ExecSyncResponse, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.execs[command] = answer
}

// Slow makes a method take its time.
func (r *Runtime) Slow(method string, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slow[method] = d
}

// Lag has the state of containers say for so long that they run after they ended.
func (r *Runtime) Lag(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lag = d
}

// HangIf makes RunPodSandbox hang for the pods of which which says so, by name;
// nil ends that for calls to come.
func (r *Runtime) HangIf(method string, which func(name string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hangIf[method] = which
}

// Most is how many calls of a method there were at the same time at most.
func (r *Runtime) Most(method string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.most[method]
}

// NoEvents makes GetContainerEvents unimplemented, as it is in older runtimes.
func (r *Runtime) NoEvents() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.noEvents = true
}

// Calls returns and forgets the calls that changed something, as "Method name".
func (r *Runtime) Calls() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.calls
	r.calls = nil
	return c
}

// Reboot is what a power cut leaves: nothing, or, if remembers, everything ended
// without a word of how.
func (r *Runtime) Reboot(remembers bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			close(c.ended)
			c.State, c.ExitCode, c.Reason = runtimeapi.ContainerState_CONTAINER_EXITED, 255, "Unknown"
			c.FinishedAt = time.Now().UnixNano()
		}
	}
	for _, s := range r.sandboxes {
		s.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	}
	if !remembers {
		r.forget()
	}
	for id, ch := range r.events {
		close(ch)
		delete(r.events, id)
	}
}

// Kill ends a running container as a signal would, and says so in an event.
func (r *Runtime) Kill(podUID, name string, code int32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		if c.Labels["io.kubernetes.pod.uid"] == podUID && c.Metadata.Name == name && c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			r.endLocked(c, code, "Error")
			return true
		}
	}
	return false
}

// Handle says which handlers the runtime has and what they can do.
func (r *Runtime) Handle(handlers ...*runtimeapi.RuntimeHandler) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handled = handlers
}

// Say is what the runtime says of itself as a whole.
func (r *Runtime) Say(features *runtimeapi.RuntimeFeatures, conditions ...*runtimeapi.RuntimeCondition) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.features, r.conditions = features, conditions
}

// Status has what [Runtime.Handle] and [Runtime.Say] said, nothing else.
func (r *Runtime) Status(ctx context.Context, _ *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	if err := r.enter(ctx, "Status"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return &runtimeapi.StatusResponse{RuntimeHandlers: r.handled, Features: r.features,
		Status: &runtimeapi.RuntimeStatus{Conditions: r.conditions}}, nil
}

// Subscribers returns how many streams of events there are.
func (r *Runtime) Subscribers() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.events)
}

// Running returns the IDs of the running containers of a pod, by name.
func (r *Runtime) Running(podUID string) map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]string{}
	for id, c := range r.containers {
		if c.Labels["io.kubernetes.pod.uid"] == podUID && c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			out[c.Metadata.Name] = id
		}
	}
	return out
}

// Count returns how many sandboxes and containers there are in any state.
func (r *Runtime) Count() (sandboxes, containers int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sandboxes), len(r.containers)
}

// Config returns the configuration of the newest container of that name.
func (r *Runtime) Config(name string) *runtimeapi.ContainerConfig {
	r.mu.Lock()
	defer r.mu.Unlock()
	var newest *container
	var cfg *runtimeapi.ContainerConfig
	for id, c := range r.containers {
		if c.Metadata.Name == name && (newest == nil || c.CreatedAt > newest.CreatedAt) {
			newest, cfg = c, r.configs[id]
		}
	}
	return cfg
}

// Sandbox returns the configuration and handler of a pod's ready sandbox.
func (r *Runtime) Sandbox(podUID string) (*runtimeapi.PodSandboxConfig, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, s := range r.sandboxes {
		if s.Metadata.Uid == podUID && s.State == runtimeapi.PodSandboxState_SANDBOX_READY {
			return r.sandboxCfg[id], r.handlers[id]
		}
	}
	return nil, ""
}

// StopTimeout returns the timeout the last StopContainer of that name had.
func (r *Runtime) StopTimeout(name string) (int64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, ok := r.stops[name]
	return t, ok
}

func (r *Runtime) enter(ctx context.Context, method string) error {
	r.mu.Lock()
	err, hang := r.fail[method], r.hang[method]
	r.mu.Unlock()
	if hang {
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	}
	if err == nil {
		err = ctx.Err()
	}
	return err
}

// dawdle counts and delays a call about a pod.
func (r *Runtime) dawdle(ctx context.Context, method, pod string) error {
	r.mu.Lock()
	d, hangs := r.slow[method], r.hangIf[method]
	r.now[method]++
	r.most[method] = max(r.most[method], r.now[method])
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.now[method]--
		r.mu.Unlock()
	}()
	if hangs != nil && hangs(pod) {
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	}
	if d > 0 {
		time.Sleep(d)
	}
	return nil
}

func notFound(what, id string) error {
	return status.Errorf(codes.NotFound, "%s %q not found", what, id)
}

func (r *Runtime) Version(ctx context.Context, _ *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	if err := r.enter(ctx, "Version"); err != nil {
		return nil, err
	}
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "fake", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

func (r *Runtime) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS}}, nil
}

func (r *Runtime) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if err := r.enter(ctx, "RunPodSandbox"); err != nil {
		return nil, err
	}
	if err := r.dawdle(ctx, "RunPodSandbox", req.Config.Metadata.Name); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	m := req.Config.Metadata
	for _, s := range r.sandboxes {
		if s.Metadata.Uid == m.Uid && s.Metadata.Attempt == m.Attempt {
			return nil, status.Errorf(codes.AlreadyExists, "sandbox name of attempt %d is reserved", m.Attempt)
		}
	}
	r.serial++
	r.nextIP++
	id := fmt.Sprintf("s%d", r.serial)
	s := &runtimeapi.PodSandboxStatus{Id: id, Metadata: m, CreatedAt: time.Now().UnixNano(),
		Labels: req.Config.Labels, Annotations: req.Config.Annotations, RuntimeHandler: req.RuntimeHandler,
		Network: &runtimeapi.PodSandboxNetworkStatus{Ip: fmt.Sprintf("10.88.0.%d", r.nextIP)},
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{
			Options: req.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()}}}
	if s.Linux.Namespaces.Options.GetNetwork() == runtimeapi.NamespaceMode_NODE {
		s.Network = &runtimeapi.PodSandboxNetworkStatus{}
	}
	r.sandboxes[id], r.sandboxCfg[id], r.handlers[id] = s, req.Config, req.RuntimeHandler
	r.calls = append(r.calls, "RunPodSandbox "+m.Name)
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (r *Runtime) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	if err := r.enter(ctx, "StopPodSandbox"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.sandboxes[req.PodSandboxId]; s != nil {
		if s.State == runtimeapi.PodSandboxState_SANDBOX_READY {
			r.calls = append(r.calls, "StopPodSandbox "+s.Metadata.Name)
		}
		for _, c := range r.containers {
			if c.sandbox == s.Id && c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
				r.endLocked(c, 137, "Error")
			}
		}
		s.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (r *Runtime) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	if err := r.enter(ctx, "RemovePodSandbox"); err != nil {
		return nil, err
	}
	if _, err := r.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: req.PodSandboxId}); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.sandboxes[req.PodSandboxId]; s != nil {
		r.calls = append(r.calls, "RemovePodSandbox "+s.Metadata.Name)
		delete(r.sandboxes, s.Id)
		for id, c := range r.containers {
			if c.sandbox == s.Id {
				delete(r.containers, id)
			}
		}
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (r *Runtime) PodSandboxStatus(ctx context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	if err := r.enter(ctx, "PodSandboxStatus"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[req.PodSandboxId]
	if s == nil {
		return nil, notFound("sandbox", req.PodSandboxId)
	}
	return &runtimeapi.PodSandboxStatusResponse{Status: &runtimeapi.PodSandboxStatus{Id: s.Id, Metadata: s.Metadata, State: s.State,
		CreatedAt: s.CreatedAt, Network: s.Network, Linux: s.Linux, Labels: s.Labels, Annotations: s.Annotations, RuntimeHandler: s.RuntimeHandler}}, nil
}

func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

func (r *Runtime) ListPodSandbox(ctx context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	if err := r.enter(ctx, "ListPodSandbox"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	resp := &runtimeapi.ListPodSandboxResponse{}
	for _, s := range r.sandboxes {
		if matches(req.GetFilter().GetLabelSelector(), s.Labels) {
			resp.Items = append(resp.Items, &runtimeapi.PodSandbox{Id: s.Id, Metadata: s.Metadata, State: s.State,
				CreatedAt: s.CreatedAt, Labels: s.Labels, Annotations: s.Annotations})
		}
	}
	return resp, nil
}

func (r *Runtime) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	if err := r.enter(ctx, "CreateContainer"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[req.PodSandboxId]
	if s == nil {
		return nil, notFound("sandbox", req.PodSandboxId)
	}
	if s.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		return nil, status.Error(codes.FailedPrecondition, "sandbox is not ready")
	}
	for _, c := range r.containers {
		if c.sandbox == s.Id && c.Metadata.Name == req.Config.Metadata.Name && c.Metadata.Attempt == req.Config.Metadata.Attempt {
			return nil, status.Error(codes.AlreadyExists, "container name is reserved")
		}
	}
	known := false
	for name := range r.images {
		known = known || req.Config.Image.Image == "sha256:"+name
	}
	if !known {
		return nil, notFound("image", req.Config.Image.Image)
	}
	r.serial++
	id := fmt.Sprintf("c%d", r.serial)
	plan, ok := r.plans[req.Config.Metadata.Name]
	if !ok {
		plan = Forever()
	}
	r.containers[id] = &container{sandbox: s.Id, plan: plan, ended: make(chan struct{}), ContainerStatus: &runtimeapi.ContainerStatus{
		Id: id, Metadata: req.Config.Metadata, State: runtimeapi.ContainerState_CONTAINER_CREATED, CreatedAt: time.Now().UnixNano(),
		Image: req.Config.Image, ImageRef: req.Config.Image.Image, Labels: req.Config.Labels, Annotations: req.Config.Annotations,
		Mounts: req.Config.Mounts, LogPath: filepath.Join(r.sandboxCfg[s.Id].LogDirectory, req.Config.LogPath)}}
	r.configs[id] = req.Config
	r.calls = append(r.calls, "CreateContainer "+req.Config.Metadata.Name)
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

func (r *Runtime) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	if err := r.enter(ctx, "StartContainer"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[req.ContainerId]
	if c == nil {
		return nil, notFound("container", req.ContainerId)
	}
	if c.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		return nil, status.Errorf(codes.FailedPrecondition, "container is in state %v", c.State)
	}
	r.calls = append(r.calls, "StartContainer "+c.Metadata.Name)
	c.State = runtimeapi.ContainerState_CONTAINER_RUNNING
	if c.plan.StartError != "" {
		c.Message = c.plan.StartError
		r.endLocked(c, 128, "StartError")
		return nil, status.Error(codes.Unknown, c.plan.StartError)
	}
	c.StartedAt = time.Now().UnixNano()
	if c.plan.Log != "" {
		_ = os.MkdirAll(filepath.Dir(c.LogPath), 0o755)
		var b strings.Builder
		for line := range strings.Lines(c.plan.Log) {
			b.WriteString(time.Now().UTC().Format(time.RFC3339Nano) + " stdout F " + strings.TrimSuffix(line, "\n") + "\n")
		}
		_ = os.WriteFile(c.LogPath, []byte(b.String()), 0o640)
	}
	if c.plan.RunFor >= 0 {
		go r.endLater(c, c.plan.RunFor, c.plan.ExitCode)
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

func (r *Runtime) endLater(c *container, after time.Duration, code int32) {
	select {
	case <-time.After(after):
	case <-c.ended:
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	reason := "Error"
	if code == 0 {
		reason = "Completed"
	}
	r.endLocked(c, code, reason)
}

func (r *Runtime) endLocked(c *container, code int32, reason string) {
	if c.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return
	}
	c.State, c.ExitCode, c.Reason, c.FinishedAt = runtimeapi.ContainerState_CONTAINER_EXITED, code, reason, time.Now().UnixNano()
	close(c.ended)
	path := c.Annotations["io.kubernetes.container.terminationMessagePath"]
	for _, m := range c.Mounts {
		if path != "" && m.ContainerPath == path && c.plan.Message != "" {
			_ = os.WriteFile(m.HostPath, []byte(c.plan.Message), 0o666)
		}
	}
	e := &runtimeapi.ContainerEventResponse{ContainerId: c.Id, ContainerEventType: runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT,
		CreatedAt: time.Now().UnixNano(), PodSandboxStatus: r.sandboxes[c.sandbox]}
	for _, ch := range r.events {
		ch <- e
	}
}

func (r *Runtime) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	if err := r.enter(ctx, "StopContainer"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	c := r.containers[req.ContainerId]
	if c == nil {
		r.mu.Unlock()
		return nil, notFound("container", req.ContainerId)
	}
	r.stops[c.Metadata.Name] = req.Timeout
	running := c.State == runtimeapi.ContainerState_CONTAINER_RUNNING
	if running {
		r.calls = append(r.calls, "StopContainer "+c.Metadata.Name)
	}
	plan := c.plan
	r.mu.Unlock()
	if !running {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	after, code := plan.TermAfter, int32(143)
	if limit := time.Duration(req.Timeout) * time.Second; plan.IgnoreTerm || after > limit {
		after, code = limit, 137
	}
	select {
	case <-time.After(after):
	case <-c.ended:
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endLocked(c, code, "Error")
	return &runtimeapi.StopContainerResponse{}, nil
}

func (r *Runtime) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	if err := r.enter(ctx, "RemoveContainer"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.containers[req.ContainerId]; c != nil {
		r.endLocked(c, 137, "Error")
		r.calls = append(r.calls, "RemoveContainer "+c.Metadata.Name)
		delete(r.containers, req.ContainerId)
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (r *Runtime) ListContainers(ctx context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	if err := r.enter(ctx, "ListContainers"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	resp := &runtimeapi.ListContainersResponse{}
	for _, c := range r.containers {
		if f := req.GetFilter().GetState(); f != nil && f.State != c.State {
			continue
		}
		if matches(req.GetFilter().GetLabelSelector(), c.Labels) {
			resp.Containers = append(resp.Containers, &runtimeapi.Container{Id: c.Id, PodSandboxId: c.sandbox, Metadata: c.Metadata,
				State: c.State, Labels: c.Labels, Annotations: c.Annotations, CreatedAt: c.CreatedAt})
		}
	}
	return resp, nil
}

func (r *Runtime) ContainerStatus(ctx context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	if err := r.enter(ctx, "ContainerStatus"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[req.ContainerId]
	if c == nil {
		return nil, notFound("container", req.ContainerId)
	}
	state, finished := c.State, c.FinishedAt
	if state == runtimeapi.ContainerState_CONTAINER_EXITED && time.Since(time.Unix(0, finished)) < r.lag {
		state, finished = runtimeapi.ContainerState_CONTAINER_RUNNING, 0
	}
	return &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{Id: c.Id, Metadata: c.Metadata, State: state,
		CreatedAt: c.CreatedAt, StartedAt: c.StartedAt, FinishedAt: finished, ExitCode: c.ExitCode, Image: c.Image, ImageRef: c.ImageRef,
		Reason: c.Reason, Message: c.Message, Labels: c.Labels, Annotations: maps.Clone(c.Annotations), Mounts: c.Mounts, LogPath: c.LogPath}}, nil
}

func (r *Runtime) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	if err := r.enter(ctx, "ReopenContainerLog"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[req.ContainerId]
	if c == nil {
		return nil, notFound("container", req.ContainerId)
	}
	return &runtimeapi.ReopenContainerLogResponse{}, os.WriteFile(c.LogPath, nil, 0o640)
}

func (r *Runtime) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if err := r.enter(ctx, "ExecSync"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, "ExecSync "+strings.Join(req.Cmd, " "))
	if answer := r.execs[strings.Join(req.Cmd, " ")]; answer != nil {
		return answer(req.ContainerId)
	}
	return &runtimeapi.ExecSyncResponse{}, nil
}

// UpdateContainerResources notes what a container is to have.
func (r *Runtime) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if err := r.enter(ctx, "UpdateContainerResources"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[req.ContainerId]
	if c == nil {
		return nil, notFound("container", req.ContainerId)
	}
	r.configs[req.ContainerId].Linux.Resources = req.Linux
	r.calls = append(r.calls, "UpdateContainerResources "+c.Metadata.Name)
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// ContainerStats says how much memory a container uses: what [Runtime.Uses] was
// called with.
func (r *Runtime) ContainerStats(ctx context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	if err := r.enter(ctx, "ContainerStats"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return &runtimeapi.ContainerStatsResponse{Stats: &runtimeapi.ContainerStats{
		Memory: &runtimeapi.MemoryUsage{UsageBytes: &runtimeapi.UInt64Value{Value: r.uses}}}}, nil
}

// Uses sets the memory that every container uses, in bytes.
func (r *Runtime) Uses(memory uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.uses = memory
}

func (r *Runtime) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	r.mu.Lock()
	if r.noEvents {
		r.mu.Unlock()
		return status.Error(codes.Unimplemented, "no events here")
	}
	r.serial++
	id, ch := r.serial, make(chan *runtimeapi.ContainerEventResponse, 1024)
	r.events[id] = ch
	r.mu.Unlock()
	for {
		select {
		case <-stream.Context().Done():
			r.mu.Lock()
			delete(r.events, id)
			r.mu.Unlock()
			return nil
		case e, ok := <-ch:
			if !ok {
				return status.Error(codes.Unavailable, "restarting")
			}
			if err := stream.Send(e); err != nil {
				return err
			}
		}
	}
}

func (r *Runtime) ImageStatus(ctx context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if err := r.enter(ctx, "ImageStatus"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	kind, ok := r.images[req.Image.Image]
	if !ok {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	return &runtimeapi.ImageStatusResponse{Image: &runtimeapi.Image{Id: "sha256:" + req.Image.Image, RepoTags: []string{req.Image.Image}},
		Info: map[string]string{"coracle.dev/kind": kind}}, nil
}

func (r *Runtime) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	if err := r.enter(ctx, "PullImage"); err != nil {
		return nil, err
	}
	if err := r.dawdle(ctx, "PullImage", req.Image.Image); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, "PullImage "+req.Image.Image)
	kind, ok := r.registry[req.Image.Image]
	if !ok {
		return nil, status.Errorf(codes.NotFound, "failed to resolve image: %s: not found", req.Image.Image)
	}
	r.images[req.Image.Image] = kind
	return &runtimeapi.PullImageResponse{ImageRef: "sha256:" + req.Image.Image}, nil
}
