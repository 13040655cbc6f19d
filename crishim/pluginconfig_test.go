package crishim

import "testing"

// The forms in which containerd 1.6 and 2.x print their configuration, cut down.
var printed = map[string]struct {
	raw     string
	systemd bool
	image   string
}{
	"1.6, cgroupfs": {`{"containerd":{"defaultRuntimeName":"runc","runtimes":{"runc":{"runtimeType":"io.containerd.runc.v2","options":{"SystemdCgroup":false}}}},"sandboxImage":"registry.k8s.io/pause:3.6","systemdCgroup":false}`, false, "registry.k8s.io/pause:3.6"},
	"1.6, systemd":  {`{"containerd":{"defaultRuntimeName":"crun","runtimes":{"runc":{"options":{}},"crun":{"options":{"BinaryName":"crun","SystemdCgroup":true}}}},"sandboxImage":"p"}`, true, "p"},
	"another's":     {`{"containerd":{"defaultRuntimeName":"runc","runtimes":{"runc":{"options":null},"crun":{"options":{"SystemdCgroup":true}}}}}`, false, ""},
	"the old way":   {`{"systemdCgroup":true}`, true, ""},
	"empty":         {``, false, ""},
	"not JSON":      {`version = 2`, false, ""},
	"other types":   {`{"containerd":[],"sandboxImage":"x"}`, false, ""},
}

func TestPluginConfig(t *testing.T) {
	for name, c := range printed {
		got := parsePluginConfig(c.raw)
		if got.systemdCgroups() != c.systemd || got.SandboxImage != c.image {
			t.Errorf("%s: %t %q, want %t %q", name, got.systemdCgroups(), got.SandboxImage, c.systemd, c.image)
		}
	}
}

func TestWhoPutsCDIDevicesIn(t *testing.T) {
	for raw, want := range map[string]bool{printed["1.6, cgroupfs"].raw: false, `{"enableCDI":false}`: false, ``: false,
		`{"containerd":{"defaultRuntimeName":"runc"},"enableCDI":true,"cdiSpecDirs":["/etc/cdi","/var/run/cdi"]}`: true} {
		if got := parsePluginConfig(raw).EnableCDI; got != want {
			t.Errorf("%s: %t", raw, got)
		}
	}
}

func FuzzPluginConfig(f *testing.F) {
	for _, c := range printed {
		f.Add(c.raw)
	}
	f.Fuzz(func(t *testing.T, raw string) { parsePluginConfig(raw).systemdCgroups() })
}
