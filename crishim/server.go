package crishim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMessage is what kubelets and containerd allow.
const maxMessage = 16 << 20

// Serve answers CRI calls on l until ctx ends, and then waits for those under
// way, at most five seconds. streams makes the URLs of Wasm containers' streams;
// without it Attach and PortForward are refused for them.
func (s *Service) Serve(ctx context.Context, l net.Listener, streams Streams) error {
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))
	if streams != nil {
		runtimeapi.RegisterRuntimeServiceServer(srv, endpoint{s, streams})
	} else {
		runtimeapi.RegisterRuntimeServiceServer(srv, s)
	}
	runtimeapi.RegisterImageServiceServer(srv, s)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("CRI on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	timer := time.AfterFunc(5*time.Second, srv.Stop)
	defer timer.Stop()
	s.events.close() // ends the event streams, which would never end by themselves
	srv.GracefulStop()
	<-done
	return nil
}

// ListenUnix listens on a socket that only its owner may use, in place of one
// that a former process left. It refuses to take a living one's place.
func ListenUnix(url string) (net.Listener, error) {
	path := strings.TrimPrefix(url, "unix://")
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("listen on %q: want unix:///ABSOLUTE/PATH", url)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, err
	}
	if err := awaitFree(func() error {
		conn, err := net.DialTimeout("unix", path, time.Second)
		if err != nil {
			return nil
		}
		conn.Close()
		return fmt.Errorf("listen on %s: another process answers there", path)
	}); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// awaitFree tries for three seconds. A process that was killed while it was
// starting a child has its sockets and locks held by that child, until it
// executes its program.
func awaitFree(try func() error) error {
	var err error
	for range 150 {
		if err = try(); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// Admin serves what the CRI has no call for:
//
//	POST /v1/images/import?ref=NAME   an OCI or docker archive; answers {"images":[...]}
//
// It belongs on a socket that only the node's owner may use.
func (s *Service) Admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/images/import", func(w http.ResponseWriter, r *http.Request) {
		names, err := s.Import(r.Context(), r.Body, r.URL.Query().Get("ref"))
		w.Header().Set("Content-Type", "application/json")
		body := map[string]any{"images": names}
		if err != nil {
			w.WriteHeader(http.StatusUnprocessableEntity)
			body["error"] = err.Error()
		}
		_ = json.NewEncoder(w).Encode(body)
	})
	return mux
}
