package fleethub

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func service(namespace, name, ip string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: "1", ResourceVersion: "7"},
		Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}}}
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
