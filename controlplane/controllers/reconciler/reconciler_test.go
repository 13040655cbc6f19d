package reconciler_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-edge/coracle/controlplane/controllers/fixture"
	"github.com/coracle-edge/coracle/controlplane/controllers/reconciler"
)

func quiet() reconciler.Options {
	return reconciler.Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
}

// Errors and panics bring the key back, others aren't touched by it; at the end the event handler is off the informer.
func TestRunRetriesAndLetsGo(t *testing.T) {
	w := fixture.New(t, fixture.Pod("good", nil, ""), fixture.Pod("fails", nil, ""), fixture.Pod("panics", nil, ""))
	informer := w.Factory.Core().V1().Pods().Informer()
	var mu sync.Mutex
	seen := map[string]int{}
	r := reconciler.New("test", func(_ context.Context, key string) error {
		mu.Lock()
		seen[key]++
		n := seen[key]
		mu.Unlock()
		switch {
		case key == "ns/fails" && n < 3:
			return errors.New("not yet")
		case key == "ns/panics" && n < 3:
			panic("oh")
		}
		return nil
	}, quiet(), time.Millisecond, time.Millisecond)
	if err := r.Watch(informer, r.Everything()); err != nil {
		t.Fatal(err)
	}
	w.Sync()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.Run(ctx) }()
	w.Eventually("all settle", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return seen["ns/good"] == 1 && seen["ns/fails"] == 3 && seen["ns/panics"] == 3
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := w.Client.CoreV1().Pods("ns").Create(t.Context(), fixture.Pod("late", nil, ""), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.Eventually("the informer shows it", func() bool { return len(informer.GetStore().List()) == 4 })
	time.Sleep(10 * time.Millisecond)
	mu.Lock()
	defer mu.Unlock()
	if seen["ns/late"] != 0 {
		t.Error("reconciled after the end")
	}
}

func TestNamespaceTerminatingIsNoReasonToRetry(t *testing.T) {
	refused := apierrors.NewForbidden(v1.Resource("pods"), "p", errors.New("terminating"))
	refused.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: v1.NamespaceTerminatingCause}}
	var n atomic.Int32
	r := reconciler.New("test", func(context.Context, string) error {
		n.Add(1)
		return fmt.Errorf("create: %w", refused)
	}, quiet(), time.Millisecond, time.Millisecond)
	r.Add("ns/a")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.Run(ctx); err != nil {
		t.Error(err)
	}
	if got := n.Load(); got != 1 {
		t.Errorf("reconciled %d times, want once", got)
	}
}

func TestSlowStart(t *testing.T) {
	for _, c := range []struct {
		n, failFrom int
		made, ok    int
	}{
		{0, 0, 0, 0},
		{1, 5, 1, 1},
		{10, 100, 10, 10},
		{10, 0, 1, 0}, // the first fails: no other is tried
		{10, 1, 3, 1}, // the second batch of two fails
		{10, 4, 7, 4}, // one, two, four
		{100, 20, 31, 20},
	} {
		var mu sync.Mutex
		var calls []int
		made, ok, err := reconciler.SlowStart(c.n, func(i int) error {
			mu.Lock()
			defer mu.Unlock()
			calls = append(calls, i)
			if i >= c.failFrom {
				return errors.New("no")
			}
			return nil
		})
		slices.Sort(calls)
		if made != c.made || ok != c.ok || (err != nil) != (ok < made) || len(calls) != made {
			t.Errorf("%d, failing from %d: made %d, ok %d, %v; want %d and %d", c.n, c.failFrom, made, ok, err, c.made, c.ok)
		}
		for i, call := range calls {
			if i != call {
				t.Fatalf("calls %v", calls)
			}
		}
	}
	if _, _, err := reconciler.SlowStart(3, func(int) error { panic("oh") }); !errors.Is(err, reconciler.ErrPanic) {
		t.Errorf("a panic gives %v", err)
	}
}

func TestPodEvents(t *testing.T) {
	owner, other := &metav1.ObjectMeta{Name: "o", UID: "o"}, &metav1.ObjectMeta{Name: "p", UID: "p"}
	owned := func(o ...fixture.PodOption) *v1.Pod { return fixture.Pod("pod", owner, "Job", o...) }
	version := func(s string) fixture.PodOption { return func(p *v1.Pod) { p.ResourceVersion = s } }
	free := func(o ...fixture.PodOption) *v1.Pod { return fixture.Pod("pod", nil, "", o...) }
	for _, c := range []struct {
		name string
		call func(cache.ResourceEventHandler)
		want []string
	}{
		{"created", func(h cache.ResourceEventHandler) { h.OnAdd(owned(), false) }, []string{"created o"}},
		{"found already being deleted", func(h cache.ResourceEventHandler) { h.OnAdd(owned(fixture.Deleting), true) }, []string{"deleted o false"}},
		{"of an owner that isn't there", func(h cache.ResourceEventHandler) {
			h.OnAdd(fixture.Pod("pod", &metav1.ObjectMeta{Name: "x", UID: "x"}, "Job"), false)
		}, []string{"unowned"}},
		{"of an owner's predecessor", func(h cache.ResourceEventHandler) {
			h.OnAdd(fixture.Pod("pod", &metav1.ObjectMeta{Name: "o", UID: "earlier"}, "Job"), false)
		}, []string{"unowned"}},
		{"of another kind", func(h cache.ResourceEventHandler) { h.OnAdd(fixture.Pod("pod", owner, "ReplicaSet"), false) }, []string{"unowned"}},
		{"orphan", func(h cache.ResourceEventHandler) { h.OnAdd(free(), false) }, []string{"unowned", "orphan"}},
		{"changed", func(h cache.ResourceEventHandler) { h.OnUpdate(owned(), owned(version("2"))) }, []string{"changed o"}},
		{"resync", func(h cache.ResourceEventHandler) { h.OnUpdate(owned(), owned()) }, nil},
		{"marked for deletion", func(h cache.ResourceEventHandler) { h.OnUpdate(owned(), owned(version("2"), fixture.Deleting)) }, []string{"deleted o false"}},
		{"released", func(h cache.ResourceEventHandler) { h.OnUpdate(owned(), free(version("2"))) }, []string{"changed o", "unowned", "orphan"}},
		{"taken over", func(h cache.ResourceEventHandler) {
			h.OnUpdate(owned(), fixture.Pod("pod", other, "Job", version("2")))
		}, []string{"changed o", "changed p"}},
		{"an orphan's other label", func(h cache.ResourceEventHandler) {
			h.OnUpdate(free(), free(version("2"), fixture.Labelled(map[string]string{"a": "b"})))
		}, []string{"unowned", "orphan"}},
		{"an orphan's status", func(h cache.ResourceEventHandler) { h.OnUpdate(free(), free(version("2"))) }, []string{"unowned"}},
		{"gone", func(h cache.ResourceEventHandler) { h.OnDelete(owned()) }, []string{"deleted o true"}},
		{"gone unseen", func(h cache.ResourceEventHandler) {
			h.OnDelete(cache.DeletedFinalStateUnknown{Key: "ns/pod", Obj: owned()})
		}, []string{"deleted o true"}},
		{"gone and made anew", func(h cache.ResourceEventHandler) {
			h.OnUpdate(owned(), owned(version("2"), func(p *v1.Pod) { p.UID = "second" }))
		}, []string{"deleted o true", "created o"}},
	} {
		var got []string
		note := func(format string, args ...any) { got = append(got, fmt.Sprintf(format, args...)) }
		c.call(reconciler.PodEvents{
			Owner: func(_ string, ref *metav1.OwnerReference) (string, bool) {
				return ref.Name, ref.Kind == "Job" && (ref.UID == "o" || ref.UID == "p")
			},
			Orphan:  func(*v1.Pod) { note("orphan") },
			Created: func(key string, _ *v1.Pod) { note("created %s", key) },
			Deleted: func(key string, _ *v1.Pod, gone bool) { note("deleted %s %v", key, gone) },
			Changed: func(key string, _, _ *v1.Pod) { note("changed %s", key) },
			Unowned: func(*v1.Pod) { note("unowned") },
		}.Handler())
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
