package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
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

	"github.com/coracle-edge/coracle/examples"
	"github.com/coracle-edge/coracle/test/bench/rig"
	"github.com/coracle-edge/coracle/test/lab"
)

const (
	upstreamAddress = "172.31.0.1"
	upstreamName    = "upstream-1"
	apiPort         = "6443"
)

// tunables are what a kubelet sets for the whole machine. It finds them set, in
// its mount namespace, and leaves the machine's alone.
var tunables = [...][2]string{
	{"vm/overcommit_memory", "1"}, {"vm/panic_on_oom", "0"}, {"kernel/panic", "10"}, {"kernel/panic_on_oops", "1"},
	{"kernel/keys/root_maxkeys", "1000000"}, {"kernel/keys/root_maxbytes", "25000000"},
}

// upstreamNode is etcd, kube-apiserver, kubelet and kube-proxy as upstream makes
// them, and our crishim as the kubelet's runtime. It lives in namespaces that the
// process was started in.
type upstreamNode struct {
	dir, bin, tools string
	pods            int

	client         kubernetes.Interface
	kubelet, proxy *forwarder
	running        []*exec.Cmd // in the order of their start
}

func (n *upstreamNode) file(name string) string { return filepath.Join(n.dir, name) }

func (n *upstreamNode) start(ctx context.Context) error {
	for _, step := range []func(context.Context) error{n.network, n.tune, n.controlPlane, n.objects, n.runtime, n.agents, n.run} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// network gives the namespace an address that a node may have, and a route.
func (n *upstreamNode) network(ctx context.Context) error {
	for _, args := range []string{"link set lo up", "link add ref0 type bridge", "addr add " + upstreamAddress + "/24 dev ref0", "link set ref0 up", "route add default dev ref0"} {
		if out, err := exec.CommandContext(ctx, "ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	return nil
}

func (n *upstreamNode) tune(context.Context) error {
	for _, t := range tunables {
		file := n.file(strings.ReplaceAll(t[0], "/", "."))
		if err := os.WriteFile(file, []byte(t[1]+"\n"), 0o644); err != nil {
			return err
		}
		if err := syscall.Mount(file, "/proc/sys/"+t[0], "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("/proc/sys/%s: %w", t[0], err)
		}
	}
	return nil
}

// begin starts a program with its log beside its data.
func (n *upstreamNode) begin(program string, args ...string) error {
	log, err := os.Create(n.file(filepath.Base(program) + ".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	n.running = append(n.running, cmd)
	return nil
}

func (n *upstreamNode) controlPlane(ctx context.Context) error {
	if err := n.begin(filepath.Join(n.tools, "etcd"), "--data-dir", n.file("etcd"), "--unsafe-no-fsync", "--log-level", "error"); err != nil {
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
	tokens := "admin,admin,1,system:masters\nkubelet,system:node:" + upstreamName + ",2,system:nodes\nkube-proxy,system:kube-proxy,3\n"
	if err := errors.Join(os.WriteFile(n.file("sa.key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600),
		os.WriteFile(n.file("tokens.csv"), []byte(tokens), 0o600)); err != nil {
		return err
	}
	if err := n.begin(filepath.Join(n.tools, "kube-apiserver"), "--etcd-servers", "http://127.0.0.1:2379", "--cert-dir", n.file("certs"),
		"--bind-address", upstreamAddress, "--advertise-address", upstreamAddress, "--secure-port", apiPort, "--service-cluster-ip-range", "10.96.0.0/16",
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", n.file("sa.key"), "--service-account-signing-key-file", n.file("sa.key"),
		"--token-auth-file", n.file("tokens.csv"), "--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction"); err != nil {
		return err
	}
	cfg := &rest.Config{Host: "https://" + net.JoinHostPort(upstreamAddress, apiPort), BearerToken: "admin", QPS: -1, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	if n.client, err = kubernetes.NewForConfig(cfg); err != nil {
		return err
	}
	return n.until(ctx, 2*time.Minute, "kube-apiserver is ready", func() error {
		_, err := n.client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
}

// objects are those that pods need and that controllers would make.
func (n *upstreamNode) objects(ctx context.Context) error {
	core := n.client.CoreV1()
	ok := func(err error) error {
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	}
	_, err1 := core.ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	_, err2 := core.ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kube-root-ca.crt"}, Data: map[string]string{"ca.crt": "-"}}, metav1.CreateOptions{})
	_, err3 := core.ConfigMaps("default").Create(ctx, settingsMap(), metav1.CreateOptions{})
	_, err4 := n.client.NodeV1().RuntimeClasses().Create(ctx, &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "wasm"}, Handler: "wasm"}, metav1.CreateOptions{})
	return errors.Join(ok(err1), ok(err2), ok(err3), ok(err4))
}

// runtime is ours, because no other is sure to be there: the kubelet's talk with
// its API server doesn't depend on it.
func (n *upstreamNode) runtime(ctx context.Context) error {
	if err := n.begin(filepath.Join(n.bin, "crishim"), "--listen", "unix://"+n.file("cri.sock"), "--admin", n.file("admin.sock"), "--state-dir", n.file("crishim"),
		"--runner", filepath.Join(n.bin, "wasmrunner"), "--cni-conf-dir", n.file("none"), "--pod-network", "host", "--registry-hosts", n.file("none")); err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", n.file("admin.sock"))
	}}}
	archive := lab.Archive(lab.CNCF(examples.HelloModule), examples.HelloImage)
	return n.until(ctx, 30*time.Second, "crishim takes an image", func() error {
		resp, err := client.Post("http://crishim/v1/images/import?ref="+examples.HelloImage, "application/x-tar", bytes.NewReader(archive))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
}

// agents are kubelet and kube-proxy, each with a forwarder before its API server.
func (n *upstreamNode) agents(context.Context) (err error) {
	api := net.JoinHostPort(upstreamAddress, apiPort)
	if n.kubelet, err = forward(upstreamAddress+":0", api); err != nil {
		return err
	}
	if n.proxy, err = forward(upstreamAddress+":0", api); err != nil {
		return err
	}
	if err := os.WriteFile(n.file("resolv.conf"), []byte("nameserver 192.0.2.1\n"), 0o644); err != nil {
		return err
	}
	// cgroups by QoS are the only thing left out: they would be made for the machine.
	config := fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
containerRuntimeEndpoint: unix://%s
evictionHard: {memory.available: 1Mi, nodefs.available: 1%%, imagefs.available: 1%%}
failCgroupV1: false
failSwapOn: false
imageGCHighThresholdPercent: 100
podLogsDir: %s
volumePluginDir: %s
resolvConf: %s
`, n.file("cri.sock"), n.file("logs"), n.file("plugins"), n.file("resolv.conf"))
	proxy := fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: 10.244.0.0/16
hostnameOverride: %s
clientConnection: {kubeconfig: %s}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, upstreamName, n.file("proxy.kubeconfig"))
	if err := errors.Join(os.WriteFile(n.file("kubelet.yaml"), []byte(config), 0o600), os.WriteFile(n.file("proxy.yaml"), []byte(proxy), 0o600),
		n.kubeconfig("kubelet", n.kubelet), n.kubeconfig("proxy", n.proxy)); err != nil {
		return err
	}
	if err := n.begin(filepath.Join(n.tools, "kubelet"), "--config", n.file("kubelet.yaml"), "--kubeconfig", n.file("kubelet.kubeconfig"), "--root-dir", n.file("kubelet"),
		"--cert-dir", n.file("kubelet-pki"), "--node-ip", upstreamAddress, "--hostname-override", upstreamName); err != nil {
		return err
	}
	return n.begin(filepath.Join(n.tools, "kube-proxy"), "--config", n.file("proxy.yaml"))
}

func (n *upstreamNode) kubeconfig(who string, through *forwarder) error {
	token := map[string]string{"kubelet": "kubelet", "proxy": "kube-proxy"}[who]
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: it
contexts: [{name: it, context: {cluster: it, user: it}}]
clusters: [{name: it, cluster: {server: "https://%s", insecure-skip-tls-verify: true}}]
users: [{name: it, user: {token: %s}}]
`, through.l.Addr(), token)
	return os.WriteFile(n.file(who+".kubeconfig"), []byte(text), 0o600)
}

// run has the node run its pods.
func (n *upstreamNode) run(ctx context.Context) error {
	if err := n.until(ctx, 2*time.Minute, "the node is ready", func() error {
		node, err := n.client.CoreV1().Nodes().Get(ctx, upstreamName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
				return fmt.Errorf("%s: %s", c.Reason, c.Message)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	for i := range n.pods {
		pod := hello(fmt.Sprintf("ordinary-%d", i))
		// A kubelet makes a pod anew, for ever, that has no address of its own, and
		// without network plugins there is none.
		pod.Spec.NodeName, pod.Spec.HostNetwork = upstreamName, true
		if _, err := n.client.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return n.until(ctx, 3*time.Minute, "all pods run", func() error { return n.check(ctx) })
}

// check that all pods run, and that the node's agent is there: it renews a Lease.
func (n *upstreamNode) check(ctx context.Context) error {
	list, err := n.client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	running := 0
	for _, p := range list.Items {
		if p.Status.Phase != corev1.PodRunning {
			continue
		}
		running++
		for _, c := range p.Status.ContainerStatuses {
			if c.RestartCount > 0 {
				return fmt.Errorf("pod %s was restarted %d times: this is not idle", p.Name, c.RestartCount)
			}
		}
	}
	if running != n.pods {
		return fmt.Errorf("%d of %d pods run", running, n.pods)
	}
	lease, err := n.client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, upstreamName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if at := lease.Spec.RenewTime; at == nil || time.Since(at.Time) > time.Minute {
		return fmt.Errorf("the kubelet's Lease was renewed at %v", at)
	}
	return nil
}

func (n *upstreamNode) until(ctx context.Context, within time.Duration, what string, ok func() error) error {
	var last error
	err := rig.Until(ctx, within, what, func() bool { last = ok(); return last == nil })
	if err != nil {
		return fmt.Errorf("%w: %w", err, last)
	}
	return nil
}

// logs are the ends of what the programs said.
func (n *upstreamNode) logs() error {
	var errs []error
	for _, cmd := range n.running {
		raw, _ := os.ReadFile(n.file(filepath.Base(cmd.Path) + ".log"))
		errs = append(errs, fmt.Errorf("%s: ...%s", filepath.Base(cmd.Path), raw[max(0, len(raw)-1500):]))
	}
	return errors.Join(errs...)
}

// stop ends all, the pods first.
func (n *upstreamNode) stop() {
	if n.client != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		none := int64(0)
		_ = n.client.CoreV1().Pods("default").DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &none}, metav1.ListOptions{})
		_ = n.until(ctx, 30*time.Second, "the pods are gone", func() error {
			if runners, _ := filepath.Glob(n.file("crishim/*/*/state.json")); len(runners) > 0 {
				return fmt.Errorf("%d are there", len(runners))
			}
			return nil
		})
	}
	for i := len(n.running) - 1; i >= 0; i-- {
		_ = n.running[i].Process.Signal(syscall.SIGTERM)
		done := make(chan struct{})
		go func() { defer close(done); _ = n.running[i].Wait() }()
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			_ = n.running[i].Process.Kill()
			<-done
		}
	}
	for _, f := range []*forwarder{n.kubelet, n.proxy} {
		if f != nil {
			f.stop()
		}
	}
}
