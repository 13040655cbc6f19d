package board

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-edge/coracle/crishim/oci"
	"github.com/coracle-edge/coracle/test/bench/rig"
	"github.com/coracle-edge/coracle/test/lab"
)

// Name of the node that a board is, and of the user namespace's folder for it.
const Name = "board"

// joinTimeout is until the node is ready, on a busy host too.
const joinTimeout = 10 * time.Minute

// NodeConfig of a board that is a node of a cluster whose control plane is here.
type NodeConfig struct {
	Config
	// Bin has the programs of this machine, Programs edgelet and wasmrunner of arm64.
	Bin, Programs string
	// Images that the board can pull, by NAME:TAG below ImageHost.
	Images map[string]*lab.Image
	// Args of edgelet's besides those that make it a node.
	Args []string
}

// Node is a cluster of one board.
type Node struct {
	*Board
	Client *kubernetes.Clientset

	dir      string
	control  *rig.Program
	registry *registry
}

// network of the pods. Masquerading needs iptables, which plugins would look for.
const network = `{"cniVersion":"1.0.0","name":"board","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":false,"hairpinMode":true,
"ipam":{"type":"host-local","ranges":[[{"subnet":"10.233.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}},{"type":"portmap","capabilities":{"portMappings":true}}]}`

// containerdToml is for the containerd of Debian: overlayfs, runc by cgroupfs.
const containerdToml = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + ImageHost + `/pause:1"
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
`

// StartNode starts a control plane on this machine's loopback and a board that joins it,
// and returns when the node is ready.
func StartNode(ctx context.Context, cfg NodeConfig) (_ *Node, err error) {
	n := &Node{}
	if n.dir, err = os.MkdirTemp("", "cor-bnode-*"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	images := map[string]*lab.Image{}
	for name, image := range cfg.Images {
		images[name] = image
	}
	if cfg.OCI {
		pause, err := oci.PauseProgram("arm64")
		if err != nil {
			return nil, err
		}
		images["pause:1"] = Image(nil, []string{"/pause"}, lab.File{Path: "pause", Mode: 0o755, Data: pause})
	}
	if n.registry, err = serve(images); err != nil {
		return nil, err
	}
	plane := filepath.Join(n.dir, "cp")
	n.control = &rig.Program{Name: filepath.Join(cfg.Bin, "controlplane"), Log: filepath.Join(n.dir, "controlplane.log"),
		Args: []string{"--data-dir", plane, "--port-fallback", "--advertise-address", Host, "--log-level", "warn"}}
	if _, err := rig.StartControlPlane(ctx, n.control, plane); err != nil {
		return nil, err
	}
	kubeconfig := filepath.Join(plane, "kubeconfig")
	if n.Client, err = rig.Client(kubeconfig); err != nil {
		return nil, err
	}
	said, err := exec.CommandContext(ctx, filepath.Join(cfg.Bin, "coracle"), "token", "create", Name, "--kubeconfig", kubeconfig).Output()
	if err != nil {
		return nil, fmt.Errorf("coracle token create: %w", err)
	}
	token := slices.IndexFunc(strings.Fields(string(said)), func(f string) bool { return strings.HasPrefix(f, "coracle1.") })
	if token < 0 {
		return nil, fmt.Errorf("coracle token create printed no join line: %q", said)
	}
	args := append([]string{"--node-name", Name, "--data-dir", "/var/lib/coracle", "--node-ip", "10.0.2.15", "--join", strings.Fields(string(said))[token]}, cfg.Args...)
	files := map[string]string{"/usr/bin/edgelet": filepath.Join(cfg.Programs, "edgelet"), "/usr/bin/wasmrunner": filepath.Join(cfg.Programs, "wasmrunner")}
	texts := map[string]string{"/etc/cni/net.d/10-board.conflist": network, "/etc/containerd/certs.d/_default/hosts.toml": n.registry.hosts()}
	// A restart of edgelet's is by the same script.
	start := "exec setsid /usr/bin/edgelet"
	if cfg.OCI {
		args = append(args, "--containerd", "/run/containerd/containerd.sock")
		texts["/etc/containerd/config.toml"] = containerdToml
	}
	for _, a := range args {
		start += " '" + a + "'"
	}
	texts["/usr/bin/start-edgelet"] = start + " >>/var/log/edgelet.log 2>&1 </dev/null\n"
	for to, text := range texts {
		from := filepath.Join(n.dir, strings.ReplaceAll(to, "/", "_"))
		if err := os.WriteFile(from, []byte(text), 0o755); err != nil {
			return nil, err
		}
		files[to] = from
	}
	for to, from := range cfg.Files {
		files[to] = from
	}
	board := cfg.Config
	board.Files = files
	if n.Board, err = Start(ctx, board); err != nil {
		return nil, err
	}
	if cfg.OCI {
		if _, err := n.Run(ctx, "setsid containerd >/var/log/containerd.log 2>&1 </dev/null & i=0; until [ -S /run/containerd/containerd.sock ]; do sleep 1; i=$((i+1)); [ $i -lt 300 ] || { cat /var/log/containerd.log; exit 1; }; done"); err != nil {
			return nil, err
		}
	}
	if err := n.StartAgent(ctx); err != nil {
		return nil, err
	}
	return n, n.Await(ctx, joinTimeout, "the node is ready", func() error {
		if _, err := n.Client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{}); err != nil {
			return err
		}
		return n.Ready(ctx)
	})
}

// StartAgent starts edgelet, the first time or again.
func (n *Node) StartAgent(ctx context.Context) error {
	_, err := n.Run(ctx, "sh /usr/bin/start-edgelet >/dev/null 2>&1 </dev/null &")
	return err
}

// Ready is nil if the cluster calls the node ready.
func (n *Node) Ready(ctx context.Context) error {
	node, err := n.Client.CoreV1().Nodes().Get(ctx, Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("node %s: its conditions are %v", Name, node.Status.Conditions)
}

// Await until ok has no error; on the way there what the agent says is added to the
// last one.
func (n *Node) Await(ctx context.Context, within time.Duration, what string, ok func() error) error {
	var last error
	err := rig.Until(ctx, within, what, func() bool { last = ok(); return last == nil })
	if err == nil {
		return nil
	}
	log, logErr := n.Run(context.WithoutCancel(ctx), "tail -n 30 /var/log/edgelet.log")
	return errors.Join(err, last, logErr, errors.New(log))
}

// Close ends all of it.
func (n *Node) Close() error {
	var err error
	if n.Board != nil {
		err = n.Board.Close()
	}
	if n.control != nil {
		n.control.Stop(20 * time.Second)
	}
	if n.registry != nil {
		err = errors.Join(err, n.registry.close())
	}
	return errors.Join(err, os.RemoveAll(n.dir))
}
