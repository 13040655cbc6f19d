package tunnel

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

type noPods struct{}

func (noPods) ContainerLog(_, _, _ string, _ bool) (Log, error) { return Log{}, ErrPodNotFound }

func testAPI(t testing.TB, healthy *error) http.Handler {
	dir := t.TempDir()
	logs := filepath.Join(dir, "log")
	for path, text := range map[string]string{"log/syslog": "a line\n", "secret": "a key\n"} {
		path = filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("../secret", filepath.Join(logs, "out")),
		os.Symlink(filepath.Join(logs, "syslog"), filepath.Join(logs, "link")), os.Symlink(logs+"/../secret", filepath.Join(logs, "away")), unix.Mkfifo(filepath.Join(logs, "pipe"), 0o644)); err != nil {
		t.Fatal(err)
	}
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "hello"}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "main"}}}}
	list := func() ([]*v1.Pod, error) { return []*v1.Pod{pod}, nil }
	return NewAPI(APIConfig{Pods: noPods{}, Specs: list, Running: func(context.Context) ([]*v1.Pod, error) { return list() },
		Config: func() any { return map[string]any{"maxPods": 110} }, Healthy: func() error { return *healthy }, LogsDir: logs})
}

func TestAPIShowsTheNode(t *testing.T) {
	var sick error
	api := testAPI(t, &sick)
	ask := func(method, path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		api.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		return w
	}
	for _, c := range []struct {
		method, path string
		status       int
		words        string
	}{
		{"GET", "/healthz", 200, "ok"}, {"GET", "/healthz/syncloop", 200, "ok"}, {"GET", "/healthz/none", 404, ""},
		{"GET", "/pods", 200, `{"kind":"PodList","apiVersion":"v1"`}, {"GET", "/runningpods/", 200, `"name":"hello"`},
		{"POST", "/pods", 405, ""}, {"GET", "/configz", 200, `{"kubeletconfig":{"maxPods":110}}`},
		{"GET", "/logs/", 200, "syslog"}, {"GET", "/logs/syslog", 200, "a line"},
		// Links lead no further than the folder, and what could block isn't opened.
		{"GET", "/logs/link", 200, "a line"}, {"GET", "/logs/away", 500, ""}, {"GET", "/logs/out", 500, ""}, {"GET", "/logs/pipe", 403, ""}, {"GET", "/logs/none", 404, ""},
		{"POST", "/checkpoint/default/hello/main", 404, "checkpointing of default/hello/main failed"},
		{"POST", "/checkpoint/default/hello/none", 404, "container none does not exist"},
		{"POST", "/checkpoint/default/none/main", 404, "pod does not exist"},
		{"GET", "/debug/pprof/heap", 405, "disabled"},
	} {
		if w := ask(c.method, c.path); w.Code != c.status || !strings.Contains(w.Body.String(), c.words) || strings.Contains(w.Body.String(), "a key") {
			t.Errorf("%s %s: %d %q; want %d %q", c.method, c.path, w.Code, w.Body, c.status, c.words)
		}
	}
	sick = errors.New("the manager doesn't answer")
	if w := ask("GET", "/healthz"); w.Code != 500 || w.Body.String() != "[+]ping ok\n[+]log ok\n[-]syncloop failed: reason withheld\nhealthz check failed\n" {
		t.Errorf("%d %q", w.Code, w.Body)
	}
	if w := ask("GET", "/healthz?exclude=syncloop"); w.Code != 200 {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

// Whatever is asked for: no panic, and nothing from outside the folder of logs.
func FuzzAPI(f *testing.F) {
	for _, path := range []string{"/logs/../secret", "/logs/out", "/containerLogs/a/b/c?tailLines=1", "/checkpoint/a/b/c", "/healthz?exclude=x"} {
		f.Add(path)
	}
	var well error
	api := testAPI(f, &well)
	f.Fuzz(func(t *testing.T, path string) {
		u, err := url.ParseRequestURI(path)
		if err != nil {
			return
		}
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			w := httptest.NewRecorder()
			api.ServeHTTP(w, &http.Request{Method: method, URL: u, Header: http.Header{}, Body: http.NoBody, Host: "node"})
			if strings.Contains(w.Body.String(), "a key") {
				t.Fatalf("%s %q: %q", method, path, w.Body)
			}
		}
	})
}
