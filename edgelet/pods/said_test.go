package pods

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/fakecri"
	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
)

// times is how often an event was told, and how often it was so.
func (s *memStore) times(reason, text string) (told int, so uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if e.Reason == reason && strings.Contains(e.Message, text) {
			told, so = told+1, so+max(e.Count, 1)
		}
	}
	return told, so
}

// A command that isn't in its image: upstream's back-off, and not a loop of a second.
func TestAContainerThatCannotBeStartedBacksOff(t *testing.T) {
	on(t, func(b *board) {
		const why = `exec: "/bin/nosuch": stat /bin/nosuch: no such file or directory`
		b.rt.Plan("main", fakecri.Plan{StartError: why})
		start := time.Now()
		b.store.put(testPod("p"))
		var at []time.Duration
		for range 80 {
			for _, c := range b.rt.Calls() {
				if c == "StartContainer main" {
					at = append(at, time.Since(start))
				}
			}
			b.settle(time.Second)
		}
		want := []time.Duration{0, 0, 10, 30, 70}
		if len(at) != len(want) {
			t.Fatalf("starts at %v, want about %d s", at, want)
		}
		for i, w := range want {
			if d := at[i] - w*time.Second; d < -time.Second || d > 3*time.Second {
				t.Errorf("start %d at %v, want %v", i, at[i], w*time.Second)
			}
		}
		cs := b.store.status("uid-p").ContainerStatuses[0]
		if w := cs.State.Waiting; w == nil || w.Reason != "CrashLoopBackOff" || w.Message != "back-off 1m20s restarting failed container=main pod=p_default(uid-p)" {
			t.Errorf("%+v", cs.State)
		}
		last := cs.LastTerminationState.Terminated
		if last == nil || last.Reason != "StartError" || last.Message != why || last.ExitCode != 128 || last.StartedAt.Unix() != 0 || cs.RestartCount != 4 {
			t.Errorf("last %+v, %d restarts", last, cs.RestartCount)
		}
		if told, _ := b.store.times("Failed", why); told != 1 {
			t.Errorf("told %d times why", told)
		}
		for _, e := range b.store.events {
			if e.Reason == "Failed" && e.FieldPath != "spec.containers{main}" {
				t.Errorf("which container? %+v", e)
			}
		}
	})
}

// What keeps a pod waiting for hours is told once in ten minutes, with how often it was
// so: an Event lives for an hour, and each is a write and something to send.
func TestWhatRepeatsIsCounted(t *testing.T) {
	on(t, func(b *board) {
		b.rt.Plan("main", fakecri.Forever())
		pod := testPod("p")
		pod.Spec.Containers[0].Env = []v1.EnvVar{{Name: "PW", ValueFrom: &v1.EnvVarSource{SecretKeyRef: &v1.SecretKeySelector{
			LocalObjectReference: v1.LocalObjectReference{Name: "db"}, Key: "pw"}}}}
		b.store.put(pod)
		b.settle(35 * time.Minute)
		told, so := b.store.times("Failed", `secret "db" not found`)
		if told < 3 || told > 4 || so < 8 {
			t.Errorf("why was told %d times, for %d", told, so)
		}
		if told, _ := b.store.times("Pulled", "already present"); told > 4 {
			t.Errorf("that the image is there was told %d times", told)
		}
		before, _ := b.store.times("Failed", "")
		raw, err := kubeobj.EncodeSecret(&v1.Secret{Data: map[string][]byte{"pw": []byte("x")}})
		if err != nil {
			t.Fatal(err)
		}
		b.store.mu.Lock()
		b.store.objects["Secret/default/db"] = raw
		b.store.mu.Unlock()
		b.store.kick()
		b.settle(time.Minute)
		if s := b.store.status("uid-p"); s.Phase != v1.PodRunning {
			t.Errorf("phase %s", s.Phase)
		}
		b.store.mu.Lock()
		delete(b.store.objects, "Secret/default/db")
		b.store.mu.Unlock()
		b.rt.Kill("uid-p", "main", 1)
		b.settle(time.Minute)
		if after, _ := b.store.times("Failed", ""); after != before+1 {
			t.Errorf("that it is so again was told %d times", after-before)
		}
	})
}

// A runtime whose words are new each time: they are told ten times, then as one.
func TestWhatIsSimilarIsToldAsOne(t *testing.T) {
	on(t, func(b *board) {
		for i := range 15 {
			b.rt.Fail("RunPodSandbox", fmt.Errorf("no memory for sandbox %d", i))
			b.store.put(testPod("p"))
			b.settle(35 * time.Second) // a new attempt at least
		}
		if told, _ := b.store.times("FailedCreatePodSandBox", ""); told != maxSimilar+1 {
			t.Errorf("told %d times", told)
		}
		if told, _ := b.store.times("FailedCreatePodSandBox", "(combined from similar events): Failed to create pod sandbox: no memory"); told != 1 {
			t.Errorf("as one: %d times", told)
		}
	})
}
