package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/coracle-edge/coracle/test/bench/reference"
	"github.com/coracle-edge/coracle/test/bench/rig"
)

// upstream is a cluster of upstream's own programs with as many pods on its one
// node, in namespaces of its own: a process of this program inside these starts
// and watches it (upstreamNode), while ours is measured.
type upstream struct {
	cmd *exec.Cmd
	out bytes.Buffer
	err bytes.Buffer
}

// upstreamResult is what that process prints: bytes of both directions between
// the programs and their API server, TLS included, as a forwarder counted them.
type upstreamResult struct {
	Window    time.Duration
	Kubelet   float64
	KubeProxy float64
	Pods      int
}

// startUpstream returns why not, if it can't be measured here.
func (b *bench) startUpstream() (*upstream, error) {
	if b.upstreamBin == "" {
		return nil, errors.New("--upstream isn't given")
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("it needs root, to make namespaces")
	}
	if err := reference.Check(b.upstreamBin); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	u := &upstream{cmd: exec.Command("unshare", "--net", "--mount", "--propagation", "private", self,
		"-be-upstream", "-bin", b.bin, "-upstream", b.upstreamBin, "-pods", fmt.Sprint(b.pods), "-upstream-window", b.upstreamWindow.String())}
	u.cmd.Stdout, u.cmd.Stderr = &u.out, &u.err
	u.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	return u, u.cmd.Start()
}

// result waits for it.
func (u *upstream) result() (r upstreamResult, err error) {
	if err := u.cmd.Wait(); err != nil {
		return r, fmt.Errorf("%w\n%s", err, u.err.Bytes()[max(0, u.err.Len()-4000):])
	}
	return r, json.Unmarshal(u.out.Bytes(), &r)
}

// stop ends it early.
func (u *upstream) stop() {
	if u.cmd.ProcessState == nil {
		_ = u.cmd.Process.Signal(syscall.SIGTERM)
		_ = u.cmd.Wait()
	}
}

// addUpstream puts its figures beside ours.
func (b *bench) addUpstream(u *upstream) error {
	r, err := u.result()
	if err != nil {
		return fmt.Errorf("upstream's node: %w", err)
	}
	day := float64(24*time.Hour) / float64(r.Window) / 1e3
	what := fmt.Sprintf("upstream, %d pods, idle for %s: ", r.Pods, r.Window)
	b.report.Add(what+"kubelet with its API server", r.Kubelet*day, "KB/day", "-")
	b.report.Add(what+"kube-proxy with its API server", r.KubeProxy*day, "KB/day", "-")
	b.report.Add(what+"both", (r.Kubelet+r.KubeProxy)*day, "KB/day", "-")
	b.report.Anchor(kubelet, fmt.Sprintf("kubelet and kube-proxy %.0f, in this run; KubeEdge 150000", (r.Kubelet+r.KubeProxy)*day))
	return nil
}

// beUpstream is the process inside the namespaces.
func beUpstream(ctx context.Context, bin, tools string, pods int, window time.Duration) error {
	dir, err := os.MkdirTemp("", "coracle-upstream")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	n := &upstreamNode{Node: reference.Node{Dir: dir, Tools: tools}, bin: bin, pods: pods}
	defer n.stop()
	if err := n.start(ctx); err != nil {
		return err
	}
	// It is idle when what its start caused is over, the first status among it.
	if err := rig.Sleep(ctx, time.Minute); err != nil {
		return err
	}
	kubelet, proxy := n.agents["kubelet"].count(), n.agents["kube-proxy"].count()
	if err := rig.Sleep(ctx, window); err != nil {
		return err
	}
	r := upstreamResult{Window: window, Pods: pods, Kubelet: float64(n.agents["kubelet"].count() - kubelet), KubeProxy: float64(n.agents["kube-proxy"].count() - proxy)}
	if err := n.check(ctx); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}
