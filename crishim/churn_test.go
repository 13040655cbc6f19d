package crishim_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim"
	"github.com/coracle-edge/coracle/crishim/oci"
	"github.com/coracle-edge/coracle/test/lab"
)

// churn has a daemon, in front of a containerd where there can be one, busy with
// everything at once.
type churn struct {
	*daemon
	seed   uint64
	reg    *lab.Registry
	ctd    *oci.Private // nil: Wasm on the host's network only
	wasm   string       // images that stay
	shell  string
	module []byte

	steady []guest // they live from beginning to end

	halt context.CancelFunc
	wg   sync.WaitGroup

	mu       sync.Mutex
	finished []guest  // started; they end by themselves
	joined   []string // Wasm containers of mixed pods
	lost     map[string]string
	done     map[string]int
}

// guest is a container whose log and end are known beforehand.
type guest struct {
	name, id, log, stream string
	pid                   int
	lines                 int
	code                  int32
}

func startChurn(t *testing.T, seed uint64) *churn {
	t.Helper()
	c := &churn{seed: seed, module: probeModule(t), done: map[string]int{}, lost: map[string]string{}}
	args := []string{"--cni-conf-dir", "/nonexistent", "--pod-network", "host"}
	if os.Getenv("CORACLE_LAB_INSIDE") != "" {
		lab.Need(t, "containerd", "runc")
		c.reg = lab.StartRegistry(t)
		dir, err := os.MkdirTemp("", "cor-ctd-*")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { // after containerd's end: shims that it lost with their callers
			lost := processesWith(dir)
			for _, pid := range lost {
				if proc, err := os.FindProcess(pid); err == nil {
					_ = proc.Kill()
				}
			}
			if len(lost) > 0 {
				t.Logf("containerd left %d shims", len(lost))
			}
		})
		c.ctd = lab.StartContainerdIn(t, dir, c.reg.HostsDir, true)
		args = []string{
			"--containerd", "unix://" + c.ctd.Socket(), "--registry-hosts", c.reg.HostsDir,
			"--cni-conf-dir", c.ctd.CNIConfDir(), "--cni-bin-dir", c.ctd.CNIBinDir(),
		}
	}
	c.daemon = startDaemon(t, args...)
	t.Cleanup(func() {
		for _, pattern := range []string{"/pod*/*/cgroup.procs", "/pod*/cgroup.procs", "/cgroup.procs"} {
			for _, procs := range globAll("/sys/fs/cgroup/*" + c.kubeletsCgroup() + pattern) {
				_ = os.Remove(filepath.Dir(procs))
			}
		}
	})
	c.wasm = "example.org/probe:1"
	c.importImage(lab.CNCF(c.module), c.wasm)
	if c.ctd != nil {
		c.shell = "example.org/busybox:1"
		c.importImage(lab.Busybox(t), c.shell)
	}
	ctx, halt := context.WithCancel(t.Context())
	c.halt = halt
	c.startSteady()
	lives := map[string]func(context.Context, *rand.Rand, string) error{
		"wasm pods": c.wasmPod, "guests that end": c.endingPod,
	}
	if c.ctd != nil {
		lives["pods with host ports"] = c.portPod
		lives["mixed pods"] = c.mixedPod
		lives["OCI pods"] = c.ociPod
		lives["pulls and removals"] = c.pullAndRemove
		lives["imports"] = c.importAndRemove
	}
	for i, what := range sortedKeys(lives) {
		c.wg.Go(func() { c.live(ctx, what, rand.New(rand.NewPCG(seed, uint64(i+1))), lives[what]) })
	}
	return c
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// live repeats a life. Errors are what a dying server gives; others are told.
func (c *churn) live(ctx context.Context, what string, random *rand.Rand, life func(context.Context, *rand.Rand, string) error) {
	for i := 0; ctx.Err() == nil; i++ {
		name := fmt.Sprintf("%s-%d", strings.ReplaceAll(strings.ToLower(what), " ", "-"), i)
		err := life(ctx, random, name)
		switch {
		case err == nil:
			c.mu.Lock()
			c.done[what]++
			c.mu.Unlock()
		case ctx.Err() == nil:
			if code := status.Code(err); code != codes.Unavailable && code != codes.Canceled {
				c.t.Logf("%s: %v", name, err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func (c *churn) stop() {
	c.halt()
	c.wg.Wait()
}

func (c *churn) counts() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for _, k := range sortedKeys(c.done) {
		out = append(out, fmt.Sprintf("%s %d", k, c.done[k]))
	}
	return strings.Join(out, ", ")
}

// pod makes a sandbox and gives a function that starts a container in it.
func (c *churn) pod(ctx context.Context, name string, change ...func(*runtimeapi.PodSandboxConfig)) (string, func(*runtimeapi.ContainerConfig) (string, error), error) {
	cfg := sandboxConfig(name)
	cfg.LogDirectory = filepath.Join(c.dir, "logs", name)
	for _, f := range change {
		f(cfg)
	}
	if cfg.Annotations[crishim.AnnotationSandbox] == "oci" {
		cfg.Linux.CgroupParent = c.kubeletsCgroup() + "/pod" + name
	}
	sb, err := c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		return "", nil, err
	}
	return sb.GetPodSandboxId(), func(cc *runtimeapi.ContainerConfig) (string, error) {
		made, err := c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: sb.GetPodSandboxId(), Config: cc, SandboxConfig: cfg})
		if err != nil {
			return "", err
		}
		_, err = c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made.GetContainerId()})
		return made.GetContainerId(), err
	}, nil
}

func (c *churn) cgroupParent() string { return "/coracle-test-" + filepath.Base(c.dir) }

// kubeletsCgroup has the cgroups of OCI pods, which are the kubelet's to remove:
// the containers' in them aren't.
func (c *churn) kubeletsCgroup() string { return c.cgroupParent() + "-kube" }

func toOCI(cfg *runtimeapi.PodSandboxConfig) { cfg.Annotations[crishim.AnnotationSandbox] = "oci" }

// leave removes a pod by the calls that a kubelet makes, or leaves it for the end.
func (c *churn) leave(ctx context.Context, random *rand.Rand, sandbox string) error {
	switch random.IntN(4) {
	case 0:
		return nil
	case 1:
		if _, err := c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox}); err != nil {
			return err
		}
	}
	_, err := c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox})
	return err
}

func (c *churn) wasmPod(ctx context.Context, random *rand.Rand, name string) error {
	network := func(*runtimeapi.PodSandboxConfig) {}
	if random.IntN(3) == 0 {
		network = hostNetwork
	}
	sb, start, err := c.pod(ctx, name, network)
	if err != nil {
		return err
	}
	id, err := start(containerConfig(c.wasm, "sleep"))
	if err != nil {
		return err
	}
	if random.IntN(5) == 0 {
		// Something is executed in it, often until the server dies.
		_, _ = c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"probe.wasm", "sleep"}, Timeout: 1})
	}
	return c.leave(ctx, random, sb)
}

// endingPod starts a guest that ends by itself, whoever lives then.
func (c *churn) endingPod(ctx context.Context, random *rand.Rand, name string) error {
	_, start, err := c.pod(ctx, name, hostNetwork)
	if err != nil {
		return err
	}
	g := guest{name: name, lines: 1 + random.IntN(60), code: int32(random.IntN(100)), stream: "stdout", log: filepath.Join(c.dir, "logs", name, "main", "0.log")}
	if random.IntN(2) == 0 {
		g.stream = "stderr"
	}
	args := []string{"tick", fmt.Sprint(random.IntN(20)), fmt.Sprint(g.lines), g.stream, "--", "exit", fmt.Sprint(g.code)}
	if g.id, err = start(containerConfig(c.wasm, args...)); err != nil {
		return err
	}
	c.mu.Lock()
	c.finished = append(c.finished, g)
	c.mu.Unlock()
	time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
	return nil
}

// portPod is attached by the plugins: they do host ports.
func (c *churn) portPod(ctx context.Context, random *rand.Rand, name string) error {
	sb, start, err := c.pod(ctx, name, func(cfg *runtimeapi.PodSandboxConfig) {
		cfg.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 8080, HostPort: int32(20000 + random.IntN(20000))}}
	})
	if err != nil {
		return err
	}
	if _, err := start(containerConfig(c.wasm, "serve")); err != nil {
		return err
	}
	return c.leave(ctx, random, sb)
}

func (c *churn) mixedPod(ctx context.Context, random *rand.Rand, name string) error {
	sb, start, err := c.pod(ctx, name, toOCI)
	if err != nil {
		return err
	}
	id, err := start(containerConfig(c.wasm, "sleep"))
	if id != "" { // created at least
		c.mu.Lock()
		c.joined = append(c.joined, id)
		c.mu.Unlock()
	}
	if err != nil {
		return err
	}
	other := shell(c.shell, "sleep 1000")
	other.Metadata.Name = "oci"
	if _, err := start(other); err != nil {
		return err
	}
	return c.leave(ctx, random, sb)
}

func (c *churn) ociPod(ctx context.Context, random *rand.Rand, name string) error {
	sb, start, err := c.pod(ctx, name, toOCI)
	if err != nil {
		return err
	}
	if _, err := start(shell(c.shell, "sleep 1000")); err != nil {
		return err
	}
	return c.leave(ctx, random, sb)
}

// pullAndRemove pulls an image that nobody has seen, so that it is compiled,
// runs it, and removes it.
func (c *churn) pullAndRemove(ctx context.Context, random *rand.Rand, name string) error {
	module := withCustomSection(c.module, fmt.Appendf(nil, "%s %d", name, random.Uint64()), random.IntN(3)<<20)
	images := []*lab.Image{lab.CNCF(module), lab.Compat(module, "compat"), lab.WasmToOCI(module)}
	ref, err := c.reg.TryPush("churn/"+name+":1", images[random.IntN(len(images))])
	if err != nil {
		return err
	}
	spec := &runtimeapi.ImageSpec{Image: ref}
	if _, err := c.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec}); err != nil {
		return err
	}
	sb, start, err := c.pod(ctx, name, hostNetwork)
	if err != nil {
		return err
	}
	if _, err := start(containerConfig(ref, "hello")); err != nil {
		return err
	}
	if _, err := c.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec}); err != nil {
		return err
	}
	return c.leave(ctx, random, sb)
}

// importAndRemove has an image that nobody has seen imported into containerd.
func (c *churn) importAndRemove(ctx context.Context, random *rand.Rand, name string) error {
	data := make([]byte, 1+random.IntN(4<<20))
	for i := 0; i < len(data); i += 512 {
		data[i] = byte(random.Uint32())
	}
	img := lab.OCI(ocispec.ImageConfig{Entrypoint: []string{"/x"}}, nil, []lab.File{{Path: "x", Mode: 0o755, Data: data}})
	ref := "example.org/" + name + ":1"
	if err := c.tryImport(ctx, img, ref); err != nil {
		return err
	}
	_, err := c.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	return err
}

// withCustomSection makes a module of its own digest, larger by some bytes.
func withCustomSection(module, text []byte, more int) []byte {
	body := append([]byte{1, 'x'}, text...)
	body = append(body, bytes.Repeat([]byte{'z'}, more)...)
	out := append(bytes.Clone(module), 0)
	for n := len(body); ; n >>= 7 {
		if n < 0x80 {
			out = append(out, byte(n))
			break
		}
		out = append(out, byte(n)|0x80)
	}
	return append(out, body...)
}

// startSteady starts the guests that live from beginning to end.
func (c *churn) startSteady() {
	c.t.Helper()
	begin := func(name, stream string, change func(*runtimeapi.PodSandboxConfig), configs ...*runtimeapi.ContainerConfig) {
		_, start, err := c.pod(c.t.Context(), name, change)
		if err != nil {
			c.t.Fatal(err)
		}
		for i, cfg := range configs {
			cfg.Metadata.Name, cfg.LogPath = fmt.Sprint("c", i), fmt.Sprint(i, ".log")
			id, err := start(cfg)
			if err != nil {
				c.t.Fatal(err)
			}
			c.steady = append(c.steady, guest{name: name, id: id, stream: stream, log: filepath.Join(c.dir, "logs", name, cfg.LogPath), pid: c.pidOf(id)})
		}
	}
	begin("steady-net", "stdout", func(*runtimeapi.PodSandboxConfig) {}, containerConfig(c.wasm, "tick", "1", "1000000"))
	begin("steady-host", "stderr", hostNetwork, containerConfig(c.wasm, "tick", "2", "1000000", "stderr"))
	if c.ctd != nil {
		begin("steady-mixed", "stdout", toOCI, containerConfig(c.wasm, "tick", "3", "1000000"),
			shell(c.shell, `i=0; while :; do echo "tick $i"; i=$((i+1)); sleep 0.05; done`))
	}
}

func (c *churn) pidOf(id string) int {
	c.t.Helper()
	st, err := c.ContainerStatus(c.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		c.t.Fatal(err)
	}
	var info struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(st.GetInfo()["info"]), &info); err != nil || info.PID == 0 {
		c.t.Fatalf("no pid of %s: %v, %v", id, st.GetInfo(), err)
	}
	return info.PID
}

// checkSteady: they are the same processes, and no line is lost or doubled.
func (c *churn) checkSteady() {
	c.t.Helper()
	for _, g := range c.steady {
		st, err := c.ContainerStatus(c.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: g.id})
		if err != nil || st.GetStatus().GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			c.t.Errorf("%s: %v, %v\ncontainerd says of it:\n%s", g.name, st, err, c.containerdSaid(g.id))
			continue
		}
		if now := c.pidOf(g.id); now != g.pid {
			c.t.Errorf("%s: pid was %d, is %d: it was restarted", g.name, g.pid, now)
		}
		if _, err := c.StopContainer(c.t.Context(), &runtimeapi.StopContainerRequest{ContainerId: g.id}); err != nil {
			c.t.Error(err)
		}
		if k := checkTicks(c.t, of(g.stream, readLog(c.t, g.log)), true); k < 100 {
			c.t.Errorf("%s: %d lines only", g.name, k)
		}
	}
}

// containerdSaid are the last lines of containerd's log that name a container.
func (c *churn) containerdSaid(id string) string {
	if c.ctd == nil {
		return ""
	}
	raw, _ := os.ReadFile(filepath.Join(filepath.Dir(c.ctd.CNIConfDir()), "containerd.log"))
	var lines []string
	for line := range strings.Lines(string(raw)) {
		if strings.Contains(line, id) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-8):], "")
}

// checkFinished: every guest that was started has ended as it said, and its log
// is whole.
func (c *churn) checkFinished() {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, g := range c.finished {
		var st *runtimeapi.ContainerStatus
		eventually(c.t, func() string {
			resp, err := c.ContainerStatus(c.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: g.id})
			if err != nil {
				return fmt.Sprintf("%s: %v", g.name, err)
			}
			if st = resp.GetStatus(); st.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
				return fmt.Sprintf("%s is %s", g.name, st.GetState())
			}
			return ""
		})
		if st.GetExitCode() != g.code {
			c.t.Errorf("%s: exit code %d, want %d: %s %s", g.name, st.GetExitCode(), g.code, st.GetReason(), st.GetMessage())
		}
		if k := checkTicks(c.t, readLog(c.t, g.log), true); k != g.lines {
			c.t.Errorf("%s: %d lines, want %d", g.name, k, g.lines)
		}
	}
}

// removeAll does what a kubelet does when all its pods are gone.
func (c *churn) removeAll() {
	c.t.Helper()
	ctx := c.t.Context()
	within(c.t, 3*time.Minute, func() string { // containerd may still be about a pod whose caller died
		var errs []error
		list, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		errs = append(errs, err)
		for _, s := range list.GetItems() {
			_, err := c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.GetId()})
			if err == nil {
				_, err = c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.GetId()})
			}
			errs = append(errs, err)
		}
		list, err = c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		errs = append(errs, err)
		if err := errors.Join(errs...); err != nil || len(list.GetItems()) > 0 {
			return fmt.Sprintf("%d sandboxes are left: %v", len(list.GetItems()), err)
		}
		return ""
	})
	if got, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{}); err != nil || len(got.GetContainers()) != 0 {
		c.t.Errorf("containers are left: %v, %v", got, err)
	}
	list, err := c.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, img := range list.GetImages() {
		if img.GetPinned() {
			continue
		}
		if _, err := c.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: img.GetId()}}); err != nil {
			c.t.Errorf("image %v: %v", img.GetRepoTags(), err)
		}
	}
}

// checkNothingLeft counts.
func (c *churn) checkNothingLeft() {
	c.t.Helper()
	state := c.dir + "/state"
	places := map[string]string{
		"records and bundles": state + "/wasm/{sandboxes,containers,netns}/*", "cgroups": "/sys/fs/cgroup/*" + c.cgroupParent() + "/pod*",
		"modules and roots": state + "/images/{modules,rootfs,tmp}/*", "blobs": state + "/images/content/{blobs/sha256,ingest}/*",
		"half-compiled modules": state + "/compiled/tmp-*",
	}
	if c.ctd != nil {
		dir := filepath.Dir(c.ctd.CNIConfDir())
		raw, err := os.ReadFile(c.ctd.CNIConfDir() + "/10-coracle.conflist")
		var conf struct{ Name string }
		if err = errors.Join(err, json.Unmarshal(raw, &conf)); err != nil || conf.Name == "" {
			c.t.Fatal(err)
		}
		places["CNI's results"] = "/var/lib/cni/results/" + conf.Name + "-*"
		places["containerd's namespaces"] = "/run/netns/*"
		places["containerd's tasks"] = dir + "/state/io.containerd.runtime.v2.task/k8s.io/*"
	}
	within(c.t, 2*time.Minute, func() string { // what containerd does in the background, and shims that end
		var left []string
		for _, what := range sortedKeys(places) {
			if found := globAll(places[what]); len(found) > 0 {
				left = append(left, fmt.Sprintf("%d %s: %v", len(found), what, found))
			}
		}
		left = append(left, c.cgroupsLeft()...)
		left = append(left, c.addressesLeft()...)
		if mounts, _ := lab.MountsBelow(c.dir); len(mounts) > 0 {
			left = append(left, fmt.Sprintf("mounts: %v", mounts))
		}
		if pids := processesWith(c.dir); len(pids) != 1 {
			left = append(left, fmt.Sprintf("%d processes besides crishim: %v", len(pids)-1, pids))
		}
		if c.ctd != nil {
			left = append(left, c.kernelLeft()...)
		}
		return strings.Join(left, "\n")
	})
	if len(c.lost) > 0 {
		c.t.Logf("addresses that containerd lost: %v", c.lost)
	}
}

// addressesLeft are those of Wasm pods. containerd ends the plugin, and not the
// plugin's own plugin for addresses, when its caller dies; an address that this
// one then takes is lost, whoever the caller is.
func (c *churn) addressesLeft() (left []string) {
	if c.ctd == nil {
		return nil
	}
	for _, file := range globAll(filepath.Dir(c.ctd.CNIConfDir()) + "/ipam/*/10.*") {
		owner, _ := os.ReadFile(file)
		id, _, _ := strings.Cut(strings.TrimSpace(string(owner)), "\r\n")
		if id != "" && c.containerdSaid(id) != "" {
			c.lost[file] = id
			continue
		}
		left = append(left, fmt.Sprintf("address %s of %q", file, owner))
	}
	return left
}

// cgroupsLeft are cgroups in those of the kubelet's pods: of Wasm containers, or
// with something running in them. containerd leaves empty ones where it was cut
// off; kubelets remove them with the pod's.
func (c *churn) cgroupsLeft() (left []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, procs := range globAll("/sys/fs/cgroup/*" + c.kubeletsCgroup() + "/pod*/*/cgroup.procs") {
		dir := filepath.Dir(procs)
		if slices.Contains(c.joined, filepath.Base(dir)) || os.Remove(dir) != nil {
			left = append(left, "cgroup "+dir)
		}
	}
	return left
}

// kernelLeft are interfaces, rules and containerd's own records.
func (c *churn) kernelLeft() (left []string) {
	run := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			return ""
		}
		return string(out)
	}
	for line := range strings.Lines(run("ip", "-o", "link")) {
		if strings.Contains(line, "veth") {
			left = append(left, "interface "+strings.TrimSpace(line))
		}
	}
	for line := range strings.Lines(run("iptables-save", "-t", "nat")) {
		if strings.Contains(line, "CNI-DN-") {
			left = append(left, "rule "+strings.TrimSpace(line))
		}
	}
	ctr := func(args ...string) string {
		return run("ctr", append([]string{"-a", c.ctd.Socket(), "-n", "k8s.io"}, args...)...)
	}
	for _, what := range []string{"containers", "leases"} {
		if out := strings.Fields(ctr(what, "ls", "-q")); len(out) > 0 {
			left = append(left, fmt.Sprintf("containerd's %s %v", what, out))
		}
	}
	for ref := range strings.FieldsSeq(ctr("images", "ls", "-q")) {
		if !strings.Contains(ref, "pause") && !strings.HasPrefix(ref, "sha256:") {
			left = append(left, "containerd's image "+ref)
		}
	}
	if out := strings.Split(strings.TrimSpace(ctr("content", "active")), "\n"); len(out) > 1 {
		left = append(left, fmt.Sprintf("containerd's ingests %q", out))
	}
	return left
}

// globAll is Glob with {a,b}.
func globAll(pattern string) []string {
	open, end := strings.Index(pattern, "{"), strings.Index(pattern, "}")
	if open < 0 || end < open {
		found, _ := filepath.Glob(pattern)
		return found
	}
	all := map[string]bool{}
	for alt := range strings.SplitSeq(pattern[open+1:end], ",") {
		for _, f := range globAll(pattern[:open] + alt + pattern[end+1:]) {
			all[f] = true
		}
	}
	return sortedKeys(all)
}
