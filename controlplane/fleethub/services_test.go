package fleethub

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
)

func service(namespace, name, ip string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: "1", ResourceVersion: "7"},
		Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}}}
}

func TestServicesThatAPodsEnvironmentIsMadeOf(t *testing.T) {
	index := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	for _, s := range []*corev1.Service{service("default", "kubernetes", "10.43.0.1"), service("default", "other", "10.43.0.9"),
		service("ns", "web", "10.43.0.2"), service("ns", "headless", "None"), service("ns", "external", ""), service("else", "db", "10.43.0.3")} {
		if err := index.Add(s); err != nil {
			t.Fatal(err)
		}
	}
	h := &Hub{serviceLister: corelisters.NewServiceLister(index)}
	no := false
	for _, c := range []struct {
		links *bool
		want  []string
	}{{nil, []string{"default/kubernetes", "ns/web"}}, {&no, []string{"default/kubernetes"}}} {
		refs := map[ref]bool{}
		servicesOf(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}, Spec: corev1.PodSpec{EnableServiceLinks: c.links}}, refs)
		var got []string
		for r := range refs {
			for _, s := range h.services(r) {
				got = append(got, s.Namespace+"/"+s.Name)
			}
		}
		if slices.Sort(got); !slices.Equal(got, c.want) {
			t.Errorf("links %v: got %v, want %v", c.links, got, c.want)
		}
	}
}

func TestOnlyWhatANodeMakesOfAServiceIsSentAgain(t *testing.T) {
	e := newEncoder([]byte("key"))
	hash := func(s *corev1.Service) string {
		o, err := e.describe(ref{kindService, s.Namespace, s.Name}, s, s, object{})
		if err != nil {
			t.Fatal(err)
		}
		return string(o.hash[:])
	}
	base := hash(service("ns", "web", "10.43.0.2"))
	same := service("ns", "web", "10.43.0.2")
	same.Labels, same.Spec.Selector = map[string]string{"a": "b"}, map[string]string{"app": "web"}
	if hash(same) != base {
		t.Error("a label of a Service makes every node of its namespace get it again")
	}
	other := service("ns", "web", "10.43.0.2")
	other.Spec.Ports[0].Port = 81
	if hash(other) == base {
		t.Error("another port isn't sent")
	}
}
