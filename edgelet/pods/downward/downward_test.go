package downward

import (
	"errors"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func testPod() *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u",
			Labels: map[string]string{"b": `q"q`, "a/x": "1"}, Annotations: map[string]string{"k": "v"}},
		Spec: v1.PodSpec{NodeName: "board", ServiceAccountName: "sa", Containers: []v1.Container{{Name: "c",
			Resources: v1.ResourceRequirements{
				Requests: v1.ResourceList{"cpu": resource.MustParse("250m")},
				Limits:   v1.ResourceList{"memory": resource.MustParse("64Mi")}}}}},
		Status: v1.PodStatus{HostIP: "10.0.0.1", PodIP: "10.1.0.2", PodIPs: []v1.PodIP{{IP: "10.1.0.2"}, {IP: "fd00::2"}}},
	}
}

func TestField(t *testing.T) {
	for path, want := range map[string]string{
		"metadata.name": "p", "metadata.namespace": "n", "metadata.uid": "u", "spec.nodeName": "board",
		"spec.serviceAccountName": "sa", "status.hostIP": "10.0.0.1", "status.podIP": "10.1.0.2",
		"status.podIPs": "10.1.0.2,fd00::2", "metadata.labels['a/x']": "1", "metadata.annotations['none']": "",
		"metadata.labels": "a/x=\"1\"\nb=\"q\\\"q\"",
	} {
		if got, err := Field(testPod(), path); err != nil || got != want {
			t.Errorf("%s = %q, %v; want %q", path, got, err, want)
		}
	}
	for _, path := range []string{"", "spec.containers", "spec['x']", "metadata.labels["} {
		if _, err := Field(testPod(), path); !errors.Is(err, ErrField) {
			t.Errorf("%q: %v", path, err)
		}
	}
}

func TestResource(t *testing.T) {
	allocatable := v1.ResourceList{"cpu": resource.MustParse("4"), "memory": resource.MustParse("1Gi")}
	for _, c := range []struct{ resource, divisor, want string }{
		{"requests.cpu", "", "1"}, {"requests.cpu", "1m", "250"}, {"limits.memory", "1Mi", "64"},
		{"requests.memory", "", "67108864"}, {"limits.cpu", "", "4"},
	} {
		ref := &v1.ResourceFieldSelector{Resource: c.resource}
		if c.divisor != "" {
			ref.Divisor = resource.MustParse(c.divisor)
		}
		if got, err := Resource(testPod(), "c", ref, allocatable); err != nil || got != c.want {
			t.Errorf("%s/%s = %q, %v; want %q", c.resource, c.divisor, got, err, c.want)
		}
	}
	// The pod's own limit counts where a container has none, of what such limits are for.
	pod := testPod()
	pod.Spec.Resources = &v1.ResourceRequirements{Limits: v1.ResourceList{"cpu": resource.MustParse("2"), "memory": resource.MustParse("128Mi")}}
	for what, want := range map[string]string{"limits.cpu": "2", "limits.memory": "67108864", "requests.cpu": "1"} {
		if got, err := Resource(pod, "c", &v1.ResourceFieldSelector{Resource: what}, allocatable); err != nil || got != want {
			t.Errorf("with the pod's limits: %s = %q, %v; want %q", what, got, err, want)
		}
	}
	if _, err := Resource(testPod(), "x", &v1.ResourceFieldSelector{Resource: "limits.cpu"}, nil); !errors.Is(err, ErrResource) {
		t.Error(err)
	}
}
