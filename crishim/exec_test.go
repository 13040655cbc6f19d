package crishim_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim/wasm"
	"github.com/coracle-edge/coracle/test/lab"
)

func TestWasmExec(t *testing.T) {
	n := newNode(t, nil)
	module := probeModule(t)
	tools := n.image(lab.Compat(module, "compat", lab.File{Path: "bin/tool", Mode: 0o755, Hard: "probe.wasm"},
		lab.File{Path: "bin/script", Mode: 0o755, Data: []byte("#!/bin/sh\n")}))
	alone := n.image(lab.CNCF(module))
	sb, pod := n.sandbox("exec", hostNetwork)
	volume := t.TempDir()
	if err := os.Chmod(volume, 0o777); err != nil {
		t.Fatal(err)
	}
	container := func(name, image string) string {
		cfg := containerConfig(image, "sleep")
		cfg.Metadata.Name, cfg.LogPath = name, name+".log"
		cfg.Envs = []*runtimeapi.KeyValue{{Key: "OF", Value: []byte(name)}}
		cfg.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: "/data"}}
		cfg.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 48 << 20}
		return n.start(sb, pod, cfg)
	}
	exec := func(id string, timeout int64, cmd ...string) (*runtimeapi.ExecSyncResponse, error) {
		return n.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: timeout})
	}
	id := container("tools", tools)

	for _, c := range []struct {
		name, cmd, stdout, stderr string
		code                      int32
	}{
		{name: "by path", cmd: "/bin/tool args a b", stdout: "a\nb\n"},
		{name: "found in PATH", cmd: "tool args a", stdout: "a\n"},
		{name: "the container's own module", cmd: "/probe.wasm args a", stdout: "a\n"},
		{name: "its environment", cmd: "tool env OF", stdout: "OF=tools\n"},
		{name: "the image's environment", cmd: "tool env FROM_IMAGE", stdout: "FROM_IMAGE=yes\n"},
		{name: "an exit code", cmd: "tool exit 3", code: 3},
		{name: "an error", cmd: "tool cat /none", stderr: "cat /none: No such file or directory\n", code: 1},
		{name: "its volumes", cmd: "tool write /data/x.txt from-exec -- cat /data/x.txt", stdout: "from-exec\n"},
		// It is the larger of the two in the cgroup of the container.
		{name: "its memory", cmd: "tool eat 64", code: 137},
	} {
		t.Run(c.name, func(t *testing.T) {
			n.in(t)
			got, err := exec(id, 20, strings.Fields(c.cmd)...)
			if err != nil || got.GetExitCode() != c.code || string(got.GetStderr()) != c.stderr || !strings.HasPrefix(string(got.GetStdout()), c.stdout) {
				t.Errorf("%s: code %d, stdout %q, stderr %q, %v", c.cmd, got.GetExitCode(), got.GetStdout(), got.GetStderr(), err)
			}
		})
	}

	t.Run("what can't be executed", func(t *testing.T) {
		n.in(t)
		single := container("alone", alone)
		for _, c := range []struct {
			id, cmd string
			code    codes.Code
		}{
			{id, "none", codes.NotFound}, {id, "/bin/script", codes.NotFound}, {id, "/etc", codes.NotFound},
			{id, "", codes.InvalidArgument}, {"none", "tool", codes.NotFound},
			// A probe must not start the module another time.
			{single, "cat /data/x.txt", codes.NotFound},
		} {
			if got, err := exec(c.id, 20, strings.Fields(c.cmd)...); status.Code(err) != c.code {
				t.Errorf("%q: %v, %v", c.cmd, got, err)
			}
		}
		name := n.status(single).GetImage().GetImage()
		own := strings.TrimSuffix(filepath.Base(name), ":1") + ".wasm"
		if got, err := exec(single, 20, own, "args", "a"); err != nil || string(got.GetStdout()) != "a\n" {
			t.Errorf("%s: %v, %v", own, got, err)
		}
	})

	t.Run("a limit of time", func(t *testing.T) {
		n.in(t)
		if got, err := exec(id, 1, "tool", "sleep"); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("%v, %v", got, err)
		}
		leftovers(t, n, id)
	})

	t.Run("streams", func(t *testing.T) {
		n.in(t)
		var out heard
		code, err := n.ExecContainer(t.Context(), id, []string{"tool", "copy"}, wasm.Streams{Stdin: strings.NewReader("from stdin"), Stdout: &out})
		if err != nil || code != 0 || out.String() != "from stdin" {
			t.Errorf("code %d, %q, %v", code, out.String(), err)
		}
		// More than a FIFO holds.
		out = heard{}
		code, err = n.ExecContainer(t.Context(), id, []string{"tool", "flood", "3000000", "99"}, wasm.Streams{Stdout: &out})
		if err != nil || code != 0 || len(out.String()) != 3000000 {
			t.Errorf("code %d, %d bytes, %v", code, len(out.String()), err)
		}
	})

	t.Run("the end of the container", func(t *testing.T) {
		n.in(t)
		errs := make(chan error, 1)
		var out heard
		go func() {
			_, err := n.ExecContainer(t.Context(), id, []string{"tool", "noeol", "runs", "--", "sleep"}, wasm.Streams{Stdout: &out})
			errs <- err
		}()
		out.until(t, "runs")
		if _, err := n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Error(err)
		}
		if err := <-errs; status.Code(err) != codes.FailedPrecondition {
			t.Errorf("exec: %v", err)
		}
		leftovers(t, n, id)
	})
}

// leftovers of commands that have ended: folders, and cgroups below the container's.
func leftovers(t *testing.T, n *node, id string) {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(n.cfg.StateDir, "wasm", "*", "tmp-*"))
	if err != nil || len(dirs) != 0 {
		t.Errorf("left over: %q, %v", dirs, err)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
		found, err := filepath.Glob(filepath.Join(pattern, n.cfg.CgroupParent, "*", id, "*", "cgroup.procs"))
		more, err2 := filepath.Glob(filepath.Join(pattern, n.cfg.CgroupParent, id, "*", "cgroup.procs"))
		if found = append(found, more...); err != nil || err2 != nil || len(found) != 0 {
			t.Errorf("left over: %q, %v, %v", found, err, err2)
		}
	}
}
