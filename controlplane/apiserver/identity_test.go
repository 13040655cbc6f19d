package apiserver_test

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-edge/coracle/controlplane/apiserver"
)

func TestForgottenObjectsComeBackAsWhatTheyWere(t *testing.T) {
	admin := server.client(t, "someone", "system:masters")
	ns := namespace(t, admin)
	created := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	former := apiserver.WithFormerIdentity(t.Context(), "uid-1", created)
	meta := metav1.ObjectMeta{Name: "back", Namespace: ns, UID: "uid-of-the-body"}
	pod := &corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{NodeName: "board-a", Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	same := func(what string, m metav1.Object, err error) {
		t.Helper()
		if err != nil || m.GetUID() != "uid-1" || !m.GetCreationTimestamp().Time.Equal(created.Time) {
			t.Errorf("%s: UID %q of %v, %v", what, m.GetUID(), m.GetCreationTimestamp(), err)
		}
	}
	p, err := admin.CoreV1().Pods(ns).Create(former, pod, metav1.CreateOptions{})
	same("pod", p, err)
	if p, err = admin.CoreV1().Pods(ns).Get(t.Context(), "back", metav1.GetOptions{}); err != nil || p.Status.QOSClass != corev1.PodQOSBestEffort || p.Spec.ServiceAccountName != "default" {
		t.Errorf("it isn't a whole pod: %+v, %v", p, err)
	}
	same("stored pod", p, err)
	c, err := admin.CoreV1().ConfigMaps(ns).Create(former, &corev1.ConfigMap{ObjectMeta: meta}, metav1.CreateOptions{})
	same("ConfigMap", c, err)
	s, err := admin.CoreV1().Secrets(ns).Create(former, &corev1.Secret{ObjectMeta: meta}, metav1.CreateOptions{})
	same("Secret", s, err)

	// What exists is never replaced, and validation and authorization are the usual.
	if _, err := admin.CoreV1().Pods(ns).Create(former, pod, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("a second one: %v", err)
	}
	bad := pod.DeepCopy()
	bad.Name, bad.Spec.Containers = "bad", nil
	if _, err := admin.CoreV1().Pods(ns).Create(former, bad, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("an invalid one: %v", err)
	}
	nobody := server.client(t, "nobody")
	other := pod.DeepCopy()
	other.Name = "other"
	if _, err := nobody.CoreV1().Pods(ns).Create(former, other, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("by somebody without rights: %v", err)
	}
	// Others get a UID as ever, whatever they ask for.
	if p, err := admin.CoreV1().Pods(ns).Create(t.Context(), other, metav1.CreateOptions{}); err != nil || len(p.UID) != 36 {
		t.Errorf("UID %q, %v", p.UID, err)
	}
	other.Name = "network"
	config, err := clientcmd.BuildConfigFromFlags("", server.kubectlAs)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := kubernetes.NewForConfigOrDie(config).CoreV1().Pods(ns).Create(former, other, metav1.CreateOptions{}); err != nil || p.UID == "uid-1" {
		t.Errorf("over a network: UID %q, %v", p.UID, err)
	}
	node, err := admin.CoreV1().Namespaces().Create(former, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns + "-2"}}, metav1.CreateOptions{})
	if err != nil || node.UID == "uid-1" {
		t.Errorf("a kind that isn't for it: UID %q, %v", node.UID, err)
	}
}

func TestOperationsAreForWhoMayUseThem(t *testing.T) {
	get := func(user string, groups ...string) (string, error) {
		raw, err := server.client(t, user, groups...).CoreV1().RESTClient().Get().AbsPath(apiserver.OperationsPath + "echo").DoRaw(t.Context())
		return string(raw), err
	}
	if got, err := get("someone", "system:masters"); err != nil || got != "/coracle/v1/echo by someone" {
		t.Errorf("%q, %v", got, err)
	}
	for _, groups := range [][]string{nil, {"system:nodes"}, {"system:serviceaccounts"}} {
		if _, err := get("nobody", groups...); !apierrors.IsForbidden(err) {
			t.Errorf("%v: %v", groups, err)
		}
	}
}
