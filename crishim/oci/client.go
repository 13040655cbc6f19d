package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ErrUnavailable is returned, as gRPC code Unavailable, when containerd doesn't
// answer. Nothing is known then of OCI sandboxes and containers: they may well
// run on.
var ErrUnavailable = errors.New("containerd isn't answering")

// namespace of containerd in which its CRI plugin keeps everything.
const namespace = "k8s.io"

// maxMessage is what containerd itself allows.
const maxMessage = 16 << 20

// Client talks to one containerd. It connects when it is first used and again
// when containerd comes back. It is safe for concurrent use.
type Client struct {
	suspect atomic.Bool // it did not answer the last question in time

	runtimeapi.RuntimeServiceClient
	Images runtimeapi.ImageServiceClient
	// Owner tells what this client's former process began in containerd from what
	// others did. It is set before the first use. Empty: nothing is told apart.
	Owner string

	socket string
	conn   *grpc.ClientConn
	log    *slog.Logger
}

// New prepares a client for the socket, with or without the prefix unix://.
func New(socket string, log *slog.Logger) (*Client, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Client{socket: strings.TrimPrefix(socket, "unix://"), log: log}
	conn, err := grpc.NewClient("passthrough:///containerd",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithChainUnaryInterceptor(c.explain),
	)
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", c.socket, err)
	}
	c.conn = conn
	c.RuntimeServiceClient = runtimeapi.NewRuntimeServiceClient(conn)
	c.Images = runtimeapi.NewImageServiceClient(conn)
	return c, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Socket is the path of containerd's socket.
func (c *Client) Socket() string { return c.socket }

// explain says in words what it means that containerd can't be reached.
func (c *Client) explain(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if conn.GetState() == connectivity.TransientFailure {
		conn.ResetConnectBackoff() // somebody asks, so look now
	}
	if err := named(method, req); err != nil {
		return err
	}
	if !reads(method) {
		return c.unavailable(invoke(ctx, method, req, reply, conn, opts...))
	}
	return c.unavailable(c.bounded(ctx, method, func(ctx context.Context) error {
		return invoke(ctx, method, req, reply, conn, opts...)
	}))
}

// How long a question to containerd may take. One that hangs takes connections
// and answers nothing: without a bound whoever lists both kinds of pods would
// wait with it. After one question without an answer the others don't wait as
// long, until one is answered.
const (
	answerTimeout  = 5 * time.Second
	suspectTimeout = 300 * time.Millisecond
)

// reads reports whether a method only asks.
func reads(method string) bool {
	name := path.Base(method)
	return strings.HasPrefix(name, "List") && !strings.HasPrefix(name, "ListMetric") || strings.HasSuffix(name, "Status") || name == "Version" || name == "RuntimeConfig"
}

// bounded makes an answer that doesn't come one of containerd's not being there.
func (c *Client) bounded(ctx context.Context, method string, call func(context.Context) error) error {
	limit := answerTimeout
	if c.suspect.Load() {
		limit = suspectTimeout
	}
	short, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := call(short)
	if status.Code(err) == codes.DeadlineExceeded && ctx.Err() == nil {
		c.suspect.Store(true)
		return silent(path.Base(method), limit)
	}
	if err == nil {
		c.suspect.Store(false)
	}
	return err
}

func silent(method string, within time.Duration) error {
	return status.Errorf(codes.Unavailable, "no answer to %s within %s", method, within)
}

// Silent is the error of a question that containerd didn't answer in the time that
// the caller gave it.
func (c *Client) Silent(method string, within time.Duration) error {
	return c.unavailable(silent(method, within))
}

// named refuses a request that is about one object and names none. containerd
// takes an empty name for the beginning of every one: where there is a single
// image, RemoveImage of nothing removes that.
func named(method string, req any) error {
	missing := ""
	switch r := req.(type) {
	case interface{ GetContainerId() string }:
		if r.GetContainerId() == "" {
			missing = "container_id"
		}
	case interface{ GetPodSandboxId() string }:
		if r.GetPodSandboxId() == "" {
			missing = "pod_sandbox_id"
		}
	case *runtimeapi.PullImageRequest, *runtimeapi.ImageStatusRequest, *runtimeapi.RemoveImageRequest:
		if r.(interface{ GetImage() *runtimeapi.ImageSpec }).GetImage().GetImage() == "" {
			missing = "image.image"
		}
	}
	if missing != "" {
		return status.Errorf(codes.InvalidArgument, "%s: %s is empty: name what it is about", path.Base(method), missing)
	}
	return nil
}

func (c *Client) unavailable(err error) error {
	if status.Code(err) != codes.Unavailable {
		return err
	}
	hint := ""
	switch _, serr := os.Stat(c.socket); {
	case errors.Is(serr, os.ErrNotExist):
		hint = "; its socket doesn't exist: install and start containerd"
	case errors.Is(serr, os.ErrPermission):
		hint = "; its socket may only be used by root"
	}
	return status.Errorf(codes.Unavailable, "%v at %s: OCI containers can't be managed until it does, Wasm containers go on%s (%s)",
		ErrUnavailable, c.socket, hint, status.Convert(err).Message())
}

// Available says whether containerd's CRI answers within a second.
func (c *Client) Available(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := c.Version(ctx, &runtimeapi.VersionRequest{})
	return err
}

// Sandbox is what a Wasm container must know to join a sandbox.
type Sandbox struct {
	Config *runtimeapi.PodSandboxConfig
	Status *runtimeapi.PodSandboxStatus
	// NetNS is the path of its network namespace; empty means the host's.
	NetNS string
	PID   int
}

// Sandbox asks containerd for a sandbox's namespaces.
func (c *Client) Sandbox(ctx context.Context, id string) (*Sandbox, error) {
	resp, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil {
		return nil, err
	}
	s, err := parseSandbox(resp.GetInfo()["info"])
	if err != nil {
		return nil, fmt.Errorf("pod sandbox %q: containerd's verbose status: %w", id, err)
	}
	s.Status = resp.GetStatus()
	if s.Config.Metadata == nil {
		s.Config.Metadata = resp.GetStatus().GetMetadata()
	}
	if resp.GetStatus().GetLinux().GetNamespaces().GetOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE {
		s.NetNS = ""
		return s, nil
	}
	if s.NetNS == "" && s.PID > 0 {
		s.NetNS = fmt.Sprintf("/proc/%d/ns/net", s.PID)
	}
	if s.NetNS == "" && resp.GetStatus().GetState() == runtimeapi.PodSandboxState_SANDBOX_READY {
		return nil, fmt.Errorf("pod sandbox %q: containerd doesn't say which network namespace it has", id)
	}
	return s, nil
}

// parseSandbox reads what containerd says of a sandbox in its verbose status.
func parseSandbox(raw string) (*Sandbox, error) {
	var info struct {
		PID         int `json:"pid"`
		Config      json.RawMessage
		RuntimeSpec *struct {
			Linux struct {
				Namespaces []struct{ Type, Path string } `json:"namespaces"`
			} `json:"linux"`
		} `json:"runtimeSpec"`
	}
	if err := json.Unmarshal([]byte(raw), &info); err != nil {
		return nil, err
	}
	s := &Sandbox{PID: info.PID, Config: &runtimeapi.PodSandboxConfig{}}
	if len(info.Config) > 0 {
		// containerd prints its generated struct with encoding/json; what of it
		// doesn't fit another version's is left out.
		if err := json.Unmarshal(info.Config, s.Config); err != nil || bytes.Equal(info.Config, []byte("null")) {
			s.Config = &runtimeapi.PodSandboxConfig{}
		}
	}
	if info.RuntimeSpec != nil {
		for _, ns := range info.RuntimeSpec.Linux.Namespaces {
			if ns.Type == "network" && ns.Path != "" {
				s.NetNS = ns.Path
			}
		}
	}
	return s, nil
}
