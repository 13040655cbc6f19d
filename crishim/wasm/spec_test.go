package wasm

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim/images"
	"github.com/coracle-edge/coracle/wasmruntime"
)

func TestSetArgs(t *testing.T) {
	root := t.TempDir()
	for _, f := range []string{"x.wasm", "other.wasm"} {
		if err := os.WriteFile(filepath.Join(root, f), []byte("\x00asm"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	artifact := &images.Image{Shape: images.ShapeArtifact, Module: images.Module{Name: "hello.wasm", Path: "/store/blob"}}
	compat := &images.Image{Shape: images.ShapeCompat, Rootfs: root, Entrypoint: []string{"/x.wasm"}, Cmd: []string{"from", "image"},
		Module: images.Module{Name: "x.wasm", Path: filepath.Join(root, "x.wasm")}}
	cmdOnly := &images.Image{Shape: images.ShapeCompat, Rootfs: root, Cmd: []string{"/x.wasm", "arg"}, Module: compat.Module}
	for _, c := range []struct {
		name          string
		img           *images.Image
		command, args []string
		want          string
		module        string
	}{
		{"artifact", artifact, nil, nil, "hello.wasm", "/store/blob"},
		{"artifact, args", artifact, nil, []string{"a", "b"}, "hello.wasm a b", "/store/blob"},
		{"artifact, command", artifact, []string{"/bin/prog", "c"}, []string{"a"}, "/bin/prog c a", "/store/blob"},
		{"compat", compat, nil, nil, "/x.wasm from image", compat.Module.Path},
		{"compat, args", compat, nil, []string{"a"}, "/x.wasm a", compat.Module.Path},
		{"compat, same command", compat, []string{"/x.wasm"}, nil, "/x.wasm", compat.Module.Path},
		{"compat, another module", compat, []string{"/other.wasm"}, []string{"a"}, "/other.wasm a", filepath.Join(root, "other.wasm")},
		{"compat, no such file", compat, []string{"/none.wasm"}, nil, "/none.wasm", compat.Module.Path},
		{"command in the image", cmdOnly, nil, nil, "/x.wasm arg", compat.Module.Path},
	} {
		spec := wasmruntime.Spec{Module: c.img.Module.Path}
		setArgs(&spec, &runtimeapi.ContainerConfig{Command: c.command, Args: c.args}, c.img)
		if got := strings.Join(spec.Args, " "); got != c.want || spec.Module != c.module {
			t.Errorf("%s: args %q of %s, want %q of %s", c.name, got, spec.Module, c.want, c.module)
		}
	}
}

func TestSetListen(t *testing.T) {
	podOf := func(network string) *pod {
		return &pod{network: network, taken: map[string]bool{"0.0.0.0:82": true}, config: &runtimeapi.PodSandboxConfig{PortMappings: []*runtimeapi.PortMapping{
			{ContainerPort: 80, HostPort: 8080}, {ContainerPort: 81}, {ContainerPort: 82}, {ContainerPort: 53, Protocol: runtimeapi.Protocol_UDP},
		}}}
	}
	for _, c := range []struct {
		name        string
		network     string
		annotations map[string]string
		want        string
		bad         bool
	}{
		{"all ports of the pod that nobody has", netCNI, nil, "0.0.0.0:80 0.0.0.0:81", false},
		{"without a network of its own the hostPort", netNone, nil, "0.0.0.0:8080 0.0.0.0:81", false},
		{"host network", netHost, nil, "0.0.0.0:80 0.0.0.0:81", false},
		{"ours", netCNI, map[string]string{AnnotationListen: "127.0.0.1:1/tcp, [::]:2"}, "127.0.0.1:1 [::]:2", false},
		{"a kubelet's without ports", netCNI, map[string]string{annotationHash: "1234"}, "", false},
		{"ours, none", netCNI, map[string]string{AnnotationListen: ""}, "", false},
		{"the kubelet's", netCNI, map[string]string{annotationPorts: `[{"name":"http","containerPort":81,"protocol":"TCP"},{"containerPort":53,"protocol":"UDP"}]`}, "0.0.0.0:81", false},
		{"the kubelet's, though another has it", netCNI, map[string]string{annotationPorts: `[{"containerPort":82}]`}, "0.0.0.0:82", false},
		{"UDP", netCNI, map[string]string{AnnotationListen: "0.0.0.0:53/udp"}, "", true},
		{"no port", netCNI, map[string]string{AnnotationListen: "localhost"}, "", true},
	} {
		var spec wasmruntime.Spec
		err := setListen(&spec, podOf(c.network), &runtimeapi.ContainerConfig{Annotations: c.annotations})
		var got []string
		for _, l := range spec.Listen {
			got = append(got, l.Address)
		}
		if (err != nil) != c.bad || err == nil && strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
}

func FuzzSetListen(f *testing.F) {
	f.Add("0.0.0.0:80/tcp,[::]:1", `[{"containerPort":1}]`)
	f.Fuzz(func(t *testing.T, listen, ports string) {
		for _, a := range []map[string]string{{AnnotationListen: listen}, {annotationPorts: ports}} {
			var spec wasmruntime.Spec
			_ = setListen(&spec, &pod{config: &runtimeapi.PodSandboxConfig{}}, &runtimeapi.ContainerConfig{Annotations: a})
		}
	})
}

func TestEnvironmentLastWordWins(t *testing.T) {
	var spec wasmruntime.Spec
	setEnv(&spec, &pod{config: &runtimeapi.PodSandboxConfig{Hostname: "pod"}}, &runtimeapi.ContainerConfig{Envs: []*runtimeapi.KeyValue{
		{Key: "A", Value: []byte("pod")}, {Key: "EMPTY"}, {Key: "B", Value: []byte("x=y")},
	}}, &images.Image{Env: []string{"A=image", "C=image"}})
	if want := []string{"A=pod", "C=image", "HOSTNAME=pod", "EMPTY=", "B=x=y"}; !slices.Equal(spec.Env, want) {
		t.Errorf("%q, want %q", spec.Env, want)
	}
}

func TestExpandSlice(t *testing.T) {
	for in, want := range map[string]string{
		"":                                 "",
		"/kubepods/burstable/pod1":         "/kubepods/burstable/pod1",
		"kubepods.slice":                   "/kubepods.slice",
		"kubepods-burstable-pod1.slice":    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice",
		"/kubepods-besteffort-pod2.slice":  "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod2.slice",
		"/kubepods.slice/kubepods-a.slice": "/kubepods.slice/kubepods-a.slice",
	} {
		if got := expandSlice(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestSetOutbound(t *testing.T) {
	withDNS := &pod{config: &runtimeapi.PodSandboxConfig{
		Annotations: map[string]string{AnnotationSockets: "outbound"},
		DnsConfig:   &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"default.svc.cluster.local"}, Options: []string{"ndots:5"}},
	}}
	plain := &pod{config: &runtimeapi.PodSandboxConfig{}}
	asked := &runtimeapi.ContainerConfig{Annotations: map[string]string{AnnotationSockets: "outbound"}}
	spec := wasmruntime.Spec{Mounts: []wasmruntime.Mount{{Host: "/var/lib/kubelet/hosts", Guest: "/etc/hosts"}}}
	if err := setOutbound(&spec, withDNS, &runtimeapi.ContainerConfig{}); err != nil {
		t.Fatal(err)
	}
	if o := spec.Outbound; o == nil || !slices.Equal(o.Servers, []string{"10.96.0.10"}) || o.Ndots != 5 || o.Hosts != "/var/lib/kubelet/hosts" || o.ResolvConf != "" || len(o.Searches) != 1 {
		t.Errorf("of the pod: %+v", o)
	}
	spec = wasmruntime.Spec{}
	if err := setOutbound(&spec, plain, asked); err != nil || spec.Outbound == nil || spec.Outbound.ResolvConf == "" || spec.Outbound.Hosts != "" {
		t.Errorf("of the container: %+v, %v", spec.Outbound, err)
	}
	spec = wasmruntime.Spec{}
	off := &runtimeapi.ContainerConfig{Annotations: map[string]string{AnnotationSockets: "none"}}
	for name, c := range map[string]struct {
		p   *pod
		cfg *runtimeapi.ContainerConfig
	}{"nobody asked": {plain, &runtimeapi.ContainerConfig{}}, "the container doesn't want": {withDNS, off}} {
		if err := setOutbound(&spec, c.p, c.cfg); err != nil || spec.Outbound != nil {
			t.Errorf("%s: %+v, %v", name, spec.Outbound, err)
		}
	}
	wrong := &runtimeapi.ContainerConfig{Annotations: map[string]string{AnnotationSockets: "all"}}
	if err := setOutbound(&spec, plain, wrong); err == nil || !strings.Contains(err.Error(), AnnotationSockets) || !strings.Contains(err.Error(), `"all"`) {
		t.Errorf("a word that means nothing: %v", err)
	}
}

func TestSetMounts(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	type mount = runtimeapi.Mount
	both := runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	for _, d := range []string{"etc/conf", "out"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/", filepath.Join(dir, "host")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	lookup := func(ref string) (*images.Image, error) {
		switch ref {
		case "rooted":
			return &images.Image{Rootfs: dir}, nil
		case "module":
			return &images.Image{}, nil
		}
		return nil, images.ErrNotFound
	}
	of := func(ref, sub string) *mount {
		return &mount{Image: &runtimeapi.ImageSpec{Image: ref}, ImageSubPath: sub, ContainerPath: "/img", Readonly: true}
	}
	writable := of("rooted", "")
	writable.Readonly = false
	for _, c := range []struct {
		name  string
		mount *mount
		want  wasmruntime.Mount
	}{
		{"a folder", &mount{HostPath: dir, ContainerPath: "/data/"}, wasmruntime.Mount{Host: dir, Guest: "/data"}},
		{"through a link", &mount{HostPath: link, ContainerPath: "/data", Readonly: true}, wasmruntime.Mount{Host: dir, Guest: "/data", ReadOnly: true}},
		{"read-only with all below", &mount{HostPath: dir, ContainerPath: "/data", Readonly: true, RecursiveReadOnly: true}, wasmruntime.Mount{Host: dir, Guest: "/data", ReadOnly: true}},
		{"all below, but not it", &mount{HostPath: dir, ContainerPath: "/data", RecursiveReadOnly: true}, wasmruntime.Mount{}},
		{"all below, propagated", &mount{HostPath: dir, ContainerPath: "/data", Readonly: true, RecursiveReadOnly: true, Propagation: both}, wasmruntime.Mount{}},
		{"not absolute", &mount{HostPath: dir, ContainerPath: "data"}, wasmruntime.Mount{}},
		{"an image", of("rooted", ""), wasmruntime.Mount{Host: dir, Guest: "/img", ReadOnly: true}},
		{"a part of an image", of("rooted", "etc/conf"), wasmruntime.Mount{Host: filepath.Join(dir, "etc/conf"), Guest: "/img", ReadOnly: true}},
		{"a part that leads out", of("rooted", "../out"), wasmruntime.Mount{}},
		{"a link that leads out", of("rooted", "host/etc"), wasmruntime.Mount{}},
		{"a part that isn't there", of("rooted", "none"), wasmruntime.Mount{}},
		{"a part that is a file", of("rooted", "file"), wasmruntime.Mount{}},
		{"an image to be written to", writable, wasmruntime.Mount{}},
		{"an image without a root", of("module", ""), wasmruntime.Mount{}},
		{"an image that isn't here", of("none", ""), wasmruntime.Mount{}},
		{"nothing there", &mount{HostPath: dir + "/none", ContainerPath: "/data"}, wasmruntime.Mount{}},
	} {
		var spec wasmruntime.Spec
		err := setMounts(&spec, &runtimeapi.ContainerConfig{Mounts: []*mount{c.mount}}, &images.Image{}, lookup)
		if (err != nil) != (c.want.Host == "") || err == nil && !slices.Equal(spec.Mounts, []wasmruntime.Mount{c.want}) {
			t.Errorf("%s: %v, %v", c.name, spec.Mounts, err)
		}
	}
}
