package leadership

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"
)

// api is a store of one Lease with resource versions that count.
type api struct {
	*fake.Clientset
	version int
}

func newAPI() *api {
	a := &api{Clientset: fake.NewClientset()}
	a.PrependReactor("create", "leases", func(action clienttesting.Action) (bool, runtime.Object, error) {
		a.stamp(action.(clienttesting.CreateAction).GetObject().(*coordinationv1.Lease))
		return false, nil, nil
	})
	a.PrependReactor("update", "leases", func(action clienttesting.Action) (bool, runtime.Object, error) {
		lease := action.(clienttesting.UpdateAction).GetObject().(*coordinationv1.Lease)
		have, err := a.Tracker().Get(schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}, lease.Namespace, lease.Name)
		if err != nil {
			return true, nil, err
		}
		if have.(*coordinationv1.Lease).ResourceVersion != lease.ResourceVersion {
			return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "leases"}, lease.Name, errors.New("it changed"))
		}
		a.stamp(lease)
		return false, nil, nil
	})
	return a
}

func (a *api) stamp(lease *coordinationv1.Lease) {
	a.version++
	lease.ResourceVersion = fmt.Sprint(a.version)
}

// plane is one control plane.
type plane struct {
	*Leadership
	stop    func()
	ended   chan error
	leads   atomic.Bool
	ctxDone atomic.Bool
	cut     atomic.Bool // from the API
}

func start(t *testing.T, a *api, name string) *plane {
	t.Helper()
	began := time.Now()
	p := &plane{ended: make(chan error, 1)}
	l, err := New(Config{Client: &cuttable{a, &p.cut}, Namespace: "ns", Name: "hub", Identity: name,
		Self: Addresses{API: []string{"https://" + name + ":6443"}, Fleet: []string{"https://" + name + ":6444", "https://b:1"}}, Duration: 10 * time.Second,
		Clock: func() time.Duration { return time.Since(began) + time.Hour }})
	if err != nil {
		t.Fatal(err)
	}
	p.Leadership = l
	ctx, cancel := context.WithCancel(t.Context())
	p.stop = cancel
	go func() {
		p.ended <- l.Run(ctx, func(ctx context.Context) {
			p.leads.Store(true)
			<-ctx.Done()
			p.ctxDone.Store(true)
			time.Sleep(time.Second) // last words
			p.leads.Store(false)
		})
	}()
	return p
}

// cuttable fails all requests once it is cut.
type cuttable struct {
	*api
	cut *atomic.Bool
}

func (c *cuttable) CoordinationV1() coordinationInterface {
	return cutCoordination{c.api.CoordinationV1(), c.cut}
}

func after(d time.Duration) { time.Sleep(d); synctest.Wait() }

func TestOneLeadsAndAnotherTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		one := start(t, a, "one")
		after(time.Second)
		two := start(t, a, "two")
		after(30 * time.Second)
		if !one.leads.Load() || !one.Held() || two.leads.Load() || two.Held() {
			t.Fatalf("one leads %v, two leads %v", one.leads.Load(), two.leads.Load())
		}
		leader, err := two.Leader(t.Context())
		if err != nil || leader.Identity != "one" || leader.Self || !slices.Equal(leader.Fleet, []string{"https://one:6444", "https://b:1"}) || !slices.Equal(leader.API, []string{"https://one:6443"}) {
			t.Errorf("%+v, %v", leader, err)
		}
		if leader, err := one.Leader(t.Context()); err != nil || !leader.Self {
			t.Errorf("%+v, %v", leader, err)
		}
		// A clean end hands over at once, after the last words.
		one.stop()
		after(500 * time.Millisecond)
		if !one.leads.Load() || !one.Held() || two.Held() {
			t.Error("the lease is gone before the last words are said")
		}
		after(6 * time.Second)
		if err := <-one.ended; err != nil || one.Held() || !two.leads.Load() || !two.Held() {
			t.Errorf("%v; one holds %v, two leads %v", err, one.Held(), two.leads.Load())
		}
		two.stop()
		after(2 * time.Second)
		if _, err := one.Leader(t.Context()); !errors.Is(err, ErrNoLeader) {
			t.Errorf("%v", err)
		}
	})
}

// There is never a moment in which two may act, whatever is cut from the API.
func TestCutFromTheAPI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI()
		one := start(t, a, "one")
		after(time.Second)
		two := start(t, a, "two")
		after(7 * time.Second)
		one.cut.Store(true)
		took := time.Duration(0)
		for ; !two.Held(); took += 10 * time.Millisecond {
			if took > 20*time.Second {
				t.Fatal("nobody took over")
			}
			after(10 * time.Millisecond)
			if one.Held() && two.Held() {
				t.Fatal("two may act")
			}
		}
		if one.Held() {
			t.Error("the one that is cut off may still act")
		}
		if err := <-one.ended; !errors.Is(err, ErrDeposed) || !one.ctxDone.Load() {
			t.Errorf("%v; its context ended: %v", err, one.ctxDone.Load())
		}
		t.Logf("taken over after %v", took)
		two.stop()
		after(2 * time.Second)
	})
}

// Frozen and awake again: the clock says at once what the process can't know yet.
func TestWokenLateItHoldsNothing(t *testing.T) {
	a := newAPI()
	var now atomic.Int64
	l, err := New(Config{Client: a, Namespace: "ns", Name: "hub", Identity: "one", Duration: 10 * time.Second,
		Clock: func() time.Duration { return time.Duration(now.Load()) }})
	if err != nil {
		t.Fatal(err)
	}
	if l.Held() {
		t.Error("held before anything")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	leads := make(chan struct{})
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx, func(ctx context.Context) { close(leads); <-ctx.Done() }) }()
	<-leads
	if now.Store(int64(8 * time.Second)); !l.Held() {
		t.Error("not held within its time")
	}
	if now.Store(int64(9*time.Second + time.Millisecond)); l.Held() {
		t.Error("held up to the last moment, when another may begin")
	}
	// A renewal counts from when it was sent.
	now.Store(int64(20 * time.Second))
	for end := time.Now().Add(20 * time.Second); !l.Held(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it isn't renewed")
		}
	}
	if now.Store(int64(29*time.Second + time.Millisecond)); l.Held() {
		t.Error("held for longer after a renewal")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestBootTimeRuns(t *testing.T) {
	before := bootTime()
	time.Sleep(2 * time.Millisecond)
	if d := bootTime() - before; d < time.Millisecond || d > time.Minute {
		t.Errorf("%v", d)
	}
}

func TestGate(t *testing.T) {
	var got []string
	var mu sync.Mutex
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, r.Method)
		io.WriteString(w, "{}")
	}))
	defer server.Close()
	now := time.Duration(0)
	l, err := New(Config{Client: newAPI(), Namespace: "ns", Name: "hub", Identity: "one", Clock: func() time.Duration { return now }})
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(l.Gate(&rest.Config{Host: server.URL}))
	if err != nil {
		t.Fatal(err)
	}
	all := func() (errs []error) {
		rc := client.CoreV1().RESTClient()
		for _, r := range []*rest.Request{rc.Get(), rc.Post(), rc.Put(), rc.Patch("application/json-patch+json"), rc.Delete()} {
			errs = append(errs, r.AbsPath("/x").Body([]byte("{}")).Do(t.Context()).Error())
		}
		return errs
	}
	for i, err := range all() {
		if (i == 0) != (err == nil) || i > 0 && !errors.Is(err, ErrNotActive) {
			t.Errorf("request %d without the lease: %v", i, err)
		}
	}
	if !slices.Equal(got, []string{"GET"}) {
		t.Errorf("the API saw %v", got)
	}
	l.until.Store(int64(time.Second))
	for i, err := range all() {
		if err != nil {
			t.Errorf("request %d with the lease: %v", i, err)
		}
	}
	if now = 2 * time.Second; !errors.Is(all()[1], ErrNotActive) {
		t.Error("a write after the lease ended")
	}
}

func TestConfigIsChecked(t *testing.T) {
	if _, err := New(Config{Client: newAPI(), Namespace: "ns", Name: "hub", Identity: "one", Duration: time.Second}); err == nil || !strings.Contains(err.Error(), "too short") {
		t.Errorf("%v", err)
	}
	if _, err := New(Config{}); err == nil {
		t.Error("an empty one")
	}
}
