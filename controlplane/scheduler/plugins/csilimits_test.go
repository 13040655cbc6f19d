package plugins

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

func TestCSILimits(t *testing.T) {
	f := informers.NewSharedInformerFactory(fake.NewClientset(), 0)
	p := NewCSILimits(f)
	put := func(i interface{ Add(any) error }, o any) {
		t.Helper()
		if err := i.Add(o); err != nil {
			t.Fatal(err)
		}
	}
	two := int32(2)
	put(f.Storage().V1().CSINodes().Informer().GetStore(), &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: storagev1.CSINodeSpec{
		Drivers: []storagev1.CSINodeDriver{{Name: "d", Allocatable: &storagev1.VolumeNodeResources{Count: &two}}, {Name: "boundless"}}}})
	put(f.Storage().V1().StorageClasses().Informer().GetStore(), &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "class"}, Provisioner: "d"})
	for claim, driver := range map[string]string{"a": "d", "b": "d", "c": "d", "x": "boundless", "y": "boundless", "z": "boundless"} {
		put(f.Core().V1().PersistentVolumes().Informer().GetStore(), &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + claim},
			Spec: v1.PersistentVolumeSpec{PersistentVolumeSource: v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: claim}}}})
		put(f.Core().V1().PersistentVolumeClaims().Informer().GetStore(), &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: claim},
			Spec: v1.PersistentVolumeClaimSpec{VolumeName: "pv-" + claim}})
	}
	name := "class"
	put(f.Core().V1().PersistentVolumeClaims().Informer().GetStore(), &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "new"},
		Spec: v1.PersistentVolumeClaimSpec{StorageClassName: &name}})
	pod := func(uid string, claims ...string) *v1.Pod {
		p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: uid, UID: types.UID(uid)}}
		for _, c := range claims {
			p.Spec.Volumes = append(p.Spec.Volumes, v1.Volume{Name: c, VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: c}}})
		}
		return p
	}
	for what, c := range map[string]struct {
		have, want []string
		fits       bool
	}{
		"room for one more":       {[]string{"a"}, []string{"b"}, true},
		"one too many":            {[]string{"a", "b"}, []string{"c"}, false},
		"two at once":             {[]string{"a"}, []string{"b", "c"}, false},
		"a volume that is there":  {[]string{"a", "b"}, []string{"b"}, true},
		"to be provisioned":       {[]string{"a", "b"}, []string{"new"}, false},
		"of a driver that is not": {[]string{"a", "b", "x", "y"}, []string{"z"}, true},
		"none":                    {[]string{"a", "b", "c"}, nil, true},
	} {
		node := framework.NewNodeInfo(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
		node.Add(framework.NewPod(pod("there", c.have...)))
		if got := p.Filter(t.Context(), framework.NewPod(pod("new", c.want...)), node); got.OK() != c.fits {
			t.Errorf("%s: %v", what, got)
		}
	}
}
