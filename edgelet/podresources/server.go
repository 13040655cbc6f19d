package podresources

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-edge/coracle/edgelet/rawcall"
)

// DefaultDir is where exporters and network plugins look.
const DefaultDir = "/var/lib/kubelet/pod-resources"

// A kubelet's limits of requests (pkg/kubelet/apis/podresources/constants.go), and
// ours of connections.
const (
	requestsPerSecond = 100
	requestsAtOnce    = 10
	maxStreams        = 16
	maxRequest        = 64 << 10
	handshake         = 10 * time.Second
)

// ErrTaken is returned when another program listens on the socket.
var ErrTaken = errors.New("another kubelet or agent listens there")

// Source knows the node's pods.
type Source interface {
	// Pods are those that aren't over.
	Pods() ([]Pod, error)
	// Pod returns one, in whatever state; false if it isn't here.
	Pod(namespace, name string) (Pod, bool, error)
	Allocatable() Allocatable
}

// Server answers on the socket. Dir, Source and Log are required.
type Server struct {
	// Dir is where kubelet.sock is.
	Dir    string
	Source Source
	Log    *slog.Logger

	limit bucket
}

// Socket is where it answers.
func (s *Server) Socket() string { return filepath.Join(s.Dir, "kubelet.sock") }

// Run answers until ctx ends. Without root, or beside a kubelet, nobody is answered
// and the node goes on: that is logged, not returned.
func (s *Server) Run(ctx context.Context) error {
	l, err := s.listen()
	if err != nil {
		s.Log.Warn("what pods have isn't told to programs on this node", "err", err)
		<-ctx.Done()
		return nil
	}
	err = rawcall.ServeLater(ctx, l, func() *grpc.Server {
		server := grpc.NewServer(grpc.ForceServerCodec(rawcall.Codec()), grpc.MaxRecvMsgSize(maxRequest), grpc.ConnectionTimeout(handshake), grpc.MaxConcurrentStreams(maxStreams))
		for _, d := range s.services() {
			server.RegisterService(&d, s)
		}
		return server
	})
	if err != nil {
		s.Log.Error("what pods have isn't told any more", "socket", s.Socket(), "err", err)
		<-ctx.Done()
	}
	return nil
}

// listen opens the socket, for root only.
func (s *Server) listen() (net.Listener, error) {
	if err := os.MkdirAll(s.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("making the folder of the socket: %w", err)
	}
	path := s.Socket()
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("%s: %w; give this one another folder with --kubelet-dir", path, ErrTaken)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing the socket of an earlier start: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// services are those of both versions.
func (s *Server) services() []grpc.ServiceDesc {
	method := func(name string, answer func([]byte) ([]byte, error)) grpc.MethodDesc {
		return grpc.MethodDesc{MethodName: name, Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var in []byte
			if err := decode(&in); err != nil {
				return nil, err
			}
			if !s.limit.take(time.Now()) {
				return nil, status.Error(codes.ResourceExhausted, "rejected by rate limit")
			}
			out, err := answer(in)
			return &out, err
		}}
	}
	list := method("List", func([]byte) ([]byte, error) { return s.list() })
	return []grpc.ServiceDesc{
		{ServiceName: "v1.PodResourcesLister", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{list, method("Get", s.get),
			method("GetAllocatableResources", func([]byte) ([]byte, error) { a := s.Source.Allocatable(); return a.encode(), nil })}},
		{ServiceName: "v1alpha1.PodResourcesLister", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{list}},
	}
}

func (s *Server) list() ([]byte, error) {
	pods, err := s.Source.Pods()
	if err != nil {
		return nil, err
	}
	var m rawcall.Message
	for i := range pods {
		m.Bytes(1, pods[i].encode())
	}
	return m, nil
}

func (s *Server) get(raw []byte) ([]byte, error) {
	namespace, name, err := decodeGet(raw)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	pod, found, err := s.Source.Pod(namespace, name)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("pod %s in namespace %s not found", name, namespace)
	}
	var m rawcall.Message
	m.Bytes(1, pod.encode())
	return m, nil
}

// bucket is a rate limit: it holds some requests and fills up with time.
type bucket struct {
	mu    sync.Mutex
	spent float64
	at    time.Time
}

func (b *bucket) take(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.spent = max(0, b.spent-now.Sub(b.at).Seconds()*requestsPerSecond)
	b.at = now
	if b.spent+1 > requestsAtOnce {
		return false
	}
	b.spent++
	return true
}
