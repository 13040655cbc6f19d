package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/test/lab"
)

// onTerminal starts a command on a terminal of its own, as a user's shell does, and
// returns the user's side of it.
func onTerminal(t *testing.T, cmd *exec.Cmd, width, height int) *os.File {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminals here: ", err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	resize(t, master, width, height)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return master
}

// resize is what a terminal emulator does when its window is dragged: the kernel
// tells the program with SIGWINCH.
func resize(t *testing.T, terminal *os.File, width, height int) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(width), Row: uint16(height)}); err != nil {
		t.Fatal(err)
	}
}

// Of a user at a terminal with kubectl exec -it: the size of the window at the start
// and when it changes, Ctrl-C, and the exit code of the shell.
func TestKubectlExecOnATerminal(t *testing.T) {
	node := shared.state.Nodes[0]
	ns := shared.tools(t, node)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := shared.kubectlCommand(ctx, "exec", "-it", "-n", ns, "tools", "-c", "web", "--", "sh")
	screen := onTerminal(t, cmd, 100, 40)
	lines := make(chan string, 64)
	go func() {
		defer close(lines)
		buf := make([]byte, 4096)
		for {
			n, err := screen.Read(buf)
			if n > 0 {
				lines <- string(buf[:n])
			}
			if err != nil { // EIO once kubectl has gone
				return
			}
		}
	}()
	var seen strings.Builder
	await := func(want string) {
		t.Helper()
		for !strings.Contains(seen.String(), want) {
			text, ok := <-lines
			if !ok {
				t.Fatalf("kubectl ended before %q: %q", want, seen.String())
			}
			seen.WriteString(text)
		}
		seen.Reset()
	}
	typed := func(text string) {
		t.Helper()
		if _, err := io.WriteString(screen, text); err != nil {
			t.Fatal(err)
		}
	}
	typed("while sleep 0.1; do stty size; done\n")
	await("40 100\r\n")
	resize(t, screen, 132, 50)
	await("50 132\r\n")
	typed("\x03")
	typed("echo again-$((6*7))\n")
	await("again-42\r\n")
	typed("exit 9\n")
	for range lines {
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 9 {
		t.Errorf("kubectl ended with %v", err)
	}
}

// tools makes a pod "tools" on a node that has a container "web", which has ended
// once before, and returns its namespace.
func (c *cluster) tools(t *testing.T, node string) (ns string) {
	t.Helper()
	native(t, node, "registry.invalid/tools:1", lab.Busybox(t))
	ns = c.namespace(t)
	c.apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: tools, labels: {app: tools}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: web
    image: registry.invalid/tools:1
    args: ["-c", "if [ ! -e /v/was ]; then touch /v/was; echo the first run; exit 3; fi; echo one; echo two; sleep 3; echo three; exec sleep 3600"]
    volumeMounts: [{name: v, mountPath: /v}]
  - {name: other, image: "registry.invalid/tools:1", args: ["-c", "echo of the other; while [ ! -e /tmp/end ]; do sleep 0.2; done"]}
`, node))
	// Ready alone may be its first run's.
	c.must(t, "wait", "-n", ns, `--for=jsonpath={.status.containerStatuses[?(@.name=="web")].restartCount}=1`, "pod/tools", "--timeout=90s")
	c.must(t, "wait", "-n", ns, "--for=condition=Ready", "pod/tools", "--timeout=90s")
	return ns
}

// What kubectl logs shows of a native container's log, by each of its flags.
func TestLogsOfANativePodByEachFlag(t *testing.T) {
	node := shared.state.Nodes[0]
	ns := shared.tools(t, node)
	logs := func(more ...string) string {
		t.Helper()
		return shared.must(t, append([]string{"logs", "-n", ns, "tools", "-c", "web"}, more...)...)
	}
	shared.shows(t, time.Minute, []string{"three\n"}, "logs", "-n", ns, "tools", "-c", "web")
	stamps := map[string]string{} // by line
	for line := range strings.Lines(logs("--timestamps")) {
		stamp, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		stamps[text] = stamp
	}
	for _, c := range []struct{ got, want string }{
		{logs(), "one\ntwo\nthree\n"},
		{logs("--previous"), "the first run\n"},
		{logs("--tail=2"), "two\nthree\n"},
		{logs("--tail=0"), ""},
		{logs("--limit-bytes=2"), "on"},
		{logs("--since=1h"), "one\ntwo\nthree\n"},
		{logs("--since-time=" + stamps["three"]), "three\n"},
		{logs("--since-time="+stamps["three"], "--timestamps"), stamps["three"] + " three\n"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
	all := shared.must(t, "logs", "-n", ns, "-l", "app=tools", "--all-containers", "--prefix", "--tail=1")
	for _, want := range []string{"[pod/tools/web] three\n", "[pod/tools/other] of the other\n"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q isn't in %q", want, all)
		}
	}
	// Nothing newer than now; and -f that ends with its container.
	if out := logs("--since-time=" + time.Now().Add(time.Hour).UTC().Format(time.RFC3339)); out != "" {
		t.Errorf("from in an hour: %q", out)
	}
	follow := shared.reader(t, "logs", "-n", ns, "-f", "tools", "-c", "other")
	follow.says(t, "of the other")
	shared.must(t, "exec", "-n", ns, "tools", "-c", "other", "--", "touch", "/tmp/end")
	select {
	case <-follow.ended:
		if follow.err != nil {
			t.Errorf("-f ended with %v: %s", follow.err, follow.text.String())
		}
	case <-time.After(time.Minute):
		t.Error("-f goes on after its container's end")
	}
}

// kubectl cp of a folder, both ways, with what is in it: modes, a link, an empty
// file, names with spaces.
func TestCopyOfAFolder(t *testing.T) {
	node := shared.state.Nodes[0]
	ns := shared.tools(t, node)
	dir := t.TempDir()
	there, back := filepath.Join(dir, "there"), filepath.Join(dir, "back")
	for name, text := range map[string]string{"a": "first\n", "deep/er/b": "second\n", "with space": "third\n", "empty": ""} {
		file := filepath.Join(there, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	shared.must(t, "cp", "-n", ns, there, "tools:/tmp/folder", "-c", "web")
	if out := shared.must(t, "exec", "-n", ns, "tools", "-c", "web", "--", "sh", "-c", "cat /tmp/folder/deep/er/b; stat -c %a /tmp/folder/a; echo of the pod > /tmp/folder/new"); out != "second\n640\n" {
		t.Errorf("in the pod: %q", out)
	}
	shared.must(t, "cp", "-n", ns, "tools:/tmp/folder", back, "-c", "web")
	for name, want := range map[string]string{"a": "first\n", "deep/er/b": "second\n", "with space": "third\n", "empty": "", "new": "of the pod\n"} {
		if raw, err := os.ReadFile(filepath.Join(back, name)); err != nil || string(raw) != want {
			t.Errorf("%s came back as %q, %v", name, raw, err)
		}
	}
}
