package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/logs"
)

var (
	// ErrPodNotFound is to be returned by Pods when no such pod is on this node.
	ErrPodNotFound = errors.New("pod not found")
	// ErrContainerNotFound is to be returned by Pods when the pod's spec has no such container.
	ErrContainerNotFound = errors.New("container not found")
)

// Log is where the log of one run of a container is.
type Log struct {
	Path string
	// Running says whether that run may still write; nil means that it ended.
	Running func() bool
}

// Pods is what the API has to know of the node's pods.
type Pods interface {
	// ContainerLog finds a log; previous asks for the run before the current one.
	// Besides the errors above, any error is the kubelet's text on why there is no
	// log now, and told to the client as it is.
	ContainerLog(namespace, pod, container string, previous bool) (Log, error)
}

// APIConfig of the kubelet API. What is nil or empty is answered as a kubelet does
// that has it switched off.
type APIConfig struct {
	Pods Pods
	// Specs are the pods of this node with their status, Running those that its
	// runtime runs.
	Specs   func() ([]*v1.Pod, error)
	Running func(context.Context) ([]*v1.Pod, error)
	// Config is what /configz shows as "kubeletconfig".
	Config func() any
	// Healthy returns why pods aren't looked after now, if so.
	Healthy func() error
	// LogsDir is the folder of the host's log files that /logs/ shows.
	LogsDir string
	// Now is the clock that log lines were stamped with; nil means time.Now.
	Now    func() time.Time
	Logger *slog.Logger
	// More are further paths of the kubelet's API, by pattern of http.ServeMux,
	// such as "POST /exec/{namespace}/{pod}/{container}". They take precedence over
	// all but the patterns of this package.
	More map[string]http.Handler
}

// unsupported are paths of the kubelet's API that only More can serve, or nobody.
var unsupported = map[string]string{
	"/debug/":   "profiling endpoint is disabled.",
	"/metrics":  "metrics aren't served by this node",
	"/metrics/": "these metrics aren't served by this node",
	"/stats/":   "statistics aren't served by this node",
	"/statusz":  "statusz isn't served by this node: see /healthz?verbose and /configz",
	"/flagz":    "flagz isn't served by this node: see /configz",
}

// NewAPI returns the part of the kubelet's HTTP API that this node has.
func NewAPI(cfg APIConfig) http.Handler {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	a := &api{cfg}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", a.containerLogs)
	a.health(mux)
	a.shows(mux)
	for path, why := range unsupported {
		if _, taken := cfg.More["GET "+path]; taken || cfg.More[path] != nil {
			continue
		}
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { fail(w, http.StatusMethodNotAllowed, why+"\n") })
	}
	for pattern, handler := range cfg.More {
		mux.Handle(pattern, handler)
	}
	return mux
}

type api struct{ cfg APIConfig }

func (a *api) containerLogs(w http.ResponseWriter, r *http.Request) {
	namespace, pod, container := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container")
	q, status, err := parseLogQuery(r.URL.Query(), a.cfg.Now())
	if err != nil {
		fail(w, status, err.Error())
		return
	}
	log, err := a.cfg.Pods.ContainerLog(namespace, pod, container, q.previous)
	switch {
	case errors.Is(err, ErrPodNotFound):
		fail(w, http.StatusNotFound, fmt.Sprintf("pod %q does not exist", pod))
		return
	case errors.Is(err, ErrContainerNotFound):
		fail(w, http.StatusNotFound, fmt.Sprintf("container %q not found in pod %q", container, pod))
		return
	case err != nil:
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	q.options.Running = log.Running
	a.stream(w, r, log.Path, q)
}

// stream sends the log. What is there goes out in large pieces; what comes later, at once.
func (a *api) stream(w http.ResponseWriter, r *http.Request, path string, q logQuery) {
	control := http.NewResponseController(w)
	sent := &counted{w: w}
	out := bufio.NewWriterSize(sent, 16<<10)
	q.options.CaughtUp = func() error {
		if err := out.Flush(); err != nil {
			return err
		}
		if sent.n == 0 && !q.options.Follow {
			return nil // the status isn't decided yet
		}
		return control.Flush()
	}
	if q.stdout {
		q.options.Stdout = out
	}
	if q.stderr {
		q.options.Stderr = out
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	err := logs.Read(r.Context(), path, q.options)
	if err == nil || r.Context().Err() != nil {
		return
	}
	a.cfg.Logger.Info("container logs", "path", path, "err", err)
	if sent.n == 0 {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	// Too late for a status: an end without its last chunk tells the client that something is missing.
	panic(http.ErrAbortHandler)
}

type counted struct {
	w io.Writer
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

type logQuery struct {
	options        logs.Options
	previous       bool
	stdout, stderr bool
}

// The kubelet's answers to a query it can't use.
var (
	errDecode  = errors.New(`{"message": "Unable to decode query."}`)
	errInvalid = errors.New(`{"message": "Invalid request."}`)
)

// parseLogQuery reads v1.PodLogOptions as the kubelet does, with its answers and status.
func parseLogQuery(query url.Values, now time.Time) (logQuery, int, error) {
	q := logQuery{}
	bools := map[string]*bool{"follow": &q.options.Follow, "timestamps": &q.options.Timestamps, "previous": &q.previous}
	for name, to := range bools {
		// Like the API's own decoder: everything but false and 0 is true, once it is there.
		if query.Has(name) {
			text := query.Get(name)
			*to = text != "false" && text != "0"
		}
	}
	// The kubelet's older name; "all" is the same as none.
	if tail := query.Get("tail"); tail == "all" {
		query.Del("tailLines")
	} else if tail != "" {
		query.Set("tailLines", tail)
	}
	numbers := map[string]*int64{}
	for _, name := range []string{"tailLines", "limitBytes", "sinceSeconds"} {
		if text := query.Get(name); text != "" {
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return q, http.StatusBadRequest, errDecode
			}
			numbers[name] = &n
		}
	}
	q.options.Tail, q.options.Limit = numbers["tailLines"], numbers["limitBytes"]
	seconds, sinceTime := numbers["sinceSeconds"], query.Get("sinceTime")
	if q.options.Tail != nil && *q.options.Tail < 0 || q.options.Limit != nil && *q.options.Limit < 1 ||
		seconds != nil && *seconds < 1 || seconds != nil && sinceTime != "" {
		return q, http.StatusUnprocessableEntity, errInvalid
	}
	if seconds != nil {
		// Beyond some centuries a Duration overflows; that is "all".
		if *seconds < int64(200*365*24*time.Hour/time.Second) {
			q.options.Since = now.Add(-time.Duration(*seconds) * time.Second)
		}
	}
	if sinceTime != "" {
		since, err := time.Parse(time.RFC3339Nano, sinceTime)
		if err != nil {
			return q, http.StatusBadRequest, errDecode
		}
		q.options.Since = since
	}
	switch stream := query.Get("stream"); stream {
	case "", "All":
		q.stdout, q.stderr = true, true
	case "Stdout":
		q.stdout = true
	case "Stderr":
		q.stderr = true
	default:
		return q, http.StatusBadRequest, fmt.Errorf("invalid stream type %q", stream)
	}
	return q, 0, nil
}

// fail answers as the kubelet's server does: the bare text.
func fail(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	io.WriteString(w, message)
}
