package streaming

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	cristreaming "k8s.io/cri-streaming/pkg/streaming"

	"github.com/coracle-edge/coracle/crishim/connect"
)

// Server makes URLs, each good for one use within a minute, and serves them.
type Server struct {
	l   net.Listener
	cri cristreaming.Server
}

// New prepares a server on l, which must be of an address that only this machine
// reaches: who has a URL needs no other credential.
func New(l net.Listener, rt connect.Runtime) (*Server, error) {
	s := &Server{l: l}
	cfg := cristreaming.DefaultConfig
	cfg.BaseURL = &url.URL{Scheme: "http", Host: l.Addr().String(), Path: "/"}
	var err error
	if s.cri, err = cristreaming.NewServer(cfg, connect.Connector{Runtime: rt}); err != nil {
		return nil, fmt.Errorf("streaming on %s: %w", l.Addr(), err)
	}
	return s, nil
}

// GetAttach returns the URL of an attachment.
func (s *Server) GetAttach(req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return s.cri.GetAttach(req)
}

// GetExec returns the URL of a command.
func (s *Server) GetExec(req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return s.cri.GetExec(req)
}

// GetPortForward returns the URL of a forwarding.
func (s *Server) GetPortForward(req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return s.cri.GetPortForward(req)
}

// Run serves until ctx ends, and then ends every session.
func (s *Server) Run(ctx context.Context) error {
	// Sessions are hijacked connections, which http.Server doesn't close.
	srv := &http.Server{Handler: s.cri, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(s.l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("streaming on %s: %w", s.l.Addr(), err)
	}
	return nil
}
