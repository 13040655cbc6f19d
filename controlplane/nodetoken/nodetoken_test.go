package nodetoken

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/join/noderecord"
)

const audience = "https://kubernetes.default.svc"

var now = time.Date(2027, 3, 4, 5, 6, 7, 0, time.UTC)

// world is a cluster with one node, one pod, one service account.
type world struct {
	record  noderecord.Record
	key     ed25519.PrivateKey
	pod     *corev1.Pod
	account *corev1.ServiceAccount
	node    *corev1.Node
	claims  enrollment.PodClaims
}

func newWorld(t *testing.T) *world {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &world{
		key:     private,
		record:  noderecord.Record{Node: "pi-1", SigningKey: public},
		node:    &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "pi-1", UID: "node-uid"}},
		account: &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "till", UID: "sa-uid"}},
		pod: &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "till-0", UID: "pod-uid"},
			Spec:       corev1.PodSpec{NodeName: "pi-1", ServiceAccountName: "till"},
		},
		claims: enrollment.PodClaims{
			Issuer: enrollment.NodeIssuerPrefix + "pi-1", Subject: "system:serviceaccount:shop:till", Audience: []string{audience},
			Expiry: now.Add(time.Hour).Unix(), NotBefore: now.Unix(), IssuedAt: now.Unix(), ID: "the-jti",
			Kubernetes: enrollment.KubernetesClaims{
				Namespace: "shop", Node: enrollment.ObjectRef{Name: "pi-1"},
				Pod: enrollment.ObjectRef{Name: "till-0", UID: "pod-uid"}, ServiceAccount: enrollment.ObjectRef{Name: "till"},
			},
		},
	}
}

func (w *world) Admitted(_ context.Context, node string) (noderecord.Record, error) {
	if node != w.record.Node {
		return noderecord.Record{}, enrollment.ErrNodeUnknown
	}
	return w.record, w.record.Standing()
}

func (w *world) GetPod(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	if w.pod == nil || w.pod.Namespace != namespace || w.pod.Name != name {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, name)
	}
	return w.pod, nil
}

func (w *world) GetNode(_ context.Context, name string) (*corev1.Node, error) {
	if w.node == nil || w.node.Name != name {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "nodes"}, name)
	}
	return w.node, nil
}

func (w *world) GetServiceAccount(_ context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	if w.account == nil || w.account.Namespace != namespace || w.account.Name != name {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "serviceaccounts"}, name)
	}
	return w.account, nil
}

func (w *world) authenticate(t *testing.T, ctx context.Context, token string) (*authenticator.Response, bool, error) {
	t.Helper()
	a, err := New(Config{Records: w, Objects: w, Audiences: authenticator.Audiences{audience}, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	return a.AuthenticateToken(ctx, token)
}

func (w *world) sign(t *testing.T) string {
	t.Helper()
	token, err := enrollment.SignPodToken(w.claims, w.key)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestPodIsWhoUpstreamWouldSay(t *testing.T) {
	w := newWorld(t)
	response, ok, err := w.authenticate(t, t.Context(), w.sign(t))
	if err != nil || !ok {
		t.Fatalf("%v, %v", ok, err)
	}
	want := &user.DefaultInfo{
		Name: "system:serviceaccount:shop:till", UID: "sa-uid",
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:shop"},
		Extra: map[string][]string{
			"authentication.kubernetes.io/pod-name":      {"till-0"},
			"authentication.kubernetes.io/pod-uid":       {"pod-uid"},
			"authentication.kubernetes.io/node-name":     {"pi-1"},
			"authentication.kubernetes.io/node-uid":      {"node-uid"},
			"authentication.kubernetes.io/credential-id": {"JTI=the-jti"},
		},
	}
	if !reflect.DeepEqual(response.User, want) {
		t.Errorf("user %+v\nwant %+v", response.User, want)
	}
	w.node = nil // the pods of a deleted Node run on
	if response, _, err = w.authenticate(t, t.Context(), w.sign(t)); err != nil {
		t.Fatal(err)
	}
	if uid, said := response.User.GetExtra()["authentication.kubernetes.io/node-uid"]; said {
		t.Errorf("a Node that isn't there has UID %q", uid)
	}
}

func TestRefusals(t *testing.T) {
	long := metav1.NewTime(now.Add(-2 * time.Minute))
	tests := map[string]struct {
		change func(w *world)
		says   string
	}{
		"other node's pod":     {func(w *world) { w.pod.Spec.NodeName = "pi-2" }, `bound to node "pi-2"`},
		"unbound pod":          {func(w *world) { w.pod.Spec.NodeName = "" }, "bound to node"},
		"pod gone":             {func(w *world) { w.pod = nil }, "invalidated"},
		"pod of the same name": {func(w *world) { w.pod.UID = "another" }, "pod UID"},
		"no pod UID":           {func(w *world) { w.claims.Kubernetes.Pod.UID, w.pod.UID = "", "" }, "pod UID"},
		"pod deleted":          {func(w *world) { w.pod.DeletionTimestamp = &long }, "invalidated"},
		"other service account": {func(w *world) {
			w.claims.Kubernetes.ServiceAccount.Name, w.claims.Subject = "admin", "system:serviceaccount:shop:admin"
		}, `runs as "till"`},
		"subject of another":       {func(w *world) { w.claims.Subject = "system:serviceaccount:kube-system:admin" }, "subject"},
		"subject is a user":        {func(w *world) { w.claims.Subject = "coracle:admin" }, "subject"},
		"service account gone":     {func(w *world) { w.account = nil }, "not found"},
		"service account replaced": {func(w *world) { w.claims.Kubernetes.ServiceAccount.UID = "old" }, "service account UID"},
		"account deleted":          {func(w *world) { w.account.DeletionTimestamp = &long }, "has been deleted"},
		"other audience":           {func(w *world) { w.claims.Audience = []string{"vault"} }, "vault"},
		"no audience":              {func(w *world) { w.claims.Audience = nil }, "for []"},
		"expired":                  {func(w *world) { w.claims.Expiry = now.Add(-2 * time.Minute).Unix() }, "has expired"},
		"no expiry":                {func(w *world) { w.claims.Expiry = 0 }, "has expired"},
		"claims another node":      {func(w *world) { w.claims.Kubernetes.Node.Name = "pi-2" }, `node "pi-2"`},
		"unknown node":             {func(w *world) { w.claims.Issuer = enrollment.NodeIssuerPrefix + "pi-9" }, "no such node"},
		"revoked node":             {func(w *world) { w.record.RevokedAt = now }, "revoked"},
		"other key": {func(w *world) {
			_, w.key, _ = ed25519.GenerateKey(rand.Reader)
		}, `wasn't signed by node "pi-1"`},
		"record without a key": {func(w *world) { w.record.SigningKey = nil }, "wasn't signed"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			test.change(w)
			response, ok, err := w.authenticate(t, t.Context(), w.sign(t))
			if ok || response != nil || err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v, %v, %v; want an error with %q", response, ok, err, test.says)
			}
		})
	}
}

func TestTolerated(t *testing.T) {
	soon := metav1.NewTime(now.Add(30 * time.Second))
	for name, change := range map[string]func(w *world){
		"clock ahead":           func(w *world) { w.claims.IssuedAt, w.claims.NotBefore = now.Unix()+1e6, now.Unix()+1e6 },
		"expired a moment ago":  func(w *world) { w.claims.Expiry = now.Add(-30 * time.Second).Unix() },
		"pod in its grace time": func(w *world) { w.pod.DeletionTimestamp = &soon },
		"default account": func(w *world) {
			w.pod.Spec.ServiceAccountName = ""
			w.account.Name = "default"
			w.claims.Kubernetes.ServiceAccount.Name = "default"
			w.claims.Subject = "system:serviceaccount:shop:default"
		},
		"audiences besides ours": func(w *world) { w.claims.Audience = []string{"vault", audience} },
	} {
		w := newWorld(t)
		change(w)
		if _, ok, err := w.authenticate(t, t.Context(), w.sign(t)); !ok || err != nil {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
}

func TestTokenReviewAudiences(t *testing.T) {
	w := newWorld(t)
	ctx := authenticator.WithAudiences(t.Context(), authenticator.Audiences{"vault"})
	if _, ok, err := w.authenticate(t, ctx, w.sign(t)); ok || err == nil {
		t.Errorf("a review for another audience: %v, %v", ok, err)
	}
}

func TestWhatIsNotOursIsLeftToOthers(t *testing.T) {
	w := newWorld(t)
	w.claims.Issuer = "https://kubernetes.default.svc"
	for _, token := range []string{"", "abc", "a.b.c", w.sign(t), strings.Repeat("x", 10000), "eyJhbGciOiJub25lIn0.e30."} {
		if response, ok, err := w.authenticate(t, t.Context(), token); ok || response != nil || err != nil {
			t.Errorf("%.40q: %v, %v, %v", token, response, ok, err)
		}
	}
}

func FuzzAuthenticate(f *testing.F) {
	w := newWorld(&testing.T{})
	good, _ := enrollment.SignPodToken(w.claims, w.key)
	f.Add(good)
	f.Add("eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJ1cm46Y29yYWNsZTpub2RlOnBpLTEifQ.AAAA")
	f.Fuzz(func(t *testing.T, token string) {
		if _, ok, _ := w.authenticate(t, t.Context(), token); ok && token != good {
			t.Fatalf("accepted %q", token)
		}
	})
}

func TestGuard(t *testing.T) {
	w := newWorld(t)
	_, otherKey, _ := ed25519.GenerateKey(rand.Reader)
	as := func(name string) authenticator.Request {
		return Guard(authenticator.RequestFunc(func(*http.Request) (*authenticator.Response, bool, error) {
			return &authenticator.Response{User: &user.DefaultInfo{Name: name}}, true, nil
		}), w)
	}
	with := func(name string, key ed25519.PrivateKey) *http.Request {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		cert := &x509.Certificate{PublicKey: key.Public(), Subject: pkix.Name{CommonName: name}}
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
		return r
	}
	if _, ok, err := as("system:node:pi-1").AuthenticateRequest(with("system:node:pi-1", w.key)); !ok || err != nil {
		t.Errorf("the node: %v, %v", ok, err)
	}
	if _, ok, err := as("coracle:admin").AuthenticateRequest(with("coracle:admin", otherKey)); !ok || err != nil {
		t.Errorf("the administrator: %v, %v", ok, err)
	}
	if _, ok, err := as("system:node:pi-1").AuthenticateRequest(with("system:node:pi-1", otherKey)); ok || !errors.Is(err, enrollment.ErrNodeKey) {
		t.Errorf("a key it had before: %v, %v", ok, err)
	}
	if _, ok, err := as("system:node:pi-9").AuthenticateRequest(with("system:node:pi-9", w.key)); ok || !errors.Is(err, enrollment.ErrNodeUnknown) {
		t.Errorf("a node without a record: %v, %v", ok, err)
	}
	if _, ok, err := as("system:node:pi-1").AuthenticateRequest(with("front-proxy-client", otherKey)); !ok || err != nil {
		t.Errorf("through a front proxy: %v, %v", ok, err)
	}
	w.record.RevokedAt = now
	if _, ok, err := as("system:node:pi-1").AuthenticateRequest(with("system:node:pi-1", w.key)); ok || !errors.Is(err, enrollment.ErrRevoked) {
		t.Errorf("revoked: %v, %v", ok, err)
	}
}
