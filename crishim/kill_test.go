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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
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
	runtimeapi.ImageServiceClient
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
		"--cgroup-parent", "/coracle-test-" + filepath.Base(dir),
	}, args...)
	if d.conn, err = grpc.NewClient("unix://"+dir+"/cri.sock", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1, MaxDelay: 10 * time.Millisecond}, MinConnectTimeout: time.Second})); err != nil {
		t.Fatal(err)
	}
	d.RuntimeServiceClient, d.ImageServiceClient = runtimeapi.NewRuntimeServiceClient(d.conn), runtimeapi.NewImageServiceClient(d.conn)
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

func (d *daemon) importImage(img *lab.Image, ref string) {
	d.t.Helper()
	if err := d.tryImport(d.t.Context(), img, ref); err != nil {
		d.t.Fatal(err)
	}
}

// tryImport goes by the admin socket, as `coracle image import` does.
func (d *daemon) tryImport(ctx context.Context, img *lab.Image, ref string) error {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", d.dir+"/admin.sock")
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://crishim/v1/images/import?ref="+url.QueryEscape(ref), bytes.NewReader(lab.Archive(img, "")))
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(b), ref) {
		return fmt.Errorf("import: %s %s", resp.Status, b)
	}
	return nil
}

// TestKilledAtAnyMoment kills crishim with SIGKILL again and again while pods of
// all kinds and images come and go, and counts what is lost and what is left.
// CORACLE_KILLS says how often, CORACLE_SEED repeats a run as far as that goes.
func TestKilledAtAnyMoment(t *testing.T) {
	kills := 40
	if testing.Short() {
		kills = 5
	}
	if v, err := strconv.Atoi(os.Getenv("CORACLE_KILLS")); err == nil {
		kills = v
	}
	seed := uint64(time.Now().UnixNano())
	if v, err := strconv.ParseUint(os.Getenv("CORACLE_SEED"), 10, 64); err == nil {
		seed = v
	}
	t.Logf("CORACLE_KILLS=%d CORACLE_SEED=%d", kills, seed)
	c := startChurn(t, seed)
	d := c.daemon
	random := rand.New(rand.NewPCG(seed, 0))
	began := time.Now()
	for range kills {
		// Mostly so soon that little is done, often enough so late that all is.
		time.Sleep(time.Duration(random.IntN([]int{200, 500, 500, 2000, 5000}[random.IntN(5)])) * time.Millisecond)
		d.kill()
		d.start()
	}
	t.Logf("%d kills in %v", kills, time.Since(began).Round(time.Second))
	c.stop()
	t.Log("went their whole way: ", c.counts())

	c.checkSteady()
	c.checkFinished()
	c.removeAll()
	d.kill()
	d.args = append(d.args, "--keep-partial=-1s") // what is kept for a resumed pull isn't left
	d.start()                                     // a start sweeps
	c.checkNothingLeft()
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
