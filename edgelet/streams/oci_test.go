package streams

import (
	"io"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/test/lab"
)

// sleeping are the processes of this machine that are that command.
func sleeping(command string) (n int) {
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range names {
		if raw, _ := os.ReadFile(name); strings.TrimRight(strings.ReplaceAll(string(raw), "\x00", " "), " ") == command {
			n++
		}
	}
	return n
}

// A command in a container of containerd's whose client is gone. One that reads ends,
// for its input does. One that neither reads nor writes goes on, as under a kubelet:
// containerd waits for its end (internal/cri/server/container_execsync.go says why),
// and its HTTP server doesn't end the context of a connection that became a stream.
// It is its container's then, and ends with that; here nothing is left of it.
func TestOCIExecWhoseClientIsGone(t *testing.T) {
	lab.NeedNamespaces(t)
	ctd := lab.StartContainerd(t, "")
	b := newOCIBoard(t, ctd.Socket())
	_, config := b.serve(false, nil)
	atRest := runtime.NumGoroutine()
	for _, kind := range executors {
		// Behind a link of its own, so that cutting it is the end of the client.
		link := newLink(t, config.Host)
		config := &rest.Config{Host: "http://" + link.Addr().String()}
		in, w := io.Pipe()
		begin := func(q url.Values, stdin io.Reader) <-chan error {
			done := make(chan error, 1)
			e := executor(t, kind, config, "/exec/default/guest/tools", q)
			go func() {
				done <- e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: stdin, Stdout: io.Discard, Stderr: io.Discard})
			}()
			return done
		}
		reads := begin(query("input output error", "cat", "-", "-", "-", "-"), in)
		deaf := begin(query("output error", "sleep", "7301"), nil)
		eventually(t, "both commands run", func() bool { return sleeping("cat - - - -") == 1 && sleeping("sleep 7301") > 0 })
		link.cut()
		<-reads
		<-deaf
		w.Close()
		eventually(t, kind+": the command that reads ends with its client", func() bool { return sleeping("cat - - - -") == 0 })
		eventually(t, kind+": nothing of either stream is left here", func() bool { return runtime.NumGoroutine() <= atRest+4 })
	}
	if n := sleeping("sleep 7301"); n != len(executors) {
		t.Errorf("%d commands that neither read nor write go on, not %d: containerd has changed, say so in docs/failures.md", n, len(executors))
	}
	if _, err := b.shim.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: b.sandbox}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "they end with their container", func() bool { return sleeping("sleep 7301") == 0 })
}

// newOCIBoard is a board whose pod has a container of containerd's, "tools".
func newOCIBoard(t *testing.T, socket string) *board {
	t.Helper()
	b, dir := newShim(t, socket)
	b.start(dir, lab.Archive(lab.Busybox(t), "example.org/tools:1"), "example.org/tools:1", nil)
	b.container("tools", func(c *runtimeapi.ContainerConfig) { c.Command, c.Args = []string{"sleep", "7300"}, nil })
	return b
}
