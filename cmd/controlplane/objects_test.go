package main

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
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
