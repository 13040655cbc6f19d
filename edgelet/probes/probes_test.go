package probes

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func port(t *testing.T, addr string) intstr.IntOrString {
	t.Helper()
	_, p, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(p)
	if err != nil {
		t.Fatal(err)
	}
	return intstr.FromInt(n)
}

// one runs one probe against this machine's loopback.
func one(t *testing.T, h v1.ProbeHandler, exec Exec, c *v1.Container) (verdict, string, error) {
	t.Helper()
	if c == nil {
		c = &v1.Container{}
	}
	check := newChecker(exec)
	return check.retrying(t.Context(), target{host: "127.0.0.1", c: &container{id: "c1", spec: c},
		probe: &probe{spec: &v1.Probe{ProbeHandler: h, TimeoutSeconds: 1}}})
}

func TestHTTP(t *testing.T) {
	var last *http.Request
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) { last = r })
	mux.HandleFunc("/bad", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "secret", http.StatusServiceUnavailable) })
	mux.HandleFunc("/here", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/bad", http.StatusFound) })
	mux.HandleFunc("/there", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
	})
	mux.HandleFunc("/round", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/round", http.StatusFound) })
	mux.HandleFunc("/much", func(w http.ResponseWriter, r *http.Request) {
		for range 1000 {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	var opened atomic.Int32
	count := func(c net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			opened.Add(1)
		case http.StateClosed:
			opened.Add(-1)
		}
	}
	plain, secure := httptest.NewUnstartedServer(mux), httptest.NewUnstartedServer(mux)
	plain.Config.ConnState, secure.Config.ConnState = count, count
	secure.TLS = &tls.Config{}
	plain.Start()
	defer plain.Close()
	secure.StartTLS()
	defer secure.Close()
	get := func(path string) *v1.HTTPGetAction {
		return &v1.HTTPGetAction{Path: path, Port: port(t, plain.Listener.Addr().String())}
	}
	for _, test := range []struct {
		name string
		a    *v1.HTTPGetAction
		want verdict
		text string
	}{
		{"ok", get("/ok?a=b"), succeeded, ""},
		{"unavailable, without its body", get("/bad"), failed, "HTTP probe failed with statuscode: 503"},
		{"missing", get("nowhere"), failed, "HTTP probe failed with statuscode: 404"},
		{"redirect on the host is followed", get("/here"), failed, "HTTP probe failed with statuscode: 503"},
		{"redirect elsewhere is not", get("/there"), warned, "Probe terminated redirects, Response body: "},
		{"redirects without end", get("/round"), failed, "stopped after 10 redirects"},
		{"endless body", get("/much"), succeeded, ""},
		{"hangs", get("/hang"), failed, "context deadline exceeded"},
		{"certificate of nobody", &v1.HTTPGetAction{Path: "/ok", Scheme: v1.URISchemeHTTPS, Port: port(t, secure.Listener.Addr().String())}, succeeded, ""},
		{"host", &v1.HTTPGetAction{Host: "localhost", Path: "/ok", Port: port(t, plain.Listener.Addr().String())}, succeeded, ""},
	} {
		v, text, err := one(t, v1.ProbeHandler{HTTPGet: test.a}, nil, nil)
		if err != nil || v != test.want || !strings.Contains(text, test.text) || len(text) > maxOutput || strings.Contains(text, "secret") {
			t.Errorf("%s: %s %.200q %v", test.name, v, text, err)
		}
	}
	a := get("/ok")
	a.HTTPHeaders = []v1.HTTPHeader{{Name: "Host", Value: "example.org"}, {Name: "X-A", Value: "1"}, {Name: "X-A", Value: "2"}}
	if _, _, err := one(t, v1.ProbeHandler{HTTPGet: a}, nil, nil); err != nil {
		t.Fatal(err)
	}
	if last.Host != "example.org" || len(last.Header["X-A"]) != 2 || last.UserAgent() != "kube-probe/1.36" || last.Header.Get("Accept") != "*/*" ||
		last.Header.Get("Accept-Encoding") != "" {
		t.Errorf("asked with %s %v", last.Host, last.Header)
	}
	if v, _, err := one(t, v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Port: intstr.FromString("web")}}, nil, nil); err == nil {
		t.Errorf("a port that nobody has: %s", v)
	}
	for n := opened.Load(); n > 0 && t.Context().Err() == nil; n = opened.Load() {
		runtime.Gosched() // a connection that is kept makes this end with the test's time
	}
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	named := &v1.Container{Ports: []v1.ContainerPort{{Name: "web", ContainerPort: int32(port(t, l.Addr().String()).IntVal)}}}
	if v, text, err := one(t, v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromString("web")}}, nil, named); v != succeeded || err != nil {
		t.Error(v, text, err)
	}
	l.Close()
	if v, text, err := one(t, v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromString("web")}}, nil, named); v != failed || err != nil || !strings.Contains(text, "connection refused") {
		t.Error(v, text, err)
	}
}

func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := health.NewServer()
	h.SetServingStatus("down", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	s, other := grpc.NewServer(), grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(s, h)
	go func() { _ = s.Serve(l) }()
	defer s.Stop()
	without, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = other.Serve(without) }()
	defer other.Stop()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, test := range []struct {
		name, addr, service string
		want                verdict
		text                string
	}{
		{"serving", l.Addr().String(), "", succeeded, "service healthy"},
		{"not serving", l.Addr().String(), "down", failed, `service unhealthy (responded with "NOT_SERVING")`},
		{"unknown service", l.Addr().String(), "what", failed, "error: health rpc probe failed: "},
		{"no health service", without.Addr().String(), "", failed, "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): "},
		{"silence", silent.Addr().String(), "", failed, "timeout: failed to connect service "},
	} {
		v, text, err := one(t, v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: port(t, test.addr).IntVal, Service: &test.service}}, nil, nil)
		if v != test.want || err != nil || !strings.HasPrefix(text, test.text) {
			t.Errorf("%s: %s %q %v", test.name, v, text, err)
		}
	}
}

func TestExec(t *testing.T) {
	h := v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"cat", "/x"}}}
	for _, test := range []struct {
		name  string
		code  int32
		err   error
		out   string
		want  verdict
		text  string
		calls int
	}{
		{"ends well", 0, nil, "fine", succeeded, "fine", 1},
		{"ends badly", 3, nil, strings.Repeat("x", maxOutput+1), failed, strings.Repeat("x", maxOutput), 1},
		{"takes too long", 0, context.DeadlineExceeded, "", failed, `command timed out: "cat /x" timed out after 1s`, 1},
		{"can't be run", 0, errors.New("no such module in the image"), "", unknown, "", retries},
	} {
		calls := 0
		v, text, err := one(t, h, func(_ context.Context, id string, cmd []string, timeout time.Duration) ([]byte, int32, error) {
			calls++
			return []byte(test.out), test.code, test.err
		}, nil)
		if v != test.want || text != test.text || calls != test.calls || (v == unknown) != (err != nil) {
			t.Errorf("%s: %s %.80q %v, %d calls", test.name, v, text, err, calls)
		}
	}
}

// board is a Manager with commands that hang or answer.
type board struct {
	m       *Manager
	mu      sync.Mutex
	events  []Event
	runs    map[string]int
	now     int
	highest int
	hang    func(id string) time.Duration
}

func newBoard(parallel int) *board {
	b := &board{runs: map[string]int{}}
	b.m = New(Config{Parallel: parallel, Changed: func(string) {}, Event: func(e Event) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.events = append(b.events, e)
	}, Exec: func(ctx context.Context, id string, _ []string, timeout time.Duration) ([]byte, int32, error) {
		b.mu.Lock()
		b.now++
		b.highest = max(b.highest, b.now)
		b.runs[id]++
		d := b.hang(id)
		b.mu.Unlock()
		defer func() {
			b.mu.Lock()
			b.now--
			b.mu.Unlock()
		}()
		select {
		case <-time.After(min(d, timeout)):
		case <-ctx.Done():
		}
		if d > timeout {
			return nil, 0, context.DeadlineExceeded
		}
		return nil, 0, nil
	}})
	return b
}

func (b *board) watch(n int) { b.watchFrom(0, n) }

// watchFrom watches the pods of these numbers.
func (b *board) watchFrom(first, end int) {
	for i := first; i < end; i++ {
		id := fmt.Sprint("c", i)
		b.m.Watch(Pod{UID: fmt.Sprint("p", i), Containers: []Container{{Name: "main", ID: id, Spec: &v1.Container{Name: "main",
			ReadinessProbe: &v1.Probe{ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"x"}}},
				TimeoutSeconds: 30, PeriodSeconds: 10, SuccessThreshold: 1, FailureThreshold: 3}}}}})
	}
}

// What hangs holds only its own slot: with more hanging probes than slots the
// others still run each period, and never more than the slots at a time.
func TestHangingProbesDontHoldUpOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(8)
		b.hang = func(id string) time.Duration {
			if n, _ := strconv.Atoi(id[1:]); n < 40 {
				return time.Hour
			}
			return 10 * time.Millisecond
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.m.Run(ctx) }()
		b.watch(60)
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		if b.highest > 8 {
			t.Errorf("%d ran at the same time", b.highest)
		}
		// Until all that hang are known to, they take the slots five times for 30 s.
		for n := 40; n < 60; n++ {
			if got := b.runs[fmt.Sprint("c", n)]; got < 90 {
				t.Errorf("c%d ran %d times in 20 minutes, once in 10 s was due", n, got)
			}
		}
		// A pod that comes now finds slots that those which hang may not have.
		b.watchFrom(60, 61)
		time.Sleep(20 * time.Second) // its first run may be spread over a period
		synctest.Wait()
		if b.runs["c60"] == 0 {
			t.Error("a new pod's probe waits for those that are known to hang")
		}
		before := runtime.NumGoroutine()
		for i := range 61 {
			b.m.Forget(fmt.Sprint("p", i))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(b.m.pods)+len(b.m.byID)+b.m.queue.Len()+b.m.inFlight != 0 || runtime.NumGoroutine() > before {
			t.Errorf("something is left: %d pods, %d containers, %d queued, %d running", len(b.m.pods), len(b.m.byID), b.m.queue.Len(), b.m.inFlight)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A probe that fails in ever other words doesn't fill the journal.
func TestEventsAreBounded(t *testing.T) {
	p := &probe{tokens: eventBurst}
	now := time.Now()
	said := 0
	for i := range 3600 {
		if p.maySay(fmt.Sprint("failure ", i), now.Add(time.Duration(i)*time.Second)) {
			said++
		}
	}
	if said < eventBurst || said > eventBurst+12 {
		t.Errorf("%d events in an hour", said)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add("/a?b=c", "", "X", "y", "10.0.0.1", 80)
	f.Add("%zz", "[::1", "Host", "a b", "fe80::1", 70000)
	f.Fuzz(func(t *testing.T, path, host, name, value, ip string, n int) {
		req, err := NewRequest(&v1.HTTPGetAction{Path: path, Host: host, Port: intstr.FromInt32(int32(n)),
			HTTPHeaders: []v1.HTTPHeader{{Name: name, Value: value}}}, &v1.Container{}, ip, "probe")
		if err != nil {
			return
		}
		if u, err := url.Parse(req.URL.String()); err != nil || u.Host != req.URL.Host {
			t.Errorf("%q goes to %q, was made for %q: %v", req.URL, u, req.URL.Host, err)
		}
	})
}
