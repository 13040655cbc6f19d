package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/coracle-edge/coracle/edgelet/affinity"
	"github.com/coracle-edge/coracle/examples"
	"github.com/coracle-edge/coracle/test/lab"
)

// ownPod sleeps so many seconds, by which its process is found, on so many
// processors, of which it asks for so many.
const ownPod = `apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: ` + busyboxImage + `
    command: [sleep, "%[2]d"]
    resources: {limits: {cpu: "%[3]s", memory: 32Mi}, requests: {cpu: "%[4]s"}}
`

// allowed are the processors that a process may run on, as the kernel says.
func allowed(pid int) string {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(raw)) {
		if list, ok := strings.CutPrefix(line, "Cpus_allowed_list:"); ok {
			return strings.TrimSpace(list)
		}
	}
	return ""
}

// runsOn waits until the process that sleeps so long runs on these processors.
func (m *machine) runsOn(seconds int, cpus affinity.Set) {
	m.t.Helper()
	m.eventually(fmt.Sprintf("sleep %d on %s", seconds, cpus), func() error {
		pids := containerPIDs(m.t.(*testing.T), fmt.Sprintf("sleep %d", seconds))
		if len(pids) != 1 || allowed(pids[0]) != cpus.String() {
			return fmt.Errorf("processes %v, the first on %q", pids, allowed(append(pids, 0)[0]))
		}
		return nil
	})
}

// quota of the container that a process is in, in microseconds; -1: none.
func quota(pid int) string {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	for line := range strings.Lines(string(raw)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, path, _ := strings.Cut(rest, ":")
		switch {
		case controllers == "" && !strings.Contains(string(raw), "cpu"):
			b, _ := os.ReadFile(filepath.Join("/sys/fs/cgroup", path, "cpu.max"))
			return strings.Replace(strings.TrimSpace(string(b)), "max", "-1", 1)
		case strings.Contains(","+controllers+",", ",cpu,"):
			b, _ := os.ReadFile(filepath.Join("/sys/fs/cgroup/cpu", path, "cpu.cfs_quota_us"))
			return strings.TrimSpace(string(b))
		}
	}
	return ""
}

// A real containerd, real cgroups: a pod has a processor for itself and all others
// have the rest, whatever is killed at whatever moment, until it goes.
func TestAPodWithAProcessorOfItsOwn(t *testing.T) {
	lab.NeedNamespaces(t)
	top, err := affinity.Read(os.DirFS("/"), 1<<30)
	if err != nil || len(top.CPUs) < 2 || allowed(os.Getpid()) != top.All().String() {
		t.Skipf("needs two processors and all of the machine's: %v, %s", err, allowed(os.Getpid()))
	}
	id := 1_000_000 + 10*os.Getpid() // what they sleep, by which they are found
	all := top.All()
	rest := all[:len(all)-1]
	own := all.Minus(rest)
	c := lab.StartContainerd(t, "")
	common := []string{"--containerd", c.Socket(), "--cni-conf-dir", c.CNIConfDir(), "--cni-bin-dir", c.CNIBinDir()}
	m := newMachine(t, append(common, "--cpu-manager-policy", "static", "--reserved-cpus", rest.String())...)
	m.start()
	m.importArchive(lab.Archive(lab.Busybox(t), busyboxImage), busyboxImage)
	m.importImage(examples.HelloModule, examples.HelloImage)
	m.put("shared", fmt.Sprintf(ownPod, "shared", id+1, "100m", "0"))
	m.put("hello", helloPod)
	m.runsOn(id+1, all)
	m.phase("hello", "Running")
	guest := func(cpus affinity.Set) {
		t.Helper()
		m.eventually("the guest on "+cpus.String(), func() error {
			for pid := range m.runners() {
				if got := allowed(pid); got == cpus.String() {
					return nil
				} else if got != "" {
					return fmt.Errorf("runs on %s", got)
				}
			}
			return fmt.Errorf("no guest")
		})
	}
	guest(all)

	m.put("own", fmt.Sprintf(ownPod, "own", id+2, "1", "1"))
	check := func() {
		t.Helper()
		m.runsOn(id+2, own)
		m.runsOn(id+1, rest)
		guest(rest)
	}
	check()
	if q := quota(containerPIDs(t, fmt.Sprint("sleep ", id+2))[0]); !strings.HasPrefix(q, "-1") {
		t.Errorf("it has a quota of %q", q)
	}
	if q := quota(containerPIDs(t, fmt.Sprint("sleep ", id+1))[0]); !strings.HasPrefix(q, "10000") {
		t.Errorf("the other has a quota of %q", q)
	}
	m.tells("own", []int64{int64(own[0])}, own)
	m.put("late", fmt.Sprintf(ownPod, "late", id+3, "1", "1"))
	m.phase("late", "Failed")
	m.why("late", "not enough cpus available to satisfy request: requested=1, available=0")

	// Killed at any moment: the agent, and the container.
	for range 4 {
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
		m.stop(syscall.SIGKILL)
		m.launch("--standalone")
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
		for _, pid := range containerPIDs(t, fmt.Sprint("sleep ", id+2)) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	m.eventually("the admin socket", func() error { _, err := m.status(); return err })
	check()
	// Also while the processor is given and taken back.
	for i := range 6 {
		m.remove("own")
		time.Sleep(time.Duration(rand.IntN(60*(i+1))) * time.Millisecond)
		m.stop(syscall.SIGKILL)
		m.put("own", fmt.Sprintf(ownPod, "own", id+2, "1", "1"))
		m.launch("--standalone")
		time.Sleep(time.Duration(rand.IntN(60*(i+1))) * time.Millisecond)
		m.stop(syscall.SIGKILL)
		m.start()
		check()
	}

	// Without the policy everybody is where everybody is, and with it again as before.
	m.stop(syscall.SIGTERM)
	m.args = common
	m.start()
	m.runsOn(id+2, all)
	m.runsOn(id+1, all)
	guest(all)
	if q := quota(containerPIDs(t, fmt.Sprint("sleep ", id+2))[0]); !strings.HasPrefix(q, "100000") {
		t.Errorf("without a processor of its own it has a quota of %q", q)
	}
	m.stop(syscall.SIGKILL)
	m.args = append(common, "--cpu-manager-policy", "static", "--reserved-cpus", rest.String(), "--topology-manager-policy", "single-numa-node", "--memory-manager-policy", "Static", "--system-reserved", "memory=64Mi")
	m.start()
	check()
	m.remove("own")
	m.runsOn(id+1, all)
	guest(all)
	m.eventually("its end", func() error {
		s, err := m.status()
		if err != nil {
			return err
		}
		for _, p := range s.Pods {
			if p.Name == "own-board" {
				return fmt.Errorf("%+v", p)
			}
		}
		return nil
	})
	// A guest can have one, too.
	m.put("lone", strings.NewReplacer("name: hello}", "name: lone}", "{memory: 16Mi}", "{cpu: 1, memory: 16Mi}").Replace(helloPod))
	m.eventually("a guest on "+own.String()+", another on "+rest.String(), func() error {
		var on []string
		for pid := range m.runners() {
			on = append(on, allowed(pid))
		}
		if slices.Sort(on); !slices.Equal(on, []string{rest.String(), own.String()}) {
			return fmt.Errorf("guests on %q", on)
		}
		return nil
	})
	m.leave()
}

// tells checks what programs on the node are told of a pod, and of what there is.
func (m *machine) tells(pod string, cpus []int64, all affinity.Set) {
	m.t.Helper()
	conn, err := grpc.NewClient("unix:"+filepath.Join(m.dir, "pod-resources", "kubelet.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		m.t.Fatal(err)
	}
	defer conn.Close()
	client := podresourcesapi.NewPodResourcesListerClient(conn)
	list, err := client.List(m.t.Context(), &podresourcesapi.ListPodResourcesRequest{})
	if err != nil {
		m.t.Fatal(err)
	}
	for _, p := range list.PodResources {
		if is := p.Name == pod+"-board"; is != slices.Equal(p.Containers[0].CpuIds, cpus) {
			m.t.Errorf("%s has %v", p.Name, p)
		}
	}
	there, err := client.GetAllocatableResources(m.t.Context(), &podresourcesapi.AllocatableResourcesRequest{})
	if err != nil || len(list.PodResources) != 3 || len(there.CpuIds) != len(all) {
		m.t.Errorf("%d pods, allocatable %v: %v", len(list.PodResources), there, err)
	}
}
