package endpointslice

import (
	"fmt"
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/coracle-edge/coracle/controlplane/controllers/fixture"
)

func service(change func(*v1.Service)) *v1.Service {
	s := &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "service"},
		Spec: v1.ServiceSpec{
			Selector: map[string]string{"app": "web"}, ClusterIP: "10.43.0.9", IPFamilies: []v1.IPFamily{v1.IPv4Protocol},
			Ports: []v1.ServicePort{{Port: 80, Protocol: v1.ProtocolTCP}},
		},
	}
	if change != nil {
		change(s)
	}
	return s
}

func pod(name, node, ip string, options ...fixture.PodOption) *v1.Pod {
	return fixture.Pod(name, nil, "", append([]fixture.PodOption{fixture.On(node), fixture.Labelled(map[string]string{"app": "web"}), func(p *v1.Pod) {
		p.Status.PodIP, p.Status.PodIPs = ip, []v1.PodIP{{IP: ip}}
	}}, options...)...)
}

func TestEndpoints(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*v1.Service)
		pods   []*v1.Pod
		want   []string // POD@NODE ready serving
	}{
		{"ready and not", nil, []*v1.Pod{pod("a", "here", "10.1.0.1"), pod("b", "here", "10.1.0.2", fixture.NeverReady)}, []string{"a@here true true", "b@here false false"}},
		{"being deleted", nil, []*v1.Pod{pod("a", "here", "10.1.0.1", fixture.Deleting)}, []string{"a@here false true"}},
		{"ended pods have none", nil, []*v1.Pod{pod("a", "here", "10.1.0.1", fixture.Phase(v1.PodSucceeded))}, nil},
		{"away: stays with its node's name, ready for nobody", nil, []*v1.Pod{pod("a", "here", "10.1.0.1"), pod("b", "gone", "10.1.0.2", fixture.Unheard)}, []string{"a@here true true", "b@gone false false"}},
		{"away: before its pod is marked, too", nil, []*v1.Pod{pod("b", "gone", "10.1.0.2")}, []string{"b@gone false false"}},
		{"away: published all the same if asked for", func(s *v1.Service) { s.Spec.PublishNotReadyAddresses = true }, []*v1.Pod{pod("b", "gone", "10.1.0.2")}, []string{"b@gone true false"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := fixture.New(t, service(c.change), fixture.Node("here", v1.ConditionTrue), fixture.Node("gone", v1.ConditionUnknown))
			for _, p := range c.pods {
				if err := w.Client.Tracker().Add(p); err != nil {
					t.Fatal(err)
				}
			}
			ctl, err := New(w.Client, w.Factory, w.Options())
			if err != nil {
				t.Fatal(err)
			}
			w.Sync()
			if err := ctl.reconcile(t.Context(), "ns/web"); err != nil {
				t.Fatal(err)
			}
			list, err := w.Client.DiscoveryV1().EndpointSlices("ns").List(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, slice := range list.Items {
				if slice.Labels[discovery.LabelServiceName] != "web" || slice.Labels[discovery.LabelManagedBy] != ManagedBy {
					t.Errorf("labels %v", slice.Labels)
				}
				for _, e := range slice.Endpoints {
					got = append(got, fmt.Sprint(e.TargetRef.Name, "@", *e.NodeName, " ", *e.Conditions.Ready, " ", *e.Conditions.Serving))
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("endpoints %v, want %v", got, c.want)
			}
			// The informers' pods are not ours to change.
			for _, p := range c.pods {
				cached, err := ctl.pods.Pods("ns").Get(p.Name)
				if err != nil || cached.Status.Conditions[0].Status != p.Status.Conditions[0].Status {
					t.Errorf("pod %s in the cache was changed: %v", p.Name, err)
				}
			}
		})
	}
}

func TestServicesWithoutSelectorAreLeftAlone(t *testing.T) {
	for name, change := range map[string]func(*v1.Service){
		"no selector":   func(s *v1.Service) { s.Spec.Selector = nil },
		"external name": func(s *v1.Service) { s.Spec.Type = v1.ServiceTypeExternalName },
	} {
		t.Run(name, func(t *testing.T) {
			w := fixture.New(t, service(change), pod("a", "here", "10.1.0.1"), fixture.Node("here", v1.ConditionTrue))
			ctl, err := New(w.Client, w.Factory, w.Options())
			if err != nil {
				t.Fatal(err)
			}
			w.Sync()
			if err := ctl.reconcile(t.Context(), "ns/web"); err != nil {
				t.Fatal(err)
			}
			if got := w.Writes(); len(got) != 0 {
				t.Errorf("writes %v", got)
			}
		})
	}
}

func TestIdlePassWritesNothing(t *testing.T) {
	w := fixture.New(t, service(nil), pod("a", "here", "10.1.0.1"), pod("b", "gone", "10.1.0.2"), fixture.Node("here", v1.ConditionTrue), fixture.Node("gone", v1.ConditionUnknown))
	ctl, err := New(w.Client, w.Factory, w.Options())
	if err != nil {
		t.Fatal(err)
	}
	w.Sync()
	if err := ctl.reconcile(t.Context(), "ns/web"); err != nil {
		t.Fatal(err)
	}
	w.Eventually("the informer shows the slice", func() bool {
		list, err := ctl.slices.EndpointSlices("ns").List(labels.Everything())
		return err == nil && len(list) == 1
	})
	w.Writes()
	if err := ctl.reconcile(t.Context(), "ns/web"); err != nil {
		t.Fatal(err)
	}
	if got := w.Writes(); len(got) != 0 {
		t.Errorf("writes %v", got)
	}
}
