package cdi

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func write(t testing.TB, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func config(devices ...string) *runtimeapi.ContainerConfig {
	cfg := &runtimeapi.ContainerConfig{Envs: []*runtimeapi.KeyValue{{Key: "A", Value: []byte("pod's")}, {Key: "KEPT", Value: []byte("1")}},
		Mounts: []*runtimeapi.Mount{{ContainerPath: "/lib/x", HostPath: "/pods"}, {ContainerPath: "/data", HostPath: "/d"}}}
	for _, d := range devices {
		cfg.CDIDevices = append(cfg.CDIDevices, &runtimeapi.CDIDevice{Name: d})
	}
	return cfg
}

const twoDevices = `
cdiVersion: "0.7.0"
kind: example.com/dev
containerEdits: {env: ["COMMON=yes"]}
devices:
- name: one
  containerEdits:
    env: ["A=cdi=1"]
    deviceNodes: [{path: /dev/one, hostPath: /dev/null, type: c, major: 1, minor: 3, permissions: rw}]
    mounts: [{hostPath: /usr/lib, containerPath: /lib/x, options: [ro, rbind, rprivate]}]
    additionalGids: [0, 44]
- name: two
  containerEdits:
    deviceNodes: [{path: /dev/zero}]
    mounts: [{hostPath: /tmp, containerPath: /tmp/x, options: [rslave]}]
`

func TestDevicesInCRIsWords(t *testing.T) {
	dirs := []string{t.TempDir(), t.TempDir()}
	write(t, dirs[0], "a.yaml", twoDevices)
	write(t, dirs[1], "b.json", `{"cdiVersion": "0.5.0", "kind": "example.com/dev", "devices": [{"name": "two", "containerEdits": {"env": ["TWO=dynamic"]}}]}`)
	cfg := config("example.com/dev=one", "example.com/dev=two", "example.com/dev=one")
	if err := Apply(cfg, dirs, false); err != nil {
		t.Fatal(err)
	}
	want := &runtimeapi.ContainerConfig{}
	if err := prototext.Unmarshal([]byte(`
		envs {key: "KEPT" value: "1"} envs {key: "COMMON" value: "yes"} envs {key: "A" value: "cdi=1"} envs {key: "TWO" value: "dynamic"}
		mounts {container_path: "/data" host_path: "/d"} mounts {container_path: "/lib/x" host_path: "/usr/lib" readonly: true}
		devices {container_path: "/dev/one" host_path: "/dev/null" permissions: "rw"}
		linux {security_context {supplemental_groups: 44}}`), want); err != nil {
		t.Fatal(err)
	}
	if cfg.String() != want.String() {
		t.Errorf("%s\nwant\n%s", cfg, want)
	}
}

// What there is no word for is refused by its name, and so is what nobody describes.
func TestWhatIsRefused(t *testing.T) {
	for _, c := range []struct {
		edits string
		wasm  bool
		want  []string
	}{
		{`hooks: [{hookName: createContainer, path: /usr/bin/ctk}]`, false, []string{"CDI device example.com/dev=x: its createContainer hook /usr/bin/ctk can't be had here", "use containerd 2"}},
		{`hooks: [{hookName: createContainer, path: /usr/bin/ctk}]`, true, []string{"hook /usr/bin/ctk", "Wasm module"}},
		{`netDevices: [{hostInterfaceName: eth7, name: eth1}]`, false, []string{"its network device eth7"}},
		{`intelRdt: {closID: c}`, false, []string{"Intel RDT"}},
		{`mounts: [{hostPath: /a, containerPath: /b, type: tmpfs}]`, false, []string{"the type tmpfs of its mount /b"}},
		{`mounts: [{hostPath: /a, containerPath: /b, options: [nosuid]}]`, false, []string{"the option nosuid of its mount /b"}},
		{`deviceNodes: [{path: /dev/null, type: c, major: 9, minor: 9}]`, false, []string{"the number 9:9 of its device node /dev/null"}},
		{`deviceNodes: [{path: /dev/null, type: b}]`, false, []string{"the type b of its device node /dev/null"}},
		{`deviceNodes: [{path: /dev/null, uid: 12345}]`, false, []string{"the user 12345 of its device node /dev/null"}},
		{`deviceNodes: [{path: /dev/null, fileMode: 0400}]`, false, []string{"the mode 0400 of its device node /dev/null"}},
		{`deviceNodes: [{path: /dev/null, permissions: none}]`, false, []string{"no permission at all of its device node"}},
		{`deviceNodes: [{path: /dev/gone-for-good}]`, false, []string{"stat /dev/gone-for-good: no such file"}},
		{`deviceNodes: [{path: /dev/x, hostPath: /etc}]`, false, []string{"/etc is no device node"}},
		{`deviceNodes: [{path: /dev/null}]`, true, []string{"its device node /dev/null can't be had here: the container is a Wasm module, and WASI has no call for device nodes"}},
	} {
		dir := t.TempDir()
		write(t, dir, "x.yaml", "cdiVersion: \"1.1.0\"\nkind: example.com/dev\ndevices:\n- name: x\n  containerEdits: {"+c.edits+"}\n")
		err := Apply(config("example.com/dev=x"), []string{dir}, c.wasm)
		for _, want := range c.want {
			if !errors.Is(err, ErrUnsupported) && !strings.Contains(want, "stat ") && !strings.Contains(want, "no device node") || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %s", c.edits, err, want)
			}
		}
	}
	dir := t.TempDir()
	write(t, dir, "broken.yaml", "cdiVersion: 0.5.0\nkind: [")
	err := Apply(config("example.com/dev=x"), []string{dir}, false)
	if !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "unresolvable CDI device example.com/dev=x: no file in "+dir) || !strings.Contains(err.Error(), "broken.yaml") {
		t.Error(err)
	}
}

// The library panics at this one.
func TestAFileThatIsNoDevices(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "null.yaml", `{cdiVersion: "0.5.0", kind: example.com/dev, devices: [{name: x, containerEdits: {deviceNodes: [null]}}]}`)
	if err := Apply(config("example.com/dev=x"), []string{dir}, false); !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), dir) {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(dir, "null.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Apply(config("example.com/dev=x"), []string{dir}, false); !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), "pipe.json") {
		t.Error(err)
	}
}

// A guest gets variables and folders; what mounts are in a kernel's eyes means nothing
// to it.
func TestAWasmContainer(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "x.yaml", `{cdiVersion: "0.5.0", kind: example.com/dev, devices: [{name: x, containerEdits: {env: [E=1], mounts: [{hostPath: /srv, containerPath: /dev/x, options: [ro, nosuid, nodev, rbind]}]}}]}`)
	cfg := config("example.com/dev=x")
	if err := Apply(cfg, []string{dir}, true); err != nil {
		t.Fatal(err)
	}
	if m := cfg.Mounts[len(cfg.Mounts)-1]; m.HostPath != "/srv" || m.ContainerPath != "/dev/x" || !m.Readonly || len(cfg.CDIDevices) > 0 {
		t.Errorf("%s", cfg)
	}
}

// Files of drivers, which run as root but make mistakes as all do.
func FuzzFiles(f *testing.F) {
	f.Add([]byte(twoDevices), "example.com/dev=one")
	f.Add([]byte(`{"cdiVersion": "0.5.0", "kind": "v/c", "devices": [{"name": "n", "containerEdits": {"env": ["="], "deviceNodes": [null]}}]}`), "v/c=n")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, raw []byte, name string) {
		write(t, dir, "f.yaml", string(raw))
		for _, wasm := range []bool{false, true} {
			cfg := config(name)
			err := Apply(cfg, []string{dir}, wasm)
			switch {
			case err == nil && len(cfg.CDIDevices) > 0:
				t.Error("a device was left to a runtime that doesn't know it")
			case err == nil && wasm && len(cfg.Devices) > 0:
				t.Errorf("a guest has %s", cfg.Devices)
			}
			for _, m := range cfg.Mounts {
				if m.ContainerPath == "" || m.HostPath == "" {
					t.Errorf("mount %s", m)
				}
			}
		}
	})
}
