package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/crishim"
	"github.com/coracle-edge/coracle/edgelet/metrics"
	"github.com/coracle-edge/coracle/internal/version"
)

// serveAdmin serves the node's owner, and nobody else, on a socket in the data
// folder: what the node is doing, and importing images.
func (a *agent) serveAdmin(ctx context.Context) error {
	path := filepath.Join(a.o.dataDir, "run", "edgelet.sock")
	l, err := crishim.ListenUnix("unix://" + path)
	if err != nil {
		// The path of a socket is short by the kernel's law; the pods go on without.
		a.log.Error("no admin socket", "path", path, "err", err)
		<-ctx.Done()
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", a.serveStatus)
	mux.Handle("GET /metrics", metrics.Handler(a.fillMetrics))
	if a.shim != nil {
		imports := a.shim.Admin()
		mux.HandleFunc("POST /v1/images/import", func(w http.ResponseWriter, r *http.Request) {
			imports.ServeHTTP(w, r)
			a.node.Changed()
		})
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = server.Shutdown(stop)
		_ = server.Close()
	}()
	if err := server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-done
	return nil
}

// podView is one pod in the answer of /v1/status.
type podView struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	Phase     string `json:"phase"`
	Static    bool   `json:"static,omitempty"`
	// Why it isn't running: its own reason, or what its containers wait for.
	Why string `json:"why,omitempty"`
}

// conditionView is a condition of the node.
type conditionView struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// why says in one line why a pod isn't running; empty if it is.
func why(s *v1.PodStatus) string {
	if s.Reason != "" || s.Message != "" {
		return strings.TrimPrefix(s.Reason+": "+s.Message, ": ")
	}
	for _, list := range [][]v1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses} {
		for i := range list {
			if w := list[i].State.Waiting; w != nil && w.Message != "" {
				return list[i].Name + ": " + w.Reason + ": " + w.Message
			}
		}
	}
	return ""
}

func (a *agent) serveStatus(w http.ResponseWriter, _ *http.Request) {
	written := a.state.Written()
	out := map[string]any{"node": a.name, "version": version.String(), "boot": a.state.BootSeq(), "order": a.state.Version().String(),
		"flash": map[string]int64{"commits": written.Commits, "bytes": written.Bytes, "syncs": written.Syncs}}
	if a.id.Load() != nil {
		out["standing"] = a.standing.Current()
	}
	if l := a.link.Load(); l != nil {
		out["link"] = l.of()
		out["traffic"], out["budget"] = a.counters.Snapshot(), a.budget.Status()
	}
	if r := a.refused.Load(); r != nil {
		out["joinRefused"] = r
	}
	if o := a.node.Object(); o != nil {
		conditions := []conditionView{}
		for _, c := range o.Status.Conditions {
			conditions = append(conditions, conditionView{string(c.Type), string(c.Status), c.Reason, c.Message})
		}
		out["conditions"] = conditions
	}
	views := []podView{}
	for _, p := range a.pods.Pods() {
		views = append(views, podView{p.Namespace, p.Name, p.UID, string(p.Status.Phase), p.Static, why(&p.Status)})
	}
	out["pods"] = views
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
}

// notifyReady tells systemd, if it started us, that the pods are being looked
// after.
func notifyReady() {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte("READY=1"))
}
