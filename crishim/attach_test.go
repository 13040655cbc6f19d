package crishim_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim/wasm"
	"github.com/coracle-edge/coracle/test/lab"
)

// heard collects what is written and can be asked while it is.
type heard struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (h *heard) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.b.Write(p)
}

func (h *heard) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.b.String()
}

func (h *heard) until(t *testing.T, want string) {
	t.Helper()
	eventually(t, func() string {
		if got := h.String(); got != want {
			return "heard " + got + ", want " + want
		}
		return ""
	})
}

func TestWasmAttach(t *testing.T) {
	n := newNode(t, nil)
	img := n.image(lab.CNCF(probeModule(t)))
	sb, pod := n.sandbox("attach", hostNetwork)
	container := func(name string, stdin, once bool, args ...string) string {
		cfg := containerConfig(img, args...)
		cfg.Metadata.Name, cfg.LogPath, cfg.Stdin, cfg.StdinOnce = name, name+".log", stdin, once
		return n.start(sb, pod, cfg)
	}

	t.Run("stdin that ends once", func(t *testing.T) {
		n.in(t)
		id := container("once", true, true, "copy")
		in, w := io.Pipe()
		var out, other heard
		done := make(chan error, 2)
		go func() { done <- n.AttachContainer(t.Context(), id, wasm.Streams{Stdin: in, Stdout: &out}) }()
		go func() { done <- n.AttachContainer(t.Context(), id, wasm.Streams{Stdout: &other}) }()
		// A line that isn't finished is seen at once, though the log waits for its end.
		say(t, w, "no end of line")
		out.until(t, "no end of line")
		say(t, w, " yet\nnext\n")
		out.until(t, "no end of line yet\nnext\n")
		say(t, w, "the end")
		w.Close()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if got := out.String(); got != "no end of line yet\nnext\nthe end" {
			t.Errorf("attached: %q", got)
		}
		if got := other.String(); !strings.HasSuffix(out.String(), got) || !strings.HasSuffix(got, "the end") {
			t.Errorf("attached as well: %q", got)
		}
		st := n.wait(id)
		if got := text(readLog(t, st.GetLogPath())); got != "no end of line yet\nnext\nthe end\n" || st.GetExitCode() != 0 {
			t.Errorf("log %q, exit code %d", got, st.GetExitCode())
		}
		if err := n.AttachContainer(t.Context(), id, wasm.Streams{Stdout: &out}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("to an ended one: %v", err)
		}
	})

	t.Run("stdin that stays, across a restart", func(t *testing.T) {
		n.in(t)
		id := container("stays", true, false, "copy")
		for _, word := range []string{"first\n", "second\n", "third\n"} {
			in, w := io.Pipe()
			var out heard
			done := make(chan error, 1)
			go func() { done <- n.AttachContainer(t.Context(), id, wasm.Streams{Stdin: in, Stdout: &out}) }()
			say(t, w, word)
			out.until(t, word)
			w.Close()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if st := n.status(id); st.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Fatalf("after %q it is %s", word, st.GetState())
			}
			n.reopen()
		}
	})

	t.Run("once, across a restart", func(t *testing.T) {
		n.in(t)
		id := container("once-restart", true, true, "copy")
		n.reopen()
		if err := n.AttachContainer(t.Context(), id, wasm.Streams{Stdin: strings.NewReader("one\n")}); err != nil {
			t.Error(err)
		}
		st := n.wait(id)
		if got := text(readLog(t, st.GetLogPath())); got != "one\n" || st.GetExitCode() != 0 {
			t.Errorf("log %q, exit code %d", got, st.GetExitCode())
		}
	})

	t.Run("both streams to the end", func(t *testing.T) {
		n.in(t)
		id := container("both", true, true, "copy", "--", "flood", "3000000", "1000", "--", "tick", "0", "2", "stderr")
		var out, errOut heard
		if err := n.AttachContainer(t.Context(), id, wasm.Streams{Stdin: strings.NewReader("go\n"), Stdout: &out, Stderr: &errOut}); err != nil {
			t.Error(err)
		}
		if got := out.String(); !strings.HasPrefix(got, "go\nxxx") || len(got) < 3000000 || strings.Count(got, "\n") != 1+strings.Count(got[3:], "x\n") {
			t.Errorf("stdout has %d bytes", len(got))
		}
		if got := errOut.String(); got != "tick 0\ntick 1\n" {
			t.Errorf("stderr %q", got)
		}
	})

	t.Run("a reader that goes away", func(t *testing.T) {
		n.in(t)
		id := container("leaves", false, false, "tick", "2", "1000000")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		err := n.AttachContainer(ctx, id, wasm.Streams{Stdout: failing{}})
		if err == nil || !strings.Contains(err.Error(), "gone") {
			t.Errorf("%v", err)
		}
		var out heard
		done := make(chan error, 1)
		go func() { done <- n.AttachContainer(ctx, id, wasm.Streams{Stdout: &out}) }()
		eventually(t, func() string {
			if strings.Contains(out.String(), "tick") {
				return ""
			}
			return "nothing heard"
		})
		cancel()
		<-done
		if err := n.AttachContainer(t.Context(), id, wasm.Streams{Stdin: strings.NewReader("x")}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "stdin: true") {
			t.Errorf("stdin without one: %v", err)
		}
	})
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("gone") }

func say(t *testing.T, w io.Writer, s string) {
	t.Helper()
	if _, err := io.WriteString(w, s); err != nil {
		t.Fatal(err)
	}
}

func TestWasmDial(t *testing.T) {
	n := newNode(t, nil)
	img := n.image(lab.CNCF(probeModule(t)))
	port := int32(freePort(t))
	sb, pod := n.sandbox("dial", func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 8080, HostPort: port}}
	})
	n.start(sb, pod, containerConfig(img, "serve"))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	// The pod has no network of its own, so its port is the host's.
	conn, err := n.DialPod(ctx, sb, 8080)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := io.ReadAll(conn); string(got) != "served\n" {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []int32{0, -1, 65536} {
		if _, err := n.DialPod(ctx, sb, bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("port %d: %v", bad, err)
		}
	}
	if _, err := n.DialPod(ctx, sb, 1); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a port where nobody listens: %v", err)
	}
	if _, err := n.DialPod(ctx, "nobody", 1); status.Code(err) != codes.NotFound {
		t.Errorf("no sandbox: %v", err)
	}
}
