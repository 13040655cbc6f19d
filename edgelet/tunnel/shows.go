package tunnel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// health serves /healthz and its single checks, in the words of upstream's
// healthz package.
func (a *api) health(mux *http.ServeMux) {
	checks := []struct {
		name  string
		check func() error
	}{
		{"ping", func() error { return nil }},
		{"log", func() error { return nil }},
		{"syncloop", a.cfg.Healthy},
	}
	for i := range checks {
		if checks[i].check == nil {
			checks[i].check = func() error { return nil }
		}
		mux.HandleFunc("GET /healthz/"+checks[i].name, func(w http.ResponseWriter, _ *http.Request) {
			if err := checks[i].check(); err != nil {
				fail(w, http.StatusInternalServerError, fmt.Sprintf("internal server error: %v\n", err))
				return
			}
			fail(w, http.StatusOK, "ok")
		})
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		exclude := r.URL.Query()["exclude"]
		var text strings.Builder
		failed := false
		for _, c := range checks {
			if slices.Contains(exclude, c.name) {
				fmt.Fprintf(&text, "[+]%s excluded: ok\n", c.name)
				continue
			}
			if err := c.check(); err != nil {
				failed = true
				a.cfg.Logger.Warn("healthz", "check", c.name, "err", err)
				fmt.Fprintf(&text, "[-]%s failed: reason withheld\n", c.name)
				continue
			}
			fmt.Fprintf(&text, "[+]%s ok\n", c.name)
		}
		switch _, verbose := r.URL.Query()["verbose"]; {
		case failed:
			fail(w, http.StatusInternalServerError, text.String()+"healthz check failed\n")
		case verbose:
			fail(w, http.StatusOK, text.String()+"healthz check passed\n")
		default:
			fail(w, http.StatusOK, "ok")
		}
	})
}

// shows serves what there is to see of the node.
func (a *api) shows(mux *http.ServeMux) {
	mux.HandleFunc("GET /pods", func(w http.ResponseWriter, _ *http.Request) {
		if a.cfg.Specs == nil {
			fail(w, http.StatusNotFound, "404 page not found\n")
			return
		}
		pods, err := a.cfg.Specs()
		writePods(w, pods, err)
	})
	mux.HandleFunc("GET /pods/{$}", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "../pods", http.StatusMovedPermanently)
	})
	running := func(w http.ResponseWriter, r *http.Request) {
		if a.cfg.Running == nil {
			fail(w, http.StatusNotFound, "404 page not found\n")
			return
		}
		pods, err := a.cfg.Running(r.Context())
		writePods(w, pods, err)
	}
	mux.HandleFunc("GET /runningpods", running)
	mux.HandleFunc("GET /runningpods/{$}", running)
	mux.HandleFunc("GET /configz", func(w http.ResponseWriter, _ *http.Request) {
		all := map[string]any{}
		if a.cfg.Config != nil {
			all["kubeletconfig"] = a.cfg.Config()
		}
		writeJSON(w, all)
	})
	mux.HandleFunc("POST /checkpoint/{namespace}/{pod}/{container}", a.checkpoint)
	if a.cfg.LogsDir == "" {
		disabled := func(w http.ResponseWriter, _ *http.Request) {
			fail(w, http.StatusMethodNotAllowed, "logs endpoint is disabled.\n")
		}
		mux.HandleFunc("/logs/", disabled)
		return
	}
	mux.HandleFunc("GET /logs/", a.hostLogs)
}

// hostLogs shows the host's log files. Links that lead out of the folder lead
// nowhere: who may read logs may not read the rest of the disk.
func (a *api) hostLogs(w http.ResponseWriter, r *http.Request) {
	root, err := os.OpenRoot(a.cfg.LogsDir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			fail(w, http.StatusNotFound, fmt.Sprintf("this node has no folder %s\n", a.cfg.LogsDir))
			return
		}
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	defer root.Close()
	http.StripPrefix("/logs/", http.FileServerFS(regular{root.FS(), a.cfg.LogsDir})).ServeHTTP(w, r)
}

// regular shows folders and files; to open a pipe or a device could wait for ever.
type regular struct {
	fs.FS
	dir string
}

// Open implements fs.FS.
func (f regular) Open(name string) (fs.File, error) {
	// A container's log has a link by its full path.
	if link, err := fs.ReadLink(f.FS, name); err == nil {
		if within, err := filepath.Rel(f.dir, link); err == nil && filepath.IsAbs(link) && filepath.IsLocal(within) {
			name = filepath.ToSlash(within)
		}
	}
	info, err := fs.Stat(f.FS, name)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	return f.FS.Open(name)
}

// checkpoint answers as a kubelet whose runtime can't: 404, once pod and container
// are there (pkg/kubelet/server/server.go).
func (a *api) checkpoint(w http.ResponseWriter, r *http.Request) {
	namespace, name, container := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container")
	var pods []*v1.Pod
	if a.cfg.Specs != nil {
		var err error
		if pods, err = a.cfg.Specs(); err != nil {
			fail(w, http.StatusInternalServerError, err.Error())
			return
		}
	}
	for _, p := range pods {
		if p.Namespace != namespace || p.Name != name {
			continue
		}
		if !hasContainer(&p.Spec, container) {
			fail(w, http.StatusNotFound, fmt.Sprintf("container %v does not exist", container))
			return
		}
		fail(w, http.StatusNotFound, fmt.Sprintf("checkpointing of %s/%s/%s failed (this node doesn't keep the state of processes: start a new container instead)",
			namespace, name, container))
		return
	}
	fail(w, http.StatusNotFound, "pod does not exist")
}

func hasContainer(spec *v1.PodSpec, name string) bool {
	for _, list := range [][]v1.Container{spec.Containers, spec.InitContainers} {
		if slices.ContainsFunc(list, func(c v1.Container) bool { return c.Name == name }) {
			return true
		}
	}
	return slices.ContainsFunc(spec.EphemeralContainers, func(c v1.EphemeralContainer) bool { return c.Name == name })
}

// writePods answers a v1 PodList, as JSON.
func writePods(w http.ResponseWriter, pods []*v1.Pod, err error) {
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	list := v1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: make([]v1.Pod, 0, len(pods))}
	for _, p := range pods {
		list.Items = append(list.Items, *p)
	}
	writeJSON(w, &list)
}

func writeJSON(w http.ResponseWriter, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(data, '\n'))
}
