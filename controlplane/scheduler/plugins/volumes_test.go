package plugins

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/component-helpers/storage/volume"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// shelf is a Volumes plugin over objects put straight into the informers' stores.
type shelf struct {
	*Volumes
	t       testing.TB
	client  *fake.Clientset
	factory informers.SharedInformerFactory
}

func newShelf(t testing.TB, objects ...metav1.Object) *shelf {
	client := fake.NewSimpleClientset()
	s := &shelf{t: t, client: client, factory: informers.NewSharedInformerFactory(client, 0)}
	s.Volumes = NewVolumes(client, s.factory)
	for _, o := range objects {
		s.put(o)
	}
	return s
}

func (s *shelf) put(o metav1.Object) {
	var err error
	switch o := o.(type) {
	case *v1.PersistentVolumeClaim:
		err = s.factory.Core().V1().PersistentVolumeClaims().Informer().GetStore().Add(o)
		_ = s.client.Tracker().Add(o)
	case *v1.PersistentVolume:
		err = s.factory.Core().V1().PersistentVolumes().Informer().GetStore().Add(o)
		_ = s.client.Tracker().Add(o)
	case *storagev1.StorageClass:
		err = s.factory.Storage().V1().StorageClasses().Informer().GetStore().Add(o)
	case *storagev1.CSIDriver:
		err = s.factory.Storage().V1().CSIDrivers().Informer().GetStore().Add(o)
	case *storagev1.CSIStorageCapacity:
		err = s.factory.Storage().V1().CSIStorageCapacities().Informer().GetStore().Add(o)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func class(name, provisioner string, mode storagev1.VolumeBindingMode, zones ...string) *storagev1.StorageClass {
	c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &mode}
	if len(zones) > 0 {
		c.AllowedTopologies = []v1.TopologySelectorTerm{{MatchLabelExpressions: []v1.TopologySelectorLabelRequirement{{Key: zone, Values: zones}}}}
	}
	return c
}

func claim(name, class string, opts ...func(*v1.PersistentVolumeClaim)) *v1.PersistentVolumeClaim {
	c := &v1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("claim-" + name)},
		Spec: v1.PersistentVolumeClaimSpec{StorageClassName: &class, AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
			Resources: v1.VolumeResourceRequirements{Requests: amounts("storage", "1Gi")}},
	}
	for _, o := range opts {
		o(c)
	}
	return c
}

func boundTo(name string) func(*v1.PersistentVolumeClaim) {
	return func(c *v1.PersistentVolumeClaim) {
		c.Spec.VolumeName = name
		metav1.SetMetaDataAnnotation(&c.ObjectMeta, volume.AnnBindCompleted, "yes")
	}
}

func disk(name, class, node string) *v1.PersistentVolume {
	v := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:   v1.PersistentVolumeSpec{StorageClassName: class, Capacity: amounts("storage", "2Gi"), AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce}},
		Status: v1.PersistentVolumeStatus{Phase: v1.VolumeAvailable}}
	if node != "" {
		v.Spec.NodeAffinity = &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{
			MatchExpressions: []v1.NodeSelectorRequirement{{Key: v1.LabelHostname, Operator: v1.NodeSelectorOpIn, Values: []string{node}}}}}}}
	}
	return v
}

func uses(claims ...string) podOption {
	return func(p *v1.Pod) {
		for _, c := range claims {
			p.Spec.Volumes = append(p.Spec.Volumes, v1.Volume{Name: c, VolumeSource: v1.VolumeSource{
				PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: c}}})
		}
	}
}

func TestVolumes(t *testing.T) {
	const first, now = storagev1.VolumeBindingWaitForFirstConsumer, storagev1.VolumeBindingImmediate
	local := class("local", volume.NotSupportedProvisioner, first)
	made := class("made", "example.com/csi", first)
	madeInB := class("made-in-b", "example.com/csi", first, "b")
	const unbound = "pod has unbound immediate PersistentVolumeClaims"
	const none = "node(s) didn't find available persistent volumes to bind"
	rwop := func(c *v1.PersistentVolumeClaim) {
		c.Spec.AccessModes = []v1.PersistentVolumeAccessMode{v1.ReadWriteOncePod}
	}
	const full = "node(s) did not have enough free storage"
	yes := true
	tells := &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "example.com/csi"}, Spec: storagev1.CSIDriverSpec{StorageCapacity: &yes}}
	room := func(class, in, capacity, largest string) *storagev1.CSIStorageCapacity {
		c := &storagev1.CSIStorageCapacity{ObjectMeta: metav1.ObjectMeta{Namespace: "drivers", Name: class + in + capacity}, StorageClassName: class,
			NodeTopology: &metav1.LabelSelector{MatchLabels: map[string]string{zone: in}}}
		sum := amounts("storage", capacity)["storage"]
		c.Capacity = &sum
		if largest != "" {
			n := amounts("storage", largest)["storage"]
			c.MaximumVolumeSize = &n
		}
		return c
	}
	for _, c := range []struct {
		name    string
		objects []metav1.Object
		pod     *v1.Pod
		on      map[string][]*v1.Pod
		a1, b1  string // reasons of the nodes a1 and b1
	}{
		{"room that no driver told of", []metav1.Object{made, tells, claim("data", "made")}, newPod("p", uses("data")), nil, full, full},
		{"room in a zone", []metav1.Object{made, tells, claim("data", "made"), room("made", "a", "1Gi", ""), room("made", "b", "1023Mi", "")}, newPod("p", uses("data")), nil, "", full},
		{"room for smaller ones", []metav1.Object{made, tells, claim("data", "made"), room("made", "a", "9Gi", "512Mi"), room("made", "b", "9Gi", "1Gi")}, newPod("p", uses("data")), nil, full, ""},
		{"room of another class", []metav1.Object{made, tells, claim("data", "made"), room("other", "a", "9Gi", "")}, newPod("p", uses("data")), nil, full, full},
		{"a driver that doesn't tell", []metav1.Object{made, &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "example.com/csi"}}, claim("data", "made")}, newPod("p", uses("data")), nil, "", ""},
		{"no claims", nil, newPod("p"), nil, "", ""},
		{"no such claim", nil, newPod("p", uses("data")), nil, `persistentvolumeclaim "data" not found`, `persistentvolumeclaim "data" not found`},
		{"bound", []metav1.Object{claim("data", "x", boundTo("d")), disk("d", "x", "")}, newPod("p", uses("data")), nil, "", ""},
		{"bound to a node", []metav1.Object{claim("data", "x", boundTo("d")), disk("d", "x", "b1")}, newPod("p", uses("data")), nil, "node(s) didn't match PersistentVolume's node affinity", ""},
		{"bound to nothing", []metav1.Object{claim("data", "x", boundTo("d"))}, newPod("p", uses("data")), nil,
			"node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)", "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"},
		{"unbound, immediate", []metav1.Object{claim("data", "fast"), class("fast", "example.com/csi", now)}, newPod("p", uses("data")), nil, unbound, unbound},
		{"being deleted", []metav1.Object{claim("data", "x", func(c *v1.PersistentVolumeClaim) { now := metav1.Now(); c.DeletionTimestamp = &now })}, newPod("p", uses("data")), nil,
			`persistentvolumeclaim "data" is being deleted`, `persistentvolumeclaim "data" is being deleted`},
		{"local disk", []metav1.Object{local, claim("data", "local"), disk("d", "local", "b1")}, newPod("p", uses("data")), nil, none, ""},
		{"two claims, one disk", []metav1.Object{local, claim("data", "local"), claim("log", "local"), disk("d", "local", "b1")}, newPod("p", uses("data", "log")), nil, none, none},
		{"made on demand", []metav1.Object{made, claim("data", "made")}, newPod("p", uses("data")), nil, "", ""},
		{"made in a zone", []metav1.Object{madeInB, claim("data", "made-in-b")}, newPod("p", uses("data")), nil, none, ""},
		{"being made on a node", []metav1.Object{made, claim("data", "made", func(c *v1.PersistentVolumeClaim) {
			c.Annotations = map[string]string{volume.AnnSelectedNode: "a1"}
		})}, newPod("p", uses("data")), nil, "", none},
		{"one user at a time", []metav1.Object{claim("data", "x", boundTo("d"), rwop), disk("d", "x", "")}, newPod("p", uses("data")),
			map[string][]*v1.Pod{"a2": {newPod("q", uses("data"))}},
			"node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod",
			"node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod"},
		{"ephemeral, not made yet", nil, newPod("p", func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "tmp", VolumeSource: v1.VolumeSource{Ephemeral: &v1.EphemeralVolumeSource{}}}}
		}), nil, `waiting for ephemeral volume controller to create the persistentvolumeclaim "p-tmp"`, `waiting for ephemeral volume controller to create the persistentvolumeclaim "p-tmp"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newShelf(t, c.objects...)
			cluster := zones(c.on)
			for node, want := range map[string]string{"a1": c.a1, "b1": c.b1} {
				if got := reasons(ask(s.Volumes, c.pod, cluster, node)); got != want {
					t.Errorf("%s: %q, want %q", node, got, want)
				}
			}
		})
	}
}

// A disk promised to one pod isn't offered to the next.
func TestVolumesArePromisedOnce(t *testing.T) {
	s := newShelf(t, class("local", volume.NotSupportedProvisioner, storagev1.VolumeBindingWaitForFirstConsumer),
		claim("one", "local"), claim("two", "local"), disk("d", "local", "a1"))
	cluster := zones(nil)
	p, q := newPod("p", uses("one")), newPod("q", uses("two"))
	if status := s.Reserve(t.Context(), framework.NewPod(p), cluster.Get("a1")); status != nil {
		t.Fatal(status)
	}
	if ask(s.Volumes, q, cluster, "a1") == nil {
		t.Error("promised twice")
	}
	if ask(s.Volumes, p, cluster, "a1") != nil {
		t.Error("not offered to the pod it is promised to")
	}
	s.Unreserve(t.Context(), framework.NewPod(p), "a1")
	if ask(s.Volumes, q, cluster, "a1") != nil {
		t.Error("still promised after it was given back")
	}
}

func TestPreBindSelectsTheNodeAndWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := claim("data", "made")
		s := newShelf(t, class("made", "example.com/csi", storagev1.VolumeBindingWaitForFirstConsumer), data)
		pod := framework.NewPod(newPod("p", uses("data")))
		if status := s.Reserve(t.Context(), pod, zones(nil).Get("a1")); status != nil {
			t.Fatal(status)
		}
		if !s.Waits(pod) {
			t.Error("doesn't say that it waits")
		}
		done := make(chan error, 1)
		go func() { done <- s.PreBind(t.Context(), pod, "a1") }()
		time.Sleep(time.Second)
		written, err := s.client.CoreV1().PersistentVolumeClaims("default").Get(context.Background(), "data", metav1.GetOptions{})
		if err != nil || written.Annotations[volume.AnnSelectedNode] != "a1" {
			t.Fatalf("claim %+v, %v", written, err)
		}
		select {
		case err := <-done:
			t.Fatalf("didn't wait: %v", err)
		default:
		}
		s.put(written)
		time.Sleep(time.Second)
		s.put(claim("data", "made", boundTo("new")))
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if s.Waits(pod) {
			t.Error("promise kept after binding")
		}
	})
}

func TestPreBindGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(t, class("made", "example.com/csi", storagev1.VolumeBindingWaitForFirstConsumer), claim("data", "made"))
		pod := framework.NewPod(newPod("p", uses("data")))
		if status := s.Reserve(t.Context(), pod, zones(nil).Get("a1")); status != nil {
			t.Fatal(status)
		}
		done := make(chan error, 1)
		go func() { done <- s.PreBind(t.Context(), pod, "a1") }()
		time.Sleep(time.Second)
		s.put(claim("data", "made", func(c *v1.PersistentVolumeClaim) { c.Annotations = map[string]string{volume.AnnSelectedNode: "a1"} }))
		time.Sleep(time.Second)
		s.put(claim("data", "made")) // the provisioner found no room
		if err := <-done; !errors.Is(err, ErrVolumesTakenBack) {
			t.Errorf("got %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(t, class("made", "example.com/csi", storagev1.VolumeBindingWaitForFirstConsumer), claim("data", "made"))
		pod := framework.NewPod(newPod("p", uses("data")))
		if status := s.Reserve(t.Context(), pod, zones(nil).Get("a1")); status != nil {
			t.Fatal(status)
		}
		start := time.Now()
		if err := s.PreBind(t.Context(), pod, "a1"); err == nil || time.Since(start) != DefaultVolumeWait {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
	})
}

func TestPreBindStaticDisk(t *testing.T) {
	s := newShelf(t, class("local", volume.NotSupportedProvisioner, storagev1.VolumeBindingWaitForFirstConsumer), claim("data", "local"), disk("d", "local", "a1"))
	pod := framework.NewPod(newPod("p", uses("data")))
	if status := s.Reserve(t.Context(), pod, zones(nil).Get("a1")); status != nil {
		t.Fatal(status)
	}
	done := make(chan error, 1)
	go func() { done <- s.PreBind(t.Context(), pod, "a1") }()
	for {
		v, err := s.client.CoreV1().PersistentVolumes().Get(t.Context(), "d", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if ref := v.Spec.ClaimRef; ref != nil {
			if ref.Name != "data" || ref.UID != "claim-data" {
				t.Errorf("claimRef %+v", ref)
			}
			break
		}
		time.Sleep(time.Millisecond)
	}
	s.put(claim("data", "local", boundTo("d")))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
