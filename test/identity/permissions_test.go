package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
	"github.com/coracle-edge/coracle/controlplane/join/permissions"
	"github.com/coracle-edge/coracle/edgelet/identity"
)

// walker asks the real API server for everything, as nodes.
type walker struct {
	t     *testing.T
	p     *plane
	rules []permissions.Rule
	as    map[string]*http.Client // by node
	pods  map[string]types.UID    // of each node's pod
	nodes map[string]types.UID
	csrs  map[string][]byte
}

// one verb of one resource, as discovery has it.
type verb struct {
	key, base, resource, sub, kind, version string
	namespaced                              bool
	name                                    string
}

func newWalker(t *testing.T, p *plane) *walker {
	t.Helper()
	w := &walker{t: t, p: p, as: map[string]*http.Client{}, pods: map[string]types.UID{}, nodes: map[string]types.UID{}, csrs: map[string][]byte{}}
	var err error
	if w.rules, err = permissions.Table(); err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"pi-1", "pi-2", "pi-3"} {
		w.join(node)
	}
	return w
}

// request is a certificate signing request for a node's name, with some key.
func request(t *testing.T, node string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// join makes a node, and one of everything that can be a node's.
func (w *walker) join(node string) {
	t, c := w.t, w.p.client
	t.Helper()
	line, err := enrollment.ParseLine(w.p.line(node, false))
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.Join(t.Context(), identity.JoinOptions{Options: identity.Options{Dir: t.TempDir()}, Line: line})
	if err != nil {
		t.Fatal(err)
	}
	w.as[node] = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: id.Roots(),
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return id.Certificate(), nil }}}}
	w.csrs[node] = request(t, node)
	name := func(kind string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: kind + "-" + node, Namespace: "default"}
	}
	ctx := t.Context()
	n, err := c.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.nodes[node] = n.UID
	quantity := resource.MustParse("1Mi")
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + node}, Spec: corev1.PersistentVolumeSpec{
		Capacity: corev1.ResourceList{"storage": quantity}, AccessModes: []corev1.PersistentVolumeAccessMode{"ReadWriteOnce"},
		PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/x"}}, ClaimRef: &corev1.ObjectReference{Namespace: "default", Name: "pvc-" + node}}}
	none := ""
	pvc := &corev1.PersistentVolumeClaim{ObjectMeta: name("pvc"), Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &none, VolumeName: pv.Name,
		AccessModes: pv.Spec.AccessModes, Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": quantity}}}}
	pod := &corev1.Pod{ObjectMeta: name("pod"), Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: "sa-" + node, Containers: []corev1.Container{{Name: "c", Image: "i"}},
		Volumes: []corev1.Volume{
			{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "secret-" + node}}},
			{Name: "c", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "map-" + node}}}},
			{Name: "p", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: pvc.Name}}},
		}}}
	errs := []error{}
	add := func(_ any, err error) { errs = append(errs, err) }
	add(c.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: name("sa")}, metav1.CreateOptions{}))
	add(c.CoreV1().Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: name("secret")}, metav1.CreateOptions{}))
	add(c.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: name("map")}, metav1.CreateOptions{}))
	add(c.CoreV1().PersistentVolumes().Create(ctx, pv, metav1.CreateOptions{}))
	add(c.CoreV1().PersistentVolumeClaims("default").Create(ctx, pvc, metav1.CreateOptions{}))
	add(c.CoreV1().Events("default").Create(ctx, &corev1.Event{ObjectMeta: name("event"), InvolvedObject: corev1.ObjectReference{Namespace: "default"}}, metav1.CreateOptions{}))
	add(c.StorageV1().CSINodes().Create(ctx, &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: node}}, metav1.CreateOptions{}))
	add(c.StorageV1().VolumeAttachments().Create(ctx, &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: "va-" + node},
		Spec: storagev1.VolumeAttachmentSpec{Attacher: "a", NodeName: node, Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &pv.Name}}}, metav1.CreateOptions{}))
	made, err := c.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
	for _, err := range append(errs, err) {
		if err != nil {
			t.Fatal(err)
		}
	}
	w.pods[node] = made.UID
}

// verbs are all that the API server has.
func (w *walker) verbs() []verb {
	w.t.Helper()
	_, lists, err := w.p.client.Discovery().ServerGroupsAndResources()
	if err != nil {
		w.t.Fatal(err)
	}
	preferred := map[string]string{} // the first version of a group is the one it prefers
	var out []verb
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, r := range list.APIResources {
			group := gv.Group
			key := r.Name
			if group != "" {
				key += "." + group
			}
			if v, ok := preferred[key]; ok && v != gv.Version {
				continue
			}
			preferred[key] = gv.Version
			base := "/api/" + gv.Version
			if gv.Group != "" {
				base = "/apis/" + gv.Group + "/" + gv.Version
			}
			name, sub, _ := strings.Cut(r.Name, "/")
			version := list.GroupVersion
			if r.Version != "" {
				version = schema.GroupVersion{Group: r.Group, Version: r.Version}.String()
			}
			for _, v := range r.Verbs {
				out = append(out, verb{key: key, base: base, resource: name, sub: sub, kind: r.Kind, version: version, namespaced: r.Namespaced, name: v})
			}
		}
	}
	return out
}

// object is the namespace and name of the one that is node's.
func object(v verb, node string) (namespace, name string) {
	switch v.resource {
	case "nodes", "csinodes":
		return "", node
	case "leases":
		return "kube-node-lease", node
	case "persistentvolumes":
		return "", "pv-" + node
	case "volumeattachments":
		return "", "va-" + node
	}
	prefix := map[string]string{"pods": "pod", "secrets": "secret", "configmaps": "map", "persistentvolumeclaims": "pvc", "serviceaccounts": "sa", "events": "event"}[v.resource]
	if prefix == "" {
		prefix = "any"
	}
	if !v.namespaced {
		return "", prefix + "-" + node
	}
	return "default", prefix + "-" + node
}

// ask does v to what is node's, as client, and returns the status. What is written
// is a dry run.
func (w *walker) ask(client *http.Client, v verb, node string) int {
	w.t.Helper()
	namespace, name := object(v, node)
	path := v.base
	if v.namespaced {
		path += "/namespaces/" + namespace
	}
	path += "/" + v.resource
	single := path + "/" + name
	if v.sub != "" {
		single += "/" + v.sub
		path = single
	}
	query := url.Values{"dryRun": {"All"}}
	method, body, content := "", any(nil), "application/json"
	selector := "metadata.name=" + name
	if v.resource == "pods" {
		selector = "spec.nodeName=" + node
	}
	switch v.name {
	case "get":
		method, path, query = http.MethodGet, single, nil
	case "list":
		method, query = http.MethodGet, url.Values{"fieldSelector": {selector}}
	case "watch":
		method, query = http.MethodGet, url.Values{"fieldSelector": {selector}, "watch": {"true"}, "timeoutSeconds": {"1"}}
	case "create":
		method, body = http.MethodPost, w.body(v, node, namespace, name)
	case "update":
		method, path, body = http.MethodPut, single, w.current(v, single, node, namespace, name)
	case "patch":
		method, path, content = http.MethodPatch, single, "application/merge-patch+json"
		body = map[string]any{"metadata": map[string]any{"annotations": map[string]any{"walk": "1"}}}
		if v.sub == "status" {
			body = map[string]any{"status": map[string]any{}}
		}
	case "delete":
		method, path = http.MethodDelete, single
	case "deletecollection":
		method = http.MethodDelete
		query.Set("fieldSelector", selector)
	default:
		w.t.Fatalf("verb %q of %s", v.name, v.key)
	}
	return w.send(client, method, path, query, body, content)
}

func (w *walker) send(client *http.Client, method, path string, query url.Values, body any, content string) int {
	w.t.Helper()
	var raw []byte
	if body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			w.t.Fatal(err)
		}
	}
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.p.run.API+path+"?"+query.Encode(), bytes.NewReader(raw))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", content)
	resp, err := client.Do(req)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode
}

// current is the object as it is, or one that could be.
func (w *walker) current(v verb, path, node, namespace, name string) any {
	raw, err := w.p.client.CoreV1().RESTClient().Get().AbsPath(strings.TrimSuffix(path, "/status")).DoRaw(w.t.Context())
	if err != nil {
		return w.body(v, node, namespace, name)
	}
	var object map[string]any
	if err := json.Unmarshal(raw, &object); err != nil {
		w.t.Fatal(err)
	}
	return object
}

// body is what is created: valid where a node may do it.
func (w *walker) body(v verb, node, namespace, name string) any {
	meta := map[string]any{"name": name}
	if namespace != "" {
		meta["namespace"] = namespace
	}
	o := map[string]any{"apiVersion": v.version, "kind": v.kind, "metadata": meta}
	switch v.key {
	case "pods":
		meta["name"] = "static-" + node
		meta["annotations"] = map[string]any{corev1.MirrorPodAnnotationKey: "hash"}
		meta["ownerReferences"] = []any{map[string]any{"apiVersion": "v1", "kind": "Node", "name": node, "uid": w.nodes[node], "controller": true}}
		o["spec"] = map[string]any{"nodeName": node, "containers": []any{map[string]any{"name": "c", "image": "i"}}, "automountServiceAccountToken": false}
	case "serviceaccounts/token":
		o["spec"] = map[string]any{"boundObjectRef": map[string]any{"apiVersion": "v1", "kind": "Pod", "name": "pod-" + node, "uid": w.pods[node]}}
	case "events", "events.events.k8s.io":
		meta["name"] = "new-" + node
		o["involvedObject"] = map[string]any{"namespace": "default"}
		o["regarding"] = map[string]any{"namespace": "default"}
	case "leases.coordination.k8s.io":
		o["spec"] = map[string]any{"holderIdentity": node}
	case "csinodes.storage.k8s.io":
		o["spec"] = map[string]any{"drivers": []any{}}
	case "certificatesigningrequests.certificates.k8s.io":
		o["spec"] = map[string]any{"request": w.csrs[node], "signerName": "kubernetes.io/kube-apiserver-client-kubelet", "usages": []string{"digital signature", "client auth"}}
	}
	return o
}

func allowed(code int) bool { return code != http.StatusUnauthorized && code != http.StatusForbidden }

// The table is walked for every verb of every resource that is served, named in it
// or not, as that node, as another one, and as one that was revoked.
func TestTheTableOfPermissionsHoldsAtTheAPI(t *testing.T) {
	p := newPlane(t)
	w := newWalker(t, p)
	p.must("node", "revoke", "pi-3")
	verbs := w.verbs()
	if len(verbs) < 300 {
		t.Fatalf("discovery has %d verbs only", len(verbs))
	}
	named := map[string]bool{}
	asked := 0
	for _, v := range verbs {
		rule, found := permissions.Find(w.rules, permissions.API, v.key, v.name)
		if found {
			named[v.key+"\t"+v.name] = true
		}
		for _, try := range []struct {
			who, whose string
			want       bool
		}{{"pi-1", "pi-1", rule.Own}, {"pi-1", "pi-2", rule.Others}, {"pi-2", "pi-1", rule.Others}} {
			code := w.ask(w.as[try.who], v, try.whose)
			// The Node authorizer learns of new objects from watches.
			for end := time.Now().Add(10 * time.Second); try.want && !allowed(code) && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
				code = w.ask(w.as[try.who], v, try.whose)
			}
			if asked++; allowed(code) != try.want {
				t.Errorf("%s of %s: node %s to what is %s's: status %d, the table says %v", v.name, v.key, try.who, try.whose, code, try.want)
			}
		}
		if asked++; true {
			if code := w.ask(w.as["pi-3"], v, "pi-3"); code != http.StatusUnauthorized {
				t.Errorf("%s of %s: a revoked node gets status %d", v.name, v.key, code)
			}
		}
	}
	for _, r := range w.rules {
		if r.Door != permissions.API {
			continue
		}
		for _, verb := range r.Verbs {
			if strings.HasPrefix(r.What, "/") {
				for who, want := range map[string]bool{"pi-1": r.Own, "pi-2": r.Others} {
					if code := w.send(w.as[who], http.MethodGet, r.What, nil, nil, ""); allowed(code) != want {
						t.Errorf("GET %s: status %d, the table says %v", r.What, code, want)
					}
				}
				if code := w.send(w.as["pi-3"], http.MethodGet, r.What, nil, nil, ""); code != http.StatusUnauthorized {
					t.Errorf("GET %s: a revoked node gets status %d", r.What, code)
				}
			} else if !named[r.What+"\t"+verb] {
				t.Errorf("the table names %s of %s, which isn't served", verb, r.What)
			}
		}
	}
	// A token for an audience that no volume of the pod asks for, and one that no pod bounds.
	for what, spec := range map[string]map[string]any{
		"another audience": {"audiences": []string{"vault"}, "boundObjectRef": map[string]any{"apiVersion": "v1", "kind": "Pod", "name": "pod-pi-1", "uid": w.pods["pi-1"]}},
		"no pod":           {},
		"another's pod":    {"boundObjectRef": map[string]any{"apiVersion": "v1", "kind": "Pod", "name": "pod-pi-2", "uid": w.pods["pi-2"]}},
	} {
		body := map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
		if code := w.send(w.as["pi-1"], http.MethodPost, "/api/v1/namespaces/default/serviceaccounts/sa-pi-1/token", nil, body, "application/json"); allowed(code) {
			t.Errorf("a token for %s: status %d", what, code)
		}
	}
	// And none that outlives everything: ten years are cut to one.
	decade, err := w.p.client.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "sa-pi-1", &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To[int64](10 * 365 * 24 * 3600)}}, metav1.CreateOptions{})
	if err != nil || time.Until(decade.Status.ExpirationTimestamp.Time) > 366*24*time.Hour {
		t.Errorf("a token until %v, %v", decade.Status.ExpirationTimestamp, err)
	}
	// Without the selector there is no list of one's own.
	for _, path := range []string{"/api/v1/pods", "/api/v1/nodes", "/api/v1/namespaces/default/secrets", "/api/v1/secrets", "/api/v1/configmaps"} {
		if code := w.send(w.as["pi-1"], http.MethodGet, path, nil, nil, ""); allowed(code) {
			t.Errorf("list of all %s: status %d", path, code)
		}
	}
	// A pod that is no mirror, and one that would bring a Secret along, aren't a node's to make.
	for what, change := range map[string]func(meta, spec map[string]any){
		"no mirror": func(meta, _ map[string]any) { delete(meta, "annotations") },
		"a Secret": func(_, spec map[string]any) {
			spec["volumes"] = []any{map[string]any{"name": "v", "secret": map[string]any{"secretName": "secret-pi-2"}}}
		},
		"a service account": func(_, spec map[string]any) { spec["serviceAccountName"] = "sa-pi-2" },
		"another node":      func(_, spec map[string]any) { spec["nodeName"] = "pi-2" },
	} {
		body := w.body(verb{key: "pods", version: "v1", kind: "Pod"}, "pi-1", "default", "").(map[string]any)
		change(body["metadata"].(map[string]any), body["spec"].(map[string]any))
		if code := w.send(w.as["pi-1"], http.MethodPost, "/api/v1/namespaces/default/pods", url.Values{"dryRun": {"All"}}, body, "application/json"); allowed(code) {
			t.Errorf("a pod with %s: status %d", what, code)
		}
	}
	t.Logf("%d verbs of resources, %d requests", len(verbs), asked)
}
