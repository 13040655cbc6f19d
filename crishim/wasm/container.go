package wasm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/wasmruntime"
)

// container is one guest, from CreateContainer to RemoveContainer.
type container struct {
	id    string
	name  string // reserved
	shown shownContainer
	op    sync.Mutex // held while it is started or removed
	execs sync.WaitGroup

	// ended is closed when exit and log are complete. It is made with the
	// container and never replaced.
	ended chan struct{}

	mu      sync.Mutex
	rec     containerRecord
	proc    *wasmruntime.Process // nil until started
	logs    *logPump             // nil while not running
	removed bool
	cpu     cpuSample
}

// shownContainer is what lists tell of a container's config. The whole is in its record,
// as bytes: decoded it is three times as much, and wanted seldom.
type shownContainer struct {
	metadata            *runtimeapi.ContainerMetadata
	image               *runtimeapi.ImageSpec
	labels, annotations map[string]string
}

func showContainer(cfg *runtimeapi.ContainerConfig) shownContainer {
	return shownContainer{proto.CloneOf(cfg.GetMetadata()), proto.CloneOf(cfg.GetImage()), maps.Clone(cfg.GetLabels()), maps.Clone(cfg.GetAnnotations())}
}

func (c *container) record() containerRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

func (c *container) state() runtimeapi.ContainerState {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stateLocked()
}

func (c *container) stateLocked() runtimeapi.ContainerState {
	switch {
	case c.rec.Exit != nil:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	case c.proc != nil:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	return runtimeapi.ContainerState_CONTAINER_CREATED
}

func containerName(md *runtimeapi.ContainerMetadata, sandboxID string) string {
	return fmt.Sprintf("container_%s_%s_%d", md.GetName(), sandboxID, md.GetAttempt())
}

// CreateContainer checks and compiles the module if that wasn't done when it
// was pulled, and writes the container's record. Errors name the module, and
// the import or the section that is refused.
func (m *Manager) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (string, error) {
	cfg := req.GetConfig()
	if cfg.GetMetadata().GetName() == "" {
		return "", fmt.Errorf("container: %w: config.metadata.name is empty", ErrInvalid)
	}
	name := cfg.GetMetadata().GetName()
	pod, err := m.podOf(ctx, req)
	if err != nil {
		return "", fmt.Errorf("container %q: %w", name, err)
	}
	imageRef := cfg.GetImage().GetImage()
	img, err := m.opts.Image(imageRef)
	if err != nil {
		return "", fmt.Errorf("container %q: %w", name, err)
	}
	c := &container{id: newID(), shown: showContainer(cfg), ended: make(chan struct{})}
	whole := proto.CloneOf(cfg)
	volumes := m.noteVolumeImages(whole)
	raw, err := proto.Marshal(whole)
	if err != nil {
		return "", fmt.Errorf("container %q: %w: %w", name, ErrInvalid, err)
	}
	c.name = containerName(cfg.GetMetadata(), pod.id)
	spec, err := m.makeSpec(c.id, pod, cfg, img)
	if err != nil {
		return "", fmt.Errorf("container %q: %w", name, err)
	}
	if err := m.opts.Runtime.Compile(ctx, spec.Module, spec.Digest); err != nil {
		return "", fmt.Errorf("container %q: module %q of image %q: %w", name, spec.Name, imageRef, err)
	}
	if err := m.reserve(c.name, c.id); err != nil {
		return "", fmt.Errorf("container %q: %w", name, err)
	}
	c.rec = containerRecord{
		Version: recordVersion, ID: c.id, SandboxID: pod.id, Foreign: pod.foreign, Config: raw,
		ImageID: img.ID.String(), ImageRef: imageRef, Module: spec.Name, VolumeImages: volumes,
		CreatedAt: m.opts.Now().UTC(), BootID: m.bootID, Spec: spec,
	}
	if cfg.GetLogPath() != "" && pod.config.GetLogDirectory() != "" {
		c.rec.LogPath = filepath.Join(pod.config.GetLogDirectory(), cfg.GetLogPath())
	}
	if err := m.makeContainerDir(c); err != nil {
		m.release(c.name)
		return "", fmt.Errorf("container %q: %w", name, err)
	}
	m.mu.Lock()
	m.containers[c.id] = c
	m.mu.Unlock()
	// From here on the image stays while the container does. It may have gone
	// while the module was compiled.
	if now, err := m.opts.Image(imageRef); err != nil || now.ID != img.ID {
		if _, serr := os.Stat(spec.Module); serr != nil {
			m.forget(c)
			return "", errors.Join(fmt.Errorf("container %q: image %q was removed meanwhile: %w", name, imageRef, ErrNotFound), os.RemoveAll(m.containerDir(c.id)))
		}
	}
	m.emit(c, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	return c.id, nil
}

func (m *Manager) forget(c *container) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.containers, c.id)
	delete(m.names, c.name)
}

// makeContainerDir makes the container's folder under another name and renames
// it when it is whole: Recover never meets a half of one.
func (m *Manager) makeContainerDir(c *container) error {
	dir := m.containerDir(c.id)
	tmp := m.containerDir(tmpPrefix + c.id)
	if err := os.MkdirAll(filepath.Join(tmp, bundleDir), 0o700); err != nil {
		return err
	}
	err := writeRecord(filepath.Join(tmp, recordFile), &c.rec, false)
	if err == nil {
		err = os.Rename(tmp, dir)
	}
	if err != nil {
		os.RemoveAll(tmp)
	}
	return err
}

const (
	recordFile = "record.json"
	bundleDir  = "bundle"
	tmpPrefix  = "tmp-"
)

// pod is where a container belongs: a sandbox of ours or of another runtime.
type pod struct {
	id      string
	foreign bool
	config  *runtimeapi.PodSandboxConfig
	netns   string
	network string
	cgroup  string
	taken   map[string]bool // addresses that its other containers listen on
}

// listening are the addresses of a pod's containers that haven't ended.
func (m *Manager) listening(sandboxID string) map[string]bool {
	out := map[string]bool{}
	for _, c := range m.containersOf(sandboxID) {
		if rec := c.record(); rec.Exit == nil {
			for _, l := range rec.Spec.Listen {
				out[l.Address] = true
			}
		}
	}
	return out
}

func (m *Manager) podOf(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*pod, error) {
	s, err := m.sandbox(req.GetPodSandboxId())
	if err == nil {
		rec := s.record()
		if !rec.Ready {
			return nil, fmt.Errorf("pod sandbox %q: %w: it isn't ready", s.id, ErrState)
		}
		whole := s.config()
		return &pod{id: s.id, config: whole, netns: rec.NetNS, network: rec.Network, cgroup: m.cgroupParent(whole)}, nil
	}
	if m.opts.ForeignSandbox == nil {
		return nil, err
	}
	f, ferr := m.opts.ForeignSandbox(ctx, req.GetPodSandboxId())
	if ferr != nil {
		return nil, ferr
	}
	if !f.Ready {
		return nil, fmt.Errorf("pod sandbox %q: %w: it isn't ready", req.GetPodSandboxId(), ErrState)
	}
	p := &pod{id: f.ID, foreign: true, config: req.GetSandboxConfig(), netns: f.NetNS, network: netCNI, cgroup: expandSlice(f.CgroupParent)}
	if p.config == nil {
		p.config = f.Config
	}
	if p.netns == "" {
		p.network = netHost
	}
	if p.cgroup == "" {
		p.cgroup = m.cgroupParent(p.config)
	}
	return p, nil
}

// StartContainer starts the guest of a created container. A guest that can't
// be started makes an exited container with the reason StartError.
func (m *Manager) StartContainer(ctx context.Context, id string) error {
	c, err := m.container(id)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if st := c.state(); st != runtimeapi.ContainerState_CONTAINER_CREATED {
		return fmt.Errorf("container %q: %w: it is %s, only a created one can be started", c.id, ErrState, stateName(st))
	}
	rec := c.record()
	if !rec.Foreign {
		s, err := m.sandbox(rec.SandboxID)
		if err != nil {
			return err
		}
		if !s.record().Ready {
			return fmt.Errorf("container %q: %w: its pod sandbox isn't ready", c.id, ErrState)
		}
	}
	logs, err := m.openLogs(&rec, false)
	if err != nil {
		return fmt.Errorf("container %q: log: %w", c.id, err)
	}
	proc, err := m.opts.Runtime.Start(ctx, rec.Spec)
	if errors.Is(err, wasmruntime.ErrOutbound) {
		err = fmt.Errorf("%w; the annotation %s: outbound on its pod allows them", err, AnnotationSockets)
	}
	if err == nil {
		closeOutput(proc)
	}
	if err != nil {
		logs.stop()
		logs.wait()
		return m.startFailed(c, err)
	}
	c.mu.Lock()
	c.proc, c.logs = proc, logs
	c.rec.StartedAt = proc.StartedAt()
	c.mu.Unlock()
	m.emit(c, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT) // before its end can be told
	m.watch(c, proc, logs)
	return nil
}

// closeOutput closes ends of the FIFOs that wasmruntime opened for us: we have
// our own.
func closeOutput(proc *wasmruntime.Process) {
	for _, f := range []*os.File{proc.Stdout(), proc.Stderr()} {
		if f != nil {
			f.Close()
		}
	}
}

func (m *Manager) startFailed(c *container, cause error) error {
	c.mu.Lock()
	c.rec.Exit = &wasmruntime.ExitStatus{
		Code: 128, Reason: reasonStartError, Message: cause.Error(), FinishedAt: m.opts.Now().UTC(), BootID: m.bootID,
	}
	c.mu.Unlock()
	close(c.ended)
	m.saveContainer(c)
	m.emit(c, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	return fmt.Errorf("container %q: module %q: %w", c.id, c.record().Module, cause)
}

const reasonStartError = "StartError"

// watch completes the log and the record of a guest when it ends; when this process
// does first, whoever takes the guest over sees to it.
func (m *Manager) watch(c *container, proc *wasmruntime.Process, logs *logPump) {
	proc.OnEnd(func() {
		m.mu.Lock()
		closed := m.closed
		if !closed {
			m.wg.Add(1)
		}
		m.mu.Unlock()
		if closed {
			return
		}
		defer m.wg.Done()
		m.finish(c, proc, logs)
	})
}

func (m *Manager) finish(c *container, proc *wasmruntime.Process, logs *logPump) {
	exit, _ := proc.ExitStatus()
	logs.drain(exit.StdoutRest, exit.StderrRest)
	if at, ok := logs.mark(); ok && len(exit.StdoutRest)+len(exit.StderrRest) > 0 {
		// The rest is in the exit record until ours is written: whoever is killed
		// before that writes it again, from here.
		c.mu.Lock()
		c.rec.RestAt = &at
		c.mu.Unlock()
		if err := m.trySave(c); err != nil {
			m.log.Warn("container's record can't be written before the end of its log", "container", c.id, "err", err)
		}
	}
	logs.writeRest(exit.StdoutRest, exit.StderrRest)
	logs.wait()
	exit.StdoutRest, exit.StderrRest = nil, nil
	if exit.Message == "" && logs.throttle.wasHeld() {
		exit.Message = heldMessage
	}
	c.mu.Lock()
	c.rec.Exit, c.rec.RestAt = &exit, nil
	c.rec.StartedAt = proc.StartedAt()
	c.logs = nil
	c.mu.Unlock()
	m.saveContainer(c)
	close(c.ended)
	m.log.Info("container ended", "container", c.id, "name", c.shown.metadata.GetName(), "code", exit.Code, "reason", exit.Reason, "message", exit.Message)
	m.emit(c, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

// saveContainer writes the record of a container's end. A full disk is no reason
// to forget it: it is written as soon as that can be, or a restart of the agent
// would find that the container ended in a way that nobody knows.
func (m *Manager) saveContainer(c *container) {
	err := m.trySave(c)
	if err == nil {
		return
	}
	m.log.Error("container's record can't be written, trying again", "container", c.id, "err", err)
	m.wg.Go(func() {
		for wait := time.Second; ; wait = min(2*wait, 30*time.Second) {
			select {
			case <-m.closing:
				_ = m.trySave(c)
				return
			case <-time.After(wait):
			}
			if m.trySave(c) == nil {
				m.log.Info("container's record is written now", "container", c.id)
				return
			}
		}
	})
}

// trySave writes the record unless the container was removed.
func (m *Manager) trySave(c *container) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed {
		return nil
	}
	return writeRecord(filepath.Join(m.containerDir(c.id), recordFile), &c.rec, false)
}

// StopContainer ends a guest: SIGTERM, after grace SIGKILL. It returns when
// the guest, its log and its record are done. It can be repeated.
func (m *Manager) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	c, err := m.container(id)
	if err != nil {
		return err
	}
	return m.stop(ctx, c, grace)
}

func (m *Manager) stop(ctx context.Context, c *container, grace time.Duration) error {
	c.mu.Lock()
	proc, running := c.proc, c.stateLocked() == runtimeapi.ContainerState_CONTAINER_RUNNING
	c.mu.Unlock()
	if !running {
		return nil
	}
	if _, err := proc.Stop(ctx, grace); err != nil && !errors.Is(err, wasmruntime.ErrExited) {
		return fmt.Errorf("container %q: stop: %w", c.id, err)
	}
	select {
	case <-c.ended:
		return nil
	case <-m.closing:
		return fmt.Errorf("container %q: stop: %w: the runtime is shutting down", c.id, ErrState)
	case <-ctx.Done():
		return fmt.Errorf("container %q: stop: %w", c.id, ctx.Err())
	}
}

// RemoveContainer kills the guest if it runs and forgets the container with
// its cgroup and files; its log is the kubelet's.
func (m *Manager) RemoveContainer(ctx context.Context, id string) error {
	c, err := m.container(id)
	if err != nil {
		return err
	}
	return m.remove(ctx, c)
}

func (m *Manager) remove(ctx context.Context, c *container) error {
	c.op.Lock()
	defer c.op.Unlock()
	if err := m.stop(ctx, c, 0); err != nil {
		return err
	}
	c.mu.Lock()
	proc, removed := c.proc, c.removed
	c.removed = true
	c.mu.Unlock()
	c.execs.Wait() // they end with the container
	if removed {
		return nil
	}
	err := func() error {
		if proc != nil {
			m.removeExecCgroups(c.record().Spec.Cgroup)
			if err := proc.Delete(ctx); err != nil {
				return err
			}
		} else if rec := c.record(); rec.Exit == nil {
			// A start that this process's predecessor didn't live to finish.
			m.removeCgroup(rec.Spec.Cgroup)
		}
		// Renamed first, so that a kill in the middle leaves nothing that
		// looks like a container.
		gone := m.containerDir(tmpPrefix + c.id)
		if err := os.Rename(m.containerDir(c.id), gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return os.RemoveAll(gone)
	}()
	if err != nil {
		c.mu.Lock()
		c.removed = false
		c.mu.Unlock()
		return fmt.Errorf("container %q: remove: %w", c.id, err)
	}
	m.forget(c)
	m.emit(c, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	return nil
}

// ListContainers lists the containers that a filter admits, newest first.
func (m *Manager) ListContainers(f *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	m.mu.Lock()
	all := make([]*container, 0, len(m.containers))
	for _, c := range m.containers {
		all = append(all, c)
	}
	m.mu.Unlock()
	var out []*runtimeapi.Container
	for _, c := range all {
		rec, state := c.record(), c.state()
		if f.GetId() != "" && !strings.HasPrefix(c.id, f.GetId()) ||
			f.GetPodSandboxId() != "" && !strings.HasPrefix(rec.SandboxID, f.GetPodSandboxId()) ||
			f.GetState() != nil && f.GetState().GetState() != state ||
			!hasLabels(c.shown.labels, f.GetLabelSelector()) {
			continue
		}
		out = append(out, &runtimeapi.Container{
			Id: c.id, PodSandboxId: rec.SandboxID, Metadata: c.shown.metadata, Image: c.shown.image,
			ImageRef: rec.ImageID, ImageId: rec.ImageID, State: state, CreatedAt: rec.CreatedAt.UnixNano(),
			Labels: c.shown.labels, Annotations: c.shown.annotations,
		})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].CreatedAt > out[j].CreatedAt })
	return out
}

// ContainerStatus answers for one container.
func (m *Manager) ContainerStatus(id string, verbose bool) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := m.container(id)
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: m.containerStatus(c)}
	if verbose {
		rec := c.record()
		info := map[string]any{"kind": "wasm", "sandboxID": rec.SandboxID, "module": rec.Module, "runtimeSpec": rec.Spec, "bootID": rec.BootID}
		c.mu.Lock()
		if c.proc != nil && c.rec.Exit == nil {
			info["pid"] = c.proc.PID()
		}
		c.mu.Unlock()
		resp.Info = map[string]string{"info": JSON(info)}
	}
	return resp, nil
}

// StatusesOf the Wasm containers of any sandbox.
func (m *Manager) StatusesOf(sandboxID string) []*runtimeapi.ContainerStatus {
	return m.containerStatuses(sandboxID)
}

func (m *Manager) containerStatuses(sandboxID string) []*runtimeapi.ContainerStatus {
	var out []*runtimeapi.ContainerStatus
	for _, c := range m.containersOf(sandboxID) {
		out = append(out, m.containerStatus(c))
	}
	sort.Slice(out, func(i, j int) bool { return out[i].CreatedAt < out[j].CreatedAt })
	return out
}

func (m *Manager) containerStatus(c *container) *runtimeapi.ContainerStatus {
	c.mu.Lock()
	rec, state := c.rec, c.stateLocked()
	held := c.logs != nil && c.logs.throttle.wasHeld()
	c.mu.Unlock()
	st := &runtimeapi.ContainerStatus{
		Id: c.id, Metadata: c.shown.metadata, State: state, CreatedAt: rec.CreatedAt.UnixNano(),
		Image: c.shown.image, ImageRef: rec.ImageID, ImageId: rec.ImageID,
		Labels: c.shown.labels, Annotations: c.shown.annotations, Mounts: c.rec.mounts(),
		LogPath: rec.LogPath, StopSignal: runtimeapi.Signal_SIGTERM,
		Resources: &runtimeapi.ContainerResources{Linux: resourcesStatus(rec.Spec.Resources)},
		User: &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{
			Uid: int64(rec.Spec.UID), Gid: int64(rec.Spec.GID), SupplementalGroups: widen(rec.Spec.Groups),
		}},
	}
	if !rec.StartedAt.IsZero() {
		st.StartedAt = rec.StartedAt.UnixNano()
	}
	if held {
		st.Message = heldMessage
	}
	if rec.Exit != nil {
		st.ExitCode, st.Reason, st.Message = int32(rec.Exit.Code), rec.Exit.Reason, rec.Exit.Message
		st.FinishedAt = rec.Exit.FinishedAt.UnixNano()
	}
	return st
}

// ReopenContainerLog opens the log by its path again, after a rotation.
func (m *Manager) ReopenContainerLog(id string) error {
	c, err := m.container(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	logs := c.logs
	c.mu.Unlock()
	if logs == nil {
		return fmt.Errorf("container %q: %w: it isn't running, there is no log to reopen", c.id, ErrState)
	}
	return logs.reopen()
}

// UpdateContainerResources changes the limits of a container. Linear memory
// can't shrink, but from then on grows as far as the new limit only.
func (m *Manager) UpdateContainerResources(req *runtimeapi.UpdateContainerResourcesRequest) error {
	c, err := m.container(req.GetContainerId())
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	rec := c.record()
	res := mergeResources(rec.Spec.Resources, req.GetLinux())
	c.mu.Lock()
	proc := c.proc
	running := c.stateLocked() == runtimeapi.ContainerState_CONTAINER_RUNNING
	c.mu.Unlock()
	if running {
		if err := proc.Update(res); err != nil {
			return fmt.Errorf("container %q: update resources: %w", c.id, err)
		}
	}
	c.mu.Lock()
	c.rec.Spec.Resources = res
	if !running {
		c.rec.Spec.MemoryBytes = 0
	}
	c.mu.Unlock()
	m.saveContainer(c)
	return nil
}

func (m *Manager) emit(c *container, t runtimeapi.ContainerEventType) {
	rec := c.record()
	ev := &runtimeapi.ContainerEventResponse{
		ContainerId: c.id, ContainerEventType: t, CreatedAt: m.opts.Now().UnixNano(),
		ContainersStatuses: m.containerStatuses(rec.SandboxID),
	}
	if s, err := m.sandbox(rec.SandboxID); err == nil {
		ev.PodSandboxStatus = m.sandboxStatus(s)
	} else if rec.Foreign {
		ev.PodSandboxStatus = &runtimeapi.PodSandboxStatus{Id: rec.SandboxID} // who knows more adds it
	}
	m.opts.Emit(ev)
}

func stateName(s runtimeapi.ContainerState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "CONTAINER_"))
}

// JSON is a value of the Info that verbose answers have.
func JSON(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprintf("{%q:%q}", "error", err)
	}
	return string(raw)
}

func widen(in []uint32) []int64 {
	var out []int64
	for _, v := range in {
		out = append(out, int64(v))
	}
	return out
}
