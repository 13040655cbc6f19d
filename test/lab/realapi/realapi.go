// Package realapi is the real API server on a real etcd in a test's own process, for
// tests of what talks to it: controllers, the scheduler. It is apart from test/lab
// because it links all of the API server.
package realapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/coracle-edge/coracle/controlplane/apiserver"
	"github.com/coracle-edge/coracle/controlplane/datastore"
	"github.com/coracle-edge/coracle/controlplane/pki"
)

// readyWithin is generous: the machine may be under load.
const readyWithin = time.Minute

// Server is one that serves until [Server.Stop].
type Server struct {
	*apiserver.Server
	Keys *pki.Authority
	URL  string

	store  *datastore.Store
	ctx    context.Context
	cancel context.CancelFunc
	all    sync.WaitGroup
}

// Start starts one whose data are in dir, and returns when it is ready.
func Start(dir string) (_ *Server, err error) {
	s := &Server{}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			s.Stop()
		}
	}()
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	if s.store, err = datastore.Open(s.ctx, datastore.Config{Dir: filepath.Join(dir, "etcd"), Logger: quiet}); err != nil {
		return nil, err
	}
	if s.Keys, err = pki.Open(pki.Options{Dir: filepath.Join(dir, "pki")}); err != nil {
		return nil, err
	}
	serving, err1 := s.Keys.APIServer()
	kubelet, err2 := s.Keys.KubeletClient()
	proxy, err3 := s.Keys.FrontProxyClient()
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.URL = "https://" + listener.Addr().String()
	s.Server, err = apiserver.New(s.ctx, apiserver.Config{
		Store: s.store, Listener: listener, Logger: quiet,
		PKI: apiserver.PKI{
			ServingCertFile: serving.CertFile(), ServingKeyFile: serving.KeyFile(),
			ClientCAFile: s.Keys.CAFile(), RequestHeaderCAFile: s.Keys.FrontProxyCAFile(),
			ProxyClientCertFile: proxy.CertFile(), ProxyClientKeyFile: proxy.KeyFile(),
			KubeletClientCertFile: kubelet.CertFile(), KubeletClientKeyFile: kubelet.KeyFile(), KubeletCAFile: s.Keys.CAFile(),
			ServiceAccountKey: s.Keys.ServiceAccountKey(),
		},
	})
	if err != nil {
		return nil, err
	}
	served := make(chan error, 1)
	s.Go(func(ctx context.Context) { served <- s.Run(ctx) })
	select {
	case <-s.Ready():
		return s, nil
	case err := <-served:
		return nil, err
	case <-time.After(readyWithin):
		return nil, errors.New("the API server is not ready after a minute")
	}
}

// Go runs f beside the server; its context ends with Stop, which waits for it.
func (s *Server) Go(f func(context.Context)) { s.all.Go(func() { f(s.ctx) }) }

// Stop ends all.
func (s *Server) Stop() {
	s.cancel()
	s.all.Wait()
	if s.store != nil {
		s.store.Close()
	}
}
