package pods

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

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ErrHook is returned when a lifecycle hook fails.
var ErrHook = errors.New("lifecycle hook failed")

// httpHookTimeout bounds a hook over HTTP that has no other bound.
const httpHookTimeout = 30 * time.Second

// runHook runs a lifecycle hook. ips are the pod's, nil if the last reported
// ones are meant.
func (w *worker) runHook(ctx context.Context, id string, c *v1.Container, h *v1.LifecycleHandler, ips []string) error {
	switch {
	case h.Sleep != nil:
		if !sleep(ctx, time.Duration(h.Sleep.Seconds)*time.Second) {
			return ctx.Err()
		}
		return nil
	case h.Exec != nil:
		resp, err := w.m.cfg.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: h.Exec.Command})
		if err != nil {
			return fmt.Errorf("%w: %s", ErrHook, message(err))
		}
		if resp.ExitCode != 0 {
			return fmt.Errorf("%w: command %q exited with %d: %.200s%.200s", ErrHook, strings.Join(h.Exec.Command, " "), resp.ExitCode, resp.Stdout, resp.Stderr)
		}
		return nil
	case h.HTTPGet != nil:
		return w.httpHook(ctx, c, h.HTTPGet, ips)
	}
	return fmt.Errorf("%w: invalid handler", ErrHook)
}

func (w *worker) httpHook(ctx context.Context, c *v1.Container, h *v1.HTTPGetAction, ips []string) error {
	host := h.Host
	if host == "" {
		if ips == nil {
			if s := w.reported.Load(); s != nil && s.PodIP != "" {
				ips = []string{s.PodIP}
			}
		}
		if len(ips) == 0 {
			return fmt.Errorf("%w: the pod has no address", ErrHook)
		}
		host = ips[0]
	}
	port, err := resolvePort(h.Port, c)
	if err != nil {
		return err
	}
	scheme := strings.ToLower(string(h.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	ctx, cancel := context.WithTimeout(ctx, httpHookTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+net.JoinHostPort(host, strconv.Itoa(port))+"/"+strings.TrimPrefix(h.Path, "/"), nil)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrHook, err)
	}
	req.Header.Set("User-Agent", "kube-lifecycle/1.36")
	for _, kv := range h.HTTPHeaders {
		req.Header.Add(kv.Name, kv.Value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrHook, err)
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 10<<10)
	return nil // any answer is one, as for a kubelet
}

func resolvePort(p intstr.IntOrString, c *v1.Container) (int, error) {
	if p.Type == intstr.Int {
		return p.IntValue(), nil
	}
	for _, have := range c.Ports {
		if have.Name == p.StrVal {
			return int(have.ContainerPort), nil
		}
	}
	if n, err := strconv.Atoi(p.StrVal); err == nil {
		return n, nil
	}
	return 0, fmt.Errorf("%w: container %s has no port %q", ErrHook, c.Name, p.StrVal)
}
