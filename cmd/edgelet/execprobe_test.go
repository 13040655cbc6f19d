package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/test/lab"
)

// probedPod has one probe, a command; %[1]s is its name, %[2]s the probe, %[3]s the
// command.
const probedPod = `apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: "` + busyboxImage + `"
    command: [sh, -c, "echo begun; exec sleep 7210"]
    %[2]s:
      exec: {command: [sh, -c, "%[3]s"]}
      timeoutSeconds: 1
      periodSeconds: 1
      failureThreshold: 2
`

// metric is a value of the agent's own metrics, without labels.
func (m *machine) metric(name string) int {
	m.t.Helper()
	resp, err := m.client().Get("http://edgelet/metrics")
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		m.t.Fatalf("metrics: %s, %v", resp.Status, err)
	}
	found := regexp.MustCompile(`(?m)^` + name + ` (\d+)$`).FindSubmatch(page)
	if found == nil {
		m.t.Fatalf("no %s in\n%s", name, page)
	}
	n, _ := strconv.Atoi(string(found[1]))
	return n
}

// Commands of probes that never end, that fork for ever, and whose children keep
// what they print open, on containerd. What runs is ended at its timeout; children
// that it left are in the container and end with it, as under a kubelet; one whose
// output stays open holds its own slot and no other pod's. The agent is as it was
// afterwards.
func TestExecProbesThatNeverEnd(t *testing.T) {
	lab.NeedNamespaces(t)
	c := lab.StartContainerd(t, "")
	m := newMachine(t, "--containerd", c.Socket(), "--cni-conf-dir", c.CNIConfDir(), "--cni-bin-dir", c.CNIBinDir())
	m.start()
	t.Cleanup(func() {
		if t.Failed() {
			m.leave() // what forks for ever would outlive the test
		}
	})
	m.importArchive(lab.Archive(lab.Busybox(t), busyboxImage), busyboxImage)
	m.put("well", fmt.Sprintf(probedPod, "well", "readinessProbe", "echo probed > /proc/1/fd/1"))
	probed := func() int { return strings.Count(m.podLog("well", "main"), " stdout F probed") }
	m.eventually("the first probe", func() error {
		if probed() == 0 {
			return fmt.Errorf("%s", m.podLog("well", "main"))
		}
		return nil
	})
	routines, files := m.metric("go_goroutines"), m.metric("process_open_fds")

	began, before := time.Now(), probed()
	m.put("endless", fmt.Sprintf(probedPod, "endless", "readinessProbe", "exec sleep 7211"))
	m.put("forks", fmt.Sprintf(probedPod, "forks", "livenessProbe", "while sleep 0.02; do sleep 7212 >/dev/null 2>&1 & done"))
	m.put("holds", fmt.Sprintf(probedPod, "holds", "readinessProbe", "sleep 7213 & sleep 7214"))
	starts := func() int { return strings.Count(m.podLog("forks", "main"), " stdout F begun") }
	m.eventually("the pod whose liveness probe forks for ever to be restarted", func() error {
		if n := starts(); n < 2 {
			return fmt.Errorf("it was started %d times", n)
		}
		return nil
	})
	// Its first container is gone, and with it whatever a probe has left there.
	if n := len(containerPIDs(t, "sleep 7212")); n > 2*60 {
		t.Errorf("%d children of probes live", n)
	}
	if n := len(containerPIDs(t, "sleep 7211")); n > 1 {
		t.Errorf("%d commands of one probe run at a time", n)
	}
	m.eventually("the command whose children go on to be killed", func() error {
		if len(containerPIDs(t, "sleep 7213")) == 0 || len(containerPIDs(t, "sh -c sleep 7213 & sleep 7214")) > 0 {
			return fmt.Errorf("it runs as %v", containerPIDs(t, "sh -c sleep 7213 & sleep 7214"))
		}
		return nil
	})
	m.eventually("ten more probes of the pod that is well", func() error {
		if n := probed() - before; n < 10 {
			return fmt.Errorf("%d in %s", n, time.Since(began))
		}
		return nil
	})
	if n := m.metric("go_goroutines"); n > routines+40 {
		t.Errorf("%d goroutines with three such pods, %d before", n, routines)
	}
	if n := m.metric("process_open_fds"); n > files+20 {
		t.Errorf("%d open files with three such pods, %d before", n, files)
	}
	m.leave()
	m.eventually("the end of all processes and of what the agent had open for them", func() error {
		for n := 7210; n <= 7214; n++ {
			if left := containerPIDs(t, fmt.Sprintf("sleep %d", n)); len(left) > 0 {
				return fmt.Errorf("sleep %d lives on as %v", n, left)
			}
		}
		if n := m.metric("go_goroutines"); n > routines {
			return fmt.Errorf("%d goroutines, %d before", n, routines)
		}
		if n := m.metric("process_open_fds"); n > files {
			return fmt.Errorf("%d open files, %d before", n, files)
		}
		return nil
	})
	if left, _ := os.ReadDir(filepath.Join(m.dir, "pods")); len(left) != 0 {
		t.Errorf("%v stay", left)
	}
}
