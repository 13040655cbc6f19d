package apiserver_test

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-edge/coracle/controlplane/apiserver/nodelease"
)

// heard is a nodelease.Source that tests change.
type heard struct {
	mu     sync.Mutex
	leases map[string]nodelease.Lease
}

func (h *heard) NodeLeases() ([]nodelease.Lease, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Values(h.leases)), true
}

func (h *heard) at(name string, renewed time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.leases == nil {
		h.leases = map[string]nodelease.Lease{}
	}
	h.leases[name] = nodelease.Lease{Node: name, UID: types.UID("uid-" + name), Created: time.Unix(1e9, 0), Renewed: renewed, Duration: 90 * time.Second}
}

func (h *heard) gone(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.leases, name)
}

// keys counts what etcd has below a prefix.
func keys(t *testing.T, prefix string) int64 {
	t.Helper()
	r, err := server.store.Client().KV.Get(t.Context(), prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		t.Fatal(err)
	}
	return r.Count
}

func TestLeasesOfNodesAreServedAndNeverStored(t *testing.T) {
	admin := server.admin(t)
	now := time.Now().Truncate(time.Microsecond)
	server.leases.at("lease-a", now)
	server.leases.at("lease-b", now.Add(-time.Hour))
	defer server.leases.gone("lease-a")
	defer server.leases.gone("lease-b")
	leases := admin.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	eventually(t, "the namespace is there", func() error { _, err := leases.Get(t.Context(), "lease-a", metav1.GetOptions{}); return err })
	l, err := leases.Get(t.Context(), "lease-a", metav1.GetOptions{})
	if err != nil || !l.Spec.RenewTime.Time.Equal(now) || *l.Spec.HolderIdentity != "lease-a" || *l.Spec.LeaseDurationSeconds != 90 {
		t.Errorf("%v %+v", err, l)
	}

	// As a node's kubelet would write: refused, in words that help.
	node := server.client(t, "system:node:lease-a", "system:nodes").CoordinationV1().Leases(corev1.NamespaceNodeLease)
	l.Spec.RenewTime = &metav1.MicroTime{Time: now.Add(time.Minute)}
	_, update := node.Update(t.Context(), l, metav1.UpdateOptions{})
	remove := node.Delete(t.Context(), "lease-a", metav1.DeleteOptions{})
	_, patch := admin.CoordinationV1().Leases(corev1.NamespaceNodeLease).Patch(t.Context(), "lease-a", types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{})
	_, create := leases.Create(t.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "lease-c"}}, metav1.CreateOptions{})
	for what, err := range map[string]error{"update": update, "delete": remove, "patch": patch, "create": create} {
		if status, ok := err.(apierrors.APIStatus); !ok || status.Status().Code != http.StatusMethodNotAllowed || !strings.Contains(err.Error(), "fleet hub") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := leases.Create(t.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "lease-a"}}, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("create what is there: %v", err)
	}
	// Another node's isn't its to read, as upstream's authorizer has it.
	if _, err := node.Get(t.Context(), "lease-b", metav1.GetOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("another node's lease: %v", err)
	}
	if n := keys(t, "/registry/leases/kube-node-lease/"); n != 0 {
		t.Errorf("etcd has %d leases of nodes", n)
	}
}

func TestOtherLeasesAreStoredAsAlways(t *testing.T) {
	admin := server.admin(t)
	ns := namespace(t, admin)
	server.leases.at("lease-o", time.Now())
	defer server.leases.gone("lease-o")
	leases := admin.CoordinationV1().Leases(ns)
	l, err := leases.Create(t.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "leader"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n := keys(t, "/registry/leases/"+ns+"/"); n != 1 {
		t.Errorf("etcd has %d leases of namespace %s", n, ns)
	}
	everywhere, err := admin.CoordinationV1().Leases("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range everywhere.Items {
		names = append(names, l.Namespace+"/"+l.Name)
	}
	if !slices.Contains(names, ns+"/leader") || !slices.Contains(names, "kube-node-lease/lease-o") {
		t.Errorf("of all namespaces: %q", names)
	}
	only, err := admin.CoordinationV1().Leases("").List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.namespace=kube-node-lease"})
	if err != nil || slices.ContainsFunc(only.Items, func(l coordinationv1.Lease) bool { return l.Namespace != corev1.NamespaceNodeLease }) || len(only.Items) == 0 {
		t.Errorf("by field: %v, %v", only, err)
	}
	l.Labels = map[string]string{"a": "b"}
	if _, err := leases.Update(t.Context(), l, metav1.UpdateOptions{}); err != nil {
		t.Error(err)
	}
	if err := leases.Delete(t.Context(), "leader", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
}

// TestInformersOfLeases: what upstream's controllers use, with all that the
// client library makes of a watch, in the nodes' namespace and over all.
func TestInformersOfLeases(t *testing.T) {
	for _, scope := range []string{corev1.NamespaceNodeLease, metav1.NamespaceAll} {
		t.Run(scope, func(t *testing.T) {
			admin := server.admin(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			first := time.Now().Truncate(time.Microsecond)
			server.leases.at("lease-i", first)
			defer server.leases.gone("lease-i")
			factory := informers.NewSharedInformerFactoryWithOptions(admin, 0, informers.WithNamespace(scope))
			informer := factory.Coordination().V1().Leases()
			lister := informer.Lister().Leases(corev1.NamespaceNodeLease)
			_ = informer.Informer()
			factory.Start(ctx.Done())
			if !cache.WaitForCacheSync(ctx.Done(), informer.Informer().HasSynced) {
				t.Fatal("never synced")
			}
			if l, err := lister.Get("lease-i"); err != nil || !l.Spec.RenewTime.Time.Equal(first) {
				t.Errorf("%v %v", l, err)
			}
			second := first.Add(time.Second)
			server.leases.at("lease-i", second)
			server.leases.at("lease-j", second)
			read := func() { // so that nobody has to wait for the next period
				_, _ = admin.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(t.Context(), "lease-i", metav1.GetOptions{})
			}
			read()
			within(t, 3*nodelease.Period, "the renewal and the new node", func() bool {
				i, err1 := lister.Get("lease-i")
				_, err2 := lister.Get("lease-j")
				return err1 == nil && err2 == nil && i.Spec.RenewTime.Time.Equal(second)
			})
			server.leases.gone("lease-j")
			read()
			within(t, 3*nodelease.Period, "the node that went", func() bool { _, err := lister.Get("lease-j"); return apierrors.IsNotFound(err) })
		})
	}
}

func within(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", d, what)
		}
	}
}

// TestWatchOfOneLeaseFromAList is what kubectl get -w does.
func TestWatchOfOneLeaseFromAList(t *testing.T) {
	leases := server.admin(t).CoordinationV1().Leases(corev1.NamespaceNodeLease)
	server.leases.at("lease-w", time.Unix(1.7e9, 0))
	server.leases.at("lease-x", time.Unix(1.7e9, 0))
	defer server.leases.gone("lease-w")
	defer server.leases.gone("lease-x")
	list, err := leases.List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=lease-w"})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("%v, %+v", err, list)
	}
	w, err := leases.Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=lease-w", ResourceVersion: list.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	server.leases.at("lease-x", time.Unix(1.7e9+1, 0))
	server.leases.at("lease-w", time.Unix(1.7e9+2, 0))
	if _, err := leases.List(t.Context(), metav1.ListOptions{}); err != nil { // so that nobody has to wait for the next period
		t.Error(err)
	}
	select {
	case e := <-w.ResultChan():
		if l, ok := e.Object.(*coordinationv1.Lease); e.Type != watch.Modified || !ok || l.Name != "lease-w" || l.Spec.RenewTime.Unix() != 1.7e9+2 {
			t.Errorf("%s %+v", e.Type, e.Object)
		}
	case <-time.After(3 * nodelease.Period):
		t.Error("no event")
	}
	out := server.mustKubectl(t, "", "get", "lease", "-n", "kube-node-lease")
	if !strings.Contains(out, "HOLDER") || !strings.Contains(out, "lease-w") {
		t.Errorf("kubectl says\n%s", out)
	}
}
