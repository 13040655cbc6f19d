package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/coracle-edge/coracle/examples"
	"github.com/coracle-edge/coracle/test/lab"
)

// bombPod forks until it can't, and goes on with what it has.
const bombPod = `apiVersion: v1
kind: Pod
metadata: {name: bomb}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: ` + busyboxImage + `
    command: [sh, -c, "(while :; do sleep 3600 & done); echo no more; exec sleep 3600"]
`

// podCgroup finds a pod's cgroup among those that count processes.
func (m *machine) podCgroup(name string) string {
	m.t.Helper()
	uid := m.uid(name)
	root := "/sys/fs/cgroup/pids"
	if _, err := os.Stat(root); err != nil {
		root = "/sys/fs/cgroup"
	}
	found := ""
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(strings.ReplaceAll(d.Name(), "_", "-"), "pod"+uid) {
			found = path
			return fs.SkipAll
		}
		return nil // what goes meanwhile is not it
	})
	if err != nil || found == "" {
		m.t.Fatalf("no cgroup of pod %s below %s: %v", uid, root, err)
	}
	return found
}

// uid is a static pod's.
func (m *machine) uid(name string) string {
	m.t.Helper()
	dirs, err := filepath.Glob(filepath.Join(m.dir, "pods-logs", "default_"+name+"-board_*"))
	if err != nil || len(dirs) != 1 {
		m.t.Fatalf("%v, %v", dirs, err)
	}
	return dirs[0][strings.LastIndex(dirs[0], "_")+1:]
}

// A pod that forks for ever has as many processes as --pod-max-pids says, and nobody
// else has fewer for it.
func TestAForkBombHasWhatAPodMayHave(t *testing.T) {
	lab.NeedNamespaces(t)
	const most = 64
	c := lab.StartContainerd(t, "")
	m := newMachine(t, "--containerd", c.Socket(), "--cni-conf-dir", c.CNIConfDir(), "--cni-bin-dir", c.CNIBinDir(), "--pod-max-pids", strconv.Itoa(most))
	m.start()
	m.importImage(examples.HelloModule, examples.HelloImage)
	m.importArchive(lab.Archive(lab.Busybox(t), busyboxImage), busyboxImage)
	m.put("bomb", bombPod)
	m.phase("bomb", "Running")
	m.eventually("the bomb's end", func() error {
		if log := m.podLog("bomb", "main"); !strings.Contains(log, "can't fork") || !strings.Contains(log, "no more") {
			return fmt.Errorf("its log: %q", log)
		}
		return nil
	})
	number := func(file string) int {
		t.Helper()
		raw, err := os.ReadFile(filepath.Join(m.podCgroup("bomb"), file))
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(string(bytes.TrimSpace(raw)))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	// Some, such as the shell that forked, have ended since.
	if limit, now := number("pids.max"), number("pids.current"); limit != most || now > most || now < most-10 {
		t.Errorf("%d processes of %d, want nearly %d", now, limit, most)
	}
	m.put("hello", helloPod)
	m.phase("hello", "Running")
	m.remove("bomb")
	m.remove("hello")
	m.eventually("the end", func() error {
		if s, err := m.status(); err != nil || len(s.Pods) != 0 {
			return fmt.Errorf("%+v, %v", s, err)
		}
		return nil
	})
}
