package probes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
)

const (
	// maxOutput of a command or of a body is read and told, in bytes.
	maxOutput = 10 << 10
	// retries of a probe that could not be made.
	retries = 3
)

// verdict is what one run came to, in upstream's words.
type verdict string

const (
	succeeded verdict = "success"
	warned    verdict = "warning"
	failed    verdict = "failure"
	unknown   verdict = "unknown"
)

var errNoHandler = errors.New("missing probe handler")

// checker runs probes.
type checker struct {
	exec   Exec
	client http.Client
}

func newChecker(exec Exec) checker {
	return checker{exec, http.Client{Transport: NewTransport(), CheckRedirect: sameHost}}
}

// retrying runs a probe, and again if it could not be made: an error says nothing
// about the container.
func (c *checker) retrying(ctx context.Context, t target) (v verdict, output string, err error) {
	for range retries {
		if v, output, err = c.run(ctx, t); err == nil || ctx.Err() != nil {
			break
		}
	}
	return v, output, err
}

func (c *checker) run(ctx context.Context, t target) (verdict, string, error) {
	p := t.probe
	switch {
	case p.spec.Exec != nil:
		return c.command(ctx, t, p.timeout())
	case p.spec.HTTPGet != nil:
		ctx, cancel := context.WithTimeout(ctx, p.timeout())
		defer cancel()
		return c.http(ctx, t, p.spec.HTTPGet, p.timeout())
	case p.spec.TCPSocket != nil:
		return checkTCP(ctx, t, p.spec.TCPSocket, p.timeout())
	case p.spec.GRPC != nil:
		return checkGRPC(ctx, t.host, p.spec.GRPC, p.timeout())
	}
	return unknown, "", errNoHandler
}

func (c *checker) command(ctx context.Context, t target, timeout time.Duration) (verdict, string, error) {
	command := make([]string, len(t.probe.spec.Exec.Command))
	for i, s := range t.probe.spec.Exec.Command {
		command[i] = s
		if t.c.expand != nil {
			command[i] = t.c.expand(s)
		}
	}
	out, code, err := c.exec(ctx, t.c.id, command, timeout)
	text := string(out[:min(len(out), maxOutput)])
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return failed, fmt.Sprintf("command timed out: %q timed out after %s", strings.Join(command, " "), timeout), nil
	case err != nil:
		return unknown, "", err
	case code != 0:
		return failed, text, nil
	}
	return succeeded, text, nil
}

func (c *checker) http(ctx context.Context, t target, a *v1.HTTPGetAction, timeout time.Duration) (verdict, string, error) {
	req, err := NewRequest(a, t.c.spec, t.host, "probe")
	if err != nil {
		return unknown, "", err
	}
	client := c.client
	client.Timeout = timeout // for its wording of an error
	resp, err := client.Do(req.WithContext(ctx))
	if err != nil {
		return failed, err.Error(), nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxOutput))
	switch {
	case err != nil:
		return failed, "", err
	case resp.StatusCode >= http.StatusMultipleChoices && resp.StatusCode < http.StatusBadRequest:
		return warned, fmt.Sprintf("Probe terminated redirects, Response body: %v", string(body)), nil
	case resp.StatusCode >= http.StatusOK && resp.StatusCode < http.StatusBadRequest:
		return succeeded, string(body), nil
	}
	// Not the body: it may hold what a reader of events must not see.
	return failed, fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode), nil
}

func checkTCP(ctx context.Context, t target, a *v1.TCPSocketAction, timeout time.Duration) (verdict, string, error) {
	port, err := ResolvePort(a.Port, t.c.spec)
	if err != nil {
		return unknown, "", err
	}
	host := t.host
	if a.Host != "" {
		host = a.Host
	}
	d := dialer()
	d.Timeout = timeout
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return failed, err.Error(), nil
	}
	_ = conn.Close()
	return succeeded, "", nil
}

func checkGRPC(ctx context.Context, host string, a *v1.GRPCAction, timeout time.Duration) (verdict, string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	service := ""
	if a.Service != nil {
		service = *a.Service
	}
	addr := net.JoinHostPort(host, strconv.Itoa(int(a.Port)))
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithUserAgent("kube-probe/"+version),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithReadBufferSize(2<<10), grpc.WithWriteBufferSize(1<<10),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxOutput)),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return dialer().DialContext(ctx, "tcp", addr)
		}))
	if err != nil {
		return failed, fmt.Sprintf("error: failed to connect service at %q: %+v", addr, err), nil
	}
	defer conn.Close()
	conn.Connect()
	for s := conn.GetState(); s != connectivity.Ready; s = conn.GetState() {
		if s == connectivity.Idle {
			conn.Connect()
		}
		if !conn.WaitForStateChange(ctx, s) {
			return failed, fmt.Sprintf("timeout: failed to connect service %q within %v: %+v", addr, timeout, ctx.Err()), nil
		}
	}
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	if err != nil {
		switch s, _ := status.FromError(err); s.Code() {
		case codes.Unimplemented:
			return failed, "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): " + s.Message(), nil
		case codes.DeadlineExceeded:
			return failed, fmt.Sprintf("timeout: health rpc did not complete within %v", timeout), nil
		}
		return failed, fmt.Sprintf("error: health rpc probe failed: %+v", err), nil
	}
	if resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return failed, fmt.Sprintf("service unhealthy (responded with %q)", resp.GetStatus().String()), nil
	}
	return succeeded, "service healthy", nil
}
