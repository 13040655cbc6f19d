package streams

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim/connect"
)

// Limits that a [Config] leaves at 0.
const (
	// DefaultIdle is a kubelet's streamingConnectionIdleTimeout.
	DefaultIdle = 4 * time.Hour
	// creation is how long a client may take to open its streams: upstream's.
	creation = 30 * time.Second
	// callTimeout bounds what the runtime is asked before a stream begins. A runtime
	// that hangs must not hold a tunnel.
	callTimeout = 15 * time.Second
)

// ErrNoPod is to be returned by Config.Pod when there is no such pod here.
var ErrNoPod = errors.New("pod does not exist")

// Runtime is what is asked of the CRI.
type Runtime interface {
	ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error)
	ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error)
	ExecSync(context.Context, *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error)
	Exec(context.Context, *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error)
	Attach(context.Context, *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error)
	PortForward(context.Context, *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error)
}

// InProcess is a runtime some of whose containers have no URL, but functions to
// call: crishim.Service. The second three say, in words for the user, why a stream
// would not begin.
type InProcess interface {
	connect.Runtime
	InProcess(containerID string) bool
	SandboxInProcess(sandboxID string) bool

	Executable(containerID string, cmd []string, tty bool) error
	Attachable(containerID string) error
	SandboxReady(sandboxID string) error
}

// Config of a Server. Pod and Runtime are required.
type Config struct {
	// Pod returns a pod of this node, [ErrNoPod] if there is none; an empty uid is any.
	Pod     func(namespace, name, uid string) (*v1.Pod, error)
	Runtime Runtime
	// InProcess is nil if the runtime is behind a socket.
	InProcess InProcess
	// Idle is how long nothing may pass on a stream before it is ended; 0 means
	// [DefaultIdle]. A link that broke is noticed much sooner, by the tunnel.
	Idle   time.Duration
	Logger *slog.Logger
}

// Server serves streams.
type Server struct{ cfg Config }

// New returns a Server.
func New(cfg Config) (*Server, error) {
	if cfg.Pod == nil || cfg.Runtime == nil {
		return nil, errors.New("streams: Pod and Runtime are required")
	}
	if cfg.Idle == 0 {
		cfg.Idle = DefaultIdle
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg}, nil
}

// Paths are the handlers by pattern of http.ServeMux: the paths and methods of
// upstream's kubelet (pkg/kubelet/server/server.go).
func (s *Server) Paths() map[string]http.Handler {
	out := map[string]http.Handler{}
	add := func(path string, handler http.HandlerFunc, methods ...string) {
		for _, m := range methods {
			out[m+" "+path] = handler
		}
	}
	for _, container := range []string{"/{namespace}/{pod}/{container}", "/{namespace}/{pod}/{uid}/{container}"} {
		add("/exec"+container, s.exec, http.MethodGet, http.MethodPost)
		add("/attach"+container, s.attach, http.MethodGet, http.MethodPost)
		add("/run"+container, s.run, http.MethodPost)
	}
	for _, pod := range []string{"/{namespace}/{pod}", "/{namespace}/{pod}/{uid}"} {
		add("/portForward"+pod, s.portForward, http.MethodGet, http.MethodPost)
	}
	return out
}

// pod finds the pod that a path names, or answers that it isn't there.
func (s *Server) pod(w http.ResponseWriter, r *http.Request) *v1.Pod {
	pod, err := s.cfg.Pod(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("uid"))
	switch {
	case errors.Is(err, ErrNoPod):
		fail(w, http.StatusNotFound, "pod does not exist")
	case err != nil:
		fail(w, http.StatusInternalServerError, err.Error())
	default:
		return pod
	}
	return nil
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	o, err := parseOptions(r.URL.Query())
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	pod := s.pod(w, r)
	if pod == nil {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	id, err := s.container(ctx, pod, r.PathValue("container"))
	if err != nil {
		s.refuse(w, "exec", pod, err)
		return
	}
	if s.inProcess(id) {
		if err := s.cfg.InProcess.Executable(id, o.command, o.tty); err != nil {
			s.refuse(w, "exec", pod, err)
			return
		}
		s.serveExec(w, r, id, o)
		return
	}
	resp, err := s.cfg.Runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: o.command, Tty: o.tty,
		Stdin: o.stdin, Stdout: o.stdout, Stderr: o.stderr})
	s.pass(w, r, "exec", pod, resp.GetUrl(), err)
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	o, err := parseOptions(r.URL.Query())
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	pod := s.pod(w, r)
	if pod == nil {
		return
	}
	name := r.PathValue("container")
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	id, err := s.container(ctx, pod, name)
	if err != nil {
		s.refuse(w, "attach", pod, fmt.Errorf("container %s not found in pod %s_%s", name, pod.Name, pod.Namespace))
		return
	}
	// Whether a process has a terminal was decided when it was made.
	tty, known := hasTerminal(pod, name)
	if !known {
		s.refuse(w, "attach", pod, fmt.Errorf("container %s not found in pod %s_%s", name, pod.Name, pod.Namespace))
		return
	}
	if s.inProcess(id) {
		if err := s.cfg.InProcess.Attachable(id); err != nil {
			s.refuse(w, "attach", pod, err)
			return
		}
		s.serveAttach(w, r, id, o)
		return
	}
	resp, err := s.cfg.Runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: id, Tty: tty,
		Stdin: o.stdin, Stdout: o.stdout, Stderr: o.stderr && !tty})
	s.pass(w, r, "attach", pod, resp.GetUrl(), err)
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	ports, err := parsePorts(r)
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	pod := s.pod(w, r)
	if pod == nil {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	id, err := s.sandbox(ctx, pod)
	if err != nil {
		s.refuse(w, "port-forward", pod, err)
		return
	}
	if s.cfg.InProcess != nil && s.cfg.InProcess.SandboxInProcess(id) {
		if err := s.cfg.InProcess.SandboxReady(id); err != nil {
			s.refuse(w, "port-forward", pod, err)
			return
		}
		s.servePortForward(w, r, id, ports)
		return
	}
	resp, err := s.cfg.Runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: id, Port: ports})
	s.pass(w, r, "port-forward", pod, resp.GetUrl(), err)
}

// run is a command without streams. It may take as long as it needs, as upstream's.
func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	command, err := parseRun(r.URL.Query())
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	pod := s.pod(w, r)
	if pod == nil {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	id, err := s.container(ctx, pod, r.PathValue("container"))
	if err != nil {
		s.refuse(w, "run", pod, err)
		return
	}
	resp, err := s.cfg.Runtime.ExecSync(r.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command})
	if err != nil {
		s.refuse(w, "run", pod, err)
		return
	}
	if code := resp.GetExitCode(); code != 0 {
		s.refuse(w, "run", pod, fmt.Errorf("command %q exited with %d: %s%s", command, code, resp.GetStdout(), resp.GetStderr()))
		return
	}
	w.Header().Set("Content-Type", "application/json") // upstream's, whatever it is
	_, _ = w.Write(resp.GetStdout())
	_, _ = w.Write(resp.GetStderr())
}

func (s *Server) inProcess(containerID string) bool {
	return s.cfg.InProcess != nil && s.cfg.InProcess.InProcess(containerID)
}

// pass passes the request on to the URL that the runtime named.
func (s *Server) pass(w http.ResponseWriter, r *http.Request, what string, pod *v1.Pod, target string, err error) {
	if err == nil && target == "" {
		err = errors.New("the runtime named no URL")
	}
	if err != nil {
		s.refuse(w, what, pod, err)
		return
	}
	if err := s.proxy(w, r, target); err != nil {
		s.cfg.Logger.Info(what, "pod", pod.Namespace+"/"+pod.Name, "err", err)
	}
}

// refuse answers before a stream began.
func (s *Server) refuse(w http.ResponseWriter, what string, pod *v1.Pod, err error) {
	s.cfg.Logger.Info(what+" refused", "pod", pod.Namespace+"/"+pod.Name, "err", err)
	fail(w, statusOf(err), message(err))
}

func fail(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(message))
}
