package crishim_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim"
	"github.com/coracle-edge/coracle/test/lab"
)

// describe writes what devices are, as a driver does: example.com/dev=folder, node and
// hook.
func describe(t *testing.T) (dir string) {
	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sensor"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"sensor/value": "21 degrees\n",
		"dev.yaml": `
cdiVersion: "0.7.0"
kind: example.com/dev
containerEdits: {env: [DRIVER=1]}
devices:
- name: folder
  containerEdits: {env: [WHO=device], mounts: [{hostPath: ` + filepath.Join(dir, "sensor") + `, containerPath: /sensor, options: [ro, rbind]}], additionalGids: [4711]}
- name: node
  containerEdits: {deviceNodes: [{path: /dev/sensor, hostPath: /dev/zero}]}
- name: hook
  containerEdits: {hooks: [{hookName: createContainer, path: /bin/true}]}
`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func devices(names ...string) (out []*runtimeapi.CDIDevice) {
	for _, name := range names {
		out = append(out, &runtimeapi.CDIDevice{Name: "example.com/dev=" + name})
	}
	return out
}

func TestWasmCDIDevices(t *testing.T) {
	dir := describe(t)
	n := newNode(t, func(c *crishim.Config) { c.CDIDirs = []string{dir} })
	img := n.image(lab.CNCF(probeModule(t)))
	cfg := containerConfig(img, "cat", "/sensor/value", "--", "env", "WHO", "--", "env", "DRIVER")
	cfg.Envs = []*runtimeapi.KeyValue{{Key: "WHO", Value: []byte("pod")}}
	cfg.CDIDevices = devices("folder")
	st, log := n.run("cdi", cfg)
	if got := text(log); got != "21 degrees\nWHO=device\nDRIVER=1\n" || st.GetExitCode() != 0 {
		t.Errorf("code %d, log %q", st.GetExitCode(), got)
	}
	sb, pod := n.sandbox("refused", hostNetwork)
	for name, want := range map[string]string{"node": "CDI device example.com/dev=node: its device node /dev/sensor can't be had here", "hook": "hook /bin/true", "none": "unresolvable CDI device example.com/dev=none"} {
		cfg := containerConfig(img, "hello")
		cfg.CDIDevices = devices(name)
		if _, err := n.create(sb, pod, cfg); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), `container "main": `) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// containerd 1.6 doesn't know CDI: its containers get their devices all the same.
func TestOCICDIDevices(t *testing.T) {
	lab.NeedNamespaces(t)
	reg, _, _, withContainerd := startContainerd(t)
	dir := describe(t)
	n := newNode(t, func(c *crishim.Config) {
		withContainerd(c)
		c.CDIDirs = []string{dir}
	})
	busybox := reg.Push(t, "busybox:1", lab.Busybox(t))
	if _, err := n.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: busybox}}); err != nil {
		t.Fatal(err)
	}
	sb, pod := n.sandbox("cdi", isOCI)
	cfg := shell(busybox, `cat /sensor/value; echo $WHO $DRIVER; head -c 3 /dev/sensor | od -An -tx1; id -G; touch /sensor/x 2>&1 | grep -o "Read-only file system"`)
	cfg.CDIDevices = devices("folder", "node")
	st := n.wait(n.start(sb, pod, cfg))
	got := strings.Fields(text(readLog(t, st.GetLogPath())))
	if s := strings.Join(got, " "); !strings.HasPrefix(s, "21 degrees device 1 00 00 00 0 ") || !strings.HasSuffix(s, " 4711 Read-only file system") {
		t.Errorf("%q", s)
	}
	cfg = shell(busybox, "true")
	cfg.CDIDevices = devices("hook")
	if _, err := n.create(sb, pod, cfg); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "its createContainer hook /bin/true can't be had here") {
		t.Error(err)
	}
}
