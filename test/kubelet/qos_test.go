package kubelet

import (
	"math/rand/v2"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/kubernetes/pkg/apis/core/v1/helper/qos"

	"github.com/coracle-edge/coracle/edgelet/pods"
)

// The class of a pod, which cgroup it lies in, is a kubelet's.
func TestQOSClassIsAKubelets(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	some := func() v1.ResourceRequirements {
		out := v1.ResourceRequirements{}
		for _, to := range []*v1.ResourceList{&out.Requests, &out.Limits} {
			for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage} {
				if r.IntN(5) > 0 {
					if *to == nil {
						*to = v1.ResourceList{}
					}
					(*to)[name] = *resource.NewQuantity(int64(r.IntN(10)/9*1+r.IntN(2)), resource.DecimalSI)
				}
			}
		}
		return out
	}
	seen := map[v1.PodQOSClass]int{}
	for range 20000 {
		p := &v1.Pod{}
		for range 1 + r.IntN(2) {
			p.Spec.Containers = append(p.Spec.Containers, v1.Container{Resources: some()})
		}
		if r.IntN(4) == 0 {
			p.Spec.InitContainers = append(p.Spec.InitContainers, v1.Container{Resources: some()})
		}
		if r.IntN(3) == 0 {
			whole := some()
			p.Spec.Resources = &whole
		}
		want := qos.ComputePodQOS(p)
		if got := pods.QOSClass(p); got != want {
			t.Fatalf("%s, want %s: %+v %+v %+v", got, want, p.Spec.Containers, p.Spec.InitContainers, p.Spec.Resources)
		}
		seen[want]++
	}
	if len(seen) != 3 {
		t.Errorf("only %v were tried", seen)
	}
}
