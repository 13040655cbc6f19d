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

func TestSetUser(t *testing.T) {
	v := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	for _, c := range []struct {
		name     string
		sc       *runtimeapi.LinuxContainerSecurityContext
		image    string
		uid, gid uint32
		root     bool
		bad      bool
	}{
		{"nobody said", nil, "", Nonroot, Nonroot, false, false},
		{"the image says root", nil, "0", Nonroot, Nonroot, false, false},
		{"the image says a name", nil, "app", Nonroot, Nonroot, false, false},
		{"the image says a number", nil, "1000:2000", 1000, 2000, false, false},
		{"the pod says", &runtimeapi.LinuxContainerSecurityContext{RunAsUser: v(7), RunAsGroup: v(8)}, "1000", 7, 8, false, false},
		{"the pod says root", &runtimeapi.LinuxContainerSecurityContext{RunAsUser: v(0)}, "", 0, 0, true, false},
		{"a name", &runtimeapi.LinuxContainerSecurityContext{RunAsUsername: "app"}, "", 0, 0, false, true},
		{"too large", &runtimeapi.LinuxContainerSecurityContext{RunAsUser: v(1 << 40)}, "", 0, 0, false, true},
	} {
		var spec wasmruntime.Spec
		err := setUser(&spec, c.sc, c.image)
		if (err != nil) != c.bad || err == nil && (spec.UID != c.uid || spec.GID != c.gid || spec.AllowRoot != c.root) {
			t.Errorf("%s: uid %d, gid %d, root %v, %v", c.name, spec.UID, spec.GID, spec.AllowRoot, err)
		}
	}
}

func TestSetListen(t *testing.T) {
	podOf := func(network string) *pod {
		return &pod{network: network, config: &runtimeapi.PodSandboxConfig{PortMappings: []*runtimeapi.PortMapping{
			{ContainerPort: 80, HostPort: 8080}, {ContainerPort: 81}, {ContainerPort: 53, Protocol: runtimeapi.Protocol_UDP},
		}}}
	}
	for _, c := range []struct {
		name        string
		network     string
		annotations map[string]string
		want        string
		bad         bool
	}{
		{"all ports of the pod", netCNI, nil, "0.0.0.0:80 0.0.0.0:81", false},
		{"without a network of its own the hostPort", netNone, nil, "0.0.0.0:8080 0.0.0.0:81", false},
		{"host network", netHost, nil, "0.0.0.0:80 0.0.0.0:81", false},
		{"ours", netCNI, map[string]string{AnnotationListen: "127.0.0.1:1/tcp, [::]:2"}, "127.0.0.1:1 [::]:2", false},
		{"a kubelet's without ports", netCNI, map[string]string{annotationHash: "1234"}, "", false},
		{"ours, none", netCNI, map[string]string{AnnotationListen: ""}, "", false},
		{"the kubelet's", netCNI, map[string]string{annotationPorts: `[{"name":"http","containerPort":81,"protocol":"TCP"},{"containerPort":53,"protocol":"UDP"}]`}, "0.0.0.0:81", false},
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
