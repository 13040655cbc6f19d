package restoration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	metadatafake "k8s.io/client-go/metadata/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
)

// hub knows one restore and some nodes.
type hub struct {
	mu        sync.Mutex
	standing  fleethub.Standing
	adopted   []string
	awaited   []string
	repeated  []string
	confirmed bool
}

func (h *hub) Standing() fleethub.Standing {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.standing
	s.Unsettled = slices.DeleteFunc(slices.Clone(s.Unsettled), func(u fleethub.Unsettled) bool { return slices.Contains(h.adopted, u.Node) })
	return s
}

func (h *hub) Confirm(context.Context) error { h.confirmed = true; return nil }

func (h *hub) AdoptNode(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.adopted = append(h.adopted, name)
	return nil
}

func (h *hub) AwaitPods(_ context.Context, _ string, uids []string) error {
	h.awaited = append(h.awaited, uids...)
	return nil
}

func (h *hub) Repeat(_ string, uids []string) { h.repeated = append(h.repeated, uids...) }

// boards answer with what they hold.
type boards map[string][]*fleet.Object

func (b boards) RoundTrip(r *http.Request) (*http.Response, error) {
	objects, ok := b[r.URL.Hostname()]
	if !ok || r.URL.Path != fleet.HeldPath || r.URL.Port() != "10250" {
		return nil, fmt.Errorf("no board at %s", r.URL)
	}
	var body bytes.Buffer
	for _, o := range objects {
		if err := fleet.WriteHeld(&body, o); err != nil {
			return nil, err
		}
	}
	return &http.Response{StatusCode: http.StatusOK, Status: "200 OK", Body: io.NopCloser(&body)}, nil
}

func object(t testing.TB, from runtime.Object) *fleet.Object {
	t.Helper()
	gvk, _, err := scheme.Scheme.ObjectKinds(from)
	if err != nil {
		t.Fatal(err)
	}
	from = from.DeepCopyObject()
	from.GetObjectKind().SetGroupVersionKind(gvk[0])
	var raw bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(from, &raw); err != nil {
		t.Fatal(err)
	}
	m := from.(metav1.Object)
	hash := fleet.HashObject(raw.Bytes())
	return &fleet.Object{Kind: gvk[0].Kind, Namespace: m.GetNamespace(), Name: m.GetName(), Uid: string(m.GetUID()), Hash: hash[:], Raw: raw.Bytes()}
}

func pod(name string, change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name), CreationTimestamp: metav1.Unix(1e9, 0)},
		Spec:       corev1.PodSpec{NodeName: "board-a", ServiceAccountName: "default", Containers: []corev1.Container{{Name: "main", Image: "i:1"}}},
	}
	if change != nil {
		change(p)
	}
	return p
}

func unsettled(node string, change func(*fleethub.Unsettled)) fleethub.Unsettled {
	u := fleethub.Unsettled{Node: node, There: true, Incarnation: "aa"}
	if change != nil {
		change(&u)
	}
	return u
}

// scene is a cluster of before, and one board of after.
type scene struct {
	hub     *hub
	boards  boards
	client  *fake.Clientset
	adopter *adopter
}

func newScene(t *testing.T, held []runtime.Object, cluster ...runtime.Object) *scene {
	t.Helper()
	cluster = append(cluster, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	s := &scene{hub: &hub{}, boards: boards{}, client: fake.NewClientset(cluster...)}
	s.client.PrependReactor("create", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		create := a.(clienttesting.CreateActionImpl) // the fake API knows no dry runs
		return len(create.CreateOptions.DryRun) > 0, create.Object, nil
	})
	for _, o := range held {
		s.boards["board-a"] = append(s.boards["board-a"], object(t, o))
	}
	s.hub.standing = fleethub.Standing{Incarnation: "bb", Restore: &fleethub.Restore{ID: "1"}, Unsettled: []fleethub.Unsettled{unsettled("board-a", nil)}}
	service, err := New(Config{
		Hub:          func() Hub { return s.hub },
		ClientConfig: func(string, ...string) *rest.Config { return &rest.Config{Host: "http://127.0.0.1:1"} },
		Former: func(ctx context.Context, uid types.UID, created metav1.Time) context.Context {
			if uid == "" || created.IsZero() {
				t.Error("created again without its identity")
			}
			return ctx // the fake API keeps a UID anyway
		},
		Nodes: s.boards,
	})
	if err != nil {
		t.Fatal(err)
	}
	var owners []runtime.Object
	for _, o := range cluster {
		switch o := o.(type) {
		case *appsv1.ReplicaSet:
			owners = append(owners, &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "ReplicaSet"}, ObjectMeta: o.ObjectMeta})
		}
	}
	mdScheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(mdScheme); err != nil {
		t.Fatal(err)
	}
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(appsv1.SchemeGroupVersion.WithKind("ReplicaSet"), meta.RESTScopeNamespace)
	mapper.Add(batchv1.SchemeGroupVersion.WithKind("Job"), meta.RESTScopeNamespace)
	s.adopter = &adopter{s: service, hub: s.hub, standing: s.hub.standing, client: s.client,
		objects: metadatafake.NewSimpleMetadataClient(mdScheme, owners...), mapper: mapper}
	return s
}

func (s *scene) adopt(t *testing.T) Result {
	t.Helper()
	s.adopter.standing = s.hub.Standing()
	return s.adopter.node(t.Context(), s.adopter.standing.Unsettled[0])
}

func (s *scene) pod(t *testing.T, name string) *corev1.Pod {
	t.Helper()
	p, err := s.client.CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func owned(kind string, version, uid string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		controller := true
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: version, Kind: kind, Name: "owner", UID: types.UID(uid), Controller: &controller}}
		p.Finalizers = []string{batchv1.JobTrackingFinalizer, "example.org/mine"}
	}
}

func TestAdoptBringsBackWhatWasForgotten(t *testing.T) {
	withRefs := pod("new", func(p *corev1.Pod) {
		p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{
			{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "held"}}},
			{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "known"}}},
			{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "secret"}}},
		}
		p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug"}}}
	})
	data := func(name, value string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("held-" + name), CreationTimestamp: metav1.Unix(1e9, 0)}, Data: map[string]string{"v": value}}
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "secret", UID: "held-secret", CreationTimestamp: metav1.Unix(1e9, 0)}, Data: map[string][]byte{"v": []byte("x")}}
	theirs := data("known", "the cluster's")
	theirs.UID = "cluster-known"
	s := newScene(t, []runtime.Object{withRefs, pod("old", nil), data("held", "the node's"), data("known", "the node's"), data("unused", ""), secret},
		pod("old", nil), theirs)
	r := s.adopt(t)
	if !r.Settled || r.Error != "" || !slices.Equal(s.hub.adopted, []string{"board-a"}) {
		t.Fatalf("%+v", r)
	}
	p := s.pod(t, "new")
	if p == nil || p.UID != "uid-new" || len(p.Spec.EphemeralContainers) != 0 {
		t.Fatalf("%+v", p)
	}
	for _, list := range [][]string{s.hub.awaited, s.hub.repeated} {
		if !slices.Equal(list, []string{"uid-new"}) {
			t.Errorf("the hub was told of %v", list)
		}
	}
	maps, _ := s.client.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{})
	got := map[string]string{}
	for _, m := range maps.Items {
		got[m.Name+" "+string(m.UID)] = m.Data["v"]
	}
	if fmt.Sprint(got) != "map[held held-held:the node's known cluster-known:the cluster's]" {
		t.Errorf("ConfigMaps %v", got)
	}
	if sec, err := s.client.CoreV1().Secrets("default").Get(t.Context(), "secret", metav1.GetOptions{}); err != nil || sec.UID != "held-secret" {
		t.Errorf("%v, %v", sec, err)
	}
	// Again: there is nothing left to do.
	s.hub.adopted = nil
	if r := s.adopt(t); !r.Settled || len(r.Objects) != 0 {
		t.Errorf("the second time: %+v", r)
	}
}

func TestOwnersPermitting(t *testing.T) {
	rs := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "owner", UID: "rs-1"}}
	for what, c := range map[string]struct {
		owner func(*corev1.Pod)
		kept  bool
		note  string
	}{
		"there":         {owned("ReplicaSet", "apps/v1", "rs-1"), true, ""},
		"another one":   {owned("ReplicaSet", "apps/v1", "rs-2"), false, "ReplicaSet/owner"},
		"forgotten":     {owned("Job", "batch/v1", "job-1"), false, "Job/owner"},
		"unknown kinds": {owned("Widget", "example.org/v1", "w-1"), false, "Widget/owner"},
	} {
		s := newScene(t, []runtime.Object{pod("p", c.owner)}, rs)
		r := s.adopt(t)
		p := s.pod(t, "p")
		if !r.Settled || p == nil {
			t.Errorf("%s: %+v", what, r)
			continue
		}
		if kept := len(p.OwnerReferences) == 1; kept != c.kept || p.Annotations[AnnotationFormerOwner] != c.note || !strings.Contains(r.Objects[0].Note, c.note) {
			t.Errorf("%s: owners %v, annotations %v, note %q", what, p.OwnerReferences, p.Annotations, r.Objects[0].Note)
		}
		if job := c.note == "Job/owner"; slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer) == job || !slices.Contains(p.Finalizers, "example.org/mine") {
			t.Errorf("%s: finalizers %v", what, p.Finalizers)
		}
	}
}

func TestNodeIsLeftIfOnePodCannotComeBack(t *testing.T) {
	other := func(p *corev1.Pod) { p.UID = "another" }
	elsewhere := func(p *corev1.Pod) { p.UID, p.Spec.NodeName = "another", "board-b" }
	for what, c := range map[string]struct {
		held    *corev1.Pod
		cluster []runtime.Object
		spoil   func(*scene)
		want    string
	}{
		"its name is taken by one that may run": {pod("p", nil), []runtime.Object{pod("p", elsewhere)}, nil, "on node board-b, which may run it"},
		"its name is taken here":                {pod("p", nil), []runtime.Object{pod("p", other)}, nil, "on node board-a, which may run it"},
		"it is bound to another node":           {pod("p", func(p *corev1.Pod) { p.Spec.NodeName = "board-b" }), nil, nil, `bound to node "board-b"`},
		"admission refuses it": {pod("p", nil), nil, func(s *scene) {
			s.client.PrependReactor("create", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
				return true, nil, errors.New("no priority class")
			})
		}, "no priority class"},
		"admission would change it": {pod("p", nil), nil, func(s *scene) {
			s.client.PrependReactor("create", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
				p := a.(clienttesting.CreateAction).GetObject().(*corev1.Pod).DeepCopy()
				p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "injected", Image: "x"})
				return true, p, nil
			})
		}, "admission would change what it runs"},
		"what it refers to is refused": {pod("p", func(p *corev1.Pod) {
			p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "pull"}}
		}), nil, func(s *scene) {
			s.boards["board-a"] = append(s.boards["board-a"], object(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "pull", UID: "u", CreationTimestamp: metav1.Unix(1, 0)}}))
			s.client.PrependReactor("create", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, errors.New("forbidden") })
		}, "Secret default/pull, which the pod refers to: forbidden"},
	} {
		s := newScene(t, []runtime.Object{c.held, pod("fine", nil)}, c.cluster...)
		if c.spoil != nil {
			c.spoil(s)
		}
		r := s.adopt(t)
		if r.Settled || len(s.hub.adopted) != 0 || !strings.Contains(r.Error, "left as it is") {
			t.Errorf("%s: %+v", what, r)
		}
		i := slices.IndexFunc(r.Objects, func(o Object) bool { return o.Name == "p" })
		if i < 0 || r.Objects[i].Done || !strings.Contains(r.Objects[i].Note, c.want) {
			t.Errorf("%s: %+v", what, r.Objects)
		}
	}
}

func TestOneOfThePastMakesRoomForTheOneThatRuns(t *testing.T) {
	past := pod("web-0", func(p *corev1.Pod) { p.UID = "past" })
	s := newScene(t, []runtime.Object{pod("web-0", nil)}, past)
	s.hub.standing.Unsettled[0].Missing = []fleethub.Running{{UID: "past", Namespace: "default", Name: "web-0"}}
	if r := s.adopt(t); !r.Settled {
		t.Fatalf("%+v", r)
	}
	if p := s.pod(t, "web-0"); p == nil || p.UID != "uid-web-0" {
		t.Errorf("%+v", p)
	}
	// One that was never scheduled runs nowhere.
	s = newScene(t, []runtime.Object{pod("web-0", nil)}, pod("web-0", func(p *corev1.Pod) { p.UID, p.Spec.NodeName = "past", "" }))
	if r := s.adopt(t); !r.Settled || s.pod(t, "web-0").UID != "uid-web-0" {
		t.Errorf("%+v", r)
	}
	// A pod that is being deleted isn't brought back, and replaces nothing.
	now := metav1.Now()
	s = newScene(t, []runtime.Object{pod("web-0", func(p *corev1.Pod) { p.DeletionTimestamp = &now })}, past)
	s.hub.standing.Unsettled[0].Missing = []fleethub.Running{{UID: "past", Namespace: "default", Name: "web-0"}}
	if r := s.adopt(t); !r.Settled || s.pod(t, "web-0").UID != "past" {
		t.Errorf("%+v", r)
	}
}

func TestPodsThatTheNodeHasNotAreNotReady(t *testing.T) {
	ready := pod("past", func(p *corev1.Pod) {
		p.Status = corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{
			{Type: corev1.PodReady, Status: corev1.ConditionTrue}, {Type: corev1.ContainersReady, Status: corev1.ConditionTrue}, {Type: corev1.PodScheduled, Status: corev1.ConditionTrue}}}
	})
	s := newScene(t, []runtime.Object{pod("new", nil)}, ready)
	s.hub.standing.Unsettled[0].Missing = []fleethub.Running{{UID: "uid-past", Namespace: "default", Name: "past"}, {UID: "x", Namespace: "default", Name: "gone"}}
	if r := s.adopt(t); !r.Settled {
		t.Fatalf("%+v", r)
	}
	var got []string
	for _, c := range s.pod(t, "past").Status.Conditions {
		got = append(got, string(c.Type)+"="+string(c.Status))
	}
	if fmt.Sprint(got) != "[Ready=False ContainersReady=False PodScheduled=True]" {
		t.Errorf("%v", got)
	}
}

func TestForgottenNamespaceIsMadeAgain(t *testing.T) {
	s := newScene(t, []runtime.Object{pod("p", func(p *corev1.Pod) { p.Namespace = "later" })})
	s.client.PrependReactor("create", "namespaces", func(a clienttesting.Action) (bool, runtime.Object, error) {
		return false, nil, s.client.Tracker().Add(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "later", Name: "default"}})
	})
	if r := s.adopt(t); !r.Settled {
		t.Fatalf("%+v", r)
	}
	if p, err := s.client.CoreV1().Pods("later").Get(t.Context(), "p", metav1.GetOptions{}); err != nil || p.UID != "uid-p" {
		t.Errorf("%v, %v", p, err)
	}
}

func TestWhatANodeHandsBackIsChecked(t *testing.T) {
	good := object(t, pod("p", nil))
	for what, change := range map[string]func(*fleet.Object){
		"other bytes":    func(o *fleet.Object) { o.Raw = append(slices.Clone(o.Raw), 0) },
		"another UID":    func(o *fleet.Object) { o.Uid = "mine" },
		"another name":   func(o *fleet.Object) { o.Name = "mine" },
		"not an object":  func(o *fleet.Object) { o.Raw = []byte("hello"); h := fleet.HashObject(o.Raw); o.Hash = h[:] },
		"without a hash": func(o *fleet.Object) { o.Hash = nil },
	} {
		s := newScene(t, nil)
		o := &fleet.Object{Kind: good.Kind, Namespace: good.Namespace, Name: good.Name, Uid: good.Uid, Hash: good.Hash, Raw: good.Raw}
		change(o)
		s.boards["board-a"] = []*fleet.Object{o}
		if r := s.adopt(t); r.Settled || len(s.hub.adopted) != 0 || !strings.Contains(r.Error, "malformed") {
			t.Errorf("%s: %+v", what, r)
		}
	}
	s := newScene(t, nil)
	if r := s.adopt(t); r.Settled || !strings.Contains(r.Error, "board-a") {
		t.Errorf("a node that doesn't answer: %+v", r)
	}
}

func FuzzTake(f *testing.F) {
	good := object(f, pod("p", nil))
	f.Add(good.Kind, good.Name, good.Uid, good.Raw)
	f.Fuzz(func(t *testing.T, kind, name, uid string, raw []byte) {
		hash := fleet.HashObject(raw)
		h := &held{references: map[fleethub.Ref]runtime.Object{}}
		err := h.take(&fleet.Object{Kind: kind, Namespace: "default", Name: name, Uid: uid, Hash: hash[:], Raw: raw})
		if err != nil && !errors.Is(err, fleet.ErrMalformed) {
			t.Fatal(err)
		}
		for _, p := range h.pods {
			if string(p.UID) != uid || p.Name != name || p.Namespace != "default" {
				t.Fatalf("%s/%s %s taken as %s %s", p.Namespace, p.Name, p.UID, name, uid)
			}
		}
	})
}

// post asks the service as an operator does.
func (s *scene) post(t *testing.T, path string, request Request) (int, []Result, string) {
	t.Helper()
	body, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(body))
	r = r.WithContext(apirequest.WithUser(r.Context(), &user.DefaultInfo{Name: "operator"}))
	w := httptest.NewRecorder()
	s.adopter.s.Handler().ServeHTTP(w, r)
	var results []Result
	for line := range strings.Lines(w.Body.String()) {
		var one Result
		if json.Unmarshal([]byte(line), &one) == nil {
			results = append(results, one)
		}
	}
	return w.Code, results, w.Body.String()
}

func TestConfirm(t *testing.T) {
	s := newScene(t, nil)
	s.hub.standing.Unsettled = append(s.hub.standing.Unsettled, unsettled("board-b", func(u *fleethub.Unsettled) { u.There = false }), unsettled("board-c", nil))
	// One node alone isn't the cluster's word.
	if code, results, text := s.post(t, ConfirmPath, Request{Nodes: []string{"board-c"}}); code != 200 || len(results) != 1 || !results[0].Settled || s.hub.confirmed {
		t.Errorf("%d %s", code, text)
	}
	if code, _, text := s.post(t, ConfirmPath, Request{Nodes: []string{"nobody"}}); code != http.StatusConflict || !strings.Contains(text, "nobody") {
		t.Errorf("%d %s", code, text)
	}
	code, results, text := s.post(t, ConfirmPath, Request{})
	if code != 200 || len(results) != 2 || !s.hub.confirmed || !slices.Contains(s.hub.adopted, "board-a") || slices.Contains(s.hub.adopted, "board-b") {
		t.Errorf("%d %s", code, text)
	}
	for _, r := range results {
		if r.Settled != (r.Node == "board-a") || r.Node == "board-b" && !strings.Contains(r.Error, "follows when it comes") {
			t.Errorf("%+v", r)
		}
	}
}

func TestEtcdPutBackWithoutAWordIsNotSettled(t *testing.T) {
	s := newScene(t, []runtime.Object{pod("p", nil)})
	s.hub.standing.Unsettled[0].Later = true
	for _, path := range []string{ConfirmPath, AdoptPath} {
		code, _, text := s.post(t, path, Request{})
		if code != http.StatusConflict || !strings.Contains(text, "coracle restore mark") || s.hub.confirmed || len(s.hub.adopted) != 0 {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
}

func TestNoHubIsSaid(t *testing.T) {
	s := newScene(t, nil)
	s.hub.standing = fleethub.Standing{}
	if code, _, text := s.post(t, ConfirmPath, Request{}); code != http.StatusServiceUnavailable || !strings.Contains(text, "hub") {
		t.Errorf("%d %s", code, text)
	}
	s.adopter.s.c.Hub = func() Hub { return nil }
	w := httptest.NewRecorder()
	s.adopter.s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, StatusPath, nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	past := pod("web-0", func(p *corev1.Pod) { p.UID = "past" })
	s := newScene(t, []runtime.Object{pod("web-0", nil), pod("p", func(p *corev1.Pod) { p.Namespace = "later" })}, past)
	s.hub.standing.Unsettled[0].Missing = []fleethub.Running{{UID: "past", Namespace: "default", Name: "web-0"}}
	s.adopter.dryRun = []string{metav1.DryRunAll}
	r := s.adopt(t)
	if r.Settled || r.Error != "" || len(r.Objects) != 2 || !r.Objects[0].Done || !r.Objects[1].Done || len(s.hub.adopted) != 0 {
		t.Errorf("%+v", r)
	}
	if s.pod(t, "web-0").UID != "past" {
		t.Error("a dry run replaced a pod")
	}
	for _, a := range s.client.Actions() {
		if create, ok := a.(clienttesting.CreateActionImpl); ok && len(create.CreateOptions.DryRun) == 0 || a.GetVerb() == "delete" || a.GetVerb() == "update" {
			t.Errorf("a dry run does %s %s", a.GetVerb(), a.GetResource().Resource)
		}
	}
}
