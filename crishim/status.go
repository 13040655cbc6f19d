package crishim

import (
	"context"
	"runtime"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim/images"
	"github.com/coracle-edge/coracle/crishim/wasm"
)

// ConditionOCI is the condition of Status that says whether OCI containers can
// be run. Kubelets ignore conditions they don't know.
const ConditionOCI = "coracle.dev/OCIReady"

// ConditionWasmCompiler is the condition of Status that says whether modules run as
// native code; if not, they are interpreted, on boards that the engine has no
// compiler for.
const ConditionWasmCompiler = "coracle.dev/WasmCompiler"

// askTimeout bounds what Status waits for containerd.
const askTimeout = time.Second

// Version of this runtime.
func (s *Service) Version(ctx context.Context, req *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	v := s.cfg.Version
	if v == "" {
		v = "0.0.0"
	}
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: RuntimeName, RuntimeVersion: v, RuntimeApiVersion: "v1"}, nil
}

// Status is ready whether or not containerd answers: a condition of its own
// says so. With RequireNetwork the network is ready when both runtimes' is.
func (s *Service) Status(ctx context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	theirs, theirErr := s.askContainerd(ctx, req.GetVerbose())
	out := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: true}, s.networkCondition(theirs), s.ociCondition(theirs, theirErr), s.compilerCondition(ctx),
		}},
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{
			{Name: "", Features: &runtimeapi.RuntimeHandlerFeatures{}},
			{Name: images.HandlerWasm, Features: &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true}},
		},
		// What holds for the node has to hold for both kinds: Wasm containers know
		// both policies.
		Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true},
	}
	// A preopen that is read-only is so with all that is mounted below it; in a mixed
	// pod it is containerd's default handler that runs the other containers.
	out.RuntimeHandlers[1].Features.RecursiveReadOnlyMounts = s.oci == nil
	for _, h := range theirs.GetRuntimeHandlers() {
		if h.GetName() == "" {
			out.RuntimeHandlers[0] = h
			out.RuntimeHandlers[1].Features.RecursiveReadOnlyMounts = h.GetFeatures().GetRecursiveReadOnlyMounts()
		} else if h.GetName() != images.HandlerWasm {
			out.RuntimeHandlers = append(out.RuntimeHandlers, h)
		}
	}
	if s.oci != nil {
		out.Features = &runtimeapi.RuntimeFeatures{
			SupplementalGroupsPolicy:  theirs.GetFeatures().GetSupplementalGroupsPolicy(),
			UserNamespacesHostNetwork: theirs.GetFeatures().GetUserNamespacesHostNetwork(),
		}
	}
	// What else containerd says, such as that its configuration is deprecated.
	for _, c := range theirs.GetStatus().GetConditions() {
		if c.GetType() != runtimeapi.RuntimeReady && c.GetType() != runtimeapi.NetworkReady {
			out.Status.Conditions = append(out.Status.Conditions, c)
		}
	}
	if req.GetVerbose() {
		out.Info = map[string]string{"golang": wasm.JSON(runtime.Version()), "config": wasm.JSON(map[string]any{
			"stateDir": s.cfg.StateDir, "containerd": s.cfg.ContainerdSocket, "cniConfDir": s.cfg.CNIConfDir, "cniBinDirs": s.cfg.CNIBinDirs,
			"requireNetwork": s.cfg.RequireNetwork, "registryHosts": s.cfg.RegistryHosts, "cgroupParent": s.cfg.CgroupParent, "runner": s.cfg.RunnerPath,
		})}
		if theirs != nil {
			out.Info["containerd"] = wasm.JSON(theirs.GetInfo())
		}
		out.Info["pulls"] = wasm.JSON(s.store.Pulls())
	}
	return out, nil
}

// networkCondition is false for the reason that containerd gives in the same
// case, so that a kubelet waits with pods that aren't on the host's network.
func (s *Service) networkCondition(theirs *runtimeapi.StatusResponse) *runtimeapi.RuntimeCondition {
	c := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if !s.cfg.RequireNetwork {
		if !s.wasm.NetworkConfigured() {
			c.Reason, c.Message = "HostNetwork", "there is no CNI configuration: Wasm pods use the host's network"
		}
		return c
	}
	if err := s.wasm.NetworkCheck(); err != nil {
		c.Status, c.Reason = false, "NetworkPluginNotReady"
		c.Message = "Network plugin returns error: cni plugin not initialized: " + err.Error()
		return c
	}
	for _, their := range theirs.GetStatus().GetConditions() {
		if their.GetType() == runtimeapi.NetworkReady && !their.GetStatus() {
			c.Status, c.Reason, c.Message = false, their.GetReason(), "containerd: "+their.GetMessage()
		}
	}
	return c
}

func (s *Service) compilerCondition(ctx context.Context) *runtimeapi.RuntimeCondition {
	c := &runtimeapi.RuntimeCondition{Type: ConditionWasmCompiler}
	native, err := s.rt.Native(ctx)
	switch {
	case err != nil:
		c.Reason, c.Message = "Unknown", err.Error()
	case native:
		c.Status = true
	default:
		c.Reason, c.Message = "NoCompiler", "there is no compiler for this architecture: modules are interpreted, some sixty to two hundred times slower, and may nest 2000 calls"
	}
	return c
}

// askContainerd for its status; nil and no error if there is none.
func (s *Service) askContainerd(ctx context.Context, verbose bool) (*runtimeapi.StatusResponse, error) {
	if s.oci == nil {
		return nil, nil
	}
	short, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, err := s.oci.Status(short, &runtimeapi.StatusRequest{Verbose: verbose})
	if status.Code(err) == codes.DeadlineExceeded && ctx.Err() == nil {
		err = s.oci.Silent("Status", askTimeout) // says of what, and where
	}
	return resp, err
}

// OCIReady says whether OCI containers can be run; if not, a sentence says why.
func (s *Service) OCIReady(ctx context.Context) (bool, string) {
	c := s.ociCondition(s.askContainerd(ctx, false))
	return c.GetStatus(), c.GetMessage()
}

func (s *Service) ociCondition(theirs *runtimeapi.StatusResponse, err error) *runtimeapi.RuntimeCondition {
	c := &runtimeapi.RuntimeCondition{Type: ConditionOCI}
	switch {
	case s.oci == nil:
		c.Reason, c.Message = "NoContainerd", noContainerd
		return c
	case err != nil:
		c.Reason, c.Message = "ContainerdUnavailable", status.Convert(err).Message()
		return c
	}
	for _, cond := range theirs.GetStatus().GetConditions() {
		// Others, such as containerd's of deprecated configuration, stop nothing.
		if (cond.GetType() == runtimeapi.RuntimeReady || cond.GetType() == runtimeapi.NetworkReady) && !cond.GetStatus() {
			c.Reason, c.Message = cond.GetReason(), "containerd: "+cond.GetType()+" is false: "+cond.GetMessage()
			return c
		}
	}
	c.Status = true
	return c
}

// RuntimeConfig says which cgroup driver is used: containerd's, so that the
// pods of both kinds lie in one tree; cgroupfs without one. A kubelet asks once,
// when it starts, so nothing is guessed while containerd doesn't answer.
func (s *Service) RuntimeConfig(ctx context.Context, req *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	if s.oci == nil {
		return cgroupDriver(runtimeapi.CgroupDriver_CGROUPFS), nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, err := s.oci.RuntimeConfig(ctx, req)
	if status.Code(err) != codes.Unimplemented {
		return resp, err
	}
	// containerd 1.6 tells it by its configuration only.
	st, err := s.oci.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return nil, err
	}
	if parsePluginConfig(st.GetInfo()["config"]).systemdCgroups() {
		return cgroupDriver(runtimeapi.CgroupDriver_SYSTEMD), nil
	}
	return cgroupDriver(runtimeapi.CgroupDriver_CGROUPFS), nil
}

func cgroupDriver(d runtimeapi.CgroupDriver) *runtimeapi.RuntimeConfigResponse {
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: d}}
}

// UpdateRuntimeConfig tells containerd the node's pod CIDR; nothing here needs
// it.
func (s *Service) UpdateRuntimeConfig(ctx context.Context, req *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	if s.oci != nil {
		resp, err := s.oci.UpdateRuntimeConfig(ctx, req)
		if status.Code(err) != codes.Unavailable {
			return resp, err
		}
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}
