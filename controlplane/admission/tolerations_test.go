package admission

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	api "k8s.io/kubernetes/pkg/apis/core"
)

func admit(t *testing.T, resource, subresource string, object runtime.Object) {
	t.Helper()
	attributes := admission.NewAttributesRecord(object, nil, api.Kind("Pod").WithVersion("v1"), "ns", "name",
		api.Resource(resource).WithVersion("v1"), subresource, admission.Create, &metav1.CreateOptions{}, false, nil)
	if err := NewDefaultUnlimitedTolerations().Admit(t.Context(), attributes, nil); err != nil {
		t.Fatal(err)
	}
}

func TestDefaultIsToStay(t *testing.T) {
	seconds := int64(60)
	notReady, unreachable := "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"
	unlimited := func(key string) api.Toleration {
		return api.Toleration{Key: key, Operator: api.TolerationOpExists, Effect: api.TaintEffectNoExecute}
	}
	limited := api.Toleration{Key: unreachable, Operator: api.TolerationOpExists, Effect: api.TaintEffectNoExecute, TolerationSeconds: &seconds}
	other := api.Toleration{Key: unreachable, Operator: api.TolerationOpExists, Effect: api.TaintEffectNoSchedule}
	everything := api.Toleration{Operator: api.TolerationOpExists}
	for name, c := range map[string]struct{ has, want []api.Toleration }{
		"says nothing":             {nil, []api.Toleration{unlimited(notReady), unlimited(unreachable)}},
		"has a limit of its own":   {[]api.Toleration{limited}, []api.Toleration{limited, unlimited(notReady)}},
		"another effect":           {[]api.Toleration{other}, []api.Toleration{other, unlimited(notReady), unlimited(unreachable)}},
		"tolerates all":            {[]api.Toleration{everything}, []api.Toleration{everything}},
		"was admitted once before": {[]api.Toleration{unlimited(notReady), unlimited(unreachable)}, []api.Toleration{unlimited(notReady), unlimited(unreachable)}},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &api.Pod{Spec: api.PodSpec{Tolerations: c.has}}
			admit(t, "pods", "", pod)
			if len(pod.Spec.Tolerations) != len(c.want) {
				t.Fatalf("tolerations = %+v, want %+v", pod.Spec.Tolerations, c.want)
			}
			for i := range c.want {
				if pod.Spec.Tolerations[i] != c.want[i] {
					t.Errorf("toleration %d = %+v, want %+v", i, pod.Spec.Tolerations[i], c.want[i])
				}
			}
		})
	}
}

func TestOtherResourcesAreLeftAlone(t *testing.T) {
	pod := &api.Pod{}
	admit(t, "pods", "status", pod)
	admit(t, "podtemplates", "", pod)
	if len(pod.Spec.Tolerations) != 0 {
		t.Fatalf("tolerations = %+v", pod.Spec.Tolerations)
	}
}
