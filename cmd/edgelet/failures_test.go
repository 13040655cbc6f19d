package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/crishim/oci"
	"github.com/coracle-edge/coracle/examples"
	"github.com/coracle-edge/coracle/test/lab"
)

// When things go wrong, with real parts: what docs/failures.md says.

const sleeper = `apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "` + busyboxImage + `", command: [sleep, "%d"]}]
`

func wasmPod(name string) string {
	return strings.Replace(helloPod, "name: hello}", "name: "+name+"}", 1)
}

// condition waits until the node has a condition, with words in its message.
func (m *machine) condition(kind, status, words string) {
	m.t.Helper()
	m.eventually(kind+"="+status, func() error {
		s, err := m.status()
		if err != nil {
			return err
		}
		for _, c := range s.Conditions {
			if c.Type == kind && c.Status == status && strings.Contains(c.Message, words) {
				return nil
			}
		}
		return fmt.Errorf("conditions %+v", s.Conditions)
	})
}

// why waits until a pod says these words of why it isn't running.
func (m *machine) why(pod string, words ...string) {
	m.t.Helper()
	m.eventually("why "+pod+" isn't running", func() error {
		s, err := m.status()
		if err != nil {
			return err
		}
		for _, p := range s.Pods {
			missing := p.Name != pod+"-board"
			for _, w := range words {
				missing = missing || !strings.Contains(p.Why, w)
			}
			if !missing {
				return nil
			}
		}
		return fmt.Errorf("pods %+v", s.Pods)
	})
}

// leave takes all pods back, so that nothing of them outlives the test.
func (m *machine) leave() {
	m.t.Helper()
	s, err := m.status()
	if err != nil {
		m.t.Error(err)
		return
	}
	for _, p := range s.Pods {
		m.remove(strings.TrimSuffix(p.Name, "-board"))
	}
	m.eventually("the end of all pods", func() error {
		if s, err := m.status(); err != nil || len(s.Pods) != 0 {
			return fmt.Errorf("%+v, %v", s, err)
		}
		return nil
	})
}

// containerd that is there and doesn't answer, which no timeout of a dial finds:
// the node says so, Wasm pods go on, new ones start, and OCI pods do when it
// answers again.
func TestContainerdHangs(t *testing.T) {
	lab.NeedNamespaces(t)
	c := lab.StartContainerd(t, "")
	m := newMachine(t, "--containerd", c.Socket(), "--cni-conf-dir", c.CNIConfDir(), "--cni-bin-dir", c.CNIBinDir())
	m.start()
	m.importImage(examples.HelloModule, examples.HelloImage)
	m.importArchive(lab.Archive(lab.Busybox(t), busyboxImage), busyboxImage)
	m.put("oci", fmt.Sprintf(sleeper, "oci", 7200))
	m.put("hello", helloPod)
	m.phase("oci", "Running")
	m.phase("hello", "Running")
	m.condition("ContainerdDown", "False", "")

	signal := func(s syscall.Signal) {
		if err := syscall.Kill(c.PID(), s); err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGSTOP)
	defer func() { _ = syscall.Kill(c.PID(), syscall.SIGCONT) }()
	m.condition("ContainerdDown", "True", "no answer to Status within")
	m.condition("Ready", "True", "")
	began := time.Now()
	m.put("second", wasmPod("second"))
	m.phase("second", "Running")
	t.Logf("a new Wasm pod runs after %s", time.Since(began))
	for pid := range m.runners() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	m.eventually("both Wasm pods to run again", func() error {
		if n := len(m.runners()); n != 2 {
			return fmt.Errorf("%d run", n)
		}
		return nil
	})
	t.Logf("guests run again after %s", time.Since(began))
	m.put("later", fmt.Sprintf(sleeper, "later", 7200))
	signal(syscall.SIGCONT)
	m.condition("ContainerdDown", "False", "")
	m.phase("later", "Running")
	m.phase("oci", "Running")
	m.leave()
}

// containerd that is killed: its containers run on.
func TestContainerdIsKilled(t *testing.T) {
	lab.NeedNamespaces(t)
	dir, err := os.MkdirTemp("", "cor-ctd-*")
	if err != nil {
		t.Fatal(err)
	}
	c := lab.StartContainerdIn(t, dir, "", false)
	m := newMachine(t, "--containerd", c.Socket(), "--cni-conf-dir", c.CNIConfDir(), "--cni-bin-dir", c.CNIBinDir())
	m.start()
	m.importImage(examples.HelloModule, examples.HelloImage)
	m.importArchive(lab.Archive(lab.Busybox(t), busyboxImage), busyboxImage)
	m.put("oci", fmt.Sprintf(sleeper, "oci", 7201))
	m.phase("oci", "Running")
	before := containerPIDs(t, "sleep 7201")
	_ = syscall.Kill(c.PID(), syscall.SIGKILL)
	<-c.Done()
	m.condition("ContainerdDown", "True", "container runtime is down: containerd isn't answering at "+c.Socket()+": OCI containers can't be managed until it does, Wasm containers go on")
	m.put("hello", helloPod)
	m.phase("hello", "Running")
	m.put("later", fmt.Sprintf(sleeper, "later", 7201))
	lab.StartContainerdIn(t, dir, "", true)
	m.condition("ContainerdDown", "False", "")
	m.phase("later", "Running")
	if after := containerPIDs(t, "sleep 7201"); len(before) != 1 || len(after) != 2 {
		t.Errorf("processes %v and then %v: what ran has to go on", before, after)
	}
	m.leave()
}

// A CNI plugin that isn't installed is named, with the folders that it was looked
// for in, for a pod of either kind; once it is there they run.
func TestCNIPluginIsMissing(t *testing.T) {
	lab.NeedNamespaces(t)
	dir, err := os.MkdirTemp("", "cor-ctd-*")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "cni") // not the machine's own: others use that
	if err := os.CopyFS(bin, os.DirFS("/usr/lib/cni")); err != nil {
		t.Fatal(err)
	}
	bridge := filepath.Join(bin, "bridge")
	away := bridge + ".away"
	if err := os.Rename(bridge, away); err != nil {
		t.Fatal(err)
	}
	c := lab.StartContainerdOf(t, oci.PrivateConfig{Dir: dir, CNIBinDir: bin}, true)
	m := newMachine(t, "--containerd", c.Socket(), "--cni-conf-dir", c.CNIConfDir(), "--cni-bin-dir", bin)
	m.start()
	m.importImage(examples.HelloModule, examples.HelloImage)
	m.importArchive(lab.Archive(lab.Busybox(t), busyboxImage), busyboxImage)
	m.put("oci", fmt.Sprintf(sleeper, "oci", 7202))
	// Wasm pods have the bridge built in, unless they ask for what only plugins do.
	m.put("hello", helloPod)
	m.phase("hello", "Running")
	m.put("port", strings.Replace(wasmPod("port"), "  - name: hello\n", "  - name: hello\n    ports: [{containerPort: 8080, hostPort: 18086}]\n", 1))
	for _, name := range []string{"oci", "port"} {
		m.why(name, "Failed to create pod sandbox", `"bridge"`, bin)
	}
	if err := os.Rename(away, bridge); err != nil {
		t.Fatal(err)
	}
	m.phase("oci", "Running")
	m.phase("port", "Running")
	m.leave()
}

// No port: what a node is asked comes through the connection that it makes.
func TestTheAgentListensOnNoPort(t *testing.T) {
	m := newMachine(t)
	m.start()
	m.importImage(examples.HelloModule, examples.HelloImage)
	m.put("hello", helloPod)
	m.phase("hello", "Running")
	ports, err := lab.Listening(m.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range ports {
		t.Errorf("the agent listens: %s", port)
	}
}
