package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/crishim"
	"github.com/coracle-edge/coracle/crishim/oci"
)

// part is a container of a pod.
type part struct {
	name   string
	wasm   bool
	args   []string
	listen string
	serves bool // on 8080, else it answers what it is told over stdin
}

var ociTalks = part{name: "talks", args: []string{"/bin/sh", "-c", "echo hello from OCI; while read l; do echo \"got $l\"; done"}}
var ociServes = part{name: "serves", serves: true, args: []string{"/bin/sh", "-c", "echo served >/tmp/index.html; httpd -f -p 8080 -h /tmp"}}
var wasmTalks = part{name: "wasm-talks", wasm: true, args: []string{"hello", "--", "copy"}}
var wasmServes = part{name: "wasm-serves", wasm: true, serves: true, args: []string{"serve"}, listen: "0.0.0.0:8080/tcp"}

// TestCrictl does with the real crictl, for a pod of each kind, everything that
// crictl can do.
func TestCrictl(t *testing.T) {
	tool(t, "crictl")
	s := newShim(t)
	s.eventually(time.Minute, func() string {
		if out, err := s.try("version"); err != nil {
			return out
		}
		return ""
	})
	s.says([]string{"RuntimeName:  coracle", "RuntimeApiVersion:  v1"}, "version")
	events := &output{}
	ctx, cancel := context.WithCancel(t.Context())
	cmd := s.command(ctx, "events")
	cmd.Stdout, cmd.Stderr = events, events
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait()
	}()

	t.Run("node", func(t *testing.T) {
		s := s.in(t)
		s.says([]string{`"type": "RuntimeReady"`, `"type": "NetworkReady"`, `"name": "wasm"`, "cniConfDir", "lastCNILoadStatus"}, "info")
		s.says([]string{"CGROUPFS"}, "runtime-config")
		s.says([]string{"container_memory_working_set_bytes", "container_network_receive_bytes_total"}, "metricdescs")
		s.crictl("update-runtime-config", "--pod-cidr", "10.231.0.0/16")
		for _, image := range []string{s.oci, s.wasm} {
			s.says([]string{"sha256:"}, "pull", image)
			s.says([]string{image, `"pinned": false`}, "inspecti", image)
		}
		s.says([]string{"busybox", "probe", "pause"}, "images")
		s.says([]string{"usedBytes"}, "imagefsinfo")
		s.says([]string{`"pinned": true`}, "inspecti", oci.PauseImage)
	})
	for _, kind := range []struct {
		name, handler string
		parts         []part
	}{
		{"oci", "", []part{ociTalks, ociServes}},
		{"wasm", "wasm", []part{wasmTalks, wasmServes}},
		{"mixed", "", []part{ociTalks, wasmTalks, wasmServes}},
	} {
		t.Run(kind.name, func(t *testing.T) { crictlPod(s.in(t), kind.name, kind.handler, kind.parts) })
	}
	t.Run("events", func(t *testing.T) {
		s := s.in(t)
		for _, want := range []string{"CONTAINER_CREATED_EVENT", "CONTAINER_STARTED_EVENT", "CONTAINER_STOPPED_EVENT", "CONTAINER_DELETED_EVENT", "wasm-talks", "oci-pod"} {
			s.eventually(20*time.Second, func() string {
				if strings.Contains(events.String(), want) {
					return ""
				}
				return "no event with " + want
			})
		}
	})
	t.Run("nothing is left", func(t *testing.T) {
		s := s.in(t)
		for _, image := range []string{s.oci, s.wasm} {
			s.crictl("rmi", image)
			s.refuses("no such image", "inspecti", image)
		}
		if out := s.crictl("images"); strings.Contains(out, "busybox") || strings.Contains(out, "probe") {
			t.Errorf("images are left:\n%s", out)
		}
		if out := s.crictl("ps", "-aq") + s.crictl("pods", "-q"); out != "" {
			t.Errorf("left: %s", out)
		}
	})
}

// in makes a subtest the one that fails.
func (s *shim) in(t testing.TB) *shim {
	c := *s
	c.t = t
	return &c
}

func (s *shim) file(name string, v any) string {
	s.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		s.t.Fatal(err)
	}
	path := filepath.Join(s.dir, name+".json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func crictlPod(s *shim, name, handler string, parts []part) {
	t := s.t
	pod := s.file(name, &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name + "-pod", Namespace: "default", Uid: "uid-" + name},
		Labels:   map[string]string{"kind": name}, LogDirectory: filepath.Join(s.dir, "logs", name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/coracle-test-cri/" + name, SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{}},
	})
	args := []string{"runp"}
	if handler != "" {
		args = append(args, "--runtime", handler)
	}
	sb := s.crictl(append(args, pod)...)
	s.says([]string{sb[:13], name + "-pod", "Ready"}, "pods", "--label", "kind="+name)
	s.says([]string{sb, `"ip": "10.231.`, "SANDBOX_READY"}, "inspectp", sb)
	ids := map[string]string{}
	for _, p := range parts {
		image := s.oci
		cfg := &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: p.name}, LogPath: p.name + ".log", Stdin: !p.serves,
			// Where crictl looks for the pod's name, as kubelets write it.
			Labels: map[string]string{"kind": name, "io.kubernetes.pod.name": name + "-pod", "io.kubernetes.pod.namespace": "default"},
			Linux:  &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuPeriod: 100000, CpuQuota: 50000}},
		}
		if p.wasm {
			image, cfg.Args = s.wasm, p.args
		} else {
			cfg.Command = p.args
		}
		if p.wasm {
			cfg.Annotations = map[string]string{crishim.AnnotationListen: p.listen}
		}
		cfg.Image = &runtimeapi.ImageSpec{Image: image}
		// People type the beginning of an ID.
		id := s.crictl("create", "--no-pull", sb[:13], s.file(name+"-"+p.name, cfg), pod)
		ids[p.name] = id
		s.says([]string{"Created"}, "ps", "-a", "--id", id)
		s.crictl("start", id)
		s.says([]string{p.name, "Running", name + "-pod"}, "ps", "--id", id[:13])
		s.says([]string{"CONTAINER_RUNNING", p.name, `"pid":`}, "inspect", id)
	}
	for _, p := range parts {
		id := ids[p.name]
		s.says([]string{id[:13], p.name}, "stats", "--id", id)
		s.crictl("update", "--memory", fmt.Sprint(96<<20), "--cpu-quota", "60000", id)
		s.says([]string{"100663296", "60000"}, "inspect", id)
		if !p.serves {
			s.eventually(20*time.Second, func() string {
				if out := s.crictl("logs", id); !strings.Contains(out, "hello from") {
					return "log " + out
				}
				return ""
			})
			for _, ping := range []string{"ping once", "ping again"} {
				s.attach(id, ping, ping)
			}
			s.says([]string{"ping once", "ping again"}, "logs", id)
		}
		if p.wasm {
			s.refuses("no module called", "exec", id, "ls")
			s.refuses("no module called", "exec", "-s", id, "ls")
			s.says([]string{"said"}, "exec", id, "probe.wasm", "args", "said")
			s.says([]string{"said"}, "exec", "-s", id, "probe.wasm", "args", "said")
			s.refuses("can't be saved", "checkpoint", "--export", filepath.Join(s.dir, "x"), id)
		} else {
			s.says([]string{"busybox"}, "exec", id, "ls", "/bin")
			s.says([]string{"busybox"}, "exec", "-s", id, "ls", "/bin")
		}
	}
	s.forward(sb, "served")
	s.says([]string{sb[:13]}, "statsp", "--id", sb)
	if metrics := s.crictl("metricsp"); strings.Contains(name, "wasm") || name == "mixed" {
		for _, want := range []string{sb, ids["wasm-talks"], "container_memory_working_set_bytes"} {
			if !strings.Contains(metrics, want) {
				t.Errorf("metrics without %s:\n%s", want, metrics)
			}
		}
	}
	first := ids[parts[0].name]
	s.crictl("stop", "-t", "1", first)
	s.says([]string{"CONTAINER_EXITED"}, "inspect", first)
	s.crictl("stop", first) // can be repeated
	s.refuses("", "attach", first)
	s.crictl("rm", first)
	s.refuses("not", "inspect", first)
	s.crictl("stopp", sb[:13])
	s.crictl("stopp", sb)
	for _, p := range parts[1:] {
		s.says([]string{"CONTAINER_EXITED"}, "inspect", ids[p.name])
	}
	s.refuses("", "port-forward", sb, "0:8080")
	s.crictl("rmp", sb[:13])
	s.refuses("not", "inspectp", sb)
	if out := s.crictl("ps", "-aq", "--pod", sb); out != "" {
		t.Errorf("containers are left: %s", out)
	}
}
