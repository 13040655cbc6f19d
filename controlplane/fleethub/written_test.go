package fleethub

import (
	"context"
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	k8stesting "k8s.io/client-go/testing"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// idleHub has informers that know only what the test puts into them.
func idleHub(t *testing.T, client *fake.Clientset) (*Hub, informers.SharedInformerFactory) {
	t.Helper()
	factory := informers.NewSharedInformerFactory(client, 0)
	h, err := New(Config{
		Client: client, NodeClient: func(string) (corev1client.CoreV1Interface, error) { return client.CoreV1(), nil },
		Factory: factory, Transport: noTransport{}, Key: make([]byte, 64),
		Keys: func(context.Context, string) (NodeKeys, error) { return NodeKeys{}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return h, factory
}

// NodeRestriction compares with what the API has, before versions are compared: a
// report merged into what an informer knew is refused as if the node took taints
// away. That is no reason to reject the report.
func TestARefusalOfWhatIsOutdatedIsNoVerdict(t *testing.T) {
	old := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", ResourceVersion: "1"}}
	now := old.DeepCopy()
	now.ResourceVersion, now.Spec.Taints = "2", []corev1.Taint{{Key: "x", Effect: corev1.TaintEffectNoSchedule}}
	client := fake.NewClientset(now)
	refusal := apierrors.NewForbidden(corev1.Resource("nodes"), "a", errors.New("not allowed to modify taints"))
	always := false
	client.PrependReactor("update", "nodes", func(a k8stesting.Action) (bool, runtime.Object, error) {
		n := a.(k8stesting.UpdateAction).GetObject().(*corev1.Node)
		if always || len(n.Spec.Taints) == 0 {
			return true, nil, refusal
		}
		return false, nil, nil
	})
	h, factory := idleHub(t, client)
	if err := factory.Core().V1().Nodes().Informer().GetIndexer().Add(old); err != nil {
		t.Fatal(err)
	}
	raw, err := (&corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	stamp := fleet.StampID{Store: "s", Boot: 1, Seq: 1}
	report := &fleet.NodeReport{Stamp: stamp.Proto(), Node: raw}
	if o, err := h.storeNode(t.Context(), newNode("a"), report); err != nil || o != stored {
		t.Errorf("%+v, %v", o, err)
	}
	got, _ := client.CoreV1().Nodes().Get(t.Context(), "a", metav1.GetOptions{})
	if len(got.Spec.Taints) != 1 || len(got.Status.Conditions) != 1 {
		t.Errorf("the node is %+v", got)
	}
	// What is refused of the newest version is refused.
	always = true
	stamp.Seq++
	report.Stamp = stamp.Proto()
	if _, err := h.storeNode(t.Context(), newNode("a"), report); !apierrors.IsForbidden(err) {
		t.Errorf("%v", err)
	}
}

func TestWhatWasWrittenIsKeptUntilTheInformerHasIt(t *testing.T) {
	h, factory := idleHub(t, fake.NewClientset())
	indexer := factory.Core().V1().Pods().Informer().GetIndexer()
	pod := func(version string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u", ResourceVersion: version}, Spec: corev1.PodSpec{NodeName: "a"}}
	}
	informed := func(version string) {
		if err := indexer.Add(pod(version)); err != nil {
			t.Fatal(err)
		}
		podHandler{h}.OnUpdate(nil, pod(version))
	}
	n := h.get("a")
	informed("1")
	h.wrote(n, pod("3"))
	if informed("2"); n.written["u"] == nil {
		t.Error("forgotten before the informer has it")
	}
	if informed("3"); len(n.written) != 0 {
		t.Error("kept though the informer has it")
	}
	if h.wrote(n, pod("3")); len(n.written) != 0 {
		t.Error("kept though the informer was faster")
	}
}

// noTransport is never run.
type noTransport struct{ Transport }
