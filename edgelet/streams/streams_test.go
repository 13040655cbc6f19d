package streams

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim"
	"github.com/coracle-edge/coracle/crishim/wasm"
)

// executors are the clients: kubectl's older one, and what browsers and upstream's
// suite speak.
var executors = []string{"SPDY", "WebSocket v4"}

func executor(t *testing.T, kind string, config *rest.Config, path string, q url.Values) remotecommand.Executor {
	t.Helper()
	target := config.Host + path + "?" + q.Encode()
	var e remotecommand.Executor
	var err error
	if kind == "SPDY" {
		u, perr := url.Parse(target)
		if perr != nil {
			t.Fatal(perr)
		}
		e, err = remotecommand.NewSPDYExecutor(config, http.MethodPost, u)
	} else {
		e, err = remotecommand.NewWebSocketExecutorForProtocols(config, http.MethodGet, target, "v4.channel.k8s.io")
	}
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func query(streams string, command ...string) url.Values {
	q := url.Values{"command": command}
	for name := range strings.FieldsSeq(streams) {
		q.Set(name, "1")
	}
	return q
}

func TestExec(t *testing.T) {
	b := newBoard(t)
	b.container("tools", nil, "sleep")
	for _, behind := range []bool{false, true} {
		_, config := b.serve(behind, nil)
		for _, kind := range executors {
			t.Run(fmt.Sprintf("%s, by URL %v", kind, behind), func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				run := func(q url.Values, in io.Reader) (string, string, error) {
					var out, errOut bytes.Buffer
					o := remotecommand.StreamOptions{Stdin: in, Stdout: &out, Stderr: &errOut}
					err := executor(t, kind, config, "/exec/default/guest/tools", q).StreamWithContext(ctx, o)
					return out.String(), errOut.String(), err
				}
				out, errOut, err := run(query("output error", "tool", "args", "a", "b"), nil)
				if err != nil || out != "a\nb\n" || errOut != "" {
					t.Errorf("args: %q %q %v", out, errOut, err)
				}
				out, errOut, err = run(query("output error", "tool", "cat", "/none"), nil)
				var exit utilexec.ExitError
				if !errors.As(err, &exit) || exit.ExitStatus() != 1 || out != "" || !strings.Contains(errOut, "No such file") {
					t.Errorf("an exit code and stderr: %q %q %v", out, errOut, err)
				}
				if kind == "WebSocket v4" {
					return // v4 can't say that stdin ended
				}
				large := strings.Repeat("0123456789abcde\n", 20_000)
				if out, _, err = run(query("input output error", "tool", "copy"), strings.NewReader(large)); err != nil || out != large {
					t.Errorf("stdin: %d of %d bytes, %v", len(out), len(large), err)
				}
			})
		}
	}
}

// What can't be is refused before a stream begins, in words for the user.
func TestRefusals(t *testing.T) {
	b := newBoard(t)
	b.container("tools", nil, "sleep")
	_, config := b.serve(false, nil)
	_, byURL := b.serve(true, nil)
	for _, c := range []struct {
		config *rest.Config
		path   string
		q      url.Values
		status int
		words  string
	}{
		{config, "/exec/default/none/tools", query("output", "tool"), 404, "pod does not exist"},
		{config, "/exec/default/guest/other-uid/tools", query("output", "tool"), 404, "pod does not exist"},
		{config, "/exec/default/guest/none", query("output", "tool"), 500, `container not found ("none")`},
		{config, "/exec/default/guest/tools", query("", "tool"), 400, "you must specify at least 1 of stdin, stdout, stderr"},
		{config, "/exec/default/guest/tools", query("output tty", "tool"), 500, "WASI has no terminal"},
		{byURL, "/exec/default/guest/tools", query("output tty", "tool"), 500, "WASI has no terminal"},
		{config, "/exec/default/guest/tools", query("output", "sh", "-c", "ls"), 404, "WASI has no processes"},
		{config, "/exec/default/guest/tools", query("output"), 500, "no command"},
		{config, "/attach/default/guest/none", query("output"), 500, "container none not found in pod guest_default"},
		{config, "/attach/default/guest/debugger", query("output"), 500, "container debugger not found in pod guest_default"},
		{config, "/portForward/default/none", nil, 404, "pod does not exist"},
		{config, "/run/default/guest/tools", url.Values{"cmd": {"tool exit 3"}}, 500, "exited with 3"},
		{config, "/run/default/guest/tools", nil, 400, `"cmd" is required`},
		{config, "/exec/default/guest/tools/x/y", query("output", "tool"), 404, "404 page not found"},
		{byURL, "/exec/default/guest/tools", query("output", "tool", "args", "a"), 400, "Upgrade request required"},
	} {
		resp, err := http.Post(c.config.Host+c.path+"?"+c.q.Encode(), "", nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.status || !strings.Contains(string(body), c.words) {
			t.Errorf("%s: %d %q; want %d %q", c.path, resp.StatusCode, body, c.status, c.words)
		}
	}
	resp, err := http.Post(config.Host+"/run/default/guest/uid-guest/tools?cmd=tool+args+a+b", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(body) != "a\nb\n" {
		t.Errorf("run: %d %q", resp.StatusCode, body)
	}
}

// syncBuffer is read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func TestAttach(t *testing.T) {
	b := newBoard(t)
	_, config := b.serve(false, nil)
	b.container("copy", func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }, "copy")
	in, type_ := io.Pipe()
	var out syncBuffer
	done := make(chan error, 1)
	e := executor(t, "SPDY", config, "/attach/default/guest/copy", query("input output error"))
	go func() {
		done <- e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: in, Stdout: &out, Stderr: io.Discard})
	}()
	for _, line := range []string{"one\n", "two\n"} {
		if _, err := io.WriteString(type_, line); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the guest says "+line, func() bool { return strings.HasSuffix(out.String(), line) })
	}
	// The end of stdin ends the guest, and with it the attachment.
	type_.Close()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the attachment doesn't end with its guest")
	}
}

func TestPortForward(t *testing.T) {
	b := newBoard(t)
	b.container("server", func(c *runtimeapi.ContainerConfig) {
		c.Annotations = map[string]string{crishim.AnnotationListen: fmt.Sprintf("127.0.0.1:%d/tcp", b.port)}
	}, "serve")
	for _, behind := range []bool{false, true} {
		_, config := b.serve(behind, nil)
		transport, upgrader, err := spdy.RoundTripperFor(config)
		if err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(config.Host + "/portForward/default/guest")
		if err != nil {
			t.Fatal(err)
		}
		stop, ready := make(chan struct{}), make(chan struct{})
		f, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u),
			[]string{fmt.Sprintf("0:%d", b.port), fmt.Sprintf("0:%d", freePort(t))}, stop, ready, io.Discard, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- f.ForwardPorts() }()
		select {
		case <-ready:
		case err := <-done:
			t.Fatalf("by URL %v: %v", behind, err)
		}
		ports, err := f.GetPorts()
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				if text, err := io.ReadAll(conn); string(text) != "served\n" {
					t.Errorf("by URL %v: %q, %v", behind, text, err)
				}
			})
		}
		all.Wait()
		// Where nobody listens, the client is told so, and the others go on.
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[1].Local))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		if text, err := io.ReadAll(conn); len(text) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("by URL %v, where nobody listens: %q, %v", behind, text, err)
		}
		conn.Close()
		close(stop)
		if err := <-done; err != nil && !errors.Is(err, portforward.ErrLostConnectionToPod) {
			t.Errorf("by URL %v: %v", behind, err)
		}
	}
}

// link is what is between a client and a server, and can be cut.
type link struct {
	net.Listener
	to    string
	mu    sync.Mutex
	conns []net.Conn
}

func newLink(t *testing.T, to string) *link {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &link{Listener: l, to: strings.TrimPrefix(to, "http://")}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", k.to)
			if err != nil {
				from.Close()
				continue
			}
			k.mu.Lock()
			k.conns = append(k.conns, from, to)
			k.mu.Unlock()
			all.Go(func() { _, _ = io.Copy(from, to) })
			all.Go(func() { _, _ = io.Copy(to, from) })
		}
	})
	t.Cleanup(func() { l.Close(); k.cut(); all.Wait() })
	return k
}

func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		c.Close()
	}
	l.conns = nil
}

// counting counts the commands that run.
type counting struct {
	*crishim.Service
	mu      sync.Mutex
	running int
}

func (c *counting) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running += n
}

func (c *counting) now() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running
}

func (c *counting) ExecContainer(ctx context.Context, id string, cmd []string, s wasm.Streams) (int, error) {
	c.add(1)
	defer c.add(-1)
	return c.Service.ExecContainer(ctx, id, cmd, s)
}

// A guest whose user is gone doesn't run on; neither does one of whom nothing is heard.
func TestExecEndsWithItsClient(t *testing.T) {
	b := newBoard(t)
	b.container("tools", nil, "sleep")
	count := &counting{Service: b.shim}
	_, config := b.serve(false, func(c *Config) { c.InProcess = count })
	for _, kind := range executors {
		link := newLink(t, config.Host)
		config := &rest.Config{Host: "http://" + link.Addr().String()}
		done := make(chan error, 1)
		e := executor(t, kind, config, "/exec/default/guest/tools", query("output error", "tool", "sleep"))
		go func() {
			done <- e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard})
		}()
		eventually(t, "the command runs", func() bool { return count.now() == 1 })
		link.cut()
		eventually(t, kind+": the command ends with its client", func() bool { return count.now() == 0 })
		<-done
	}
	_, config = b.serve(false, func(c *Config) { c.InProcess, c.Idle = count, 300*time.Millisecond })
	done := make(chan error, 1)
	e := executor(t, "SPDY", config, "/exec/default/guest/tools", query("output error", "tool", "sleep"))
	go func() {
		done <- e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard})
	}()
	eventually(t, "an idle stream is ended, and its command", func() bool { return len(done) == 1 && count.now() == 0 })
}

// By URL it is this package that ends an idle stream.
func TestIdleStreamsByURLEnd(t *testing.T) {
	b := newBoard(t)
	b.container("tools", nil, "sleep")
	_, config := b.serve(true, func(c *Config) { c.Idle = 300 * time.Millisecond })
	done := make(chan error, 1)
	e := executor(t, "SPDY", config, "/exec/default/guest/tools", query("output error", "tool", "sleep"))
	go func() {
		done <- e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard})
	}()
	eventually(t, "an idle stream is ended", func() bool { return len(done) == 1 })
}

func TestRunningPods(t *testing.T) {
	b := newBoard(t)
	b.container("tools", nil, "sleep")
	s, _ := b.serve(false, nil)
	pods, err := s.Running(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(pods) != 1 || pods[0].Name != "guest" || pods[0].UID != "uid-guest" || len(pods[0].Spec.Containers) != 1 || pods[0].Spec.Containers[0].Name != "tools" {
		t.Errorf("%+v", pods)
	}
	if tty, known := hasTerminal(&v1.Pod{}, "x"); tty || known {
		t.Error("a container that isn't there")
	}
	if tty, known := hasTerminal(b.pod, "debugger"); !tty || !known {
		t.Error("an ephemeral container's terminal")
	}
}
