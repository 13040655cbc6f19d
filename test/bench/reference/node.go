// Package reference is a node of upstream's, with an API server of its own: what
// ours are measured beside.
package reference

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coracle-edge/coracle/test/bench/rig"
)

const (
	// Address of the node and of its API server, in its namespaces.
	Address = "172.31.0.1"
	// Name of the node.
	Name    = "upstream-1"
	apiPort = "6443"
)

// Programs are built by the Makefile, of test/bench/upstream.
var Programs = [...]string{"kubelet", "kube-proxy", "kube-apiserver", "etcd"}

// Check that all programs are in a folder.
func Check(tools string) error {
	for _, name := range Programs {
		if _, err := os.Stat(filepath.Join(tools, name)); err != nil {
			return err
		}
	}
	return nil
}

// tunables are what a kubelet sets for the whole machine. It finds them set, in
// its mount namespace, and leaves the machine's alone.
var tunables = [...][2]string{
	{"vm/overcommit_memory", "1"}, {"vm/panic_on_oom", "0"}, {"kernel/panic", "10"}, {"kernel/panic_on_oops", "1"},
	{"kernel/keys/root_maxkeys", "1000000"}, {"kernel/keys/root_maxbytes", "25000000"},
}

// Node is etcd, kube-apiserver, kubelet and kube-proxy as upstream makes them. It
// lives in namespaces that the process was started in.
type Node struct {
	Dir   string // of its own; the caller removes it
	Tools string // the folder of Programs
	// Runtime starts a container runtime and returns its CRI socket.
	Runtime func(context.Context) (string, error)
	// Via returns the address at which an agent (kubelet, kube-proxy) reaches the
	// API server's; nil: directly.
	Via func(agent, api string) (string, error)
	// CgroupRoot is the cgroup in which the kubelet makes its own, by QoS. Empty:
	// it makes none.
	CgroupRoot string
	// Prepare changes an agent's command before it starts; nil changes nothing.
	Prepare func(*exec.Cmd)

	// Client of the API server, once it has started.
	Client  kubernetes.Interface
	running []*rig.Program // in the order of their start
}

// File of a name in the node's folder.
func (n *Node) File(name string) string { return filepath.Join(n.Dir, name) }

// Start returns when the node is ready.
func (n *Node) Start(ctx context.Context) error {
	for _, step := range []func(context.Context) error{n.network, n.tune, n.controlPlane, n.objects, n.agents, n.ready} {
		if err := step(ctx); err != nil {
			return errors.Join(err, n.logs())
		}
	}
	return nil
}

// network gives the namespace an address that a node may have, and a route.
func (n *Node) network(ctx context.Context) error {
	for _, args := range []string{"link set lo up", "link add ref0 type bridge", "addr add " + Address + "/24 dev ref0", "link set ref0 up", "route add default dev ref0"} {
		if out, err := exec.CommandContext(ctx, "ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	return nil
}

func (n *Node) tune(context.Context) error {
	for _, t := range tunables {
		file := n.File(strings.ReplaceAll(t[0], "/", "."))
		if err := os.WriteFile(file, []byte(t[1]+"\n"), 0o644); err != nil {
			return err
		}
		if err := syscall.Mount(file, "/proc/sys/"+t[0], "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("/proc/sys/%s: %w", t[0], err)
		}
	}
	return nil
}

// Begin starts a program with its log beside the node's data. Stop ends it.
func (n *Node) Begin(prepare func(*exec.Cmd), program string, args ...string) error {
	p := &rig.Program{Name: program, Args: args, Log: n.File(filepath.Base(program) + ".log"), Prepare: func(cmd *exec.Cmd) {
		cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
		if prepare != nil {
			prepare(cmd)
		}
	}}
	if err := p.Start(); err != nil {
		return err
	}
	n.running = append(n.running, p)
	return nil
}

func (n *Node) controlPlane(ctx context.Context) error {
	if err := n.Begin(nil, filepath.Join(n.Tools, "etcd"), "--data-dir", n.File("etcd"), "--unsafe-no-fsync", "--log-level", "error"); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	tokens := "admin,admin,1,system:masters\nkubelet,system:node:" + Name + ",2,system:nodes\nkube-proxy,system:kube-proxy,3\n"
	if err := errors.Join(os.WriteFile(n.File("sa.key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600),
		os.WriteFile(n.File("tokens.csv"), []byte(tokens), 0o600)); err != nil {
		return err
	}
	if err := n.Begin(nil, filepath.Join(n.Tools, "kube-apiserver"), "--etcd-servers", "http://127.0.0.1:2379", "--cert-dir", n.File("certs"),
		"--bind-address", Address, "--advertise-address", Address, "--secure-port", apiPort, "--service-cluster-ip-range", "10.96.0.0/16",
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", n.File("sa.key"), "--service-account-signing-key-file", n.File("sa.key"),
		"--token-auth-file", n.File("tokens.csv"), "--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction"); err != nil {
		return err
	}
	cfg := &rest.Config{Host: "https://" + net.JoinHostPort(Address, apiPort), BearerToken: "admin", QPS: -1, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	if n.Client, err = kubernetes.NewForConfig(cfg); err != nil {
		return err
	}
	return Until(ctx, 2*time.Minute, "kube-apiserver is ready", func() error {
		_, err := n.Client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
}

// objects are those that pods need and that controllers would make.
func (n *Node) objects(ctx context.Context) error {
	core := n.Client.CoreV1()
	ok := func(err error) error {
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	}
	_, err1 := core.ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	_, err2 := core.ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kube-root-ca.crt"}, Data: map[string]string{"ca.crt": "-"}}, metav1.CreateOptions{})
	_, err3 := n.Client.NodeV1().RuntimeClasses().Create(ctx, &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "wasm"}, Handler: "wasm"}, metav1.CreateOptions{})
	return errors.Join(ok(err1), ok(err2), ok(err3))
}

// agents are kubelet and kube-proxy.
func (n *Node) agents(ctx context.Context) error {
	socket, err := n.Runtime(ctx)
	if err != nil {
		return err
	}
	if err := os.WriteFile(n.File("resolv.conf"), []byte("nameserver 192.0.2.1\n"), 0o644); err != nil {
		return err
	}
	cgroups := "cgroupsPerQOS: false"
	if n.CgroupRoot != "" {
		cgroups = "cgroupsPerQOS: true\ncgroupRoot: " + n.CgroupRoot
	}
	config := fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
%s
enforceNodeAllocatable: []
containerRuntimeEndpoint: unix://%s
evictionHard: {memory.available: 1Mi, nodefs.available: 1%%, imagefs.available: 1%%}
failCgroupV1: false
failSwapOn: false
imageGCHighThresholdPercent: 100
podLogsDir: %s
volumePluginDir: %s
resolvConf: %s
`, cgroups, socket, n.File("logs"), n.File("plugins"), n.File("resolv.conf"))
	proxy := fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: 10.244.0.0/16
hostnameOverride: %s
clientConnection: {kubeconfig: %s}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, Name, n.File("kube-proxy.kubeconfig"))
	if err := errors.Join(os.WriteFile(n.File("kubelet.yaml"), []byte(config), 0o600), os.WriteFile(n.File("proxy.yaml"), []byte(proxy), 0o600),
		n.kubeconfig("kubelet"), n.kubeconfig("kube-proxy")); err != nil {
		return err
	}
	if err := n.Begin(n.Prepare, filepath.Join(n.Tools, "kubelet"), "--config", n.File("kubelet.yaml"), "--kubeconfig", n.File("kubelet.kubeconfig"), "--root-dir", n.File("kubelet"),
		"--cert-dir", n.File("kubelet-pki"), "--node-ip", Address, "--hostname-override", Name); err != nil {
		return err
	}
	return n.Begin(n.Prepare, filepath.Join(n.Tools, "kube-proxy"), "--config", n.File("proxy.yaml"))
}

func (n *Node) kubeconfig(agent string) error {
	api := net.JoinHostPort(Address, apiPort)
	if n.Via != nil {
		var err error
		if api, err = n.Via(agent, api); err != nil {
			return err
		}
	}
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: it
contexts: [{name: it, context: {cluster: it, user: it}}]
clusters: [{name: it, cluster: {server: "https://%s", insecure-skip-tls-verify: true}}]
users: [{name: it, user: {token: %s}}]
`, api, agent)
	return os.WriteFile(n.File(agent+".kubeconfig"), []byte(text), 0o600)
}

func (n *Node) ready(ctx context.Context) error {
	return Until(ctx, 2*time.Minute, "the node is ready", func() error {
		node, err := n.Client.CoreV1().Nodes().Get(ctx, Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
				return fmt.Errorf("%s: %s", c.Reason, c.Message)
			}
		}
		return nil
	})
}

// Alive is nil while the kubelet renews its Lease.
func (n *Node) Alive(ctx context.Context) error {
	lease, err := n.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if at := lease.Spec.RenewTime; at == nil || time.Since(at.Time) > time.Minute {
		return fmt.Errorf("the kubelet's Lease was renewed at %v", at)
	}
	return nil
}

// Until waits until ok returns nil, at most within.
func Until(ctx context.Context, within time.Duration, what string, ok func() error) error {
	var last error
	err := rig.Until(ctx, within, what, func() bool { last = ok(); return last == nil })
	if err != nil {
		return fmt.Errorf("%w: %w", err, last)
	}
	return nil
}

// logs are the ends of what the programs said.
func (n *Node) logs() error {
	var errs []error
	for _, p := range n.running {
		errs = append(errs, fmt.Errorf("%s: ...%s", filepath.Base(p.Name), p.Tail()))
	}
	return errors.Join(errs...)
}

// RemovePods has the kubelet stop all pods, and waits until they are gone.
func (n *Node) RemovePods(ctx context.Context) error {
	if n.Client == nil {
		return nil
	}
	none := int64(0)
	if err := n.Client.CoreV1().Pods("default").DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &none}, metav1.ListOptions{}); err != nil {
		return err
	}
	return Until(ctx, time.Minute, "the pods are gone", func() error {
		list, err := n.Client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d are there", len(list.Items))
		}
		return err
	})
}

// Stop ends all programs, the last one first.
func (n *Node) Stop() {
	for i := len(n.running) - 1; i >= 0; i-- {
		n.running[i].Stop(5 * time.Second)
	}
}
