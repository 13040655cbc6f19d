package pods

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/fakecri"
)

// The agent dies and comes back: what runs is found and left alone.
func TestAdoption(t *testing.T) {
	on(t, func(b *board) {
		b.rt.Plan("one", fakecri.Exit(0))
		b.store.put(testPod("p", withInit(ctr("one"), sidecar("mesh"))))
		b.store.put(testPod("done", restart(v1.RestartPolicyNever), withContainers(ctr("one"))))
		b.settle(time.Second)
		before := b.rt.Running("uid-p")
		if len(before) != 2 {
			t.Fatalf("running %v", before)
		}
		b.rt.Calls()
		reports := len(b.store.told())
		for range 3 {
			b.stop()
			b.settle(time.Minute)
			b.boot()
			b.settle(time.Minute)
		}
		after := b.rt.Running("uid-p")
		if after["main"] != before["main"] || after["mesh"] != before["mesh"] {
			t.Errorf("running %v, before %v", after, before)
		}
		if calls := b.rt.Calls(); len(calls) != 0 {
			t.Errorf("the restarted agent did %v", calls)
		}
		if n := len(b.store.told()) - reports; n != 0 {
			t.Errorf("%d reports although nothing changed: %+v", n, b.store.told()[reports:])
		}
		if s := b.store.status("uid-p"); s.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("restart count %d", s.ContainerStatuses[0].RestartCount)
		}
	})
}

// What ended while the agent was away is seen and handled.
func TestEndsWhileTheAgentWasAway(t *testing.T) {
	on(t, func(b *board) {
		b.store.put(testPod("p"))
		b.store.put(testPod("once", restart(v1.RestartPolicyNever)))
		b.settle(time.Second)
		b.stop()
		b.rt.Kill("uid-p", "main", 9)
		b.rt.Kill("uid-once", "main", 0)
		b.boot()
		b.settle(time.Second)
		if s := b.store.status("uid-p"); s.Phase != v1.PodRunning || s.ContainerStatuses[0].RestartCount != 1 ||
			s.ContainerStatuses[0].LastTerminationState.Terminated.ExitCode != 9 {
			t.Errorf("%+v", s.ContainerStatuses)
		}
		if s := b.store.status("uid-once"); s.Phase != v1.PodSucceeded {
			t.Errorf("%s", s.Phase)
		}
	})
}

// A container that was made, and not started when the agent died, never ran: it is
// no restart that it runs now.
func TestDeathBetweenCreateAndStart(t *testing.T) {
	on(t, func(b *board) {
		b.rt.Fail("StartContainer", errors.New("the agent dies"))
		b.store.put(testPod("p"))
		b.settle(100 * time.Millisecond)
		b.stop()
		b.rt.Fail("StartContainer", nil)
		b.boot()
		b.settle(time.Minute)
		s := b.store.status("uid-p")
		if s.Phase != v1.PodRunning || s.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("%s, %+v", s.Phase, s.ContainerStatuses)
		}
	})
}

// A power cut: everything that should run runs again, without a network, and
// what was over stays over.
func TestReboot(t *testing.T) {
	for name, remembers := range map[string]bool{"runtime forgot": false, "runtime remembers": true} {
		t.Run(name, func(t *testing.T) {
			on(t, func(b *board) {
				b.rt.Plan("done", fakecri.Exit(0))
				always := testPod("always", func(p *v1.Pod) { p.Spec.Containers[0].ImagePullPolicy = v1.PullAlways }, withInit(ctr("done")))
				b.rt.AddRemote("wasm:1", "wasm")
				b.store.put(always)
				b.store.put(testPod("never", restart(v1.RestartPolicyNever)))
				b.store.put(testPod("succeeded", restart(v1.RestartPolicyNever), withContainers(ctr("done"))))
				b.store.put(testPod("partly", restart(v1.RestartPolicyOnFailure), withContainers(ctr("main"), ctr("done"))))
				b.settle(time.Second)
				b.stop()
				b.rt.Reboot(remembers)
				b.rt.Fail("PullImage", errors.New("network is unreachable"))
				b.rt.Calls()
				b.boot()
				b.settle(time.Second)

				s := b.store.status("uid-always")
				if s.Phase != v1.PodRunning || s.ContainerStatuses[0].RestartCount != 1 || s.ContainerStatuses[0].LastTerminationState.Terminated == nil {
					t.Errorf("always: %s %+v", s.Phase, s.ContainerStatuses)
				}
				if !s.InitContainerStatuses[0].Ready {
					t.Errorf("always: init %+v", s.InitContainerStatuses[0])
				}
				s = b.store.status("uid-never")
				if s.Phase != v1.PodFailed || len(b.rt.Running("uid-never")) != 0 {
					t.Errorf("never: %s, running %v", s.Phase, b.rt.Running("uid-never"))
				}
				if got := s.ContainerStatuses[0].State.Terminated; got == nil || (!remembers && (got.Reason != "ContainerStatusUnknown" || got.ExitCode != 137)) {
					t.Errorf("never: %+v", s.ContainerStatuses[0].State)
				}
				s = b.store.status("uid-succeeded")
				if s.Phase != v1.PodSucceeded || len(b.rt.Running("uid-succeeded")) != 0 || s.ContainerStatuses[0].State.Terminated.ExitCode != 0 {
					t.Errorf("succeeded: %s %+v", s.Phase, s.ContainerStatuses)
				}
				running := b.rt.Running("uid-partly")
				if running["main"] == "" || running["done"] != "" {
					t.Errorf("partly: running %v", running)
				}
				if s = b.store.status("uid-partly"); s.Phase != v1.PodRunning {
					t.Errorf("partly: %s", s.Phase)
				}
			})
		})
	}
}

// The file of a static pod went while the agent was down: it ends though no hub has
// ever spoken, as on a node without a control plane, and others don't.
func TestAStaticPodWhoseFileWentMeanwhileEnds(t *testing.T) {
	on(t, func(b *board) {
		b.store.complete = false
		b.store.put(testPod("ordered"))
		b.m.SetStatic([]Object{b.store.putStatic(testPod("own", func(p *v1.Pod) { p.Annotations = map[string]string{annotationSource: "file"} }))})
		b.settle(time.Minute)
		b.stop()
		b.store = newStore()
		b.store.complete = false
		b.boot()
		b.settle(2 * time.Minute)
		if own, ordered := b.rt.Running("uid-own"), b.rt.Running("uid-ordered"); len(own) != 0 || len(ordered) != 1 {
			t.Errorf("the static pod runs %q, the ordered one %q", own, ordered)
		}
	})
}

// Orders are what stops pods, not their lack.
func TestNothingIsStoppedForWhatNobodySaid(t *testing.T) {
	on(t, func(b *board) {
		b.store.put(testPod("p"))
		b.settle(time.Second)
		b.stop()
		// The state file was lost: nobody has said what this node should run.
		old := b.store
		b.store = newStore()
		b.store.complete = false
		b.boot()
		b.settle(time.Hour)
		if len(b.rt.Running("uid-p")) != 1 {
			t.Fatal("an orphan was stopped although no hub has spoken")
		}
		b.store.mu.Lock()
		b.store.complete = true
		b.store.mu.Unlock()
		b.store.kick()
		b.settle(2 * time.Minute)
		if len(b.rt.Running("uid-p")) != 0 || !b.store.gone("uid-p") {
			t.Error("an orphan stays although a hub has spoken")
		}
		_ = old
	})
}

func TestDeletionContinuesAfterTheAgentsDeath(t *testing.T) {
	on(t, func(b *board) {
		b.rt.Plan("main", fakecri.Plan{RunFor: -1, TermAfter: 8 * time.Second})
		pod := testPod("p")
		b.store.put(pod)
		b.settle(time.Second)
		b.store.put(deleted(pod, 30))
		b.settle(time.Second)
		b.stop()
		b.boot()
		b.settle(20 * time.Second)
		if !b.store.gone("uid-p") {
			t.Error("not gone")
		}
	})
}

func TestLostEventsAreFoundByLists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		b.rt.NoEvents()
		b.boot()
		b.store.put(testPod("p"))
		b.settle(3 * time.Second)
		b.rt.Kill("uid-p", "main", 1)
		b.settle(3 * time.Second)
		if s := b.store.status("uid-p"); s.ContainerStatuses[0].RestartCount != 1 {
			t.Errorf("restarts %d", s.ContainerStatuses[0].RestartCount)
		}
		b.stop()
	})
}

func TestSandboxThatDiedIsReplaced(t *testing.T) {
	on(t, func(b *board) {
		b.store.put(testPod("p"))
		b.settle(time.Second)
		b.rt.Reboot(true) // the runtime restarted and its sandboxes are dead
		b.settle(2 * time.Minute)
		s := b.store.status("uid-p")
		if s.Phase != v1.PodRunning || s.ContainerStatuses[0].RestartCount != 1 {
			t.Errorf("%s %+v", s.Phase, s.ContainerStatuses)
		}
		if n, _ := b.rt.Count(); n != 1 {
			t.Errorf("%d sandboxes", n)
		}
	})
}

func TestARuntimeThatHangsHoldsNothingElseUp(t *testing.T) {
	on(t, func(b *board) {
		b.store.put(testPod("a"))
		b.settle(time.Second)
		b.rt.Hang("CreateContainer", true)
		b.store.put(testPod("b"))
		b.settle(30 * time.Second)
		b.rt.Hang("CreateContainer", false)
		b.store.put(testPod("c"))
		b.settle(time.Second)
		if b.store.status("uid-c").Phase != v1.PodRunning {
			t.Error("c waits for b")
		}
		b.settle(3 * time.Minute)
		if b.store.status("uid-b").Phase != v1.PodRunning {
			t.Error("b never recovered")
		}
	})
}

func TestFullDisk(t *testing.T) {
	on(t, func(b *board) {
		b.store.mu.Lock()
		b.store.broken = errors.New("no space left on device")
		b.store.mu.Unlock()
		b.store.put(testPod("p"))
		b.settle(5 * time.Second)
		if len(b.rt.Running("uid-p")) != 1 {
			t.Error("a full disk keeps the pod from running")
		}
		b.store.mu.Lock()
		b.store.broken = nil
		b.store.mu.Unlock()
		b.settle(time.Minute)
		if len(b.store.records) != 1 {
			t.Error("the record was never written")
		}
		if n := b.store.status("uid-p").ContainerStatuses[0].RestartCount; n != 0 {
			t.Errorf("%d restarts", n)
		}
	})
}

// --stop-pods is a shutdown: everything stops, nothing is over.
func TestStopAllThenStart(t *testing.T) {
	on(t, func(b *board) {
		b.rt.Plan("main", fakecri.Plan{RunFor: -1, TermAfter: 3 * time.Second})
		b.store.put(testPod("p"))
		b.store.put(testPod("never", restart(v1.RestartPolicyNever)))
		b.settle(time.Second)
		b.stop()
		if err := b.m.StopAll(b.t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		if len(b.rt.Running("uid-p")) != 0 || b.store.status("uid-p").Phase != v1.PodRunning {
			t.Error("something runs, or was reported over")
		}
		b.boot()
		b.settle(time.Second)
		if s := b.store.status("uid-p"); s.Phase != v1.PodRunning || s.ContainerStatuses[0].RestartCount != 1 {
			t.Errorf("%s %+v", s.Phase, s.ContainerStatuses)
		}
		if s := b.store.status("uid-never"); s.Phase != v1.PodFailed {
			t.Errorf("never: %s", s.Phase)
		}
	})
}

func TestLogRotation(t *testing.T) {
	on(t, func(b *board) {
		b.store.put(testPod("p"))
		b.settle(time.Second)
		log, err := b.m.Log("default", "p", "", "main", false)
		if err != nil || !log.Running {
			t.Fatal(log, err)
		}
		for range 5 {
			if err := os.WriteFile(log.Path, make([]byte, DefaultLogMaxSize), 0o640); err != nil {
				t.Fatal(err)
			}
			b.settle(rotatePeriod + time.Second)
		}
		files, _ := filepath.Glob(log.Path + "*")
		if len(files) != DefaultLogMaxFiles {
			t.Errorf("%d files: %v", len(files), files)
		}
		if info, err := os.Stat(log.Path); err != nil || info.Size() != 0 {
			t.Errorf("%v, %v", info, err)
		}
	})
}

func TestPreviousLog(t *testing.T) {
	on(t, func(b *board) {
		b.store.put(testPod("p"))
		b.settle(time.Second)
		if _, err := b.m.Log("default", "p", "", "main", true); err == nil {
			t.Error("a previous log of a container that never ended")
		}
		b.rt.Kill("uid-p", "main", 1)
		b.settle(time.Second)
		prev, err := b.m.Log("default", "p", "", "main", true)
		if err != nil || filepath.Base(prev.Path) != "0.log" {
			t.Errorf("%+v, %v", prev, err)
		}
		now, err := b.m.Log("default", "p", "", "main", false)
		if err != nil || filepath.Base(now.Path) != "1.log" {
			t.Errorf("%+v, %v", now, err)
		}
		b.rt.Kill("uid-p", "main", 1)
		b.settle(time.Second) // in back-off now
		prev, err = b.m.Log("default", "p", "", "main", true)
		if err != nil || filepath.Base(prev.Path) != "1.log" {
			t.Errorf("in back-off: %+v, %v", prev, err)
		}
		if _, err := b.m.Log("default", "p", "", "none", false); !errors.Is(err, ErrNoContainer) {
			t.Error(err)
		}
	})
}

func TestRecordRoundTrip(t *testing.T) {
	r := &record{admitted: true, reason: "OutOfcpu", message: "m", status: v1.PodStatus{Phase: v1.PodFailed}}
	raw, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeRecord(raw)
	if err != nil || !got.admitted || got.reason != r.reason || got.message != r.message || got.status.Phase != v1.PodFailed {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := decodeRecord([]byte{9, 1}); !errors.Is(err, ErrRecord) {
		t.Error(err)
	}
}

func FuzzRecord(f *testing.F) {
	raw, _ := (&record{admitted: true, status: v1.PodStatus{Phase: v1.PodRunning}}).encode()
	f.Add(raw)
	raw, _ = (&record{active: &activity{boot: "b", since: -1, spent: 1}}).encode()
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) { _, _ = decodeRecord(raw) })
}
