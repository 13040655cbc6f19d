package downward

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Field paths, resources and divisors of an order.
func FuzzPaths(f *testing.F) {
	f.Add("metadata.labels['a']", "limits.cpu", "1m")
	f.Add("metadata.annotations[''']", "requests.", "0")
	f.Add("['']", "limits.memory", "1e-9")
	f.Add("status.podIPs", "limits.hugepages-2Mi", "9223372036854775807E")
	pod := &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c", Resources: v1.ResourceRequirements{
		Limits: v1.ResourceList{"cpu": resource.MustParse("1500m"), "memory": resource.MustParse("8Ei"), "hugepages-2Mi": resource.MustParse("4Mi")}}}}}}
	f.Fuzz(func(t *testing.T, path, name, divisor string) {
		_, _ = Field(pod, path)
		q, err := resource.ParseQuantity(divisor)
		if err != nil {
			return
		}
		_, _ = Resource(pod, "c", &v1.ResourceFieldSelector{Resource: name, Divisor: q}, v1.ResourceList{"memory": resource.MustParse("1Gi")})
	})
}
