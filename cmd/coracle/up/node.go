package up

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/coracle-edge/coracle/controlplane/join"
	"github.com/coracle-edge/coracle/crishim/oci"
)

// node is one board of the local cluster: an edgelet with a data folder of its
// own and, where root runs it and containerd is installed, a containerd of its own.
type node struct {
	name     string
	layout   Layout
	options  Options
	client   kubernetes.Interface
	hostsDir string

	containerd *oci.Private // the first one; its paths are those of all
}

// run keeps the node's processes running until ctx ends. Its pods end with it,
// so containerd outlives edgelet.
func (n *node) run(ctx context.Context) error {
	runtimeCtx, stopRuntime := context.WithCancel(context.WithoutCancel(ctx))
	var runtime sync.WaitGroup
	defer func() {
		stopRuntime()
		runtime.Wait()
		if err := oci.RemoveNetwork(privateContainerd(n.layout, n.name)); err != nil {
			n.options.Logger.Warn("the node's bridge stays", "node", n.name, "err", err)
		}
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
	edgelet := &process{name: n.name, args: n.args, layout: n.layout, log: n.options.Logger, grace: stopGrace}
	return edgelet.run(ctx)
}

// startContainerd starts the node's own containerd and notes its pid.
func (n *node) startContainerd(ctx context.Context) (*oci.Private, error) {
	cfg := privateContainerd(n.layout, n.name)
	cfg.RegistryHosts, cfg.Logger = n.hostsDir, n.options.Logger
	p, err := oci.StartPrivate(ctx, cfg)
	if err != nil {
		return nil, err
	}
	pid := fmt.Sprintf("%d %s\n", p.PID(), startTime(p.PID()))
	return p, writeFile(n.layout.pidFile("containerd-"+n.name), []byte(pid), 0o644)
}

// podAddresses is the pool of which each node takes a part: the upper half of
// 10.0.0.0/8. The lower one has the cluster's services and most LANs.
var podAddresses = netip.MustParsePrefix("10.128.0.0/9")

func privateContainerd(l Layout, node string) oci.PrivateConfig {
	return oci.PrivateConfig{Dir: filepath.Join(l.Node(node), "containerd"), Name: node, Pool: podAddresses}
}

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
	if c := n.containerd; c != nil {
		args = append(args, "--containerd", c.Socket(), "--cni-conf-dir", c.CNIConfDir(), "--cni-bin-dir", c.CNIBinDir())
	}
	return append(args, n.options.NodeArgs...), nil
}
