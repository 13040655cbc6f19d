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
	byQuery := func(r *http.Request) (options, error) { return parseOptions(r.URL.Query()) }
	exec, attach := handle(s, "exec", byQuery, s.exec), handle(s, "attach", byQuery, s.attach)
	run := handle(s, "run", func(r *http.Request) ([]string, error) { return parseRun(r.URL.Query()) }, s.run)
	portForward := handle(s, "port-forward", parsePorts, s.portForward)
	out := map[string]http.Handler{}
	add := func(path string, handler http.HandlerFunc, methods ...string) {
		for _, m := range methods {
			out[m+" "+path] = handler
		}
	}
	for _, container := range []string{"/{namespace}/{pod}/{container}", "/{namespace}/{pod}/{uid}/{container}"} {
		add("/exec"+container, exec, http.MethodGet, http.MethodPost)
		add("/attach"+container, attach, http.MethodGet, http.MethodPost)
		add("/run"+container, run, http.MethodPost)
	}
	for _, pod := range []string{"/{namespace}/{pod}", "/{namespace}/{pod}/{uid}"} {
		add("/portForward"+pod, portForward, http.MethodGet, http.MethodPost)
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

// handle is what all paths begin with: what is asked for, of which pod, and a bound
// for asking the runtime. An error of serve is why no stream begins.
func handle[T any](s *Server, what string, parse func(*http.Request) (T, error),
	serve func(ctx context.Context, w http.ResponseWriter, r *http.Request, pod *v1.Pod, asked T) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		asked, err := parse(r)
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
		if err := serve(ctx, w, r, pod, asked); err != nil {
			s.cfg.Logger.Info(what+" refused", "pod", pod.Namespace+"/"+pod.Name, "err", err)
			fail(w, statusOf(err), message(err))
		}
	}
}

func (s *Server) exec(ctx context.Context, w http.ResponseWriter, r *http.Request, pod *v1.Pod, o options) error {
	id, err := s.container(ctx, pod, r.PathValue("container"))
	if err != nil {
		return err
	}
	if s.inProcess(id) {
		if err := s.cfg.InProcess.Executable(id, o.command, o.tty); err != nil {
			return err
		}
		s.serveExec(w, r, id, o)
		return nil
	}
	resp, err := s.cfg.Runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: o.command, Tty: o.tty,
		Stdin: o.stdin, Stdout: o.stdout, Stderr: o.stderr})
	if err != nil {
		return err
	}
	return s.pass(w, r, "exec", pod, resp.GetUrl())
}

func (s *Server) attach(ctx context.Context, w http.ResponseWriter, r *http.Request, pod *v1.Pod, o options) error {
	name := r.PathValue("container")
	id, err := s.container(ctx, pod, name)
	// Whether a process has a terminal was decided when it was made.
	tty, known := hasTerminal(pod, name)
	if err != nil || !known {
		return fmt.Errorf("container %s not found in pod %s_%s", name, pod.Name, pod.Namespace)
	}
	if s.inProcess(id) {
		if err := s.cfg.InProcess.Attachable(id); err != nil {
			return err
		}
		s.serveAttach(w, r, id, o)
		return nil
	}
	resp, err := s.cfg.Runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: id, Tty: tty,
		Stdin: o.stdin, Stdout: o.stdout, Stderr: o.stderr && !tty})
	if err != nil {
		return err
	}
	return s.pass(w, r, "attach", pod, resp.GetUrl())
}

func (s *Server) portForward(ctx context.Context, w http.ResponseWriter, r *http.Request, pod *v1.Pod, ports []int32) error {
	id, err := s.sandbox(ctx, pod)
	if err != nil {
		return err
	}
	if s.cfg.InProcess != nil && s.cfg.InProcess.SandboxInProcess(id) {
		if err := s.cfg.InProcess.SandboxReady(id); err != nil {
			return err
		}
		s.servePortForward(w, r, id, ports)
		return nil
	}
	resp, err := s.cfg.Runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: id, Port: ports})
	if err != nil {
		return err
	}
	return s.pass(w, r, "port-forward", pod, resp.GetUrl())
}

// run is a command without streams. It may take as long as it needs, as upstream's.
func (s *Server) run(ctx context.Context, w http.ResponseWriter, r *http.Request, pod *v1.Pod, command []string) error {
	id, err := s.container(ctx, pod, r.PathValue("container"))
	if err != nil {
		return err
	}
	resp, err := s.cfg.Runtime.ExecSync(r.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command})
	if err != nil {
		return err
	}
	if code := resp.GetExitCode(); code != 0 {
		return fmt.Errorf("command %q exited with %d: %s%s", command, code, resp.GetStdout(), resp.GetStderr())
	}
	w.Header().Set("Content-Type", "application/json") // upstream's, whatever it is
	_, _ = w.Write(resp.GetStdout())
	_, _ = w.Write(resp.GetStderr())
	return nil
}

func (s *Server) inProcess(containerID string) bool {
	return s.cfg.InProcess != nil && s.cfg.InProcess.InProcess(containerID)
}

// pass passes the request on to the URL that the runtime named.
func (s *Server) pass(w http.ResponseWriter, r *http.Request, what string, pod *v1.Pod, target string) error {
	if target == "" {
		return errors.New("the runtime named no URL")
	}
	if err := s.proxy(w, r, target); err != nil { // it has answered
		s.cfg.Logger.Info(what, "pod", pod.Namespace+"/"+pod.Name, "err", err)
	}
	return nil
}

func fail(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(message))
}
