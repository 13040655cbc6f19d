package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/remote"
	"github.com/coracle-edge/coracle/examples"
	"github.com/coracle-edge/coracle/test/lab"
)

// reset runs `edgelet reset` on the machine's data folder.
func (m *machine) reset(args ...string) (string, error) {
	cmd := exec.Command(lab.Program(m.t, "edgelet"), append([]string{"reset", "--data-dir", m.dir, "--runner", lab.Program(m.t, "wasmrunner"), "--cni-conf-dir", filepath.Join(m.dir, "none")}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestResetStopsWasmPods(t *testing.T) {
	m := newMachine(t)
	m.start()
	m.importImage(examples.HelloModule, examples.HelloImage)
	m.put("hello", helloPod)
	m.phase("hello", "Running")
	if out, err := m.reset(); err == nil || !strings.Contains(out, "edgelet runs on "+m.dir) || !strings.Contains(out, "stop it first") {
		t.Errorf("reset beside an agent: %v\n%s", err, out)
	}
	m.phase("hello", "Running")
	m.stop(syscall.SIGTERM)
	if len(m.runners()) != 1 {
		t.Fatal("the guest ended with its agent")
	}
	out, err := m.reset()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if len(m.runners()) != 0 {
		t.Error("guests run after the reset")
	}
	for _, words := range []string{"Stopped pod default/hello-board", "Removed state", "Kept images", "static", "had not joined"} {
		if !strings.Contains(out, words) {
			t.Errorf("it doesn't say %q:\n%s", words, out)
		}
	}
	entries, _ := os.ReadDir(m.dir)
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if strings.Join(left, " ") != "crishim static" {
		t.Errorf("left %q", left)
	}
	// What was kept serves the next life.
	m.start()
	m.phase("hello", "Running")
	if s, err := m.status(); err != nil || s.Boot != 1 {
		t.Errorf("%+v, %v: the state is the former one's", s, err)
	}
}

func TestResetStopsOCIPods(t *testing.T) {
	lab.NeedNamespaces(t)
	c := lab.StartContainerd(t, "")
	flags := []string{"--containerd", c.Socket(), "--cni-conf-dir", c.CNIConfDir(), "--cni-bin-dir", c.CNIBinDir()}
	m := newMachine(t, flags...)
	m.start()
	m.importImage(examples.HelloModule, examples.HelloImage)
	m.importArchive(lab.Archive(lab.Busybox(t), busyboxImage), busyboxImage)
	m.put("mixed", mixedPod)
	m.phase("mixed", "Running")
	m.stop(syscall.SIGTERM)

	if out, err := m.reset(); err == nil || !strings.Contains(out, "give --containerd") || !strings.Contains(out, "nothing was removed") {
		t.Errorf("reset without containerd: %v\n%s", err, out)
	}
	if len(m.runners()) != 1 {
		t.Error("a part of the pod was stopped")
	}
	if _, err := os.Stat(filepath.Join(m.dir, "state.db")); err != nil {
		t.Error(err)
	}
	out, err := m.reset(flags...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(out, "Stopped pod default/mixed-board") || len(m.runners()) != 0 {
		t.Errorf("runners %v; it says:\n%s", m.runners(), out)
	}
	if left, err := lab.MountsBelow(m.dir); err != nil || len(left) != 0 {
		t.Errorf("mounts stay: %v, %v", left, err)
	}
	cri, err := remote.Dial("unix://" + c.Socket())
	if err != nil {
		t.Fatal(err)
	}
	defer cri.Close()
	containers, err1 := cri.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	sandboxes, err2 := cri.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err1 != nil || err2 != nil || len(containers.Containers)+len(sandboxes.Items) != 0 {
		t.Errorf("containerd still has %v %v; %v %v", containers, sandboxes, err1, err2)
	}
}
