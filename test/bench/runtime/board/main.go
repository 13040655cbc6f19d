// Command board is /init of a small QEMU guest of arm64: it starts as many Wasm
// containers as it is told by the kernel's command line (containers=200), says what
// memory they take, and powers off. The bench builds it and its initramfs. It refuses
// to be anything else than process 1.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim"
	"github.com/coracle-edge/coracle/test/bench/proc"
	"github.com/coracle-edge/coracle/test/lab"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "board: this is /init of a guest of its own; it would power this machine off")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Println("board: failed:", err)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range []struct{ kind, at string }{
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"}, {"cgroup2", "/sys/fs/cgroup"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	n := 0
	for _, f := range strings.Fields(string(line)) {
		if v, ok := strings.CutPrefix(f, "containers="); ok {
			if n, err = strconv.Atoi(v); err != nil {
				return err
			}
		}
	}
	version, err := os.ReadFile("/proc/version")
	if err != nil {
		return err
	}
	controllers, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		return err
	}
	fmt.Printf("board: %sboard: cgroup v2: %s", version, controllers)
	return containers(context.Background(), n)
}

func containers(ctx context.Context, n int) error {
	svc, err := crishim.New(ctx, crishim.Config{
		StateDir: "/run/state", RunnerPath: "/wasmrunner", CgroupParent: "/coracle",
		Logger: slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	defer svc.Close()
	image, err := load(ctx, svc, "hello")
	if err != nil {
		return err
	}
	before, err := available()
	if err != nil {
		return err
	}
	begin := time.Now()
	for i := range n {
		if err := start(ctx, svc, image, i); err != nil {
			return fmt.Errorf("container %d: %w", i+1, err)
		}
		if (i+1)%20 == 0 {
			fmt.Printf("board: %d run after %v\n", i+1, time.Since(begin).Round(time.Second))
		}
	}
	took := time.Since(begin)
	list, err := svc.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		return err
	}
	after, err := available()
	if err != nil {
		return err
	}
	pids, err := proc.PidsOf("/wasmrunner")
	if err != nil {
		return err
	}
	var pss float64
	for _, pid := range pids {
		m, err := proc.MemoryOf(pid)
		if err != nil {
			return err
		}
		pss += m.PSS
	}
	oom, err := outOfMemory(ctx, svc)
	if err != nil {
		return err
	}
	fmt.Printf("result: running=%d pss=%.4f available_before=%.1f available_after=%.1f seconds=%.1f oom=%s\n",
		len(list.GetContainers()), pss/float64(max(1, len(pids))), before, after, took.Seconds(), oom)
	return nil
}

// outOfMemory says how a container ends that needs more than its limit.
func outOfMemory(ctx context.Context, svc *crishim.Service) (string, error) {
	image, err := load(ctx, svc, "hostile")
	if err != nil {
		return "", err
	}
	id, _, err := create(ctx, svc, image, "oom", "memory")
	if err != nil {
		return "", err
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		resp, err := svc.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			return "", err
		}
		st := resp.GetStatus()
		if st.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED || time.Now().After(deadline) {
			return fmt.Sprintf("%s/%d", st.GetReason(), st.GetExitCode()), nil
		}
	}
}

// load makes an image of a module in the initramfs.
func load(ctx context.Context, svc *crishim.Service, name string) (string, error) {
	module, err := os.ReadFile("/" + name + ".wasm")
	if err != nil {
		return "", err
	}
	names, err := svc.Import(ctx, bytes.NewReader(lab.Archive(lab.CNCF(module), "")), "bench.example/"+name+":1")
	if err != nil {
		return "", err
	}
	return names[0], nil
}

// start starts a container and waits for its greeting.
func start(ctx context.Context, svc *crishim.Service, image string, i int) error {
	_, log, err := create(ctx, svc, image, fmt.Sprintf("pod-%d", i), "stay")
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		said, _ := os.ReadFile(log)
		if strings.Contains(string(said), "hello") {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("it said %q", said)
		}
	}
}

// create makes and starts a container in a pod of its own, and gives its log too.
func create(ctx context.Context, svc *crishim.Service, image, name, arg string) (id, log string, err error) {
	cfg := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name},
		LogDirectory: filepath.Join("/run/logs", name),
		Annotations:  map[string]string{crishim.AnnotationSandbox: "wasm"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE},
		}},
	}
	sb, err := svc.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		return "", "", err
	}
	c, err := svc.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: sb.GetPodSandboxId(), SandboxConfig: cfg, Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "main"}, Image: &runtimeapi.ImageSpec{Image: image},
			Args: []string{arg}, LogPath: "0.log", Linux: &runtimeapi.LinuxContainerConfig{
				Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20},
			},
		},
	})
	if err != nil {
		return "", "", err
	}
	_, err = svc.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.GetContainerId()})
	return c.GetContainerId(), filepath.Join(cfg.LogDirectory, "0.log"), err
}

// available memory of the machine, in MiB.
func available() (float64, error) {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kb / 1024, err
		}
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}
