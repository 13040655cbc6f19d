package crishim_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim"
	"github.com/coracle-edge/coracle/test/lab"
	"github.com/coracle-edge/coracle/wasmruntime"
)

func TestWasmContainerRunsToItsEnd(t *testing.T) {
	n := newNode(t, nil)
	img := n.image(lab.CNCF(probeModule(t)))
	for _, c := range []struct {
		name    string
		args    []string
		code    int32
		reason  string
		log     string
		message string
	}{
		{"hello", []string{"hello"}, 0, "Completed", "hello from wasm\n", ""},
		{"args", []string{"args", "a b", "c"}, 0, "Completed", "a b\nc\n", ""},
		{"exit", []string{"hello", "--", "exit", "3"}, 3, "Error", "hello from wasm\n", ""},
		{"trap", []string{"hello", "--", "trap"}, 134, "Error", "hello from wasm\n", "unreachable"},
		{"noeol", []string{"noeol", "half a line"}, 0, "Completed", "half a line\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			n.in(t)
			st, log := n.run(c.name, containerConfig(img, c.args...))
			if st.GetExitCode() != c.code || st.GetReason() != c.reason || !strings.Contains(st.GetMessage(), c.message) {
				t.Errorf("exit code %d, reason %q, message %q", st.GetExitCode(), st.GetReason(), st.GetMessage())
			}
			if got := text(of("stdout", log)); got != c.log {
				t.Errorf("log %q, want %q", got, c.log)
			}
			if got := text(of("stderr", log)); !strings.Contains(got, c.message) || c.message == "" && got != "" {
				t.Errorf("stderr %q", got)
			}
			if st.GetCreatedAt() == 0 || st.GetStartedAt() < st.GetCreatedAt() || st.GetFinishedAt() < st.GetStartedAt() {
				t.Errorf("created %d, started %d, finished %d", st.GetCreatedAt(), st.GetStartedAt(), st.GetFinishedAt())
			}
		})
	}
}

func TestWasmEveryShapeRuns(t *testing.T) {
	n := newNode(t, nil)
	m := probeModule(t)
	for name, img := range map[string]*lab.Image{
		"cncf": lab.CNCF(m), "wasm-to-oci": lab.WasmToOCI(m), "solo": lab.Solo(m), "runwasi": lab.Runwasi(m),
		"compat": lab.Compat(m, "compat"), "magic": lab.Compat(m, ""),
	} {
		st, log := n.run(name, containerConfig(n.image(img), "hello"))
		if st.GetExitCode() != 0 || text(log) != "hello from wasm\n" {
			t.Errorf("%s: %s %q, log %q", name, st.GetReason(), st.GetMessage(), text(log))
		}
	}
}

func TestWasmCompatImageHasItsFiles(t *testing.T) {
	n := newNode(t, nil)
	img := n.image(lab.Compat(probeModule(t), "compat-smart", lab.File{Path: "etc/greeting", Mode: 0o644, Data: []byte("from the image\n")}))
	st, log := n.run("files", containerConfig(img, "cat", "/etc/greeting", "--", "env", "FROM_IMAGE"))
	if got := text(log); got != "from the image\nFROM_IMAGE=yes\n" {
		t.Errorf("%s, log %q", st.GetMessage(), got)
	}
	st, log = n.run("readonly", containerConfig(img, "write", "/etc/greeting", "x"))
	if st.GetExitCode() != 1 {
		t.Errorf("writing into the image: exit code %d, log %q", st.GetExitCode(), text(log))
	}
}

func TestWasmMountsAndEnvironment(t *testing.T) {
	n := newNode(t, nil)
	img := n.image(lab.CNCF(probeModule(t)))
	dir := t.TempDir()
	for _, d := range []string{"ro", "rw"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "rw"), 0o777); err != nil {
		t.Fatal(err)
	}
	for f, s := range map[string]string{"ro/config": "configured\n", "single": "one file\n", "termination": ""} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte(s), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "termination"), 0o666); err != nil {
		t.Fatal(err)
	}
	cfg := containerConfig(img, "cat", "/etc/app/config", "--", "cat", "/etc/one", "--", "env", "WHO", "--", "env", "HOSTNAME", "--",
		"write", "/data/out", "written", "--", "write", "/dev/termination-log", "last words", "--", "write", "/etc/app/config", "x")
	cfg.Envs = []*runtimeapi.KeyValue{{Key: "WHO", Value: []byte("pod")}}
	cfg.Mounts = []*runtimeapi.Mount{
		{HostPath: filepath.Join(dir, "ro"), ContainerPath: "/etc/app", Readonly: true},
		{HostPath: filepath.Join(dir, "rw"), ContainerPath: "/data"},
		{HostPath: filepath.Join(dir, "single"), ContainerPath: "/etc/one", Readonly: true},
		{HostPath: filepath.Join(dir, "termination"), ContainerPath: "/dev/termination-log"},
	}
	st, log := n.run("mounts", cfg)
	want := "configured\none file\nWHO=pod\nHOSTNAME=mounts\n"
	if got, bad := text(of("stdout", log)), text(of("stderr", log)); got != want || st.GetExitCode() != 1 || !strings.Contains(bad, "write /etc/app/config") {
		t.Errorf("exit code %d, stdout %q, want %q, stderr %q", st.GetExitCode(), got, want, bad)
	}
	for f, want := range map[string]string{"rw/out": "written\n", "termination": "last words\n", "ro/config": "configured\n"} {
		if b, err := os.ReadFile(filepath.Join(dir, f)); err != nil || string(b) != want {
			t.Errorf("%s is %q, %v", f, b, err)
		}
	}
	cfg = containerConfig(img, "hello")
	cfg.Mounts = []*runtimeapi.Mount{{HostPath: filepath.Join(dir, "nothing"), ContainerPath: "/data"}}
	sb, pod := n.sandbox("badmount", hostNetwork)
	if _, err := n.create(sb, pod, cfg); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "/data") {
		t.Errorf("mount of nothing: %v", err)
	}
}

func TestWasmBadModules(t *testing.T) {
	n := newNode(t, nil)
	for _, c := range []struct {
		name   string
		module []byte
		is     error
		text   string
	}{
		{"component", []byte("\x00asm\x0d\x00\x01\x00"), wasmruntime.ErrUnsupportedModule, "component"},
		{"malformed", []byte("\x00asm\x01\x00\x00\x00\x01\xff\xff\xff\xff\x0f"), wasmruntime.ErrMalformedModule, "section"},
		{"text", []byte("hello"), wasmruntime.ErrMalformedModule, ""},
		{"unknown import", lab.Wat(t, `(module (import "env" "launch_missiles" (func)) (memory (export "memory") 1) (func (export "_start")))`), wasmruntime.ErrUnknownImport, "launch_missiles"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n.in(t)
			img := n.image(lab.CNCF(c.module)) // pulling it isn't refused
			sb, pod := n.sandbox(strings.ReplaceAll(c.name, " ", "-"), hostNetwork)
			_, err := n.create(sb, pod, containerConfig(img))
			if !errors.Is(err, c.is) || status.Code(err) != codes.FailedPrecondition {
				t.Fatalf("got %v (%s), want %v", err, status.Code(err), c.is)
			}
			for _, want := range []string{`module "test`, img, c.text} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q doesn't name %q", err, want)
				}
			}
			if list, _ := n.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: sb}}); len(list.GetContainers()) != 0 {
				t.Error("a container is left")
			}
		})
	}
}

func TestWasmStop(t *testing.T) {
	n := newNode(t, nil)
	img := n.image(lab.CNCF(probeModule(t)))
	for _, guest := range []string{"spin", "sleep"} {
		sb, pod := n.sandbox(guest, hostNetwork)
		id := n.start(sb, pod, containerConfig(img, guest))
		begin := time.Now()
		if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 2}); err != nil {
			t.Fatal(err)
		}
		st := n.status(id)
		if st.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || st.GetExitCode() != 143 && st.GetExitCode() != 137 {
			t.Errorf("%s: %s, exit code %d", guest, st.GetState(), st.GetExitCode())
		}
		if took := time.Since(begin); took > 2500*time.Millisecond {
			t.Errorf("%s took %v", guest, took)
		}
		// All of it can be repeated.
		for range 2 {
			if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
				t.Error(err)
			}
			if _, err := n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
				t.Error(err)
			}
			if _, err := n.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: sb}); err != nil {
				t.Error(err)
			}
			if _, err := n.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb}); err != nil {
				t.Error(err)
			}
		}
	}
	if left := cgroupsNamed(n.cfg.CgroupParent); len(left) > 0 {
		for _, l := range left {
			if strings.Contains(l, "pod") {
				t.Errorf("cgroup %s is left", l)
			}
		}
	}
	if dirs, _ := filepath.Glob(filepath.Join(n.cfg.StateDir, "wasm", "*", "*")); len(dirs) > 0 {
		t.Errorf("%v are left", dirs)
	}
}

func TestWasmMemoryLimit(t *testing.T) {
	n := newNode(t, nil)
	img := n.image(lab.CNCF(probeModule(t)))
	cfg := containerConfig(img, "eat", "64")
	cfg.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 24 << 20}
	st, log := n.run("eat", cfg)
	// Either malloc fails at the limit of the linear memory, or the cgroup's
	// limit is met first.
	switch {
	case st.GetExitCode() == 7 && strings.Contains(text(log), "no memory after"):
	case st.GetExitCode() == 137 && st.GetReason() == "OOMKilled":
	default:
		t.Errorf("exit code %d, reason %s, message %q, log %q", st.GetExitCode(), st.GetReason(), st.GetMessage(), text(log))
	}
}

func TestWasmLogOfLongLines(t *testing.T) {
	n := newNode(t, nil)
	img := n.image(lab.CNCF(probeModule(t)))
	_, log := n.run("long", containerConfig(img, "flood", "400000", "40000", "--", "hello"))
	want := strings.Repeat(strings.Repeat("x", 40000)+"\n", 10) + "hello from wasm\n"
	if got := text(log); got != want {
		t.Errorf("log has %d bytes, want %d", len(got), len(want))
	}
	if len(log) != 31 || log[0].tag != "P" || len(log[0].text) != 16<<10 || log[2].tag != "F" {
		t.Errorf("%d lines, the first %s with %d bytes", len(log), log[0].tag, len(log[0].text))
	}
}

func TestWasmLogRotation(t *testing.T) {
	n := newNode(t, nil)
	sb, pod := n.sandbox("rotate", hostNetwork)
	id := n.start(sb, pod, containerConfig(n.image(lab.CNCF(probeModule(t))), "tick", "10", "1000000"))
	path := n.status(id).GetLogPath()
	eventually(t, func() string {
		if b, _ := os.ReadFile(path); strings.Contains(string(b), "tick 3") {
			return ""
		}
		return "no tick 3 yet"
	})
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if b, _ := os.ReadFile(path); strings.Count(string(b), "\n") > 3 {
			return ""
		}
		return "nothing in the new log yet"
	})
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	checkTicks(t, append(readLog(t, path+".1"), readLog(t, path)...), true)
	if _, err := n.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("reopening an ended container's log: %v", err)
	}
}

// checkTicks wants every tick, in order; once means not one twice.
func checkTicks(t *testing.T, log []logLine, once bool) int {
	t.Helper()
	next := 0
	for _, l := range log {
		var k int
		if _, err := fmt.Sscanf(l.text, "tick %d", &k); err != nil {
			t.Fatalf("line %q", l.text)
		}
		if k > next || once && k != next {
			t.Fatalf("tick %d where %d was due: output is lost or doubled", k, next)
		}
		next = k + 1
	}
	return next
}

// TestWasmSurvivesRestart takes over a guest that runs, one that ended
// meanwhile, and one that was only created.
func TestWasmSurvivesRestart(t *testing.T) {
	n := newNode(t, nil)
	img := n.image(lab.CNCF(probeModule(t)))
	sb, pod := n.sandbox("restart", hostNetwork)
	cfg := func(name string, args ...string) *runtimeapi.ContainerConfig {
		c := containerConfig(img, args...)
		c.Metadata.Name, c.LogPath = name, name+".log"
		return c
	}
	runs := n.start(sb, pod, cfg("runs", "tick", "5", "1000000"))
	ends := n.start(sb, pod, cfg("ends", "tick", "100", "4", "--", "noeol", "the end", "--", "exit", "3"))
	created, err := n.create(sb, pod, cfg("created", "hello"))
	if err != nil {
		t.Fatal(err)
	}
	pid := n.pid(runs)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // "ends" ends while nobody reads
	n.open()
	st := n.wait(ends)
	if st.GetExitCode() != 3 || st.GetReason() != "Error" {
		t.Errorf("ended meanwhile: code %d, %s %q", st.GetExitCode(), st.GetReason(), st.GetMessage())
	}
	if got := text(readLog(t, st.GetLogPath())); got != "tick 0\ntick 1\ntick 2\ntick 3\nthe end\n" {
		t.Errorf("log of the one that ended meanwhile: %q", got)
	}
	if now := n.pid(runs); now != pid {
		t.Errorf("pid was %d, is %d: the guest was restarted", pid, now)
	}
	if _, err := n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: created}); err != nil {
		t.Error(err)
	}
	if st := n.wait(created); st.GetExitCode() != 0 {
		t.Errorf("created before, started after: %d %s", st.GetExitCode(), st.GetMessage())
	}
	for range 5 {
		n.reopen()
	}
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: runs}); err != nil {
		t.Fatal(err)
	}
	if k := checkTicks(t, readLog(t, n.status(runs).GetLogPath()), true); k < 50 {
		t.Errorf("%d ticks only", k)
	}
	list, err := n.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(list.GetItems()) != 1 || list.GetItems()[0].GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("sandboxes %v, %v", list, err)
	}
}

// pid of a container's runner, from its verbose status.
func (n *node) pid(id string) int {
	n.t.Helper()
	resp, err := n.ContainerStatus(n.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		n.t.Fatal(err)
	}
	var pid int
	_, after, _ := strings.Cut(resp.GetInfo()["info"], `"pid":`)
	if _, err := fmt.Sscanf(after, "%d", &pid); err != nil {
		n.t.Fatalf("no pid in %s", resp.GetInfo()["info"])
	}
	return pid
}

func TestWasmSandboxOfAnotherBoot(t *testing.T) {
	n := newNode(t, nil)
	sb, pod := n.sandbox("boot", hostNetwork)
	id := n.start(sb, pod, containerConfig(n.image(lab.CNCF(probeModule(t))), "sleep"))
	pid := n.pid(id)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	// What a reboot does: nothing runs, and the boot ID is another.
	proc, _ := os.FindProcess(pid)
	_ = proc.Kill()
	_, _ = proc.Wait()
	files, _ := filepath.Glob(filepath.Join(n.cfg.StateDir, "wasm", "sandboxes", "*"))
	more, _ := filepath.Glob(filepath.Join(n.cfg.StateDir, "wasm", "containers", "*", "*.json"))
	evenMore, _ := filepath.Glob(filepath.Join(n.cfg.StateDir, "wasm", "containers", "*", "bundle", "state.json"))
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	for _, f := range append(append(files, more...), evenMore...) {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		s := strings.ReplaceAll(string(b), strings.TrimSpace(string(boot)), "00000000-0000-0000-0000-000000000000")
		if s == string(b) {
			t.Errorf("%s has no boot ID", f)
		}
		if err := os.WriteFile(f, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// And what a power cut does: a record torn in the middle.
	if err := os.WriteFile(filepath.Join(n.cfg.StateDir, "wasm", "sandboxes", "torn"), []byte(`{"version":1,"id"`), 0o600); err != nil {
		t.Fatal(err)
	}
	n.open()
	resp, err := n.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sb})
	if err != nil || resp.GetStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("sandbox of another boot: %v, %v", resp.GetStatus().GetState(), err)
	}
	if st := n.status(id); st.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("container of another boot: %s", st.GetState())
	}
	if list, _ := n.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{}); len(list.GetItems()) != 1 {
		t.Errorf("%d sandboxes", len(list.GetItems()))
	}
}

func TestWasmListensAndFallsBackToHostNetwork(t *testing.T) {
	n := newNode(t, nil)
	img := n.image(lab.CNCF(probeModule(t)))
	port := freePort(t)
	sb, pod := n.sandbox("serve", func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 8080, HostPort: int32(port)}}
	})
	cfg := containerConfig(img, "serve")
	cfg.Annotations = map[string]string{crishim.AnnotationListen: "127.0.0.1:8080/tcp"}
	n.start(sb, pod, cfg)
	if got := get(t, fmt.Sprintf("127.0.0.1:%d", port)); got != "served\n" {
		t.Errorf("got %q", got)
	}
	st, err := n.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sb})
	if err != nil || st.GetStatus().GetLinux().GetNamespaces().GetOptions().GetNetwork() != runtimeapi.NamespaceMode_NODE {
		t.Errorf("network of a pod without CNI: %v, %v", st.GetStatus().GetLinux(), err)
	}
	cfg = containerConfig(img, "serve")
	cfg.Metadata.Name = "second"
	cfg.Annotations = map[string]string{crishim.AnnotationListen: "127.0.0.1:8080/tcp"}
	id, err := n.create(sb, pod, cfg)
	if err != nil {
		t.Fatal(err)
	}
	_, err = n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	if err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a port twice: %v", err)
	}
	if st := n.status(id); st.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || st.GetReason() != "StartError" || st.GetExitCode() != 128 {
		t.Errorf("after a failed start: %s %s %d", st.GetState(), st.GetReason(), st.GetExitCode())
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func get(t *testing.T, addr string) string {
	t.Helper()
	var out string
	eventually(t, func() string {
		c, err := net.DialTimeout("tcp", addr, 2*time.Second)
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		b, err := io.ReadAll(c)
		out = string(b)
		if err != nil {
			return err.Error()
		}
		return ""
	})
	return out
}

func TestWasmEventsAndStats(t *testing.T) {
	n := newNode(t, nil)
	events := n.Events(t.Context())
	sb, pod := n.sandbox("events", hostNetwork)
	id := n.start(sb, pod, containerConfig(n.image(lab.CNCF(probeModule(t))), "spin"))
	stats, err := n.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil || stats.GetStats().GetMemory().GetWorkingSetBytes().GetValue() == 0 {
		t.Errorf("stats %v, %v", stats, err)
	}
	time.Sleep(200 * time.Millisecond)
	pods, err := n.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil || len(pods.GetStats()) != 1 || pods.GetStats()[0].GetLinux().GetCpu().GetUsageNanoCores().GetValue() == 0 {
		t.Errorf("pod stats %v, %v", pods, err)
	}
	if _, err := n.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuQuota: 20000, CpuPeriod: 100000},
	}); os.Geteuid() == 0 {
		if err != nil {
			t.Error(err)
		}
		if got := n.status(id).GetResources().GetLinux().GetCpuQuota(); got != 20000 {
			t.Errorf("CPU quota %d", got)
		}
		// In the kernel, too.
		quota := ""
		for _, cg := range cgroupsNamed(n.cfg.CgroupParent) {
			for _, file := range []string{"cpu.max", "cpu.cfs_quota_us"} {
				b, _ := os.ReadFile(filepath.Join(cg, id, file))
				quota += strings.TrimSpace(string(b))
			}
		}
		if quota != "20000" && quota != "20000 100000" {
			t.Errorf("the cgroup's quota is %q", quota)
		}
	} else if err == nil {
		t.Error("an ordinary user has no cgroup, and isn't told")
	}
	if _, err := n.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb}); err != nil {
		t.Fatal(err)
	}
	var seen []string
	timeout := time.After(10 * time.Second)
	for len(seen) < 2 || seen[len(seen)-1] != "sandbox DELETED" {
		select {
		case ev := <-events:
			who := "container "
			if ev.GetContainerId() == sb {
				who = "sandbox "
			}
			seen = append(seen, who+strings.TrimSuffix(strings.TrimPrefix(ev.GetContainerEventType().String(), "CONTAINER_"), "_EVENT"))
		case <-timeout:
			t.Fatalf("events %q", seen)
		}
	}
	// A slow reader gets the latest of each; so only order is certain.
	if len(seen) == 0 || seen[len(seen)-2] != "container DELETED" {
		t.Errorf("events %q", seen)
	}
}

func TestWasmUserNamespace(t *testing.T) {
	n := newNode(t, nil)
	for mode, want := range map[runtimeapi.NamespaceMode]codes.Code{
		runtimeapi.NamespaceMode_NODE: codes.OK, runtimeapi.NamespaceMode_POD: codes.Unimplemented,
		runtimeapi.NamespaceMode_CONTAINER: codes.Unimplemented, runtimeapi.NamespaceMode_TARGET: codes.Unimplemented,
	} {
		cfg := sandboxConfig("userns-" + mode.String())
		hostNetwork(cfg)
		cfg.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: mode}
		if _, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg}); status.Code(err) != want {
			t.Errorf("%s: %v", mode, err)
		}
	}
}

func TestWasmNamesAreUnique(t *testing.T) {
	n := newNode(t, nil)
	sb, pod := n.sandbox("same", hostNetwork)
	if _, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod}); status.Code(err) != codes.AlreadyExists || !strings.Contains(err.Error(), sb) {
		t.Errorf("the same sandbox twice: %v", err)
	}
	cfg := containerConfig(n.image(lab.CNCF(probeModule(t))), "hello")
	if _, err := n.create(sb, pod, cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := n.create(sb, pod, cfg); status.Code(err) != codes.AlreadyExists {
		t.Errorf("the same container twice: %v", err)
	}
	n.reopen()
	if _, err := n.create(sb, pod, cfg); status.Code(err) != codes.AlreadyExists {
		t.Errorf("the same container twice, after a restart: %v", err)
	}
	cfg.Metadata.Attempt++
	if _, err := n.create(sb, pod, cfg); err != nil {
		t.Errorf("the next attempt: %v", err)
	}
}

func TestWithoutContainerd(t *testing.T) {
	n := newNode(t, nil)
	_, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "oci", Namespace: "default", Uid: "1"},
	}})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "install containerd") {
		t.Errorf("OCI sandbox: %v", err)
	}
	resp, err := n.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range resp.GetStatus().GetConditions() {
		if want := c.GetType() != crishim.ConditionOCI; c.GetStatus() != want {
			t.Errorf("%s is %v: %s", c.GetType(), c.GetStatus(), c.GetMessage())
		}
	}
	sb, pod := n.sandbox("pure", hostNetwork)
	if _, err := n.create(sb, pod, containerConfig("docker.io/library/busybox:1")); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "Wasm only") {
		t.Errorf("OCI container in a Wasm sandbox: %v", err)
	}
	img, err := n.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "busybox"}})
	if err != nil || img.GetImage() != nil {
		t.Errorf("status of an absent image: %v, %v", img, err)
	}
	ref := n.image(lab.CNCF(probeModule(t)))
	img, err = n.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil || img.GetInfo()[crishim.AnnotationKind] != "wasm" || img.GetImage().GetSpec().GetAnnotations()[crishim.AnnotationKind] != "wasm" || img.GetImage().GetUid().GetValue() == 0 {
		t.Errorf("status of a Wasm image: %v, %v", img, err)
	}
}
