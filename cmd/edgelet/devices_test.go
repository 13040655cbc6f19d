package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/examples"
	"github.com/coracle-edge/coracle/test/lab"
	"github.com/coracle-edge/coracle/test/lab/deviceplugin"
	"github.com/coracle-edge/coracle/test/lab/logind"
)

const cameraPod = `apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: ` + busyboxImage + `
    command: [sh, -c, 'echo "has $DEVICES" $(ls /dev | grep cam) $(test -c /dev/cam-* && echo a node); sleep 3600']
    resources: {limits: {example.org/camera: %d}}
`

// A real plugin, a real agent, a real containerd: a pod has its device, and keeps
// it when agent, plugin and container are killed.
func TestAPodWithADevice(t *testing.T) {
	lab.NeedNamespaces(t)
	c := lab.StartContainerd(t, "")
	m := newMachine(t, "--containerd", c.Socket(), "--cni-conf-dir", c.CNIConfDir(), "--cni-bin-dir", c.CNIBinDir())
	m.start()
	m.importArchive(lab.Archive(lab.Busybox(t), busyboxImage), busyboxImage)
	plugin := deviceplugin.New(filepath.Join(m.dir, "device-plugins"), "example.org/camera", "cam-1", "cam-2")
	if err := plugin.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.eventually("the plugin's list", func() error {
		if !strings.Contains(m.log.String(), "msg=devices resource=example.org/camera all=2") {
			return fmt.Errorf("no devices yet")
		}
		return nil
	})
	m.put("one", fmt.Sprintf(cameraPod, "one", 1))
	m.phase("one", "Running")
	m.logs("one", "has [cam-1] cam-1 a node")
	m.put("three", fmt.Sprintf(cameraPod, "three", 3))
	m.phase("three", "Failed")

	plugin.Stop()
	m.stop(syscall.SIGKILL)
	m.start()
	for _, p := range containerPIDs(t, "sleep 3600") {
		_ = syscall.Kill(p, syscall.SIGKILL)
	}
	m.logs("one", "has [cam-1] cam-1 a node")
	again := deviceplugin.New(plugin.Dir, "example.org/camera", "cam-1", "cam-2")
	if err := again.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.Stop)
	m.eventually("the second device", func() error {
		m.put("two", fmt.Sprintf(cameraPod, "two", 1))
		if !strings.Contains(m.podLog("two", "main"), "has [cam-2] cam-2 a node") {
			return fmt.Errorf("two says %q", m.podLog("two", "main"))
		}
		return nil
	})
}

// logs waits until the newest log of a pod has a line.
func (m *machine) logs(pod, want string) {
	m.t.Helper()
	m.eventually(want, func() error {
		if got := m.podLog(pod, "main"); !strings.Contains(got, want) {
			return fmt.Errorf("%s says %q", pod, got)
		}
		return nil
	})
}

// containerPIDs are processes of this command line.
func containerPIDs(t *testing.T, command string) (out []int) {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		raw, _ := os.ReadFile(path)
		var pid int
		if strings.TrimSpace(strings.ReplaceAll(string(raw), "\x00", " ")) == command {
			if _, err := fmt.Sscanf(path, "/proc/%d/", &pid); err == nil {
				out = append(out, pid)
			}
		}
	}
	return out
}

// The power button: pods end in order, the machine waits for them and no longer,
// and after it runs again what the node runs by itself.
func TestThePowerButton(t *testing.T) {
	bus := logind.Start(t)
	m := newMachine(t, "--system-bus", bus.Path, "--shutdown-grace-period", "4s", "--shutdown-grace-period-critical-pods", "2s")
	m.start()
	m.importImage(examples.HelloModule, examples.HelloImage)
	m.put("hello", helloPod)
	m.phase("hello", "Running")
	bus.Lock(0)
	bus.Prepare(true)
	began := time.Now()
	bus.Released(0)
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("the machine waited %s", took)
	}
	if len(m.runners()) > 0 {
		t.Error("the machine goes down under a guest")
	}
	m.put("late", strings.Replace(helloPod, "name: hello}", "name: late}", 1))
	m.phase("late", "Failed")
	m.stop(syscall.SIGTERM)

	m.start() // the machine is back, and its logind is not going down
	bus.Prepare(false)
	m.phase("hello", "Running")
}
