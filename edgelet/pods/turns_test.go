package pods

import (
	"testing"
	"testing/synctest"
)

func TestAWorkersPodIsNotItsList(t *testing.T) {
	m := &Manager{}
	w := newWorker(m, "default", "p", "uid-p")
	list := make([]Object, 100)
	list[7] = Object{Namespace: "default", Name: "p", UID: "uid-p", Hash: "h"}
	w.update(&list[7])
	if w.object == &list[7] {
		t.Error("a worker holds a whole list of pods")
	}
}

func TestNobodyHasATurnAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard(t)
		b.boot()
		b.store.put(testPod("p"))
		synctest.Wait()
		w := b.m.workers["uid-p"]
		if w == nil {
			t.Fatal("no worker")
		}
		b.stop()
		w.signal()
		synctest.Wait()
		if w.seat.taken {
			t.Error("a turn begins when Run has returned")
		}
		if len(b.m.workers) != 0 {
			t.Error("a worker outlives the manager")
		}
	})
}
