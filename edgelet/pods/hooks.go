package pods

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/probes"
)

// ErrHook is returned when a lifecycle hook fails.
var ErrHook = errors.New("lifecycle hook failed")

const (
	// httpHookTimeout bounds a hook over HTTP that has no other bound.
	httpHookTimeout = 30 * time.Second
	// maxHookBody of an answer is read, in bytes; nobody looks at it.
	maxHookBody = 10 << 10
)

// runHook runs a lifecycle hook. ips are the pod's, nil if the last reported
// ones are meant. Errors are worded as upstream's (pkg/kubelet/lifecycle).
func (w *worker) runHook(ctx context.Context, id string, c *v1.Container, h *v1.LifecycleHandler, ips []string) error {
	failed := func(kind string, what any, err error, more string) error {
		return fmt.Errorf("%w: %s lifecycle hook (%v) for Container %q in Pod %q failed - error: %w%s", ErrHook, kind, what, c.Name, describe(w.pod), err, more)
	}
	switch {
	case h.Sleep != nil:
		if !sleep(ctx, time.Duration(h.Sleep.Seconds)*time.Second) {
			return failed("Sleep", h.Sleep.Seconds, errors.New("container terminated before sleep hook finished"), "")
		}
		return nil
	case h.Exec != nil:
		resp, err := w.m.cfg.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: h.Exec.Command})
		if err != nil {
			return failed("Exec", h.Exec.Command, errors.New(message(err)), "")
		}
		if resp.ExitCode != 0 {
			err := fmt.Errorf("command '%s' exited with %d: %.200s", strings.Join(h.Exec.Command, " "), resp.ExitCode, resp.Stderr)
			return failed("Exec", h.Exec.Command, err, fmt.Sprintf(", message: %q", fmt.Sprintf("%.200s%.200s", resp.Stdout, resp.Stderr)))
		}
		return nil
	case h.HTTPGet != nil:
		if err := w.httpHook(ctx, c, h.HTTPGet, ips); err != nil {
			return failed("HTTP", h.HTTPGet.Path, err, "")
		}
		return nil
	}
	return fmt.Errorf("%w: Cannot run handler: invalid handler: %v", ErrHook, h)
}

func (w *worker) httpHook(ctx context.Context, c *v1.Container, h *v1.HTTPGetAction, ips []string) error {
	host := ""
	if len(ips) > 0 {
		host = ips[0]
	} else if s := w.reported.Load(); s != nil {
		host = s.PodIP
	}
	if host == "" && h.Host == "" {
		host = "127.0.0.1" // the pod has no address of its own: it is in the node's network
	}
	req, err := probes.NewRequest(h, c, host, "lifecycle")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, httpHookTimeout)
	defer cancel()
	req = req.WithContext(ctx)
	client := http.Client{Transport: probes.NewTransport()}
	err = ask(&client, req)
	var failure *url.Error
	if !errors.As(err, &failure) || !strings.Contains(failure.Err.Error(), "server gave HTTP response to HTTPS client") {
		return err
	}
	// Old manifests say https and mean http (upstream: runHTTPHandler).
	plain := req.Clone(ctx)
	plain.URL.Scheme = "http"
	plain.Header.Del("Authorization")
	if ask(&client, plain) != nil {
		return err
	}
	w.event("", v1.EventTypeWarning, "LifecycleHTTPFallback",
		fmt.Sprintf("request to HTTPS lifecycle hook %s got HTTP response, retry with HTTP succeeded", req.URL.Host))
	return nil
}

// ask makes a request. Any answer will do, as for a kubelet.
func ask(client *http.Client, req *http.Request) error {
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxHookBody)
	return nil
}
