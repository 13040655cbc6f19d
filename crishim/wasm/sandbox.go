package wasm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sandbox is one pod.
type sandbox struct {
	id    string
	name  string // reserved
	shown shownSandbox
	op    sync.Mutex // held while it is stopped or removed

	mu  sync.Mutex
	rec sandboxRecord
}

// shownSandbox is what lists tell of a sandbox's config; as shownContainer.
type shownSandbox struct {
	metadata            *runtimeapi.PodSandboxMetadata
	labels, annotations map[string]string
	namespaces          *runtimeapi.NamespaceOption // each event tells of them, too
}

func showSandbox(cfg *runtimeapi.PodSandboxConfig) shownSandbox {
	return shownSandbox{proto.CloneOf(cfg.GetMetadata()), maps.Clone(cfg.GetLabels()), maps.Clone(cfg.GetAnnotations()),
		proto.CloneOf(cfg.GetLinux().GetSecurityContext().GetNamespaceOptions())}
}

// config is the whole, the caller's own.
func (s *sandbox) config() *runtimeapi.PodSandboxConfig {
	cfg, err := s.rec.config() // of the record this field never changes
	if err != nil {
		// It could be read when it was made or recovered.
		panic(fmt.Sprintf("pod sandbox %s: %v", s.id, err))
	}
	return cfg
}

func (s *sandbox) record() sandboxRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rec
}

// sandboxName is unique as kubelets use it: one pod has one sandbox per attempt.
func sandboxName(md *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("sandbox_%s_%s_%s_%d", md.GetName(), md.GetNamespace(), md.GetUid(), md.GetAttempt())
}

// RunPodSandbox makes a sandbox and its network. It returns when both are
// there; after an error nothing is left.
func (m *Manager) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (id string, err error) {
	cfg := req.GetConfig()
	md := cfg.GetMetadata()
	if md.GetName() == "" || md.GetUid() == "" {
		return "", fmt.Errorf("pod sandbox: %w: config.metadata needs name and uid", ErrInvalid)
	}
	if userns := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions(); userns != nil && userns.GetMode() != runtimeapi.NamespaceMode_NODE {
		return "", fmt.Errorf("pod sandbox %s/%s: %w: a user namespace (%s), a guest has no ids of its own to map", md.GetNamespace(), md.GetName(), ErrUnsupported, userns.GetMode())
	}
	raw, err := proto.Marshal(cfg)
	if err != nil {
		return "", fmt.Errorf("pod sandbox: %w: %w", ErrInvalid, err)
	}
	s := &sandbox{id: newID(), name: sandboxName(md), shown: showSandbox(cfg)}
	s.rec = sandboxRecord{
		Version: recordVersion, ID: s.id, Config: raw, Handler: req.GetRuntimeHandler(),
		CreatedAt: m.opts.Now().UTC(), BootID: m.bootID, Ready: true,
	}
	if err := m.reserve(s.name, s.id); err != nil {
		return "", fmt.Errorf("pod sandbox %s/%s: %w", md.GetNamespace(), md.GetName(), err)
	}
	defer func() {
		if err != nil {
			m.release(s.name)
		}
	}()
	parent := m.cgroupParent(cfg)
	if !m.cgroupExists(parent) {
		s.rec.Cgroup = parent
	}
	switch {
	case cfg.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE:
		s.rec.Network = netHost
	case m.opts.RequireNetwork && m.NetworkCheck() != nil:
		return "", fmt.Errorf("pod sandbox %s/%s: %w: %w", md.GetNamespace(), md.GetName(), ErrNetwork, m.NetworkCheck())
	case m.opts.Network == nil || !m.opts.Network.Configured():
		s.rec.Network = netNone
	default:
		s.rec.Network = netCNI
	}
	if s.rec.Network == netCNI {
		err = m.connect(ctx, s)
	} else {
		err = refuseNetSysctls(cfg)
		if err == nil {
			err = m.saveSandbox(s, false)
		}
	}
	if err != nil {
		return "", fmt.Errorf("pod sandbox %s/%s: %w", md.GetNamespace(), md.GetName(), err)
	}
	m.mu.Lock()
	m.sandboxes[s.id] = s
	m.mu.Unlock()
	m.emitSandbox(s, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	m.emitSandbox(s, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return s.id, nil
}

// connect makes the network namespace and attaches it. The record is durable
// before CNI gives out an address, so that it is given back whatever happens.
func (m *Manager) connect(ctx context.Context, s *sandbox) (err error) {
	s.rec.Making = true
	s.rec.NetNS = filepath.Join(m.opts.NetNSDir, s.id[:32])
	s.rec.Attached = true
	if err := m.saveSandbox(s, true); err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		if undo := m.disconnect(context.WithoutCancel(ctx), s); undo != nil {
			m.log.Error("half-made pod network is left for the next start", "sandbox", s.id, "err", undo)
			return
		}
		os.Remove(m.sandboxDir(s.id))
	}()
	cfg := s.config()
	if err := newNetNS(s.rec.NetNS, cfg.GetLinux().GetSysctls()); err != nil {
		return fmt.Errorf("%w: namespace: %w", ErrNetwork, err)
	}
	ips, err := m.opts.Network.Attach(ctx, s.id, s.rec.NetNS, cfg)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNetwork, err)
	}
	s.mu.Lock()
	s.rec.IPs, s.rec.Making = ips, false
	s.mu.Unlock()
	return m.saveSandbox(s, false)
}

// disconnect gives back what connect took. It can be repeated.
func (m *Manager) disconnect(ctx context.Context, s *sandbox) error {
	rec := s.record()
	if rec.Network != netCNI {
		return nil
	}
	if rec.Attached {
		netns := rec.NetNS
		if rec.BootID != m.bootID || !isNetNS(netns) {
			netns = "" // gone with its boot; addresses are given back all the same
		}
		if m.opts.Network == nil || !m.opts.Network.Configured() {
			m.log.Warn("pod's address can't be given back: the CNI configuration is gone", "sandbox", s.id, "ips", rec.IPs)
		} else if err := m.opts.Network.Detach(ctx, s.id, netns, s.config()); err != nil {
			return fmt.Errorf("%w: %w", ErrNetwork, err)
		}
		s.mu.Lock()
		s.rec.Attached = false
		s.mu.Unlock()
	}
	if err := removeNetNS(rec.NetNS); err != nil {
		return fmt.Errorf("%w: namespace: %w", ErrNetwork, err)
	}
	return nil
}

func (m *Manager) saveSandbox(s *sandbox, durable bool) error {
	rec := s.record()
	return writeRecord(m.sandboxDir(s.id), &rec, durable)
}

// StopPodSandbox kills what runs in the sandbox and takes its network away.
// It can be repeated; an unknown ID is ErrNotFound.
func (m *Manager) StopPodSandbox(ctx context.Context, id string) error {
	s, err := m.sandbox(id)
	if err != nil {
		return err
	}
	s.op.Lock()
	defer s.op.Unlock()
	return m.stopSandbox(ctx, s)
}

func (m *Manager) stopSandbox(ctx context.Context, s *sandbox) error {
	if err := m.StopContainersOf(ctx, s.id); err != nil {
		return err
	}
	rec := s.record()
	if !rec.Ready && !rec.Attached {
		return nil
	}
	if err := m.disconnect(ctx, s); err != nil {
		return fmt.Errorf("pod sandbox %q: %w", s.id, err)
	}
	s.mu.Lock()
	s.rec.Ready = false
	s.mu.Unlock()
	if err := m.saveSandbox(s, false); err != nil {
		return fmt.Errorf("pod sandbox %q: %w", s.id, err)
	}
	m.emitSandbox(s, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	return nil
}

// RemovePodSandbox stops the sandbox, removes its containers and forgets it.
func (m *Manager) RemovePodSandbox(ctx context.Context, id string) error {
	s, err := m.sandbox(id)
	if err != nil {
		return err
	}
	s.op.Lock()
	defer s.op.Unlock()
	if err := m.stopSandbox(ctx, s); err != nil {
		return err
	}
	if err := m.RemoveContainersOf(ctx, s.id); err != nil {
		return err
	}
	if cg := s.record().Cgroup; cg != "" {
		m.removeCgroup(cg)
	}
	if err := os.Remove(m.sandboxDir(s.id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pod sandbox %q: %w", s.id, err)
	}
	m.mu.Lock()
	_, known := m.sandboxes[s.id]
	delete(m.sandboxes, s.id)
	delete(m.names, s.name)
	m.mu.Unlock()
	if known {
		m.emitSandbox(s, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	}
	return nil
}

// StopContainersOf kills all Wasm containers of a sandbox, ours or another's.
func (m *Manager) StopContainersOf(ctx context.Context, sandboxID string) error {
	var errs []error
	for _, c := range m.containersOf(sandboxID) {
		errs = append(errs, m.stop(ctx, c, 0))
	}
	return errors.Join(errs...)
}

// RemoveContainersOf removes all Wasm containers of a sandbox.
func (m *Manager) RemoveContainersOf(ctx context.Context, sandboxID string) error {
	var errs []error
	for _, c := range m.containersOf(sandboxID) {
		errs = append(errs, m.remove(ctx, c))
	}
	return errors.Join(errs...)
}

func (m *Manager) containersOf(sandboxID string) []*container {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*container
	for _, c := range m.containers {
		if c.rec.SandboxID == sandboxID {
			out = append(out, c)
		}
	}
	return out
}

// HasContainersOf says whether a sandbox, ours or another's, has Wasm containers.
func (m *Manager) HasContainersOf(sandboxID string) bool { return len(m.containersOf(sandboxID)) > 0 }

// UpdatePodSandboxResources notes what a pod is given as a whole. Its cgroup is
// the kubelet's to change; the note is for whoever looks at the sandbox.
func (m *Manager) UpdatePodSandboxResources(id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	s, err := m.sandbox(id)
	if err != nil {
		return err
	}
	s.op.Lock()
	defer s.op.Unlock()
	s.mu.Lock()
	before := s.rec
	s.rec.Overhead, s.rec.Resources = overhead, resources
	s.mu.Unlock()
	if err := m.saveSandbox(s, false); err != nil {
		s.mu.Lock()
		s.rec.Overhead, s.rec.Resources = before.Overhead, before.Resources
		s.mu.Unlock()
		return fmt.Errorf("pod sandbox %q: %w", s.id, err)
	}
	return nil
}

// PodSandboxStatus answers for one sandbox, with the statuses of its
// containers.
func (m *Manager) PodSandboxStatus(id string, verbose bool) (*runtimeapi.PodSandboxStatusResponse, error) {
	s, err := m.sandbox(id)
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.PodSandboxStatusResponse{
		Status: m.sandboxStatus(s), Timestamp: m.opts.Now().UnixNano(),
		ContainersStatuses: m.containerStatuses(s.id),
	}
	if verbose {
		rec, cfg := s.record(), s.config()
		resp.Info = map[string]string{"info": JSON(map[string]any{
			"kind": "wasm", "network": rec.Network, "netns": rec.NetNS, "bootID": rec.BootID, "cgroupParent": m.cgroupParent(cfg),
			"overhead": rec.Overhead, "resources": rec.Resources, "runtimeHandler": rec.Handler, "config": cfg,
		})}
	}
	return resp, nil
}

func (m *Manager) sandboxStatus(s *sandbox) *runtimeapi.PodSandboxStatus {
	rec := s.record()
	ns := proto.CloneOf(s.shown.namespaces)
	if ns == nil {
		ns = &runtimeapi.NamespaceOption{}
	}
	if rec.Network != netCNI {
		ns.Network = runtimeapi.NamespaceMode_NODE
	}
	st := &runtimeapi.PodSandboxStatus{
		Id: s.id, Metadata: s.shown.metadata, State: sandboxState(rec.Ready), CreatedAt: rec.CreatedAt.UnixNano(),
		Network: &runtimeapi.PodSandboxNetworkStatus{},
		Linux:   &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: ns}},
		Labels:  s.shown.labels, Annotations: s.shown.annotations, RuntimeHandler: rec.Handler,
	}
	if len(rec.IPs) > 0 {
		st.Network.Ip = rec.IPs[0]
		for _, ip := range rec.IPs[1:] {
			st.Network.AdditionalIps = append(st.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
		}
	}
	return st
}

func sandboxState(ready bool) runtimeapi.PodSandboxState {
	if ready {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

// ListPodSandbox lists the sandboxes that a filter admits, newest first.
func (m *Manager) ListPodSandbox(f *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	m.mu.Lock()
	all := make([]*sandbox, 0, len(m.sandboxes))
	for _, s := range m.sandboxes {
		all = append(all, s)
	}
	m.mu.Unlock()
	var out []*runtimeapi.PodSandbox
	for _, s := range all {
		rec := s.record()
		if f.GetId() != "" && !strings.HasPrefix(s.id, f.GetId()) ||
			f.GetState() != nil && f.GetState().GetState() != sandboxState(rec.Ready) ||
			!hasLabels(s.shown.labels, f.GetLabelSelector()) {
			continue
		}
		out = append(out, &runtimeapi.PodSandbox{
			Id: s.id, Metadata: s.shown.metadata, State: sandboxState(rec.Ready), CreatedAt: rec.CreatedAt.UnixNano(),
			Labels: s.shown.labels, Annotations: s.shown.annotations, RuntimeHandler: rec.Handler,
		})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].CreatedAt > out[j].CreatedAt })
	return out
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// emitSandbox tells of a change of a sandbox, as containerd does: with the
// sandbox's ID in the place of the container's.
func (m *Manager) emitSandbox(s *sandbox, t runtimeapi.ContainerEventType) {
	m.opts.Emit(&runtimeapi.ContainerEventResponse{
		ContainerId: s.id, ContainerEventType: t, CreatedAt: m.opts.Now().UnixNano(),
		PodSandboxStatus: m.sandboxStatus(s), ContainersStatuses: m.containerStatuses(s.id),
	})
}
