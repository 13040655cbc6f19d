package devices

import (
	"path/filepath"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// Whatever a plugin says of itself, its devices, its preference and what a container
// is to be given: bounded, and sockets in the folder only.
func FuzzPlugin(f *testing.F) {
	list := &pluginapi.ListAndWatchResponse{Devices: []*pluginapi.Device{{ID: "a", Health: pluginapi.Healthy}, {ID: "a"}}}
	allocated := &pluginapi.ContainerAllocateResponse{Envs: map[string]string{"A=B": "\x00"}, Mounts: []*pluginapi.Mount{{ContainerPath: "..", HostPath: "/"}},
		Devices: []*pluginapi.DeviceSpec{{HostPath: "/dev/null"}}}
	for _, m := range []proto.Message{list, allocated} {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, "../x.sock")
	}
	m, err := New(Config{Dir: f.TempDir(), Store: &disk{records: map[string][]byte{}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte, endpoint string) {
		if socket, err := m.endpoint(endpoint); err == nil && !inside(m.cfg.Dir, socket) {
			t.Errorf("%q is %s", endpoint, socket)
		}
		p := &plugin{resource: camera}
		m.resources[camera] = &known{plugin: p}
		var l pluginapi.ListAndWatchResponse
		if proto.Unmarshal(raw, &l) == nil {
			m.listed(p, l.Devices)
			if n := len(m.resources[camera].devices); n > maxDevices {
				t.Errorf("%d devices", n)
			}
			var wanted []string
			for _, d := range l.Devices {
				wanted = append(wanted, d.ID, d.Health)
			}
			if got := pick(nil, wanted, []string{"a", "b"}, 2); len(got) != 2 || !slices.Contains(got, "a") || !slices.Contains(got, "b") {
				t.Errorf("preferred %q, picked %q", wanted, got)
			}
		}
		var r pluginapi.ContainerAllocateResponse
		if proto.Unmarshal(raw, &r) == nil {
			out := &Given{Annotations: map[string]string{}}
			out.add(&r)
			before := len(out.Env) + len(out.Devices) + len(out.Mounts) + len(out.CDIDevices)
			out.add(&r) // another plugin that says the same
			if after := len(out.Env) + len(out.Devices) + len(out.Mounts) + len(out.CDIDevices); after != before {
				t.Errorf("%d things became %d", before, after)
			}
		}
	})
}

func inside(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}
