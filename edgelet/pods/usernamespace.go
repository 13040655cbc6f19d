package pods

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/images"
	"github.com/coracle-edge/coracle/edgelet/userns"
)

// errWasmUsers refuses what can't be given: a Wasm container runs as one user of
// the node, without another one that could be mapped to something.
var errWasmUsers = errors.New("can't set `spec.hostUsers: false`: a Wasm container has no users of its own to map; leave hostUsers out")

// userNamespace is the pod's map of ids (KEP-127), nil for a pod that has the
// node's. A runtime that can't map them would run it as the node's users, so the
// pod doesn't start then. Words are a kubelet's (userns_manager.go).
func (m *Manager) userNamespace(ctx context.Context, pod *v1.Pod, kind string) (*runtimeapi.UserNamespace, error) {
	if deref(pod.Spec.HostUsers, true) {
		return nil, nil
	}
	if kind == kindWasm {
		return nil, errWasmUsers
	}
	handler, err := m.handler(pod)
	if err != nil {
		return nil, err
	}
	able := false
	handlers, err := m.runtimeHandlers(ctx)
	if err == nil && len(handlers) > 0 {
		err = fmt.Errorf("the handler %q is not known", handler)
	}
	for _, h := range handlers {
		if h.GetName() == handler {
			able, err = h.GetFeatures().GetUserNamespaces(), nil
			break
		}
	}
	if err != nil || !able {
		refused := errors.New("can't set `spec.hostUsers: false`, runtime does not support user namespaces")
		if handler != "" {
			refused = fmt.Errorf("can't set `spec.hostUsers: false`, RuntimeClass handler %q does not support user namespaces", handler)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", refused, err)
		}
		return nil, refused
	}
	ids, err := m.cfg.UserNamespaces.Of(string(pod.UID))
	if err != nil {
		return nil, err
	}
	mapped := func() []*runtimeapi.IDMapping {
		return []*runtimeapi.IDMapping{{HostId: ids.First, ContainerId: 0, Length: ids.Length}}
	}
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: mapped(), Gids: mapped()}, nil
}

// OwnUsers counts the attempts to start pods with hostUsers: false since the agent
// began, and those of them that failed.
func (m *Manager) OwnUsers() (started, failed int64) {
	return m.ownUsers.started.Load(), m.ownUsers.failed.Load()
}

// explained is a runtime's message and, of a pod of its own users, which folders keep
// them out: runc says only "permission denied" for something far below.
func (w *worker) explained(err error) string {
	text := message(err)
	if deref(w.pod.Spec.HostUsers, true) {
		return text
	}
	closed := userns.Closed(text)
	if len(closed) == 0 {
		return text
	}
	var said []string
	for _, dir := range closed {
		if info, err := os.Stat(dir); err == nil {
			said = append(said, fmt.Sprintf("%s (mode %04o)", dir, info.Mode().Perm()))
		}
	}
	return fmt.Sprintf("%s; the users of a pod with hostUsers: false are nobody on this node and may not pass %s: run `chmod o+x %s`, or keep the folders of containerd and of this agent elsewhere",
		text, strings.Join(said, ", "), strings.Join(closed, " "))
}

// joinUserNamespace puts a container and its mounts into the user namespace of its
// sandbox, if that has one: files keep on the disk the owners that the pod sees.
func joinUserNamespace(config *runtimeapi.ContainerConfig, sandbox *runtimeapi.PodSandboxConfig, img images.Image) error {
	ns := sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if ns == nil {
		return nil
	}
	if img.Kind == images.KindWasm {
		return errWasmUsers
	}
	config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = ns
	for _, mount := range config.Mounts {
		mount.UidMappings, mount.GidMappings = ns.Uids, ns.Gids
	}
	return nil
}

// runtimeHandlers are what the runtime says of its handlers, nil if it says nothing:
// it is older than this part of CRI.
func (m *Manager) runtimeHandlers(ctx context.Context) ([]*runtimeapi.RuntimeHandler, error) {
	status, err := m.runtimeStatus(ctx)
	return status.GetRuntimeHandlers(), err
}

// runtimeStatus is what the runtime says of itself, nil if that is nothing.
func (m *Manager) runtimeStatus(ctx context.Context) (*runtimeapi.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	status, err := m.cfg.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
	if isUnimplemented(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("asking the runtime what it can do: %w", err)
	}
	return status, nil
}
