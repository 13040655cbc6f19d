package main

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// The RuntimeClass of a cluster that is older than its toleration gets it; what an
// administrator put there stays.
func TestRuntimeClassOfAnOlderCluster(t *testing.T) {
	for name, c := range map[string]struct {
		have *nodev1.Scheduling
		want string
	}{
		"older":           {nil, "coracle.dev/containerd-down"},
		"administrator's": {&nodev1.Scheduling{Tolerations: []corev1.Toleration{{Key: "site"}}}, "site"},
		"none by will":    {&nodev1.Scheduling{}, ""},
	} {
		client := fake.NewClientset(&nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "wasm"}, Handler: "wasm", Scheduling: c.have})
		if err := ensureWasm(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		rc, err := client.NodeV1().RuntimeClasses().Get(t.Context(), "wasm", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, one := range rc.Scheduling.Tolerations {
			got += one.Key
		}
		if got != c.want {
			t.Errorf("%s: tolerates %q, want %q", name, got, c.want)
		}
	}
}

// The StorageClass is the default one, but not beside another, and what an
// administrator made of it stays.
func TestStorageClassOfLocalVolumes(t *testing.T) {
	class := func(name, isDefault string) *storagev1.StorageClass {
		return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": isDefault}}}
	}
	for name, c := range map[string]struct {
		have []*storagev1.StorageClass
		want string
	}{
		"a new cluster":          {nil, "true"},
		"another default":        {[]*storagev1.StorageClass{class("nfs", "true")}, "false"},
		"another":                {[]*storagev1.StorageClass{class("nfs", "false")}, "true"},
		"no default by will":     {[]*storagev1.StorageClass{class("local-path", "false")}, "false"},
		"there, another default": {[]*storagev1.StorageClass{class("local-path", "true"), class("nfs", "true")}, "true"},
	} {
		client := fake.NewClientset()
		for _, s := range c.have {
			if _, err := client.StorageV1().StorageClasses().Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := ensureLocalPath(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		got, err := client.StorageV1().StorageClasses().Get(t.Context(), "local-path", metav1.GetOptions{})
		if err != nil || got.Annotations["storageclass.kubernetes.io/is-default-class"] != c.want {
			t.Errorf("%s: %v %v, want %s", name, got, err, c.want)
		}
	}
}
