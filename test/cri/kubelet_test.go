package cri

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"

	"github.com/coracle-edge/coracle/test/lab"
)

const (
	kubeletIP   = "10.230.0.1"
	kubeletName = "standalone"
)

// TestStockKubelet runs upstream's kubelet without an API server, with crishim as
// its only runtime: pods of each kind from manifests, and what becomes of them.
func TestStockKubelet(t *testing.T) {
	tool(t, "kubelet")
	lab.Need(t, "ip", "nft", "mount")
	s := newShim(t)
	k := newKubelet(s)

	// Pods that want a network of their own wait for one, with no sandbox made
	// over and over; those on the host's don't.
	network := k.takeNetworkAway()
	k.manifest("onhost", fmt.Sprintf(`
metadata: {name: onhost, annotations: {coracle.dev/sandbox: wasm}}
spec: {hostNetwork: true, containers: [{name: main, image: %s, args: [sleep]}]}`, s.wasm))
	k.manifest("wasm", fmt.Sprintf(`
metadata: {name: wasm, annotations: {coracle.dev/sandbox: wasm}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: %[1]s, args: [hello, --, copy], stdin: true, resources: {limits: {memory: 32Mi, cpu: 500m}}}
  - {name: serves, image: %[1]s, args: [serve], ports: [{containerPort: 8080, hostPort: 8081}]}`, s.wasm))
	k.start()
	k.until("onhost", running)
	k.until("wasm", func(p *v1.Pod) string {
		if p.Status.Phase != v1.PodPending {
			return "it is " + string(p.Status.Phase) + " without a network"
		}
		return ""
	})
	k.says("network is not ready: container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady")
	if out := s.crictl("pods", "--name", "wasm", "-q"); out != "" {
		t.Errorf("without a network these sandboxes were made:\n%s", out)
	}
	k.giveNetworkBack(network)

	t.Run("wasm pod", func(t *testing.T) { wasmPod(k.in(t)) })
	t.Run("oci pod", func(t *testing.T) { ociPod(k.in(t)) })
	t.Run("mixed pod", func(t *testing.T) { mixedPod(k.in(t)) })
	t.Run("exit codes", func(t *testing.T) { exitCodes(k.in(t)) })
	t.Run("pods go with their manifests", func(t *testing.T) {
		k := k.in(t)
		for _, name := range []string{"onhost", "wasm", "oci", "mixed", "ends"} {
			if err := os.Remove(filepath.Join(k.manifests, name+".yaml")); err != nil {
				t.Fatal(err)
			}
		}
		k.eventually(90*time.Second, func() string {
			if list := k.pods(); len(list) > 0 {
				return fmt.Sprintf("%d pods are left", len(list))
			}
			if out := k.crictl("ps", "-q"); out != "" {
				return "containers run on: " + out
			}
			if out := k.crictl("pods", "-s", "Ready", "-q"); out != "" {
				return "sandboxes are left: " + out
			}
			if left := podCgroups(k.cgroupRoot); len(left) > 0 {
				return fmt.Sprintf("cgroups are left: %v", left)
			}
			return ""
		})
	})
}

func wasmPod(k *kubelet) {
	p := k.until("wasm", running)
	if p.Status.PodIP == "" || p.Status.PodIP == kubeletIP {
		k.t.Errorf("its address is %q", p.Status.PodIP)
	}
	for _, addr := range []string{p.Status.PodIP + ":8080", kubeletIP + ":8081"} {
		k.eventually(20*time.Second, func() string {
			if got := ask(addr); got != "served\n" {
				return addr + ": " + got
			}
			return ""
		})
	}
	k.logs("wasm", "main", "hello from wasm\n")
	// Its cgroup is in the pod's, which the kubelet made.
	out := k.crictl("inspect", k.containerID(p, "main"))
	if want := filepath.Join(k.cgroupRoot, "kubepods/burstable/pod"); !strings.Contains(out, want) {
		k.t.Errorf("not in a cgroup below %s:\n%s", want, out)
	}
	k.attach("wasm", "main", "over the kubelet\n", "over the kubelet\n")
	k.forward("wasm", "served\n")
	// A container that dies is started again.
	k.kill(p, "serves")
	k.until("wasm", restarted("serves", 137))
	k.until("wasm", running)
	if out := k.crictl("pods", "--name", "wasm", "-q"); strings.Contains(out, "\n") {
		k.t.Errorf("the sandbox was made anew:\n%s", out)
	}
}

func ociPod(k *kubelet) {
	k.manifest("oci", fmt.Sprintf(`
metadata: {name: oci}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: %[1]s, command: [sh, -c, "echo hello from OCI; while read l; do echo got $l; done"], stdin: true}
  - {name: ends, image: %[1]s, command: [sh, -c, "echo once; sleep 2; exit 3"]}
  - {name: serves, image: %[1]s, command: [sh, -c, "echo served >/tmp/index.html; exec httpd -f -p 8080 -h /tmp"]}`, k.oci))
	p := k.until("oci", restarted("ends", 3))
	k.logs("oci", "main", "hello from OCI\n")
	k.exec("oci", "main", "ls /bin/busybox", "/bin/busybox\n")
	k.attach("oci", "main", "over the kubelet\n", "got over the kubelet\n")
	k.forward("oci", "served\n")
	k.kill(p, "serves")
	k.until("oci", restarted("serves", 137))
}

func mixedPod(k *kubelet) {
	k.manifest("mixed", fmt.Sprintf(`
metadata: {name: mixed}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: wasm, image: %s, args: [serve], ports: [{containerPort: 8080}]}
  - {name: oci, image: %s, command: [sh, -c, "until nc 127.0.0.1 8080 </dev/null; do sleep 0.1; done; sleep 1000"]}`, k.wasm, k.oci))
	p := k.until("mixed", running)
	k.logs("mixed", "oci", "served\n")
	k.forward("mixed", "served\n")
	k.kill(p, "wasm")
	k.until("mixed", restarted("wasm", 137))
	p = k.until("mixed", running)
	k.kill(p, "oci")
	k.until("mixed", restarted("oci", 137))
	k.until("mixed", running)
	k.logs("mixed", "oci", "served\n")
	if out := k.crictl("pods", "--name", "mixed", "-q"); strings.Contains(out, "\n") {
		k.t.Errorf("the sandbox was made anew:\n%s", out)
	}
}

func exitCodes(k *kubelet) {
	k.manifest("ends", fmt.Sprintf(`
metadata: {name: ends}
spec:
  restartPolicy: Never
  initContainers:
  - {name: init, image: %[1]s, args: [hello]}
  containers:
  - {name: wasm, image: %[1]s, args: [hello, --, exit, "4"]}
  - {name: oci, image: %[2]s, command: [sh, -c, "echo bye; exit 5"]}`, k.wasm, k.oci))
	p := k.until("ends", func(p *v1.Pod) string {
		if p.Status.Phase != v1.PodFailed {
			return "it is " + string(p.Status.Phase)
		}
		return ""
	})
	want := map[string]int32{"init": 0, "wasm": 4, "oci": 5}
	for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if e := c.State.Terminated; e == nil || e.ExitCode != want[c.Name] || c.RestartCount != 0 {
			k.t.Errorf("container %s: %+v, %d restarts; want exit code %d", c.Name, c.State, c.RestartCount, want[c.Name])
		}
	}
	k.logs("ends", "wasm", "hello from wasm\n")
	k.logs("ends", "oci", "bye\n")
}

func running(p *v1.Pod) string {
	if p.Status.Phase != v1.PodRunning {
		return "it is " + string(p.Status.Phase)
	}
	for _, c := range p.Status.ContainerStatuses {
		if c.State.Running == nil {
			return fmt.Sprintf("container %s: %+v", c.Name, c.State)
		}
	}
	return ""
}

func restarted(name string, code int32) func(*v1.Pod) string {
	return func(p *v1.Pod) string {
		for _, c := range p.Status.ContainerStatuses {
			if c.Name == name {
				if last := c.LastTerminationState.Terminated; c.RestartCount > 0 && last != nil && last.ExitCode == code {
					return ""
				}
				return fmt.Sprintf("container %s: %d restarts, %+v, before that %+v", name, c.RestartCount, c.State, c.LastTerminationState)
			}
		}
		return "no container " + name
	}
}

// kubelet is a kubelet without an API server.
type kubelet struct {
	*shim
	manifests  string
	cgroupRoot string
	client     *http.Client
	log        string
}

func (k *kubelet) in(t testing.TB) *kubelet {
	c := *k
	c.shim = k.shim.in(t)
	return &c
}

func newKubelet(s *shim) *kubelet {
	t := s.t
	t.Helper()
	k := &kubelet{shim: s, manifests: filepath.Join(s.dir, "manifests"), cgroupRoot: "/coracle-test-cri/kubelet",
		client: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}}
	if err := os.Mkdir(k.manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	k.keepOffTheMachine()
	run(t, "ip", "link", "add", "lab0", "type", "bridge")
	run(t, "ip", "addr", "add", kubeletIP+"/24", "dev", "lab0")
	run(t, "ip", "link", "set", "lab0", "up")
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", "lab0").Run() })
	return k
}

// keepOffTheMachine puts what a kubelet writes outside its own folder into the
// test's mount namespace: state, logs and the kernel's settings.
func (k *kubelet) keepOffTheMachine() {
	t := k.t
	t.Helper()
	for _, dir := range []string{"/var/lib", "/var/log"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	}
	for _, name := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"} {
		path := filepath.Join("/proc/sys", name)
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		mine := filepath.Join(k.dir, strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(mine, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(mine, path, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	}
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func (k *kubelet) start() {
	t := k.t
	t.Helper()
	for _, h := range cgroupHierarchies() {
		if err := os.MkdirAll(filepath.Join(h, k.cgroupRoot), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(k.dir, "kubelet.yaml")
	resolv := filepath.Join(k.dir, "resolv.conf")
	text := fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupRoot: %s
enforceNodeAllocatable: []
containerRuntimeEndpoint: %s
evictionHard: {memory.available: 1Mi, nodefs.available: 1%%, imagefs.available: 1%%}
failCgroupV1: false
failSwapOn: false
fileCheckFrequency: 1s
nodeStatusUpdateFrequency: 5s
syncFrequency: 5s
address: %s
readOnlyPort: 10255
podLogsDir: %s
staticPodPath: %s
volumePluginDir: %s
resolvConf: %s
`, k.cgroupRoot, k.socket, kubeletIP, filepath.Join(k.dir, "podlogs"), k.manifests, filepath.Join(k.dir, "plugins"), resolv)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(resolv, []byte("nameserver 192.0.2.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	k.log = filepath.Join(k.dir, "kubelet.log")
	k.shim.start("kubelet", tool(t, "kubelet"), "--config", config, "--root-dir", filepath.Join(k.dir, "kubelet"), "--cert-dir", filepath.Join(k.dir, "pki"),
		"--node-ip", kubeletIP, "--hostname-override", kubeletName)
}

func cgroupHierarchies() []string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{"/sys/fs/cgroup"}
	}
	all, _ := filepath.Glob("/sys/fs/cgroup/*")
	return all
}

// podCgroups are the cgroups of pods that are there.
func podCgroups(root string) (out []string) {
	for _, h := range cgroupHierarchies() {
		for _, pattern := range []string{"kubepods/pod*", "kubepods/*/pod*"} {
			m, _ := filepath.Glob(filepath.Join(h, root, pattern))
			out = append(out, m...)
		}
	}
	return out
}

// takeNetworkAway moves the CNI configuration elsewhere and waits until both
// runtimes have noticed.
func (k *kubelet) takeNetworkAway() (files []string) {
	files, _ = filepath.Glob(filepath.Join(k.cniConfDir, "*"))
	for i, f := range files {
		to := filepath.Join(k.dir, filepath.Base(f))
		if err := os.Rename(f, to); err != nil {
			k.t.Fatal(err)
		}
		files[i] = to
	}
	k.eventually(time.Minute, func() string {
		out, err := k.try("info")
		if err == nil && strings.Contains(out, "NetworkPluginNotReady") {
			return ""
		}
		return "the network is said to be ready: " + out
	})
	return files
}

func (k *kubelet) giveNetworkBack(files []string) {
	for _, f := range files {
		// Written anew: containerd reloads at a write, not at a file that appears.
		b, err := os.ReadFile(f)
		if err == nil {
			err = os.WriteFile(filepath.Join(k.cniConfDir, filepath.Base(f)), b, 0o644)
		}
		if err != nil {
			k.t.Fatal(err)
		}
	}
}

func (k *kubelet) manifest(name, text string) {
	k.t.Helper()
	path := filepath.Join(k.manifests, name+".yaml")
	if err := os.WriteFile(filepath.Join(k.dir, name+".yaml"), []byte("apiVersion: v1\nkind: Pod"+text), 0o644); err != nil {
		k.t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(k.dir, name+".yaml"), path); err != nil {
		k.t.Fatal(err)
	}
}

// pods are what the kubelet says it has.
func (k *kubelet) pods() map[string]*v1.Pod {
	resp, err := k.client.Get("http://" + kubeletIP + ":10255/pods")
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	var list v1.PodList
	if json.NewDecoder(resp.Body).Decode(&list) != nil {
		return nil
	}
	out := map[string]*v1.Pod{}
	for i := range list.Items {
		out[strings.TrimSuffix(list.Items[i].Name, "-"+kubeletName)] = &list.Items[i]
	}
	return out
}

// until waits for a pod to be as it should, and returns it.
func (k *kubelet) until(name string, what func(*v1.Pod) string) (p *v1.Pod) {
	k.t.Helper()
	k.eventually(2*time.Minute, func() string {
		if p = k.pods()[name]; p == nil {
			return "no pod " + name
		}
		if why := what(p); why != "" {
			return "pod " + name + ": " + why
		}
		return ""
	})
	return p
}

// says waits until the kubelet has logged something.
func (k *kubelet) says(want string) {
	k.t.Helper()
	k.eventually(time.Minute, func() string {
		if b, _ := os.ReadFile(k.log); strings.Contains(string(b), want) {
			return ""
		}
		return "the kubelet doesn't say " + want
	})
}

func (k *kubelet) url(kind, pod, container string, query url.Values) *url.URL {
	u := &url.URL{Scheme: "https", Host: kubeletIP + ":10250", Path: "/" + kind + "/default/" + pod + "-" + kubeletName, RawQuery: query.Encode()}
	if container != "" {
		u.Path += "/" + container
	}
	return u
}

// logs waits until a container's log, by the kubelet, is what it should be.
func (k *kubelet) logs(pod, container, want string) {
	k.t.Helper()
	k.eventually(20*time.Second, func() string {
		resp, err := k.client.Get(k.url("containerLogs", pod, container, nil).String())
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		if string(b) != want {
			return fmt.Sprintf("log of %s/%s: %q", pod, container, b)
		}
		return ""
	})
}

func (k *kubelet) rest() *rest.Config {
	return &rest.Config{Host: kubeletIP + ":10250", TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// attach says something to a container and waits for its answer.
func (k *kubelet) attach(pod, container, say, want string) {
	k.t.Helper()
	u := k.url("attach", pod, container, url.Values{"input": {"1"}, "output": {"1"}})
	ex, err := remotecommand.NewSPDYExecutor(k.rest(), "POST", u)
	if err != nil {
		k.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(k.t.Context(), time.Minute)
	defer cancel()
	in, w := io.Pipe()
	var out output
	done := make(chan error, 1)
	go func() { done <- ex.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: &out}) }()
	if _, err := io.WriteString(w, say); err != nil {
		k.t.Error(err)
	}
	k.eventually(20*time.Second, func() string {
		if out.String() == want {
			return ""
		}
		return fmt.Sprintf("attached to %s/%s: %q, want %q", pod, container, out.String(), want)
	})
	w.Close()
	if err := <-done; err != nil {
		k.t.Errorf("attach to %s/%s: %v", pod, container, err)
	}
}

func (k *kubelet) exec(pod, container, command, want string) {
	k.t.Helper()
	u := k.url("exec", pod, container, url.Values{"output": {"1"}, "error": {"1"}, "command": strings.Fields(command)})
	ex, err := remotecommand.NewSPDYExecutor(k.rest(), "POST", u)
	if err != nil {
		k.t.Fatal(err)
	}
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(k.t.Context(), time.Minute)
	defer cancel()
	if err := ex.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &errs}); err != nil || out.String() != want {
		k.t.Errorf("exec in %s/%s: %v, %q %q", pod, container, err, out.String(), errs.String())
	}
}

// forward asks a pod's port 8080 through the kubelet.
func (k *kubelet) forward(pod, want string) {
	k.t.Helper()
	rt, upgrader, err := spdy.RoundTripperFor(k.rest())
	if err != nil {
		k.t.Fatal(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	var errs output
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: rt}, "POST", k.url("portForward", pod, "", nil))
	fw, err := portforward.New(dialer, []string{"0:8080"}, stop, ready, io.Discard, &errs)
	if err != nil {
		k.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- fw.ForwardPorts() }()
	defer func() {
		close(stop)
		<-done
	}()
	select {
	case <-ready:
	case err := <-done:
		done <- err
		k.t.Fatalf("port-forward to %s: %v", pod, err)
	case <-time.After(time.Minute):
		k.t.Fatalf("port-forward to %s isn't ready after a minute", pod)
	}
	ports, err := fw.GetPorts()
	if err != nil {
		k.t.Fatal(err)
	}
	if got := ask(fmt.Sprintf("127.0.0.1:%d", ports[0].Local)); !strings.HasSuffix(got, want) {
		k.t.Errorf("port-forward to %s: %q, want %q; %s", pod, got, want, errs.String())
	}
}

func (k *kubelet) containerID(p *v1.Pod, name string) string {
	k.t.Helper()
	for _, c := range p.Status.ContainerStatuses {
		if c.Name == name {
			_, id, _ := strings.Cut(c.ContainerID, "://")
			return id
		}
	}
	k.t.Fatalf("pod %s has no container %s", p.Name, name)
	return ""
}

// kill ends a container's process behind everybody's back.
func (k *kubelet) kill(p *v1.Pod, container string) {
	k.t.Helper()
	var info struct{ Info struct{ Pid int } }
	if err := json.Unmarshal([]byte(k.crictl("inspect", k.containerID(p, container))), &info); err != nil || info.Info.Pid < 2 {
		k.t.Fatalf("pid of %s: %v %d", container, err, info.Info.Pid)
	}
	if err := syscall.Kill(info.Info.Pid, syscall.SIGKILL); err != nil {
		k.t.Fatal(err)
	}
}
