package crishim_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/test/lab"
)

// daemon is cmd/crishim in a process of its own.
type daemon struct {
	t    *testing.T
	dir  string
	args []string
	cmd  *exec.Cmd
	conn *grpc.ClientConn
	runtimeapi.RuntimeServiceClient
}

func startDaemon(t *testing.T, args ...string) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "cor-d-*")
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, dir: dir}
	d.args = append([]string{
		"--listen", "unix://" + dir + "/cri.sock", "--state-dir", dir + "/state", "--runner", lab.Program(t, "wasmrunner"),
		"--cgroup-parent", "/coracle-test-" + filepath.Base(dir), "--cni-conf-dir", dir + "/cni",
	}, args...)
	if d.conn, err = grpc.NewClient("unix://"+dir+"/cri.sock", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1, MaxDelay: 10 * time.Millisecond}, MinConnectTimeout: time.Second})); err != nil {
		t.Fatal(err)
	}
	d.RuntimeServiceClient = runtimeapi.NewRuntimeServiceClient(d.conn)
	d.start()
	t.Cleanup(func() {
		d.kill()
		d.conn.Close()
		for _, pid := range processesWith(dir) { // of a test that failed
			if proc, err := os.FindProcess(pid); err == nil {
				_ = proc.Kill()
			}
		}
		os.RemoveAll(dir)
		for _, cg := range cgroupsNamed("/coracle-test-" + filepath.Base(dir)) {
			os.Remove(cg)
		}
	})
	return d
}

func (d *daemon) start() {
	d.t.Helper()
	log, err := os.OpenFile(d.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	d.cmd = exec.Command(lab.Program(d.t, "crishim"), d.args...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	eventually(d.t, func() string {
		ctx, cancel := context.WithTimeout(d.t.Context(), time.Second)
		defer cancel()
		if _, err := d.Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true)); err != nil {
			b, _ := os.ReadFile(d.dir + "/log")
			return fmt.Sprintf("%v\n%s", err, b)
		}
		return ""
	})
}

func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
}

// importImage goes by the admin socket, as `coracle image import` does.
func (d *daemon) importImage(img *lab.Image, ref string) {
	d.t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", d.dir+"/admin.sock")
	}}}
	resp, err := client.Post("http://crishim/v1/images/import?ref="+url.QueryEscape(ref), "application/x-tar", bytes.NewReader(lab.Archive(img, "")))
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK || !strings.Contains(string(b), ref) {
		d.t.Fatalf("import: %s %s", resp.Status, b)
	}
}

// TestKilledAtAnyMoment kills crishim with SIGKILL again and again while pods
// come and go, and counts what is lost and what is left.
func TestKilledAtAnyMoment(t *testing.T) {
	kills := 25 // CORACLE_KILLS says otherwise
	if v, err := strconv.Atoi(os.Getenv("CORACLE_KILLS")); err == nil {
		kills = v
	}
	if testing.Short() {
		kills = 5
	}
	d := startDaemon(t)
	if os.Geteuid() == 0 && os.Getenv("CORACLE_LAB_INSIDE") != "" {
		writeBridge(t, d.dir)
	}
	d.importImage(lab.CNCF(probeModule(t)), "example.org/probe:1")
	ctx := t.Context()

	// One guest counts from beginning to end.
	cfg := sandboxConfig("steady")
	cfg.LogDirectory = filepath.Join(d.dir, "logs")
	sb, err := d.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		t.Fatal(err)
	}
	c := containerConfig("example.org/probe:1", "tick", "1", "1000000")
	c.LogPath = "steady.log"
	made, err := d.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: sb.GetPodSandboxId(), Config: c, SandboxConfig: cfg})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made.GetContainerId()}); err != nil {
		t.Fatal(err)
	}
	steady := made.GetContainerId()

	// Others come and go; errors are what a dying server gives.
	stop := make(chan struct{})
	churned := make(chan int)
	go func() {
		n := 0
		defer func() { churned <- n }()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if d.churn(ctx, i) == nil {
				n++
			} else {
				time.Sleep(5 * time.Millisecond)
			}
		}
	}()
	for range kills {
		time.Sleep(time.Duration(rand.IntN(500)) * time.Millisecond)
		d.kill()
		d.start()
	}
	close(stop)
	t.Logf("%d kills, %d pods went their whole way", kills, <-churned)

	st, err := d.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: steady})
	if err != nil || st.GetStatus().GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("the steady container: %v, %v", st, err)
	}
	if _, err := d.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: steady}); err != nil {
		t.Fatal(err)
	}
	// A kill between writing a line and taking it from the FIFO doubles the
	// line; none may be missing.
	if k := checkTicks(t, readLog(t, filepath.Join(d.dir, "logs", "steady.log")), false); k < 100 {
		t.Errorf("%d ticks only", k)
	}
	list, err := d.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list.GetItems() {
		if _, err := d.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.GetId()}); err != nil {
			t.Errorf("remove %s: %v", s.GetMetadata().GetName(), err)
		}
	}
	if got, err := d.ListContainers(ctx, &runtimeapi.ListContainersRequest{}); err != nil || len(got.GetContainers()) != 0 {
		t.Errorf("containers %v, %v are left", got, err)
	}
	d.kill()
	d.start() // a start sweeps
	for what, pattern := range map[string]string{
		"records": d.dir + "/state/wasm/*/*", "addresses": d.dir + "/ipam/*/10.*", "cgroups": "/sys/fs/cgroup/*/coracle-test-" + filepath.Base(d.dir) + "/pod*",
	} {
		if left, _ := filepath.Glob(pattern); len(left) != 0 {
			t.Errorf("%s are left: %v", what, left)
		}
	}
	if left, _ := lab.MountsBelow(d.dir); len(left) != 0 {
		t.Errorf("mounts are left: %v", left)
	}
	if left := processesWith(d.dir); len(left) != 1 {
		t.Errorf("processes are left besides crishim: %d", left)
	}
}

// churn is a short life of a pod.
func (d *daemon) churn(ctx context.Context, i int) error {
	cfg := sandboxConfig(fmt.Sprintf("churn%d", i))
	cfg.LogDirectory = filepath.Join(d.dir, "logs")
	sb, err := d.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		return err
	}
	c := containerConfig("example.org/probe:1", "sleep")
	c.LogPath = cfg.GetMetadata().GetName() + ".log"
	made, err := d.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: sb.GetPodSandboxId(), Config: c, SandboxConfig: cfg})
	if err != nil {
		return err
	}
	if _, err := d.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made.GetContainerId()}); err != nil {
		return err
	}
	if i%5 == 4 {
		// Something is executed in it, often until the server dies.
		_, _ = d.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: made.GetContainerId(), Cmd: []string{"probe.wasm", "sleep"}, Timeout: 1})
	}
	if i%3 == 0 {
		return nil // it stays for the end
	}
	_, err = d.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb.GetPodSandboxId()})
	return err
}

func writeBridge(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Stat("/usr/lib/cni/bridge"); err != nil {
		return
	}
	conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"kill","plugins":[{"type":"bridge","bridge":"cor-kill","isGateway":true,
		"ipam":{"type":"host-local","ranges":[[{"subnet":"10.231.9.0/24"}]],"dataDir":%q}}]}`, dir+"/ipam")
	if err := os.MkdirAll(dir+"/cni", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/cni/10-kill.conflist", []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
}

// processesWith lists the processes that name a folder on their command line,
// or have a file of a bundle in it open.
func processesWith(dir string) (pids []int) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		pid, _ := strconv.Atoi(filepath.Base(p))
		cmdline, _ := os.ReadFile(p + "/cmdline")
		if bytes.Contains(cmdline, []byte(dir)) {
			pids = append(pids, pid)
			continue
		}
		fds, _ := filepath.Glob(p + "/fd/*")
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, dir) && strings.Contains(to, "/bundle/") {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}
