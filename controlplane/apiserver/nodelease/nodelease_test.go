package nodelease

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/kubernetes/pkg/apis/coordination"
	leasestorage "k8s.io/kubernetes/pkg/registry/coordination/lease/storage"
)

// fleet is a Source that a test changes.
type fleet struct {
	mu     sync.Mutex
	known  bool
	leases map[string]Lease
}

func newFleet(names ...string) *fleet {
	f := &fleet{known: true, leases: map[string]Lease{}}
	for _, n := range names {
		f.put(n, "uid-"+n, 0)
	}
	return f
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (f *fleet) put(name, uid string, heard time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leases[name] = Lease{Node: name, UID: types.UID(uid), Created: epoch, Renewed: epoch.Add(heard), Duration: 45 * time.Second}
}

func (f *fleet) remove(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.leases, name)
}

func (f *fleet) NodeLeases() ([]Lease, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Lease
	for _, l := range f.leases {
		out = append(out, l)
	}
	return out, f.known
}

// etcd is what upstream's storage is asked; it fails on any write.
type etcd struct {
	storage.Interface
	leases  []coordination.Lease
	changes chan watch.Event
}

func (e *etcd) GetList(_ context.Context, _ string, _ storage.ListOptions, out runtime.Object) error {
	l := out.(*coordination.LeaseList)
	l.ResourceVersion = "77"
	l.Items = append(l.Items, e.leases...)
	return nil
}

func (e *etcd) Watch(context.Context, string, storage.ListOptions) (watch.Interface, error) {
	return watch.NewProxyWatcher(e.changes), nil
}

func newREST(f *fleet, stored ...coordination.Lease) (*REST, *etcd, *bool) {
	e := &etcd{leases: stored, changes: make(chan watch.Event, 10)}
	open := true
	inner := &leasestorage.REST{Store: &genericregistry.Store{
		NewFunc: func() runtime.Object { return &coordination.Lease{} }, NewListFunc: func() runtime.Object { return &coordination.LeaseList{} },
		DefaultQualifiedResource: coordination.Resource("leases"),
		KeyRootFunc:              func(context.Context) string { return "/leases/" },
		KeyFunc:                  func(_ context.Context, name string) (string, error) { return "/leases/" + name, nil },
		PredicateFunc:            genericPredicate,
		Storage:                  genericregistry.DryRunnableStorage{Storage: e},
	}}
	return New(inner, f, func() bool { return open }), e, &open
}

var here = genericapirequest.WithNamespace(context.Background(), corev1.NamespaceNodeLease)
var everywhere = genericapirequest.WithNamespace(context.Background(), "")

func TestGetAndListFromMemory(t *testing.T) {
	f := newFleet("a", "b")
	r, _, _ := newREST(f)
	f.put("a", "uid-a", 7*time.Second)
	o, err := r.Get(here, "a", &metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l := o.(*coordination.Lease)
	if *l.Spec.HolderIdentity != "a" || *l.Spec.LeaseDurationSeconds != 45 || !l.Spec.RenewTime.Equal(&metav1.MicroTime{Time: epoch.Add(7 * time.Second)}) ||
		l.Namespace != corev1.NamespaceNodeLease || len(l.UID) != 36 || l.UID == "uid-a" || l.OwnerReferences[0].UID != "uid-a" || !l.CreationTimestamp.Time.Equal(epoch) {
		t.Errorf("%+v", l)
	}
	again, _ := r.Get(here, "a", &metav1.GetOptions{})
	if again.(*coordination.Lease).UID != l.UID || again.(*coordination.Lease).ResourceVersion != l.ResourceVersion {
		t.Error("the lease of one node is another each time")
	}
	if _, err := r.Get(here, "c", &metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("of no node: %v", err)
	}
	list, err := r.List(here, &metainternalversion.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if items := list.(*coordination.LeaseList).Items; len(items) != 2 || items[0].Name != "a" || items[1].Name != "b" {
		t.Errorf("%+v", items)
	}
	one, err := r.List(here, &metainternalversion.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", "b")})
	if items := one.(*coordination.LeaseList).Items; err != nil || len(items) != 1 || items[0].Name != "b" {
		t.Errorf("by name: %v, %v", items, err)
	}
	rv := list.(*coordination.LeaseList).ResourceVersion
	for _, x := range []struct {
		options metainternalversion.ListOptions
		ok      bool
	}{
		{metainternalversion.ListOptions{ResourceVersion: "0"}, true},
		{metainternalversion.ListOptions{ResourceVersion: rv}, true},
		{metainternalversion.ListOptions{ResourceVersion: rv, ResourceVersionMatch: metav1.ResourceVersionMatchExact}, true},
		{metainternalversion.ListOptions{ResourceVersion: "5", ResourceVersionMatch: metav1.ResourceVersionMatchExact}, false},
		{metainternalversion.ListOptions{ResourceVersion: "99999999999999999"}, false},
		{metainternalversion.ListOptions{Continue: "x"}, false},
	} {
		if _, err := r.List(here, &x.options); (err == nil) != x.ok || err != nil && !apierrors.IsResourceExpired(err) {
			t.Errorf("%+v: %v", x.options, err)
		}
	}
	if _, err := r.List(here, &metainternalversion.ListOptions{ResourceVersion: "new"}); !apierrors.IsBadRequest(err) {
		t.Errorf("%v", err)
	}
}

func TestNothingIsSaidBeforeItIsKnown(t *testing.T) {
	f := newFleet()
	f.known = false
	r, _, _ := newREST(f)
	_, err1 := r.Get(here, "a", &metav1.GetOptions{})
	_, err2 := r.List(here, nil)
	_, err3 := r.Watch(here, nil)
	for _, err := range []error{err1, err2, err3} {
		if !apierrors.IsServiceUnavailable(err) {
			t.Errorf("%v", err)
		}
	}
	if _, err := r.List(everywhere, nil); err != nil {
		t.Errorf("the leases of other namespaces: %v", err)
	}
}

func TestWritesAreRefused(t *testing.T) {
	r, _, _ := newREST(newFleet("a"))
	lease := func(name string) *coordination.Lease {
		return &coordination.Lease{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: corev1.NamespaceNodeLease}}
	}
	_, create := r.Create(here, lease("new"), rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
	_, _, update := r.Update(here, "a", rest.DefaultUpdatedObjectInfo(lease("a")), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	_, _, apply := r.Update(here, "new", rest.DefaultUpdatedObjectInfo(lease("new")), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, true, &metav1.UpdateOptions{})
	_, _, remove := r.Delete(here, "a", rest.ValidateAllObjectFunc, &metav1.DeleteOptions{})
	_, all := r.DeleteCollection(here, rest.ValidateAllObjectFunc, &metav1.DeleteOptions{}, &metainternalversion.ListOptions{})
	for what, err := range map[string]error{"create": create, "update": update, "apply": apply, "delete": remove, "delete all": all} {
		var status *apierrors.StatusError
		if !errors.As(err, &status) || status.ErrStatus.Code != http.StatusMethodNotAllowed || status.ErrStatus.Message != readOnly {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := r.Create(here, lease("a"), rest.ValidateAllObjectFunc, &metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("create what is there: %v", err)
	}
	if _, _, err := r.Delete(here, "c", rest.ValidateAllObjectFunc, &metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("delete what isn't: %v", err)
	}
}

// next reads an event's type, name and revision.
func next(t *testing.T, w watch.Interface) (string, *coordination.Lease) {
	t.Helper()
	select {
	case e, ok := <-w.ResultChan():
		if !ok {
			return "END", nil
		}
		l, _ := e.Object.(*coordination.Lease)
		return fmt.Sprint(e.Type, " ", l.Name), l
	case <-time.After(time.Hour):
		return "nothing", nil
	}
}

func expect(t *testing.T, w watch.Interface, want ...string) (last *coordination.Lease) {
	t.Helper()
	for _, x := range want {
		got, l := next(t, w)
		if got != x {
			t.Fatalf("event %q, want %q", got, x)
		}
		last = l
	}
	return last
}

func TestWatchOfTheNodesNamespace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("a", "b")
		r, _, _ := newREST(f)
		w, err := r.Watch(here, &metainternalversion.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		expect(t, w, "ADDED a", "ADDED b")
		f.put("a", "uid-a", time.Second)
		l := expect(t, w, "MODIFIED a")
		if !l.Spec.RenewTime.Time.Equal(epoch.Add(time.Second)) {
			t.Errorf("renewed at %s", l.Spec.RenewTime)
		}
		resume := l.ResourceVersion
		f.remove("b")
		f.put("c", "uid-c", 0)
		expect(t, w, "DELETED b", "ADDED c")
		f.put("a", "uid-a2", 0) // another Node of that name
		expect(t, w, "DELETED a", "ADDED a")
		w.Stop()
		// A client that comes back is told exactly what it missed.
		w, err = r.Watch(here, &metainternalversion.ListOptions{ResourceVersion: resume})
		if err != nil {
			t.Fatal(err)
		}
		expect(t, w, "DELETED b", "ADDED a", "ADDED c")
		w.Stop()
		// As a list.
		yes := true
		w, err = r.Watch(here, &metainternalversion.ListOptions{SendInitialEvents: &yes, AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan})
		if err != nil {
			t.Fatal(err)
		}
		if mark := expect(t, w, "ADDED a", "ADDED c", "BOOKMARK "); mark.Annotations[metav1.InitialEventsAnnotationKey] != "true" || mark.ResourceVersion == "" {
			t.Errorf("%+v", mark)
		}
		w.Stop()
		for _, rv := range []string{"1", "99999999999999999"} {
			if _, err := r.Watch(here, &metainternalversion.ListOptions{ResourceVersion: rv}); !apierrors.IsResourceExpired(err) {
				t.Errorf("from %s: %v", rv, err)
			}
		}
		synctest.Wait()
		if n := len(r.board.watchers); n != 0 {
			t.Errorf("%d watchers are left", n)
		}
	})
}

// TestASlowClientGetsTheLatest: what it missed isn't queued.
func TestASlowClientGetsTheLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("a")
		r, _, _ := newREST(f)
		w, err := r.Watch(here, nil)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, w, "ADDED a")
		for i := range 1000 {
			f.put("a", "uid-a", time.Duration(i)*time.Second)
			_, _ = r.Get(here, "a", &metav1.GetOptions{})
		}
		synctest.Wait()
		seen := 0
		for {
			got, l := next(t, w)
			if got != "MODIFIED a" {
				t.Fatal(got)
			}
			seen++
			if l.Spec.RenewTime.Time.Equal(epoch.Add(999 * time.Second)) {
				break
			}
		}
		if seen > 3 {
			t.Errorf("%d events for what the latest says alone", seen)
		}
		w.Stop()
	})
}

func TestWhatIsForgottenIsSaidToBe(t *testing.T) {
	f := newFleet()
	r, _, _ := newREST(f)
	first, _ := r.List(here, nil)
	rv := first.(*coordination.LeaseList).ResourceVersion
	for i := range maxGraves + 10 {
		name := strconv.Itoa(i)
		f.put(name, name, 0)
		_, _ = r.List(here, nil)
		f.remove(name)
		_, _ = r.List(here, nil)
	}
	if _, err := r.Watch(here, &metainternalversion.ListOptions{ResourceVersion: rv}); !apierrors.IsResourceExpired(err) {
		t.Errorf("a watch from before what is remembered: %v", err)
	}
	if len(r.board.graves) > maxGraves {
		t.Errorf("%d graves", len(r.board.graves))
	}
}

func stored(namespace, name, rv string) coordination.Lease {
	return coordination.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, ResourceVersion: rv}}
}

func TestAllNamespacesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet("a")
		// One that an earlier version of the cluster stored.
		r, e, _ := newREST(f, stored("default", "leader", "50"), stored(corev1.NamespaceNodeLease, "old", "20"))
		list, err := r.List(everywhere, &metainternalversion.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		all := list.(*coordination.LeaseList)
		if len(all.Items) != 2 || all.Items[0].Name != "leader" || all.Items[1].Name != "a" || all.ResourceVersion != "77" {
			t.Errorf("%s: %+v", all.ResourceVersion, all.Items)
		}
		w, err := r.Watch(everywhere, &metainternalversion.ListOptions{ResourceVersion: "77"})
		if err != nil {
			t.Fatal(err)
		}
		// It isn't known what the client has seen of nodes, so it is told all.
		if l := expect(t, w, "MODIFIED a"); l.ResourceVersion != "77" {
			t.Errorf("revision %s would be taken for etcd's", l.ResourceVersion)
		}
		changed := stored("default", "leader", "81")
		e.changes <- watch.Event{Type: watch.Modified, Object: &changed}
		expect(t, w, "MODIFIED leader")
		old := stored(corev1.NamespaceNodeLease, "old", "82")
		e.changes <- watch.Event{Type: watch.Modified, Object: &old}
		f.put("a", "uid-a", time.Second)
		if l := expect(t, w, "MODIFIED a"); l.ResourceVersion != "81" {
			t.Errorf("revision %s, the client has seen 81", l.ResourceVersion)
		}
		close(e.changes) // etcd ends the watch
		expect(t, w, "END")
		synctest.Wait()
		if len(r.board.watchers) != 0 {
			t.Error("the watcher is left")
		}
	})
}

func TestWithoutItsNamespaceThereAreNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _, open := newREST(newFleet("a"))
		w, err := r.Watch(here, nil)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, w, "ADDED a")
		*open = false
		list, err := r.List(here, nil)
		if err != nil || len(list.(*coordination.LeaseList).Items) != 0 {
			t.Errorf("%v, %v", list, err)
		}
		expect(t, w, "DELETED a")
		w.Stop()
	})
}

func genericPredicate(label labels.Selector, field fields.Selector) storage.SelectionPredicate {
	return storage.SelectionPredicate{Label: label, Field: field, GetAttrs: storage.DefaultNamespaceScopedAttr}
}
