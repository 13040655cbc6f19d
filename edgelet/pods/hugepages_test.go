package pods

import (
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestHugepageLimits(t *testing.T) {
	node := v1.ResourceList{"cpu": resource.MustParse("1"), "hugepages-2Mi": resource.MustParse("8Mi"), "hugepages-1Gi": resource.MustParse("0"), "hugepages-x": {}}
	pod := testPod("p")
	c := &pod.Spec.Containers[0]
	show := func() (out string) {
		for _, l := range containerResources(pod, c, 1<<30, node).HugepageLimits {
			out += fmt.Sprintf("%s=%d ", l.PageSize, l.Limit)
		}
		return out
	}
	if got := show(); got != "1GB=0 2MB=0 " {
		t.Errorf("who asks for none gets %s", got)
	}
	pod.Spec.Resources = &v1.ResourceRequirements{Limits: v1.ResourceList{"hugepages-2Mi": resource.MustParse("6Mi")}}
	if got := show(); got != "1GB=0 2MB=6291456 " {
		t.Errorf("the pod's limit: %s", got)
	}
	c.Resources.Limits = v1.ResourceList{"hugepages-2Mi": resource.MustParse("4Mi")}
	if got := show(); got != "1GB=0 2MB=4194304 " {
		t.Errorf("the container's limit: %s", got)
	}
	if got := containerResources(pod, c, 1<<30, nil).HugepageLimits; len(got) != 0 {
		t.Errorf("a kernel without huge pages: %v", got)
	}
	for name, want := range map[v1.ResourceName]string{"hugepages-64Ki": "64KB", "hugepages-32Mi": "32MB", "hugepages-16Gi": "16GB"} {
		if got, ok := hugepageSize(name); !ok || got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}
