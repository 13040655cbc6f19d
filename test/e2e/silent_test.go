package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/test/lab"
)

// reader is a kubectl that goes on until something ends it.
type reader struct {
	cmd   *exec.Cmd
	out   io.Reader
	text  bytes.Buffer // of stderr
	ended chan struct{}
	err   error // once it ended
}

func (c *cluster) reader(t *testing.T, args ...string) *reader {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &reader{cmd: c.kubectlCommand(ctx, args...), ended: make(chan struct{})}
	in, err := r.cmd.StdinPipe() // held open, as a user's terminal is
	if err != nil {
		t.Fatal(err)
	}
	out, w := io.Pipe()
	r.out, r.cmd.Stdout, r.cmd.Stderr = out, w, &r.text
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		r.err = r.cmd.Wait()
		w.Close()
		close(r.ended)
	}()
	t.Cleanup(func() { cancel(); in.Close(); out.Close() })
	return r
}

// says waits until stdout has a line that begins so, and reads on behind it.
func (r *reader) says(t *testing.T, beginning string) string {
	t.Helper()
	var seen strings.Builder
	b := make([]byte, 1)
	for {
		if _, err := r.out.Read(b); err != nil {
			t.Fatalf("%q doesn't come: %v, %q", beginning, err, seen.String())
		}
		if b[0] != '\n' {
			seen.WriteByte(b[0])
			continue
		}
		if strings.HasPrefix(seen.String(), beginning) {
			go func() { _, _ = io.Copy(io.Discard, r.out) }()
			return seen.String()
		}
		seen.Reset()
	}
}

// running are the processes of this machine with that command line.
func running(commandLine string) (pids []string) {
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range names {
		if raw, _ := os.ReadFile(name); strings.TrimRight(strings.ReplaceAll(string(raw), "\x00", " "), " ") == commandLine {
			pids = append(pids, filepath.Base(filepath.Dir(name)))
		}
	}
	return pids
}

// goroutines of a node's agent, by its own word.
func (c *cluster) goroutines(t *testing.T, node string) int {
	t.Helper()
	page := c.must(t, "get", "--raw", "/api/v1/nodes/"+node+"/proxy/metrics")
	m := regexp.MustCompile(`(?m)^go_goroutines (\d+)$`).FindStringSubmatch(page)
	if m == nil {
		t.Fatal("no go_goroutines")
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// A board's packets are swallowed, both ways and without a word, while streams are
// open through the tunnel. Each client is told within two minutes, and on the board,
// which is still cut off, nothing of a stream is left: neither the process of a command
// that reads or writes (another one containerd leaves running, as under a kubelet) nor
// a goroutine.
func TestTheLinkBreaksSilentlyUnderStreams(t *testing.T) {
	isolated(t, shared)
	node := shared.state.Nodes[1]
	native(t, node, "registry.invalid/tools:1", lab.Busybox(t))
	ns := shared.namespace(t)
	shared.apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: tools}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: registry.invalid/tools:1
    args: ["-c", "echo ready; while :; do nc -l -p 8080 -e cat - - -; done"]
  - {name: talk, image: "registry.invalid/tools:1", stdin: true, args: ["-c", "while sleep 0.3; do echo attached; done"]}
`, node))
	shared.must(t, "wait", "-n", ns, "--for=condition=Ready", "pod/tools", "--timeout=60s")
	before := shared.goroutines(t, node)

	quiet := shared.reader(t, "exec", "-n", ns, "-i", "tools", "-c", "web", "--", "sh", "-c", "echo begun; exec cat - -")
	quiet.says(t, "begun")
	talking := shared.reader(t, "exec", "-n", ns, "-i", "tools", "-c", "web", "--", "sh", "-c", "echo begun; while sleep 0.2; do echo on; done")
	talking.says(t, "begun")
	logs := shared.reader(t, "logs", "-n", ns, "-f", "tools", "-c", "web")
	logs.says(t, "ready")
	attached := shared.reader(t, "attach", "-n", ns, "-i", "--quiet", "tools", "-c", "talk")
	attached.says(t, "attached")
	forwarding := shared.reader(t, "port-forward", "-n", ns, "--address=127.0.0.1", "pod/tools", ":8080")
	address := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(forwarding.says(t, "Forwarding from"))
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	eventually(t, 30*time.Second, func() error {
		if len(running("cat - - -")) == 0 {
			return errors.New("no connection came to the pod")
		}
		return nil
	})
	if len(running("cat - -")) != 1 {
		t.Fatal("the command isn't seen, so its end wouldn't be")
	}

	route := regexp.MustCompile(`\bdev (\S+)`).FindStringSubmatch(string(must(t, shared.onNode(node, "ip", "route", "show", "default"))))
	if route == nil {
		t.Fatal("the board has no default route")
	}
	cut := func(how string) {
		for _, rule := range [][]string{{"INPUT", "-i"}, {"OUTPUT", "-o"}} {
			must(t, shared.onNode(node, "iptables", "-w", how, rule[0], rule[1], route[1], "-j", "DROP"))
		}
	}
	cut("-I")
	mended := false
	mend := func() {
		if !mended {
			cut("-D")
			mended = true
		}
	}
	defer mend()
	broken := time.Now()

	forwarded := make(chan error, 1)
	go func() {
		_ = conn.SetReadDeadline(time.Now().Add(3 * time.Minute))
		_, err := conn.Read(make([]byte, 1))
		forwarded <- err
	}()
	over, cancel := context.WithDeadline(t.Context(), broken.Add(2*time.Minute))
	defer cancel()
	for what, r := range map[string]*reader{"exec that is quiet": quiet, "exec that talks": talking, "logs -f": logs, "attach": attached, "port-forward": forwarding} {
		select {
		case <-over.Done():
		case <-r.ended:
		}
		select {
		case <-r.ended:
			err := r.err
			said := strings.TrimSpace(r.text.String())
			t.Logf("%s: after %s: %v: %s", what, time.Since(broken).Round(time.Second), err, said)
			if err == nil || said == "" {
				t.Errorf("%s ended with %v and said %q", what, err, said)
			}
		default:
			t.Errorf("%s is still there after two minutes", what)
		}
	}
	if err := <-forwarded; err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection that was forwarded: %v", err)
	}
	eventually(t, 2*time.Minute, func() error {
		for _, command := range []string{"cat - -", "sleep 0.2", "cat - - -"} {
			if pids := running(command); len(pids) > 0 {
				return fmt.Errorf("%q goes on as %v, %s after the link broke", command, pids, time.Since(broken).Round(time.Second))
			}
		}
		return nil
	})

	mend()
	shared.must(t, "wait", "--for=condition=Ready", "node/"+node, "--timeout=120s")
	eventually(t, time.Minute, func() error {
		if out, err := shared.kubectl("", "exec", "-n", ns, "tools", "-c", "web", "--", "echo", "again"); err != nil || strings.TrimSpace(out) != "again" {
			return fmt.Errorf("%q %v", out, err)
		}
		return nil
	})
	eventually(t, time.Minute, func() error {
		if now := shared.goroutines(t, node); now > before+8 {
			return fmt.Errorf("%d goroutines, there were %d", now, before)
		}
		return nil
	})
}

func must(t *testing.T, cmd *exec.Cmd) []byte {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return out
}
