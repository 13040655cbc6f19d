package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/examples"
)

func TestUpShowsWhatANewcomerNeeds(t *testing.T) {
	for _, want := range []string{
		"The cluster is at https://", "export KUBECONFIG=" + shared.layout.Kubeconfig(),
		"node/board-1", "node/board-2", "pod/hello", "Running", "$ coracle kubectl logs hello", "container-started", "coracle down",
	} {
		if !strings.Contains(shared.output, want) {
			t.Errorf("`coracle up` did not print %q:\n%s", want, shared.output)
		}
	}
}

// In the foreground, with three nodes and on a machine whose ports are taken: the
// screen says so within a minute, and Ctrl-C ends everything.
func TestUpInTheForeground(t *testing.T) {
	if l, err := net.Listen("tcp", ":6443"); err == nil { // else somebody has it
		defer l.Close()
	}
	dir, err := os.MkdirTemp("", "coracle-e2e")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	// The port is somebody's: this test's, if nobody else has it.
	if taken, err := net.Listen("tcp", "127.0.0.1:6443"); err == nil {
		defer taken.Close()
	}
	// Isolated nodes have the control plane at an address that nobody else uses.
	cmd := exec.Command(filepath.Join(binDir(), "coracle"), "up", "--data-dir", dir, "--nodes=3", "--isolate=never")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	defer watchdog.Stop()
	var screen strings.Builder
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		fmt.Fprintln(&screen, lines.Text())
		if strings.HasPrefix(lines.Text(), "It runs until Ctrl-C") {
			break
		}
	}
	took := time.Since(began)
	for _, want := range []string{"port 6443 was taken: the API is at https://127.0.0.1:", "node/board-3", "pod/hello", "Hello from WebAssembly", "status-stored", "It runs until Ctrl-C"} {
		if !strings.Contains(screen.String(), want) {
			t.Errorf("the screen lacks %q", want)
		}
	}
	if took > time.Minute {
		t.Errorf("it took %v", took)
	}
	if t.Failed() {
		t.Log(screen.String())
		logs(os.Stderr, dir)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(stdout)
	if err := cmd.Wait(); err != nil {
		t.Errorf("after Ctrl-C: %v\n%s", err, rest)
	}
	c := &cluster{dir: dir}
	if n := len(c.guests(t)); n > 0 {
		t.Errorf("%d guests run on", n)
	}
}

func TestSecondUpOnTheSameFolderSaysWhatRuns(t *testing.T) {
	out, err := coracle("up", "--detach", "--data-dir", shared.dir)
	if err == nil || !strings.Contains(out, "already running") || !strings.Contains(out, "coracle down") {
		t.Fatalf("err = %v, output:\n%s", err, out)
	}
}

// The trace of a pod applied with kubectl has every step, in order.
func TestTraceHasEveryStepInOrder(t *testing.T) {
	ns := shared.namespace(t)
	shared.apply(t, ns, wasmPod("traced", examples.HelloImage))
	shared.must(t, "wait", "-n", ns, "--for=jsonpath={.status.phase}=Running", "pod/traced", "--timeout=30s")
	var events []trace.Event
	eventually(t, 5*time.Second, func() error {
		out, err := coracle("trace", "traced", "-n", ns, "-o", "json", "--kubeconfig", shared.layout.Kubeconfig())
		if err != nil {
			return err
		}
		var answer struct{ Events []trace.Event }
		if err := json.Unmarshal([]byte(out), &answer); err != nil {
			return err
		}
		events = answer.Events
		if len(events) < len(trace.Steps()) {
			return fmt.Errorf("%d of %d steps: %v", len(events), len(trace.Steps()), events)
		}
		return nil
	})
	for i, want := range trace.Steps() {
		if events[i].Step != want {
			t.Errorf("step %d is %s, want %s", i, events[i].Step, want)
		}
		if i > 0 && events[i].Time.Before(events[i-1].Time) {
			t.Errorf("%s at %s comes before %s at %s", events[i].Step, events[i].Time, events[i-1].Step, events[i-1].Time)
		}
		if events[i].Component == "" {
			t.Errorf("%s names no component", events[i].Step)
		}
	}
	table, err := coracle("trace", "traced", "-n", ns, "--kubeconfig", shared.layout.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", table)
}

func TestTraceOfAnUnknownPodSaysSo(t *testing.T) {
	out, err := coracle("trace", "nobody", "--kubeconfig", shared.layout.Kubeconfig())
	if err == nil || !strings.Contains(out, "nobody") {
		t.Fatalf("err = %v, output:\n%s", err, out)
	}
}

// An ordinary user gets a cluster too, and is told in a line what needs root.
func TestUpAsAnOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the other tests ran as an ordinary user already; becoming another one needs root")
	}
	dir, err := os.MkdirTemp("", "coracle-e2e")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "bin")
	run(t, "cp", "-r", binDir(), bin)
	run(t, "chown", "-R", "65534:65534", dir)
	user := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", filepath.Join(bin, "coracle")}, args...)...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "HOME="+dir, "KUBECONFIG=")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := user("up", "--detach", "--data-dir", filepath.Join(dir, "data"), "--registry-address", "127.0.0.1:0")
	defer func() {
		if out, err := user("down", "--data-dir", filepath.Join(dir, "data")); err != nil {
			t.Error(err, out)
		}
	}()
	if err != nil {
		logs(os.Stderr, filepath.Join(dir, "data"))
		t.Fatal(err, out)
	}
	for _, want := range []string{"Hello from WebAssembly", "board-1: Wasm pods only", "need root"} {
		if !strings.Contains(out, want) {
			t.Errorf("`coracle up` did not print %q:\n%s", want, out)
		}
	}
}
