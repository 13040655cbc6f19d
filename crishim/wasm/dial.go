package wasm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Dial connects to a port on the loopback of a pod's network, of a sandbox of
// either runtime: 127.0.0.1 first, then ::1. A guest's port of a pod that has no
// network of its own is the hostPort that was opened for it.
func (m *Manager) Dial(ctx context.Context, sandboxID string, port int32) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, fmt.Errorf("pod sandbox %q: port %d: %w", sandboxID, port, err)
	}
	if port < 1 || port > 65535 {
		return fail(fmt.Errorf("%w: ports are 1 to 65535", ErrInvalid))
	}
	netns, err := m.networkOf(ctx, sandboxID, &port)
	if err != nil {
		return nil, err
	}
	conn, err := dialLoopback(ctx, netns, port)
	if err != nil {
		return fail(err)
	}
	return conn, nil
}

// networkOf finds the network namespace of a ready sandbox, "" for the host's.
func (m *Manager) networkOf(ctx context.Context, id string, port *int32) (string, error) {
	if s, err := m.sandbox(id); err == nil {
		rec := s.record()
		if !rec.Ready {
			return "", fmt.Errorf("pod sandbox %q: %w: it isn't ready", s.id, ErrState)
		}
		*port = openedPort(rec.Network, s.config(), *port)
		return rec.NetNS, nil
	} else if m.opts.ForeignSandbox == nil {
		return "", err
	}
	f, err := m.opts.ForeignSandbox(ctx, id)
	if err != nil {
		return "", err
	}
	if !f.Ready {
		return "", fmt.Errorf("pod sandbox %q: %w: it isn't ready", f.ID, ErrState)
	}
	return f.NetNS, nil
}

// SandboxReady says whether a sandbox of this manager's is ready.
func (m *Manager) SandboxReady(id string) error {
	s, err := m.sandbox(id)
	if err != nil {
		return err
	}
	if sandboxState(s.record().Ready) != runtimeapi.PodSandboxState_SANDBOX_READY {
		return fmt.Errorf("pod sandbox %q: %w: it isn't ready", s.id, ErrState)
	}
	return nil
}

func dialLoopback(ctx context.Context, netns string, port int32) (net.Conn, error) {
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := dialIn(ctx, netns, net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// dialIn connects to an address, written in numbers, in a network namespace. A
// socket belongs to the namespace of the thread that makes it, and Go makes that
// of a single address in the goroutine that dials.
func dialIn(ctx context.Context, netns, addr string) (net.Conn, error) {
	var conn net.Conn
	err := inNetNS(netns, func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		return err
	})
	return conn, err
}
