package apiserver_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	aggregatorv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	aggregatorclient "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"
	"k8s.io/utils/ptr"

	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/controlplane/apiserver"
	"github.com/coracle-edge/coracle/controlplane/datastore"
	"github.com/coracle-edge/coracle/controlplane/pki"
)

// server is the one that all tests but those of restarts share.
var server *running

func TestMain(m *testing.M) {
	code := 1
	klog.SetLogger(logr.Discard())
	klog.OsExit = func(code int) { // a start hook of upstream's that failed, or was interrupted
		fmt.Fprintf(os.Stderr, "klog ends the process: %s\n", debug.Stack())
		os.Exit(code)
	}
	func() {
		dir, err := os.MkdirTemp("", "coracle-apiserver-*")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		defer os.RemoveAll(dir)
		server, err = start(dir, datastore.Config{Dir: filepath.Join(dir, "etcd")})
		if err != nil {
			fmt.Fprintln(os.Stderr, "start the API server:", err)
			return
		}
		defer server.stop()
		code = m.Run()
	}()
	os.Exit(code)
}

// running is a server with its store and keys.
type running struct {
	*apiserver.Server
	dir       string
	pki       *pki.Authority
	url       string
	store     *datastore.Store
	trace     *trace.Recorder
	cluster   *addresses // of pods and Services
	nodes     *addresses
	leases    *heard
	stop      func() error
	kubectlAs string // path of the kubeconfig
}

// addresses says where what a cluster has under an address really is. The server dials while tests add to it.
type addresses struct{ real sync.Map }

func (a *addresses) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if real, ok := a.real.Load(address); ok {
		address = real.(string)
	}
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

func start(dir string, storeConfig datastore.Config) (*running, error) {
	r := &running{dir: dir, trace: trace.NewRecorder(0), cluster: &addresses{}, nodes: &addresses{}, leases: &heard{}}
	ctx, cancel := context.WithCancel(context.Background())
	var err error
	logger := slog.New(slog.NewTextHandler(io.Discard, nil))
	storeConfig.Logger = logger
	if r.store, err = datastore.Open(ctx, storeConfig); err != nil {
		cancel()
		return nil, err
	}
	if r.pki, err = pki.Open(pki.Options{Dir: filepath.Join(dir, "pki")}); err != nil {
		cancel()
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		cancel()
		return nil, err
	}
	r.url = "https://" + listener.Addr().String()
	serving, err1 := r.pki.APIServer()
	kubelet, err2 := r.pki.KubeletClient()
	proxy, err3 := r.pki.FrontProxyClient()
	admin, err4 := r.pki.Admin()
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		cancel()
		return nil, err
	}
	r.kubectlAs = filepath.Join(dir, "kubeconfig")
	if err := r.pki.WriteKubeconfig(r.kubectlAs, r.url, admin); err != nil {
		cancel()
		return nil, err
	}
	r.Server, err = apiserver.New(ctx, apiserver.Config{
		Store:    r.store,
		Listener: listener,
		PKI: apiserver.PKI{
			ServingCertFile: serving.CertFile(), ServingKeyFile: serving.KeyFile(),
			ClientCAFile: r.pki.CAFile(), RequestHeaderCAFile: r.pki.FrontProxyCAFile(),
			ProxyClientCertFile: proxy.CertFile(), ProxyClientKeyFile: proxy.KeyFile(),
			KubeletClientCertFile: kubelet.CertFile(), KubeletClientKeyFile: kubelet.KeyFile(), KubeletCAFile: r.pki.CAFile(),
			ServiceAccountKey: r.pki.ServiceAccountKey(),
		},
		Operations: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			who, _ := apirequest.UserFrom(req.Context())
			fmt.Fprint(w, req.URL.Path, " by ", who.GetName())
		}),
		DialCluster: r.cluster.dial,
		DialNode:    r.nodes.dial,
		NodeLeases:  r.leases,
		Trace:       r.trace,
		Logger:      logger,
	})
	if err != nil {
		cancel()
		return nil, err
	}
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = func() error {
		cancel()
		return errors.Join(<-done, r.store.Close())
	}
	select {
	case <-r.Ready():
		return r, nil
	case err := <-done:
		cancel()
		r.store.Close()
		return nil, err
	case <-time.After(30 * time.Second):
		r.stop()
		return nil, errors.New("not ready after 30s")
	}
}

// client is an in-process client of the server.
func (r *running) client(t *testing.T, user string, groups ...string) *kubernetes.Clientset {
	t.Helper()
	c, err := kubernetes.NewForConfig(r.ClientConfig(user, groups...))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (r *running) admin(t *testing.T) *kubernetes.Clientset {
	return r.client(t, "test", "system:masters")
}

// namespace makes a namespace with a default service account.
func namespace(t *testing.T, c kubernetes.Interface) string {
	t.Helper()
	ns, err := c.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "t-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	if _, err := c.CoreV1().ServiceAccounts(ns.Name).Create(t.Context(), sa, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return ns.Name
}

func pod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
}

// kubectl runs the real one and returns what it printed on both streams.
func (r *running) kubectl(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("needs kubectl in PATH")
	}
	cmd := exec.CommandContext(t.Context(), path, append([]string{"--kubeconfig", r.kubectlAs, "--cache-dir", filepath.Join(r.dir, "cache")}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (r *running) mustKubectl(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := r.kubectl(t, stdin, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// eventually retries f for ten seconds.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

func TestDiscoveryIsUpstreamsDefaultSet(t *testing.T) {
	groups, err := server.admin(t).Discovery().ServerGroups()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, g := range groups.Groups {
		for _, v := range g.Versions {
			got[v.GroupVersion] = true
		}
	}
	want := []string{"v1", "admissionregistration.k8s.io/v1", "apiextensions.k8s.io/v1", "apiregistration.k8s.io/v1", "apps/v1",
		"authentication.k8s.io/v1", "authorization.k8s.io/v1", "autoscaling/v1", "autoscaling/v2", "batch/v1", "certificates.k8s.io/v1",
		"coordination.k8s.io/v1", "discovery.k8s.io/v1", "events.k8s.io/v1", "flowcontrol.apiserver.k8s.io/v1", "networking.k8s.io/v1",
		"node.k8s.io/v1", "policy/v1", "rbac.authorization.k8s.io/v1", "resource.k8s.io/v1", "scheduling.k8s.io/v1", "storage.k8s.io/v1",
		"metrics.k8s.io/v1beta1"} // which is metrics-server's elsewhere
	for _, gv := range want {
		if !got[gv] {
			t.Errorf("%s isn't served", gv)
		}
	}
	if len(got) != len(want) {
		t.Errorf("served: %v", got)
	}
}

func TestWrongManifestHasUpstreamsWords(t *testing.T) {
	ns := namespace(t, server.admin(t))
	manifest := func(spec string) string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":%q},"spec":%s}`, ns, spec)
	}
	for _, c := range []struct{ spec, want string }{
		{`{"containers":[{"name":"c","image":"i","foo":1}]}`, `strict decoding error: unknown field "spec.containers[0].foo"`},
		{`{"containers":[]}`, `The Pod "p" is invalid: spec.containers: Required value`},
		{`{"containers":[{"name":"C_1","image":"i"}]}`, `spec.containers[0].name: Invalid value: "C_1": a lowercase RFC 1123 label must consist of`},
	} {
		out, err := server.kubectl(t, manifest(c.spec), "create", "-f", "-")
		if err == nil || !strings.Contains(out, c.want) {
			t.Errorf("kubectl create: %v\n%s\nwant %q", err, out, c.want)
		}
	}
	_, err := server.admin(t).CoreV1().Pods(ns).Create(t.Context(), pod("UPPER"), metav1.CreateOptions{})
	if s := (apierrors.APIStatus)(nil); !errors.As(err, &s) || s.Status().Code != http.StatusUnprocessableEntity {
		t.Errorf("err = %v, want 422", err)
	}
}

func TestNoAnonymousAccess(t *testing.T) {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: server.pki.RootPool()}}}
	for _, path := range []string{"/api", "/version", "/healthz", "/openapi/v2", apiserver.TracePath} {
		resp, err := client.Get(server.url + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s without credentials: %s", path, resp.Status)
		}
	}
}

// Monitoring, and upstream's own tests, look for these names.
func TestChecksHaveUpstreamsNames(t *testing.T) {
	rest := server.admin(t).Discovery().RESTClient()
	for _, path := range []string{"/healthz", "/livez", "/readyz"} {
		got, err := rest.Get().AbsPath(path).Param("verbose", "1").DoRaw(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for _, check := range []string{
			"ping", "log", "etcd", "poststarthook/start-apiserver-admission-initializer", "poststarthook/rbac/bootstrap-roles",
			"poststarthook/scheduling/bootstrap-system-priority-classes", "poststarthook/apiservice-openapi-controller",
			"poststarthook/bootstrap-controller", "autoregister-completion",
		} {
			if !strings.Contains(string(got), "[+]"+check+" ok") {
				t.Errorf("%s: no %q in\n%s", path, check, got)
			}
		}
	}
}

func TestRBACDenies(t *testing.T) {
	c := server.client(t, "somebody", "some-group")
	_, err := c.CoreV1().Secrets("default").List(t.Context(), metav1.ListOptions{})
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `User "somebody" cannot list resource "secrets"`) {
		t.Fatalf("err = %v", err)
	}
	if _, err := c.Discovery().ServerVersion(); err != nil {
		t.Errorf("discovery is for every authenticated user: %v", err)
	}
}

func TestNodeSeesOnlySecretsOfItsPods(t *testing.T) {
	admin := server.admin(t)
	ns := namespace(t, admin)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}}
	if _, err := admin.CoreV1().Secrets(ns).Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	node := server.client(t, "system:node:board-1", "system:nodes")
	other := server.client(t, "system:node:board-2", "system:nodes")
	if _, err := node.CoreV1().Secrets(ns).Get(t.Context(), "s", metav1.GetOptions{}); !apierrors.IsForbidden(err) {
		t.Fatalf("before the pod: %v", err)
	}
	p := pod("p")
	p.Spec.NodeName = "board-1"
	p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}}}
	if _, err := admin.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "secret for the pod's node", func() error {
		_, err := node.CoreV1().Secrets(ns).Get(t.Context(), "s", metav1.GetOptions{})
		return err
	})
	if _, err := other.CoreV1().Secrets(ns).Get(t.Context(), "s", metav1.GetOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("another node: %v", err)
	}
	// NodeRestriction: a node may not speak for another one.
	_, err := other.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "board-1"}}, metav1.CreateOptions{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("board-2 registers board-1: %v", err)
	}
}

func TestPodToleratesAwayNodesWithoutLimit(t *testing.T) {
	admin := server.admin(t)
	p, err := admin.CoreV1().Pods(namespace(t, admin)).Create(t.Context(), pod("p"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Spec.Tolerations) != 2 || p.Spec.Tolerations[0].TolerationSeconds != nil || p.Spec.Tolerations[1].TolerationSeconds != nil {
		t.Errorf("tolerations = %+v", p.Spec.Tolerations)
	}
}

const crd = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: buoys.test.coracle.dev}
spec:
  group: test.coracle.dev
  names: {plural: buoys, singular: buoy, kind: Buoy}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        description: A buoy marks a fairway.
        properties:
          spec:
            type: object
            properties:
              depth: {type: integer, minimum: 1, description: Depth in metres.}
`

func TestCustomResource(t *testing.T) {
	ns := namespace(t, server.admin(t))
	server.mustKubectl(t, crd, "apply", "-f", "-")
	t.Cleanup(func() { server.kubectl(t, "", "delete", "crd", "buoys.test.coracle.dev", "--wait=false") })
	server.mustKubectl(t, "", "wait", "--for=condition=Established", "crd/buoys.test.coracle.dev", "--timeout=10s")
	buoy := func(depth string) string {
		return fmt.Sprintf(`{"apiVersion":"test.coracle.dev/v1","kind":"Buoy","metadata":{"name":"b","namespace":%q},"spec":{"depth":%s}}`, ns, depth)
	}
	eventually(t, "create a Buoy", func() error {
		if out, err := server.kubectl(t, buoy("3"), "apply", "-f", "-"); err != nil {
			return errors.New(out)
		}
		return nil
	})
	if out, err := server.kubectl(t, buoy("0"), "apply", "-f", "-"); err == nil || !strings.Contains(out, "spec.depth: Invalid value: 0: spec.depth in body should be greater than or equal to 1") {
		t.Errorf("depth 0: %v\n%s", err, out)
	}
	eventually(t, "explain from OpenAPI v3", func() error {
		if out := server.mustKubectl(t, "", "explain", "buoy.spec.depth"); !strings.Contains(out, "Depth in metres.") {
			return errors.New(out)
		}
		return nil
	})
	if doc := server.mustKubectl(t, "", "get", "--raw", "/openapi/v2"); !strings.Contains(doc, "dev.coracle.test.v1.Buoy") || !strings.Contains(doc, "io.k8s.api.core.v1.Pod\"") {
		t.Error("OpenAPI v2 lacks the custom or a built-in kind")
	}
	if doc := server.mustKubectl(t, "", "get", "--raw", "/apis"); !strings.Contains(doc, "test.coracle.dev") {
		t.Error("/apis lacks the group")
	}
}

func TestServerSideApplyConflict(t *testing.T) {
	ns := namespace(t, server.admin(t))
	cm := func(v string) string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c","namespace":%q},"data":{"k":%q}}`, ns, v)
	}
	server.mustKubectl(t, cm("1"), "apply", "--server-side", "--field-manager=first", "-f", "-")
	out, err := server.kubectl(t, cm("2"), "apply", "--server-side", "--field-manager=second", "-f", "-")
	if err == nil || !strings.Contains(out, `conflict with "first": .data.k`) {
		t.Fatalf("%v\n%s", err, out)
	}
	server.mustKubectl(t, cm("2"), "apply", "--server-side", "--field-manager=second", "--force-conflicts", "-f", "-")
}

func TestServiceAccountToken(t *testing.T) {
	admin := server.admin(t)
	ns := namespace(t, admin)
	tr, err := admin.CoreV1().ServiceAccounts(ns).CreateToken(t.Context(), "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := kubernetes.NewForConfig(&rest.Config{Host: server.url, BearerToken: tr.Status.Token, TLSClientConfig: rest.TLSClientConfig{CAData: server.pki.RootPEM()}})
	if err != nil {
		t.Fatal(err)
	}
	review, err := c.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || review.Status.UserInfo.Username != "system:serviceaccount:"+ns+":default" {
		t.Fatalf("who am I: %+v, %v", review, err)
	}
	if err := admin.CoreV1().ServiceAccounts(ns).Delete(t.Context(), "default", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the token dies with its account", func() error {
		_, err := c.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if !apierrors.IsUnauthorized(err) {
			return fmt.Errorf("err = %v", err)
		}
		return nil
	})
}

func TestWatchInProcess(t *testing.T) {
	admin := server.admin(t)
	ns := namespace(t, admin)
	w, err := admin.CoreV1().ConfigMaps(ns).Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for i := range 3 {
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("c", i)}}
		if _, err := admin.CoreV1().ConfigMaps(ns).Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		select {
		case e := <-w.ResultChan():
			if got, ok := e.Object.(*corev1.ConfigMap); e.Type != watch.Added || !ok || got.Name != cm.Name {
				t.Fatalf("event = %+v", e)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("no event")
		}
	}
}

func TestWebhookIsCalledThroughTheClusterDialer(t *testing.T) {
	admin := server.admin(t)
	ns := namespace(t, admin)
	hook := serveTLS(t, "hook."+ns+".svc", func(w http.ResponseWriter, req *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(req.Body).Decode(&review); err != nil {
			t.Error(err)
		}
		review.Response = &admissionv1.AdmissionResponse{
			UID: review.Request.UID, Allowed: false, Result: &metav1.Status{Message: "not in these waters"},
		}
		json.NewEncoder(w).Encode(review)
	})
	fakeService(t, admin, ns, "hook", "10.20.0.1", hook)
	fail := admissionregistrationv1.Fail
	none := admissionregistrationv1.SideEffectClassNone
	cfg := &admissionregistrationv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: ns},
		Webhooks: []admissionregistrationv1.ValidatingWebhook{{
			Name: "hook.test.coracle.dev",
			ClientConfig: admissionregistrationv1.WebhookClientConfig{
				Service: &admissionregistrationv1.ServiceReference{Namespace: ns, Name: "hook"}, CABundle: server.pki.RootPEM(),
			},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
			}},
			NamespaceSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": ns}},
			FailurePolicy:           &fail,
			SideEffects:             &none,
			AdmissionReviewVersions: []string{"v1"},
		}},
	}
	if _, err := admin.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), cfg, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		admin.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(context.Background(), ns, metav1.DeleteOptions{})
	})
	n := 0
	eventually(t, "denied by the webhook", func() error {
		n++
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("c", n)}}
		_, err := admin.CoreV1().ConfigMaps(ns).Create(t.Context(), cm, metav1.CreateOptions{})
		if err == nil || !strings.Contains(err.Error(), "denied the request: not in these waters") {
			return fmt.Errorf("err = %v", err)
		}
		return nil
	})
}

func TestAggregatedAPI(t *testing.T) {
	admin := server.admin(t)
	ns := namespace(t, admin)
	var asked http.Header
	backend := serveTLS(t, "tides."+ns+".svc", func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch req.URL.Path {
		case "/apis/tides.test.coracle.dev/v1":
			io.WriteString(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"tides.test.coracle.dev/v1","resources":[{"name":"tides","singularName":"tide","namespaced":false,"kind":"Tide","verbs":["get","list"]}]}`)
		case "/apis/tides.test.coracle.dev/v1/tides/now":
			asked = req.Header.Clone()
			io.WriteString(w, `{"kind":"Tide","apiVersion":"tides.test.coracle.dev/v1","metadata":{"name":"now"}}`)
		case "/openapi/v2":
			io.WriteString(w, `{"swagger":"2.0","info":{"title":"tides","version":"1"},"paths":{"/apis/tides.test.coracle.dev/v1/tides":{"get":{"operationId":"listTides","responses":{"200":{"description":"ok","schema":{"$ref":"#/definitions/dev.coracle.Tide"}}}}}},"definitions":{"dev.coracle.Tide":{"type":"object","description":"A tide."}}}`)
		default:
			http.NotFound(w, req)
		}
	})
	fakeService(t, admin, ns, "tides", "10.20.0.2", backend)
	agg, err := aggregatorclient.NewForConfig(server.ClientConfig("test", "system:masters"))
	if err != nil {
		t.Fatal(err)
	}
	const name = "v1.tides.test.coracle.dev"
	if _, err := agg.ApiregistrationV1().APIServices().Create(t.Context(), &aggregatorv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: aggregatorv1.APIServiceSpec{
			Service: &aggregatorv1.ServiceReference{Namespace: ns, Name: "tides", Port: ptr.To[int32](443)},
			Group:   "tides.test.coracle.dev", Version: "v1", CABundle: server.pki.RootPEM(),
			GroupPriorityMinimum: 1000, VersionPriority: 10,
		},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		agg.ApiregistrationV1().APIServices().Delete(context.Background(), name, metav1.DeleteOptions{})
	})
	eventually(t, "APIService available and proxied", func() error {
		out, err := server.kubectl(t, "", "get", "--raw", "/apis/tides.test.coracle.dev/v1/tides/now")
		if err != nil || !strings.Contains(out, `"Tide"`) {
			return errors.New(out)
		}
		return nil
	})
	if asked.Get("X-Remote-User") != "coracle:admin" || asked.Get("Authorization") != "" {
		t.Errorf("the backend was told %v", asked)
	}
	eventually(t, "in OpenAPI v2 and v3 and in discovery", func() error {
		doc := server.mustKubectl(t, "", "get", "--raw", "/openapi/v2")
		index := server.mustKubectl(t, "", "get", "--raw", "/openapi/v3")
		resources := server.mustKubectl(t, "", "api-resources", "--api-group=tides.test.coracle.dev")
		if !strings.Contains(doc, "dev.coracle.Tide") || !strings.Contains(index, "apis/tides.test.coracle.dev/v1") || !strings.Contains(resources, "Tide") {
			return fmt.Errorf("v2 %v, v3 %v, discovery %q", strings.Contains(doc, "dev.coracle.Tide"), strings.Contains(index, "tides"), resources)
		}
		return nil
	})
	if doc := server.mustKubectl(t, "", "get", "--raw", "/openapi/v3/apis/tides.test.coracle.dev/v1"); !strings.Contains(doc, "A tide.") {
		t.Errorf("v3 document = %s", doc)
	}
}

func TestLogsGoThroughTheNodeDialer(t *testing.T) {
	admin := server.admin(t)
	ns := namespace(t, admin)
	kubelet := serveTLS(t, "board-9", func(w http.ResponseWriter, req *http.Request) {
		if len(req.TLS.PeerCertificates) == 0 || req.TLS.PeerCertificates[0].Subject.CommonName != "kube-apiserver-kubelet-client" {
			t.Errorf("the node was shown %v", req.TLS.PeerCertificates)
		}
		fmt.Fprintf(w, "log of %s\n", req.URL.Path)
	})
	server.nodes.real.Store("board-9:10250", kubelet)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "board-9"}}
	if _, err := admin.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.CoreV1().Nodes().Delete(context.Background(), "board-9", metav1.DeleteOptions{}) })
	node, err := admin.CoreV1().Nodes().Get(t.Context(), "board-9", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "board-9"}, {Type: corev1.NodeInternalIP, Address: "192.0.2.99"}}
	if _, err := admin.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	p := pod("p")
	p.Spec.NodeName = "board-9"
	if _, err := admin.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	out := server.mustKubectl(t, "", "logs", "-n", ns, "p")
	if want := "log of /containerLogs/" + ns + "/p/c\n"; out != want {
		t.Errorf("kubectl logs = %q, want %q", out, want)
	}
	// The proxy goes the same way, though no name server knows the node.
	for _, path := range []string{"board-9/proxy/metrics", "board-9:10250/proxy/metrics"} {
		raw, err := admin.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + path).DoRaw(t.Context())
		if want := "log of /metrics\n"; err != nil || string(raw) != want {
			t.Errorf("proxy by %s = %q, %v, want %q", path, raw, err, want)
		}
	}
	if _, err := admin.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/board-9:22/proxy/").DoRaw(t.Context()); err == nil {
		t.Error("the proxy reached another port of the node")
	}
}

func TestTraceOfAnApply(t *testing.T) {
	admin := server.admin(t)
	ns := namespace(t, admin)
	manifest := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":%q},"spec":{"containers":[{"name":"c","image":"i"}]}}`, ns)
	for _, how := range [][]string{{"apply"}, {"apply", "--server-side"}} {
		server.mustKubectl(t, manifest, append(how, "-f", "-")...)
		p, err := admin.CoreV1().Pods(ns).Get(t.Context(), "p", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		bind := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: p.UID}, Target: corev1.ObjectReference{Kind: "Node", Name: "board-1"}}
		if err := admin.CoreV1().Pods(ns).Bind(t.Context(), bind, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if p, err = admin.CoreV1().Pods(ns).Get(t.Context(), "p", metav1.GetOptions{}); err != nil {
			t.Fatal(err)
		}
		p.Status.Phase = corev1.PodRunning
		if _, err := admin.CoreV1().Pods(ns).UpdateStatus(t.Context(), p, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		out := server.mustKubectl(t, "", "get", "--raw", apiserver.TracePath+"?pod=p&namespace="+ns)
		var answer apiserver.TraceAnswer
		if err := json.Unmarshal([]byte(out), &answer); err != nil {
			t.Fatal(err)
		}
		want := []trace.Step{trace.Received, trace.Authenticated, trace.Authorized, trace.Admitted, trace.Validated, trace.Stored, trace.Bound, trace.StatusStored}
		if len(answer.Events) != len(want) || answer.UID != string(p.UID) || answer.Node != "board-1" {
			t.Fatalf("%v: trace = %+v", how, answer)
		}
		for i, e := range answer.Events {
			if e.Step != want[i] || (i > 0 && e.Time.Before(answer.Events[i-1].Time)) {
				t.Errorf("%v: step %d = %+v, want %s, later than the one before", how, i, e, want[i])
			}
		}
		if err := admin.CoreV1().Pods(ns).Delete(t.Context(), "p", metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := server.client(t, "somebody").Discovery().RESTClient().Get().AbsPath(apiserver.TracePath).Param("pod", "p").DoRaw(t.Context())
	if !apierrors.IsForbidden(err) {
		t.Errorf("the trace for somebody: %v", err)
	}
}

func TestOpenAPIIsBuiltInBothFormats(t *testing.T) {
	for path, want := range map[string]string{
		"/openapi/v2":               "io.k8s.api.apps.v1.Deployment",
		"/openapi/v3":               "apis/apps/v1?hash=",
		"/openapi/v3/apis/apps/v1":  "io.k8s.api.apps.v1.Deployment",
		"/openapi/v3/apis/batch/v1": "io.k8s.api.batch.v1.CronJob",
	} {
		if doc := server.mustKubectl(t, "", "get", "--raw", path); !strings.Contains(doc, want) {
			t.Errorf("%s lacks %s", path, want)
		}
	}
	raw, err := server.admin(t).Discovery().RESTClient().Get().AbsPath("/openapi/v3/api/v1").
		SetHeader("Accept", "application/com.github.proto-openapi.spec.v3.v1.0+protobuf").DoRaw(t.Context())
	if err != nil || bytes.HasPrefix(raw, []byte("{")) {
		t.Errorf("v3 as protobuf: %v, %.20q", err, raw)
	}
}

func TestKubernetesServiceHasEndpoints(t *testing.T) {
	admin := server.admin(t)
	svc, err := admin.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil || svc.Spec.ClusterIP != "10.43.0.1" {
		t.Fatalf("service = %+v, %v", svc, err)
	}
	eventually(t, "EndpointSlice", func() error {
		slice, err := admin.DiscoveryV1().EndpointSlices("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(slice.Endpoints) != 1 {
			return fmt.Errorf("endpoints = %+v", slice.Endpoints)
		}
		return nil
	})
}

func TestFullDiskIsSaidToTheClient(t *testing.T) {
	// The store's own tests fill a real disk; here its error passes through the API.
	err := &datastore.NoSpaceError{Dir: "/var/lib/coracle/etcd", Free: 1 << 20, Reserve: 16 << 20}
	var status apierrors.APIStatus = err
	if status.Status().Code != http.StatusInsufficientStorage || !strings.Contains(status.Status().Message, "/var/lib/coracle/etcd") {
		t.Fatalf("status = %+v", status.Status())
	}
}

// serveTLS is a server that the cluster's root vouches for under name; it
// returns its address.
func serveTLS(t *testing.T, name string, h http.HandlerFunc) string {
	t.Helper()
	leaf, err := server.pki.Serving("test-"+name, name)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.TLS = &tls.Config{GetCertificate: leaf.GetCertificate, ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// fakeService makes a Service whose one endpoint, ip:443, is really at address.
func fakeService(t *testing.T, c kubernetes.Interface, ns, name, ip, address string) {
	t.Helper()
	server.cluster.real.Store(ip+":443", address)
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "https", Port: 443}}}}
	if _, err := c.CoreV1().Services(ns).Create(t.Context(), svc, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}}},
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("https"), Port: ptr.To[int32](443)}},
	}
	if _, err := c.DiscoveryV1().EndpointSlices(ns).Create(t.Context(), slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}
