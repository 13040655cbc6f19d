package up

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/coracle-edge/coracle/controlplane/join"
	"github.com/coracle-edge/coracle/crishim/oci"
)

// kubeletDir is where the DaemonSets of vendors look for a kubelet.
const kubeletDir = "/var/lib/kubelet"

// node is one board of the local cluster: an edgelet with a data folder of its
// own and, where root runs it and containerd is installed, a containerd of its own.
type node struct {
	name     string
	number   int // from 1
	layout   Layout
	options  Options
	client   kubernetes.Interface
	hostsDir string
	lan      *lan // nil: the node shares this machine's namespaces

	board      *board       // of a node with a lan: the namespaces it has now
	containerd *oci.Private // the first one; its paths are those of all
}

// run keeps the node running until ctx ends: where it has namespaces of its own,
// it gets others when it loses them, as a board is powered on again.
func (n *node) run(ctx context.Context) error {
	if n.lan == nil {
		defer func() {
			if err := oci.RemoveNetwork(n.privateContainerd()); err != nil {
				n.options.Logger.Warn("the node's bridge stays", "node", n.name, "err", err)
			}
		}()
		return n.live(ctx)
	}
	for pause := minPause; ; {
		began := time.Now()
		err := n.onBoard(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > maxPause {
			pause = minPause
		}
		n.options.Logger.Warn("a board lost its power, starting it again", "node", n.name, "err", err, "after", pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

// onBoard is one life of the node, from power on to power off.
func (n *node) onBoard(ctx context.Context) error {
	// Addresses that pods had in the former life.
	if err := os.RemoveAll(filepath.Join(n.containerdDir(), "ipam")); err != nil {
		return err
	}
	net := n.lan.network(n.containerdDir(), n.number)
	if err := os.MkdirAll(net.ConfDir, 0o711); err != nil {
		return err
	}
	if err := net.Write(); err != nil {
		return err
	}
	var err error
	if n.board, err = n.lan.boot(ctx, n.options, n.number, n.name); err != nil {
		return err
	}
	defer n.board.off()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-n.board.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	return n.live(ctx)
}

// live keeps the node's processes running until ctx ends. Its pods end with it,
// so containerd outlives edgelet.
func (n *node) live(ctx context.Context) error {
	runtimeCtx, stopRuntime := context.WithCancel(context.WithoutCancel(ctx))
	var runtime sync.WaitGroup
	defer func() {
		stopRuntime()
		runtime.Wait()
	}()
	first, err := n.startContainerd(runtimeCtx)
	switch {
	case errors.Is(err, oci.ErrCannotRun):
		fmt.Fprintf(n.options.Notice, "%s runs Wasm pods only: %v\n", n.name, err)
	case err != nil:
		fmt.Fprintf(n.options.Notice, "%s runs Wasm pods only, its containerd doesn't start: %v\n", n.name, err)
	default:
		n.containerd = first
		runtime.Go(func() { n.keepContainerd(runtimeCtx, first) })
	}
	edgelet := &process{name: n.name, args: n.args, layout: n.layout, log: n.options.Logger, grace: stopGrace, start: n.start}
	return edgelet.run(ctx)
}

// start starts a process where the node's are.
func (n *node) start(cmd *exec.Cmd) error {
	if n.board == nil {
		return cmd.Start()
	}
	return n.board.start(cmd)
}

// startContainerd starts the node's own containerd and notes its pid.
func (n *node) startContainerd(ctx context.Context) (*oci.Private, error) {
	cfg := n.privateContainerd()
	cfg.RegistryHosts, cfg.Logger, cfg.Start = n.hostsDir, n.options.Logger, n.start
	p, err := oci.StartPrivate(ctx, cfg)
	if err != nil {
		return nil, err
	}
	pid := fmt.Sprintf("%d %s\n", p.PID(), startTime(p.PID()))
	return p, writeFile(n.layout.pidFile("containerd-"+n.name), []byte(pid), 0o644)
}

// podAddresses is the pool of which each network that this machine sees takes a
// part: the upper half of
// 10.0.0.0/8. The lower one has the cluster's services and most LANs.
var podAddresses = netip.MustParsePrefix("10.128.0.0/9")

func (n *node) privateContainerd() oci.PrivateConfig {
	cfg := privateContainerd(n.layout, n.name)
	cfg.Binary, cfg.CNIBinDir = n.options.Containerd, n.options.CNIBinDir
	if n.lan != nil {
		cfg.Pool = netip.Prefix{} // the LAN has one for it
	}
	return cfg
}

// privateContainerd is that of a node which shares this machine's network.
func privateContainerd(l Layout, node string) oci.PrivateConfig {
	return oci.PrivateConfig{Dir: filepath.Join(l.Node(node), "containerd"), Name: node, Pool: podAddresses}
}

func (n *node) containerdDir() string { return filepath.Join(n.layout.Node(n.name), "containerd") }

// keepContainerd starts containerd again whenever it ends, until ctx does.
func (n *node) keepContainerd(ctx context.Context, p *oci.Private) {
	defer os.Remove(n.layout.pidFile("containerd-" + n.name))
	pause := minPause
	for {
		select {
		case <-ctx.Done():
			_ = p.Stop()
			return
		case <-p.Done():
		}
		n.options.Logger.Warn("containerd ended, starting it again", "node", n.name, "err", p.Err())
		for {
			next, err := n.startContainerd(ctx)
			if err == nil {
				p, pause = next, minPause
				break
			}
			n.options.Logger.Warn("containerd does not start", "node", n.name, "err", err, "again after", pause)
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, maxPause)
		}
	}
}

// args joins the cluster at the first start, by a token as anywhere else; what
// the node got then lies in its data folder.
func (n *node) args(ctx context.Context) ([]string, error) {
	dir := n.layout.Node(n.name)
	args := []string{
		filepath.Join(n.options.BinDir, "edgelet"), "--data-dir", dir, "--node-name", n.name,
		"--runner", filepath.Join(n.options.BinDir, "wasmrunner"),
		"--registry-hosts", n.hostsDir,
		"--static-pods", filepath.Join(dir, "static-pods"),
		"--stop-pods",
	}
	if _, err := os.Stat(filepath.Join(dir, "identity", "identity.json")); errors.Is(err, os.ErrNotExist) {
		line, err := join.CreateToken(ctx, n.client, join.TokenOptions{Node: n.name, Life: time.Hour, Replace: true, Wait: readyTimeout})
		if err != nil {
			return nil, fmt.Errorf("join token for %s: %w", n.name, err)
		}
		args = append(args, "--join", line.String())
	}
	if n.lan != nil {
		args = append(args, "--node-ip", n.lan.address(n.number).String(), "--cgroup-root", n.layout.cgroup(n.name),
			"--kubelet-dir", kubeletDir) // the board's own, see init.go
	}
	if c := n.containerd; c != nil {
		args = append(args, "--containerd", c.Socket(), "--cni-conf-dir", c.CNIConfDir(), "--cni-bin-dir", c.CNIBinDir())
	}
	return append(args, n.options.NodeArgs...), nil
}
