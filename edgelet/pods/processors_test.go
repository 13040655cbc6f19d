package pods

import (
	"errors"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/affinity"
)

// shelf is where processors are kept.
type shelf struct {
	mu      sync.Mutex
	records map[string][]byte
	writes  int
}

func (s *shelf) AffinityRecords() (map[string][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.records), nil
}

func (s *shelf) PutAffinityRecord(key string, record []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	if record == nil {
		delete(s.records, key)
	} else {
		s.records[key] = record
	}
	return nil
}

func (s *shelf) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes
}

// fourCPUs has the board's agent run with these policies on four processors, of
// which two are reserved.
func fourCPUs(b *board, s *shelf, cpu string) {
	b.t.Helper()
	sys := fstest.MapFS{"sys/devices/system/cpu/online": {Data: []byte("0-3\n")}}
	top, err := affinity.Read(sys, 1<<30)
	if err != nil {
		b.t.Fatal(err)
	}
	b.more = func(c *Config) {
		m, err := affinity.New(affinity.Config{Topology: top, Store: s,
			Policies: affinity.Policies{CPU: cpu, Memory: affinity.MemoryNone, Align: affinity.AlignNone, Scope: affinity.ScopeContainer,
				Reserved: affinity.NewSet(0, 1), ReservedMilli: 2000},
			Guaranteed: func(p *v1.Pod) bool { return QOSClass(p) == v1.PodQOSGuaranteed },
			Changed:    func() { b.m.WakeAll() }, Active: func(uid string) bool { return b.m.Present(uid) }})
		if err != nil {
			b.t.Fatal(err)
		}
		if c.Processors = nil; m != nil {
			c.Processors = m
		}
	}
}

func (b *board) runsOn(container, cpus string, quota int64) {
	b.t.Helper()
	if r := b.rt.Config(container).Linux.Resources; r.CpusetCpus != cpus || r.CpuQuota != quota {
		b.t.Errorf("%s is on %q with a quota of %d, want %q and %d", container, r.CpusetCpus, r.CpuQuota, cpus, quota)
	}
}

// updates are the containers that the runtime was told of since it was last asked.
func (b *board) updates() (out []string) {
	for _, call := range b.rt.Calls() {
		if strings.HasPrefix(call, "UpdateContainerResources ") {
			out = append(out, call)
		}
	}
	return out
}

func named(container string) podOption {
	return func(p *v1.Pod) { p.Spec.Containers[0].Name = container }
}

// Others are told of the processors left to them when that changes, and at no other
// time; a quota is for who shares.
func TestProcessorsOfAContainersOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s := newBoard(t), &shelf{records: map[string][]byte{}}
		fourCPUs(b, s, affinity.CPUStatic)
		b.boot()
		b.store.put(testPod("shared", asking("500m", "64Mi"), named("shared")))
		b.settle(time.Second)
		b.runsOn("shared", "0-3", 50000)
		own := testPod("own", asking("1", "64Mi"), named("own"))
		b.store.put(own)
		b.settle(time.Second)
		b.runsOn("own", "2", -1)
		b.runsOn("shared", "0-1,3", 50000)
		if config, _ := b.rt.Sandbox("uid-own"); config.GetLinux().GetResources().GetCpuQuota() != -1 {
			t.Errorf("its sandbox has a quota: %v", config)
		}
		if updates := b.updates(); strings.Join(updates, ",") != "UpdateContainerResources shared" {
			t.Errorf("told: %v", updates)
		}
		// Nothing happens while nothing happens.
		writes := s.count()
		b.settle(time.Hour)
		if updates := b.updates(); len(updates) > 0 {
			t.Error("idle, and:", updates)
		}
		if n := s.count(); n != writes {
			t.Errorf("idle, and %d writes", n-writes)
		}
		// It can't be resized in place.
		b.store.put(resized(own, "2", "64Mi"))
		b.settle(time.Second)
		if c := condition(b.store.status("uid-own"), v1.PodResizePending); c.Reason != v1.PodReasonInfeasible ||
			c.Message != `Resize is infeasible for Guaranteed Pods alongside CPU Manager policy "static"` {
			t.Errorf("%+v", c)
		}
		if n := strings.Count(b.store.reasons("uid-own"), "ResizeInfeasible"); n != 1 {
			t.Errorf("told %d times", n)
		}
		b.store.put(own)
		b.settle(time.Second)
		if c := condition(b.store.status("uid-own"), v1.PodResizePending); c.Reason != "" {
			t.Errorf("wants no more, and: %+v", c)
		}
		// One that finds none is refused and takes nothing; one that ends gives back.
		b.store.put(testPod("late", asking("2", "8Mi"), named("late")))
		b.settle(time.Second)
		if st := b.store.status("uid-late"); st.Phase != v1.PodFailed || st.Reason != "UnexpectedAdmissionError" ||
			st.Message != "Pod was rejected: Allocate failed due to not enough cpus available to satisfy request: requested=2, available=1, which is unexpected" {
			t.Errorf("%+v", st)
		}
		b.runsOn("shared", "0-1,3", 50000)
		// An agent that starts tells once, and what it doesn't get done again.
		b.stop()
		b.updates()
		b.rt.Fail("UpdateContainerResources", errors.New("no such cgroup"))
		b.boot()
		b.settle(time.Second)
		b.rt.Fail("UpdateContainerResources", nil)
		b.settle(time.Minute)
		if updates := b.updates(); len(updates) != 2 {
			t.Errorf("two containers were told: %v", updates)
		}
		b.store.put(deleted(own, 1))
		b.settle(10 * time.Second)
		b.runsOn("shared", "0-3", 50000)
		b.stop()
	})
}

// The policy comes and goes under pods that run.
func TestThePolicyOfProcessorsChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s := newBoard(t), &shelf{records: map[string][]byte{}}
		b.boot()
		for _, name := range []string{"a", "b"} {
			b.store.put(testPod(name, asking("1", "64Mi"), named(name)))
		}
		b.store.put(testPod("c", named("c")))
		b.settle(time.Second)
		b.runsOn("a", "", 100000)
		again := func(cpu string) {
			b.stop()
			fourCPUs(b, s, cpu)
			b.boot()
			b.settle(time.Minute)
		}
		again(affinity.CPUStatic)
		if a := b.rt.Config("a").Linux.Resources; a.CpuQuota != -1 || a.CpusetCpus == b.rt.Config("b").Linux.Resources.CpusetCpus {
			t.Errorf("a has %v, b %v", a, b.rt.Config("b").Linux.Resources)
		}
		b.runsOn("c", "0-1", 0)
		if len(s.records) == 0 {
			t.Error("nothing is kept")
		}
		again(affinity.CPUNone)
		b.runsOn("a", "0-3", 100000)
		b.runsOn("c", "0-3", 0)
		if len(s.records) != 0 {
			t.Errorf("kept still: %q", s.records)
		}
		// Three processors for two that want two each.
		b.store.drop("uid-b")
		b.settle(time.Minute)
		again(affinity.CPUStatic)
		b.runsOn("a", "2", -1)
		b.stop()
	})
}

// Who was promised processors that aren't there shares, says so once, and has them
// when there are.
func TestProcessorsThatAreNotThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s := newBoard(t), &shelf{records: map[string][]byte{}}
		b.node = widerNode{}
		b.boot()
		for _, name := range []string{"a", "b"} {
			b.store.put(testPod(name, asking("2", "64Mi"), named(name)))
			b.settle(time.Second)
		}
		b.stop()
		fourCPUs(b, s, affinity.CPUStatic)
		b.boot()
		b.settle(time.Minute)
		lacks := "a"
		if b.rt.Config("a").Linux.Resources.CpuQuota == -1 {
			lacks = "b"
		}
		b.runsOn(lacks, "0-1", 200000)
		if n := strings.Count(b.store.reasons("uid-"+lacks), reasonNotExclusive); n != 1 || !b.store.said(`container "`+lacks+`" was promised processors`) {
			t.Errorf("%s was told %d times", lacks, n)
		}
		has := map[string]string{"a": "b", "b": "a"}[lacks]
		b.runsOn(has, "2-3", -1)
		b.store.drop("uid-" + has)
		b.settle(time.Minute)
		b.runsOn(lacks, "2-3", -1)
		b.stop()
	})
}

// widerNode has room for four processors' worth.
type widerNode struct{ fakeNode }

func (widerNode) Allocatable() v1.ResourceList {
	return list("cpu", "4", "memory", "512Mi", "pods", "5")
}

// Without a control plane nobody says that a pod isn't here any more: what one holds
// that doesn't run is given to another, and not what one holds that does.
func TestProcessorsOfPodsThatNobodyKnows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s := newBoard(t), &shelf{records: map[string][]byte{}}
		b.store.complete = false
		fourCPUs(b, s, affinity.CPUStatic)
		b.boot()
		b.store.put(testPod("orphan", asking("1", "64Mi"), named("orphan")))
		b.settle(time.Second)
		b.stop()
		b.store.drop("uid-orphan")
		s.records["uid-lost"] = []byte(`{"version":1,"containers":{"main":{"cpus":"3"}}}`)
		b.boot()
		b.settle(time.Second)
		b.store.put(testPod("a", asking("1", "64Mi"), named("a")))
		b.settle(time.Second)
		b.runsOn("a", "3", -1)
		b.store.put(testPod("b", asking("1", "64Mi"), named("b")))
		b.settle(time.Second)
		if st := b.store.status("uid-b"); st.Phase != v1.PodFailed || !strings.Contains(st.Message, "not enough cpus available") {
			t.Errorf("the orphan's is given away: %+v", st)
		}
		b.stop()
	})
}
