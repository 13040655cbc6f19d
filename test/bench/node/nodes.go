package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-edge/coracle/crishim"
	"github.com/coracle-edge/coracle/crishim/network"
	"github.com/coracle-edge/coracle/crishim/oci"
	"github.com/coracle-edge/coracle/test/bench/reference"
	"github.com/coracle-edge/coracle/test/bench/rig"
)

// subject is a node that is measured.
type subject struct {
	name   string
	client kubernetes.Interface
	// bind is the node that pods are bound to by their maker; empty: a scheduler
	// binds them.
	bind string
	// agent, runtime and pods are where its processes are.
	agent, runtime, pods cgroup
	// containerd is the socket of ours; empty: there is none.
	containerd string

	stop func() error
	// said is the end of its agent's log.
	said func() string
}

// podPool is where pods have their addresses.
var podPool = netip.MustParsePrefix("10.232.0.0/16")

func (b *bench) groups(name string) (agent, runtime, pods cgroup, err error) {
	root := b.cgroup + cgroup("/"+name)
	agent, runtime, pods = root+"/agent", root+"/runtime", root+"/pods"
	return agent, runtime, pods, errors.Join(agent.make(), runtime.make(), pods.make())
}

// startContainerd starts one of its own for a node.
func (b *bench) startContainerd(ctx context.Context, name string, in cgroup) (*oci.Private, oci.PrivateConfig, error) {
	cfg := oci.PrivateConfig{
		Dir: filepath.Join(b.dir, name), Binary: b.containerd, Pool: podPool, StartTimeout: time.Minute, Logger: b.log,
		Start: func(cmd *exec.Cmd) error { in.prepare(cmd); return cmd.Start() },
	}
	if err := os.MkdirAll(cfg.Dir, 0o711); err != nil {
		return nil, cfg, err
	}
	p, err := oci.StartPrivate(ctx, cfg)
	return p, cfg, err
}

// startUpstream starts upstream's node.
func (b *bench) startUpstream(ctx context.Context) (*subject, error) {
	s := &subject{name: "upstream", bind: reference.Name, said: func() string { return "" }}
	var err error
	if s.agent, s.runtime, s.pods, err = b.groups(s.name); err != nil {
		return nil, err
	}
	n := &reference.Node{Dir: filepath.Join(b.dir, s.name), Tools: b.tools, CgroupRoot: string(s.pods), Prepare: s.agent.prepare}
	if err := os.MkdirAll(n.Dir, 0o755); err != nil {
		return nil, err
	}
	runtimeCtx, stopRuntime := context.WithCancel(context.WithoutCancel(ctx))
	var containerd *oci.Private
	var cfg oci.PrivateConfig
	s.stop = func() error {
		clean, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		err := n.RemovePods(clean)
		n.Stop()
		if containerd != nil {
			err = errors.Join(err, removeSandboxes(clean, containerd.Socket()), containerd.Stop(), oci.RemoveNetwork(cfg))
		}
		stopRuntime()
		return err
	}
	n.Runtime = func(ctx context.Context) (socket string, err error) {
		if containerd, cfg, err = b.startContainerd(runtimeCtx, "ref-ctd", s.runtime); err != nil {
			return "", err
		}
		return "unix://" + containerd.Socket(), b.importSocket(ctx, containerd.Socket())
	}
	if err := n.Start(ctx); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	s.client = n.Client
	return s, nil
}

// importSocket gives a containerd the program's image, as our agent's socket does.
func (b *bench) importSocket(ctx context.Context, socket string) error {
	svc, err := crishim.New(ctx, crishim.Config{StateDir: filepath.Join(b.dir, "import"), RunnerPath: filepath.Join(b.bin, "wasmrunner"), ContainerdSocket: socket, Logger: b.log})
	if err != nil {
		return err
	}
	_, err = svc.Import(ctx, bytes.NewReader(b.programArchive), programImage)
	return errors.Join(err, svc.Close())
}

// startOurs starts our node, with containerd or for Wasm only.
func (b *bench) startOurs(ctx context.Context, withOCI bool) (_ *subject, err error) {
	s := &subject{name: "ours-wasm"}
	if withOCI {
		s.name = "ours-oci"
	}
	if s.agent, s.runtime, s.pods, err = b.groups(s.name); err != nil {
		return nil, err
	}
	dir := filepath.Join(b.dir, s.name)
	plane, data := filepath.Join(dir, "cp"), filepath.Join(dir, "node")
	if err := os.MkdirAll(data, 0o755); err != nil {
		return nil, err
	}
	control := &rig.Program{Name: filepath.Join(b.bin, "controlplane"), Log: filepath.Join(dir, "controlplane.log"), Args: []string{"--data-dir", plane, "--port-fallback", "--log-level", "warn"}}
	agent := &rig.Program{Name: filepath.Join(b.bin, "edgelet"), Log: filepath.Join(dir, "edgelet.log"), Prepare: s.agent.prepare}
	runtimeCtx, stopRuntime := context.WithCancel(context.WithoutCancel(ctx))
	var containerd *oci.Private
	var cfg oci.PrivateConfig
	var net network.Private // of a node without containerd
	s.stop = func() error {
		agent.Stop(time.Minute) // with its pods
		control.Stop(20 * time.Second)
		var err error
		if containerd != nil {
			clean, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			err = errors.Join(removeSandboxes(clean, containerd.Socket()), containerd.Stop(), oci.RemoveNetwork(cfg))
		}
		if net.Dir != "" {
			err = errors.Join(err, net.Remove())
		}
		stopRuntime()
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w: ...%s", s.name, err, agent.Tail()), s.stop())
		}
	}()
	s.said = func() string { return agent.Tail() + control.Tail() }
	if _, err := rig.StartControlPlane(ctx, control, plane); err != nil {
		return nil, err
	}
	kubeconfig := filepath.Join(plane, "kubeconfig")
	client, err := rig.Client(kubeconfig)
	if err != nil {
		return nil, err
	}
	s.client = client
	line, err := exec.CommandContext(ctx, filepath.Join(b.bin, "coracle"), "token", "create", "ours", "--kubeconfig", kubeconfig).Output()
	if err != nil {
		return nil, fmt.Errorf("coracle token create: %w", err)
	}
	agent.Args = []string{"--data-dir", data, "--node-name", "ours", "--node-ip", reference.Address, "--runner", filepath.Join(b.bin, "wasmrunner"), "--cgroup-root", string(s.pods), "--stop-pods", "--join", joinArgument(string(line))}
	// As for upstream's: how full this machine's disk is must not matter.
	agent.Args = append(agent.Args, "--image-gc-high-threshold", "100", "--eviction-hard", "memory.available<1Mi,nodefs.available<1%,imagefs.available<1%")
	if withOCI {
		if containerd, cfg, err = b.startContainerd(runtimeCtx, "our-ctd", s.runtime); err != nil {
			return nil, err
		}
		s.containerd = containerd.Socket()
		agent.Args = append(agent.Args, "--containerd", containerd.Socket(), "--cni-conf-dir", containerd.CNIConfDir(), "--cni-bin-dir", containerd.CNIBinDir())
	} else {
		net = network.Private{Name: "bench", Dir: dir, ConfDir: filepath.Join(dir, "cni"), Pool: podPool}
		if err := errors.Join(os.MkdirAll(net.ConfDir, 0o755), net.Write()); err != nil {
			return nil, err
		}
		agent.Args = append(agent.Args, "--cni-conf-dir", net.ConfDir)
	}
	if err := agent.Start(); err != nil {
		return nil, err
	}
	socket := filepath.Join(data, "run", "edgelet.sock")
	images := map[string][]byte{moduleImage: b.moduleArchive}
	if withOCI {
		images[programImage] = b.programArchive
	}
	for name, archive := range images {
		if err := reference.Until(ctx, time.Minute, "edgelet takes the image "+name, func() error { return importBySocket(socket, name, archive) }); err != nil {
			return nil, err
		}
	}
	return s, reference.Until(ctx, time.Minute, "the node is ready", func() error {
		n, err := client.CoreV1().Nodes().Get(ctx, "ours", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if _, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{}); err != nil {
			return err
		}
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("its conditions are %v", n.Status.Conditions)
	})
}

// joinArgument is the token within what `coracle token create` prints.
func joinArgument(said string) string {
	for _, f := range strings.Fields(said) {
		if strings.HasPrefix(f, "coracle1.") {
			return f
		}
	}
	return strings.TrimSpace(said)
}

func importBySocket(socket, name string, archive []byte) error {
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	resp, err := client.Post("http://edgelet/v1/images/import?ref="+name, "application/x-tar", bytes.NewReader(archive))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

func logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
}
