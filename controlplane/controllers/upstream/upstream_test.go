package upstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

var boats = schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "boats"}

func boat(name string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{
		TypeMeta: metav1.TypeMeta{APIVersion: "example.com/v1", Kind: "Boat"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"big": "thing"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}},
	}
}

func metadataClient(t *testing.T, objects ...runtime.Object) *metadatafake.FakeMetadataClient {
	t.Helper()
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	return metadatafake.NewSimpleMetadataClient(scheme, objects...)
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("%s: not after 5s", what)
}

// recorder is an event handler that remembers names.
type recorder struct {
	mu  sync.Mutex
	got []string
}

func (r *recorder) add(what string, obj any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, what+" "+obj.(*metav1.PartialObjectMetadata).Name)
}
func (r *recorder) OnAdd(obj any, _ bool) { r.add("add", obj) }
func (r *recorder) OnUpdate(_, cur any)   { r.add("update", cur) }
func (r *recorder) OnDelete(obj any)      { r.add("delete", obj) }
func (r *recorder) has(want ...string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Equal(r.got, want)
}

func TestKindsShowMetadataAndEndWithTheirKind(t *testing.T) {
	client := metadataClient(t, boat("one"))
	ks := newKinds(t.Context(), client)
	k := ks.of(boats)
	if ks.of(boats) != k {
		t.Fatal("two informers of one kind")
	}
	first := &recorder{}
	handle, err := k.AddEventHandler(first)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "first list", func() bool { return k.HasSynced() && handle.HasSynced() && first.has("add one") })
	cached, err := k.Lister().ByNamespace("ns").Get("one")
	if err != nil {
		t.Fatal(err)
	}
	if m := cached.(*metav1.PartialObjectMetadata); m.Annotations != nil || m.ManagedFields != nil || m.Labels["a"] != "b" {
		t.Errorf("kept %+v", m)
	}

	late := &recorder{}
	if _, err := k.AddEventHandler(late); err != nil {
		t.Fatal(err)
	}
	if !late.has("add one") {
		t.Errorf("a late handler is shown %v", late.got)
	}
	if err := k.RemoveEventHandler(handle); err != nil {
		t.Fatal(err)
	}
	resource := client.Resource(boats).Namespace("ns").(metadatafake.MetadataClient)
	if _, err := resource.CreateFake(boat("two"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a change", func() bool { return late.has("add one", "add two") })
	if !first.has("add one") {
		t.Errorf("a handler that was taken off is shown %v", first.got)
	}

	// Garbage collection runs the controllers that it gets; this one runs already.
	k.GetController().Run(nil)

	ks.drop(map[schema.GroupVersionResource]bool{boats: true})
	if k.IsStopped() {
		t.Error("ended though its kind is served")
	}
	ks.drop(nil)
	if !k.IsStopped() {
		t.Error("not ended though its kind is gone")
	}
	if again := ks.of(boats); again == k {
		t.Error("an ended informer is handed out")
	}
	pinned := ks.pin(boats)
	ks.drop(nil)
	if pinned.IsStopped() {
		t.Error("a pinned one was ended")
	}
}

// countingDiscovery answers with as many kinds as it was asked times.
type countingDiscovery struct {
	discovery.DiscoveryInterface
	asked atomic.Int32
	fail  atomic.Bool
}

func (d *countingDiscovery) ServerPreferredResources() ([]*metav1.APIResourceList, error) {
	d.asked.Add(1)
	if d.fail.Load() {
		return nil, errors.New("not now")
	}
	return []*metav1.APIResourceList{{GroupVersion: "example.com/v1", APIResources: []metav1.APIResource{{Name: "boats", Kind: "Boat"}}}}, nil
}

func TestDiscoveryIsAskedWhenSomethingChanged(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	d := &countingDiscovery{DiscoveryInterface: fake.NewSimpleClientset().Discovery()}
	told := 0
	r := newResources(d, func(served map[schema.GroupVersionResource]bool) {
		told++
		if !served[boats] || len(served) != 1 {
			t.Errorf("served: %v", served)
		}
	})
	r.now = func() time.Time { return now }
	ask := func(want int32, when string) {
		t.Helper()
		for range 3 {
			if lists, err := r.ServerPreferredResources(); err != nil || len(lists) != 1 {
				t.Fatalf("%s: %v, %v", when, lists, err)
			}
		}
		if got := d.asked.Swap(0); got != want {
			t.Errorf("%s: asked %d times in three, want %d", when, got, want)
		}
	}
	ask(1, "at first")
	ask(0, "nothing changed")
	r.changed()
	ask(3, "while a new kind may still be missing")
	now = now.Add(settle + time.Second)
	ask(1, "when it has settled")
	ask(0, "and from then on")
	if told != 5 {
		t.Errorf("told of served kinds %d times, want 5", told)
	}
	r.changed()
	now = now.Add(settle + time.Second)
	d.fail.Store(true)
	if _, err := r.ServerPreferredResources(); err == nil {
		t.Error("no error")
	}
	d.fail.Store(false)
	d.asked.Store(0)
	ask(1, "after a failure")
}

func newSet(t *testing.T, objects ...runtime.Object) *Set {
	t.Helper()
	client := fake.NewSimpleClientset(objects...)
	s, err := New(t.Context(), Deps{
		Config:  func(string, ...string) *rest.Config { return &rest.Config{Host: "https://127.0.0.1:1"} },
		Factory: informers.NewSharedInformerFactory(client, 0),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.kinds = newKinds(t.Context(), metadataClient(t))
	return s
}

// A controller behind a gate isn't built before its first object, and may end and be run again.
func TestGate(t *testing.T) {
	s := newSet(t)
	client := s.kinds.client.(*metadatafake.FakeMetadataClient)
	var built atomic.Int32
	e := entry{"test", s.anyMatching(boats, func(m metav1.Object) bool { return m.GetName() != "hull" }), func(context.Context, *kit) (func(context.Context), error) {
		built.Add(1)
		return idle, nil
	}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx, e, Roots{}) }()
	resource := client.Resource(boats).Namespace("ns").(metadatafake.MetadataClient)
	eventually(t, "informer", s.kinds.pin(boats).HasSynced)
	if _, err := resource.CreateFake(boat("hull"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "informer shows it", func() bool { return len(s.kinds.pin(boats).GetStore().List()) == 1 })
	time.Sleep(20 * time.Millisecond)
	if built.Load() != 0 {
		t.Fatal("built for an object that doesn't pass")
	}
	if _, err := resource.CreateFake(boat("real"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "built", func() bool { return built.Load() == 1 })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := len(s.kinds.pin(boats).handlers); n != 0 {
		t.Errorf("%d handlers of the gate stay", n)
	}
}

// Handlers that a controller adds to shared informers go when it ends, and its indexes can be added again.
func TestHandlersGoWithTheRun(t *testing.T) {
	s := newSet(t, &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "one"}})
	informer := s.deps.Factory.Core().V1().Pods().Informer()
	for i := range 2 {
		var shown atomic.Int32
		ctx, cancel := context.WithCancel(t.Context())
		e := entry{"test", nil, func(_ context.Context, k *kit) (func(context.Context), error) {
			pods := k.Factory.Core().V1().Pods().Informer()
			index := cache.Indexers{"test": func(any) ([]string, error) { return nil, nil }}
			if err := errors.Join(pods.AddIndexers(index), pods.GetIndexer().AddIndexers(index)); err != nil {
				t.Errorf("run %d: %v", i+1, err)
			}
			_, err := pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
				AddFunc:    func(any) { shown.Add(1) },
				UpdateFunc: func(_, _ any) { shown.Add(1) },
			})
			return idle, err
		}}
		ended := make(chan error, 1)
		go func() { ended <- s.run(ctx, e, Roots{}) }()
		eventually(t, "shown", func() bool { return shown.Load() == 1 })
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := informer.GetStore().Update(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "one"}}); err != nil {
			t.Fatal(err)
		}
		if n := shown.Load(); n != 1 {
			t.Errorf("shown %d times", n)
		}
	}
}

// overtaken is an indexer to which another controller adds the same index a moment before.
type overtaken struct{ cache.Indexer }

func (o overtaken) AddIndexers(add cache.Indexers) error {
	_ = o.Indexer.AddIndexers(cache.Indexers{"same": func(any) ([]string, error) { return nil, nil }})
	return o.Indexer.AddIndexers(add)
}

func TestAnotherIsQuickerWithAnIndex(t *testing.T) {
	indexer := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	index := func(any) ([]string, error) { return nil, nil }
	if err := addMissing(overtaken{indexer}, indexer, cache.Indexers{"same": index, "own": index}); err != nil {
		t.Fatal(err)
	}
	if have := indexer.GetIndexers(); have["same"] == nil || have["own"] == nil || len(have) != 2 {
		t.Errorf("%v", have)
	}
}

// Informers run already when a controller is built, and upstream's constructors add handlers before they have set all that
// these read.
func TestHandlersAreToldNothingBeforeTheControllerIsBuilt(t *testing.T) {
	for _, broken := range []error{nil, errors.New("broken")} {
		t.Run(fmt.Sprint("build returns ", broken), func(t *testing.T) {
			s := newSet(t, &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "one"}})
			informer := s.deps.Factory.Core().V1().Pods().Informer()
			s.startInformers()
			eventually(t, "synced", informer.HasSynced)
			var built atomic.Bool
			var shown, early, others atomic.Int32
			tell := cache.ResourceEventHandlerFuncs{AddFunc: func(any) {
				if shown.Add(1); !built.Load() {
					early.Add(1)
				}
			}}
			e := entry{"test", nil, func(_ context.Context, k *kit) (func(context.Context), error) {
				if _, err := k.Factory.Core().V1().Pods().Informer().AddEventHandler(tell); err != nil {
					t.Error(err)
				}
				for range 20 { // one after the other: time enough for the first
					if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { others.Add(1) }}); err != nil {
						t.Error(err)
					}
				}
				eventually(t, "others are told", func() bool { return others.Load() == 20 })
				built.Store(true)
				return idle, broken
			}}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- s.run(ctx, e, Roots{}) }()
			if broken == nil {
				eventually(t, "told", func() bool { return shown.Load() == 1 })
			} else if err := <-ended; !errors.Is(err, broken) || shown.Load() != 0 {
				t.Errorf("%v, told %d times", err, shown.Load())
			}
			cancel()
			if n := early.Load(); n != 0 {
				t.Errorf("told %d times before the constructor returned", n)
			}
			if broken == nil {
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestBuildErrorsAreReturned(t *testing.T) {
	s := newSet(t)
	broken := errors.New("broken")
	err := s.run(t.Context(), entry{"test", nil, func(context.Context, *kit) (func(context.Context), error) { return nil, broken }}, Roots{})
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestNamesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range newSet(t).Controllers() {
		if seen[c.Name] || c.Name == "" {
			t.Errorf("name %q", c.Name)
		}
		seen[c.Name] = true
	}
}

// What an idle control plane pays for: every other controller waits for an object that it has something to do for.
func TestControllersThatDontWaitForAnObject(t *testing.T) {
	want := []string{"serviceaccount-token-controller", "serviceaccount-controller", "root-ca-certificate-publisher-controller",
		"clusterrole-aggregation-controller", "namespace-controller", "garbage-collector-controller", "pod-garbage-collector-controller",
		"taint-eviction-controller"}
	var got []string
	for _, e := range newSet(t).entries() {
		if len(e.gates) == 0 {
			got = append(got, e.name)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("built at once: %v, want %v", got, want)
	}
}

// A claim is no reason to start the ten workers that watch claims grow; one that is to grow is.
func TestGrowingClaims(t *testing.T) {
	claim := func(phase v1.PersistentVolumeClaimPhase, asks, has string) *v1.PersistentVolumeClaim {
		return &v1.PersistentVolumeClaim{
			Spec:   v1.PersistentVolumeClaimSpec{Resources: v1.VolumeResourceRequirements{Requests: v1.ResourceList{v1.ResourceStorage: resource.MustParse(asks)}}},
			Status: v1.PersistentVolumeClaimStatus{Phase: phase, Capacity: v1.ResourceList{v1.ResourceStorage: resource.MustParse(has)}},
		}
	}
	for _, c := range []struct {
		claim *v1.PersistentVolumeClaim
		want  bool
	}{
		{claim(v1.ClaimBound, "1Gi", "1Gi"), false},
		{claim(v1.ClaimBound, "1Gi", "2Gi"), false},
		{claim(v1.ClaimPending, "1Gi", "0"), false},
		{claim(v1.ClaimBound, "2Gi", "1Gi"), true},
	} {
		if got := growing(c.claim); got != c.want {
			t.Errorf("claim %+v, %+v: growing = %v", c.claim.Spec, c.claim.Status, got)
		}
	}
}
