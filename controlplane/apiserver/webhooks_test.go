package apiserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdclient "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/coracle-edge/coracle/controlplane/pki"
)

// newConfigMaps is what the webhooks and policies of these tests are asked about: ConfigMaps created in one namespace.
func newConfigMaps(ns string) ([]admissionregistrationv1.RuleWithOperations, *metav1.LabelSelector) {
	return []admissionregistrationv1.RuleWithOperations{{
		Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
		Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
	}}, &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": ns}}
}

func create(t *testing.T, c kubernetes.Interface, ns string, cm *corev1.ConfigMap) (*corev1.ConfigMap, error) {
	t.Helper()
	cm.GenerateName = "c-"
	return c.CoreV1().ConfigMaps(ns).Create(t.Context(), cm, metav1.CreateOptions{})
}

// admissionHook answers AdmissionReviews over TLS, at a Service's address that only the cluster's dialer knows.
func admissionHook(t *testing.T, c kubernetes.Interface, ns, name, ip string, answer func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse) admissionregistrationv1.WebhookClientConfig {
	t.Helper()
	address := serveTLS(t, name+"."+ns+".svc", func(w http.ResponseWriter, req *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(req.Body).Decode(&review); err != nil || review.Request == nil {
			t.Errorf("%s: request: %v", name, err)
			return
		}
		review.Response = answer(review.Request)
		review.Response.UID = review.Request.UID
		json.NewEncoder(w).Encode(review)
	})
	fakeService(t, c, ns, name, ip, address)
	return admissionregistrationv1.WebhookClientConfig{
		Service: &admissionregistrationv1.ServiceReference{Namespace: ns, Name: name}, CABundle: server.pki.RootPEM(),
	}
}

// A mutating webhook patches the object, then a validating one is shown what became of it; both over TLS that the
// configuration's CA vouches for, and no other.
func TestWebhooksMutateThenValidate(t *testing.T) {
	admin := server.admin(t)
	ns := namespace(t, admin)
	mutating := admissionHook(t, admin, ns, "mutating", "10.20.0.3", func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{
			Allowed: true, PatchType: ptr.To(admissionv1.PatchTypeJSONPatch),
			Patch: []byte(`[{"op":"add","path":"/data","value":{"harbour":"home"}}]`),
		}
	})
	var seen atomic.Pointer[corev1.ConfigMap]
	validating := admissionHook(t, admin, ns, "validating", "10.20.0.4", func(req *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		cm := &corev1.ConfigMap{}
		if err := json.Unmarshal(req.Object.Raw, cm); err != nil {
			t.Errorf("validating webhook: %v", err)
		}
		seen.Store(cm)
		return &admissionv1.AdmissionResponse{Allowed: true}
	})
	rules, where := newConfigMaps(ns)
	fail, none, in := ptr.To(admissionregistrationv1.Fail), ptr.To(admissionregistrationv1.SideEffectClassNone), []string{"v1"}
	hooks := admin.AdmissionregistrationV1()
	if _, err := hooks.ValidatingWebhookConfigurations().Create(t.Context(), &admissionregistrationv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: ns},
		Webhooks: []admissionregistrationv1.ValidatingWebhook{{Name: "validating.test.coracle.dev", ClientConfig: validating, Rules: rules,
			NamespaceSelector: where, FailurePolicy: fail, SideEffects: none, AdmissionReviewVersions: in}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		hooks.ValidatingWebhookConfigurations().Delete(context.Background(), ns, metav1.DeleteOptions{})
	})
	config, err := hooks.MutatingWebhookConfigurations().Create(t.Context(), &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: ns},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{Name: "mutating.test.coracle.dev", ClientConfig: mutating, Rules: rules,
			NamespaceSelector: where, FailurePolicy: fail, SideEffects: none, AdmissionReviewVersions: in}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		hooks.MutatingWebhookConfigurations().Delete(context.Background(), ns, metav1.DeleteOptions{})
	})
	eventually(t, "stored as the webhook patched it", func() error {
		cm, err := create(t, admin, ns, &corev1.ConfigMap{Data: map[string]string{"harbour": "none"}})
		if err != nil || cm.Data["harbour"] != "home" {
			return fmt.Errorf("%+v, %v", cm, err)
		}
		if s := seen.Load(); s == nil || s.Data["harbour"] != "home" {
			return fmt.Errorf("the validating webhook was shown %+v", s)
		}
		return nil
	})

	stranger, err := pki.Open(pki.Options{Dir: filepath.Join(t.TempDir(), "pki")})
	if err != nil {
		t.Fatal(err)
	}
	config.Webhooks[0].ClientConfig.CABundle = stranger.RootPEM()
	if _, err := hooks.MutatingWebhookConfigurations().Update(t.Context(), config, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "refused while the webhook's certificate is another CA's", func() error {
		cm, err := create(t, admin, ns, &corev1.ConfigMap{})
		if err == nil || !strings.Contains(err.Error(), `failed calling webhook "mutating.test.coracle.dev"`) || !strings.Contains(err.Error(), "certificate signed by unknown authority") {
			return fmt.Errorf("%+v, %v", cm, err)
		}
		return nil
	})
}

// custom is a client of a kind with no Go type, and a definition of it that is gone after the test.
func custom(t *testing.T, crd *apiextensionsv1.CustomResourceDefinition) func(version, ns string) dynamic.ResourceInterface {
	t.Helper()
	crds, err := crdclient.NewForConfig(server.ClientConfig("test", "system:masters"))
	if err != nil {
		t.Fatal(err)
	}
	definitions := crds.ApiextensionsV1().CustomResourceDefinitions()
	if _, err := definitions.Create(t.Context(), crd, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { definitions.Delete(context.Background(), crd.Name, metav1.DeleteOptions{}) })
	eventually(t, crd.Name+" is established", func() error {
		now, err := definitions.Get(t.Context(), crd.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range now.Status.Conditions {
			if c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("conditions %+v", now.Status.Conditions)
	})
	objects, err := dynamic.NewForConfig(server.ClientConfig("test", "system:masters"))
	if err != nil {
		t.Fatal(err)
	}
	return func(version, ns string) dynamic.ResourceInterface {
		return objects.Resource(schema.GroupVersionResource{Group: crd.Spec.Group, Version: version, Resource: crd.Spec.Names.Plural}).Namespace(ns)
	}
}

// definition is a kind whose spec has one integer field per version, the first of which is stored.
func definition(group, plural, kind string, versions, fields []string) *apiextensionsv1.CustomResourceDefinition {
	crd := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: plural + "." + group}, Spec: apiextensionsv1.CustomResourceDefinitionSpec{
		Group: group, Scope: apiextensionsv1.NamespaceScoped,
		Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: plural, Singular: strings.ToLower(kind), Kind: kind, ListKind: kind + "List"},
	}}
	for i, version := range versions {
		crd.Spec.Versions = append(crd.Spec.Versions, apiextensionsv1.CustomResourceDefinitionVersion{
			Name: version, Served: true, Storage: i == 0,
			Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{
				Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{"spec": {
					Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{fields[i]: {Type: "integer"}},
				}},
			}},
		})
	}
	return crd
}

func object(group, version, kind, name, field string, value int64) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": group + "/" + version, "kind": kind, "metadata": map[string]any{"name": name}, "spec": map[string]any{field: value},
	}}
}

func TestConversionWebhook(t *testing.T) {
	const group = "convert.test.coracle.dev"
	admin := server.admin(t)
	ns := namespace(t, admin)
	// v1 has metres, v2 centimetres.
	hook := serveTLS(t, "converter."+ns+".svc", func(w http.ResponseWriter, req *http.Request) {
		var review apiextensionsv1.ConversionReview
		if err := json.NewDecoder(req.Body).Decode(&review); err != nil || review.Request == nil {
			t.Errorf("conversion request: %v", err)
			return
		}
		review.Response = &apiextensionsv1.ConversionResponse{UID: review.Request.UID, Result: metav1.Status{Status: metav1.StatusSuccess}}
		for _, raw := range review.Request.Objects {
			var u unstructured.Unstructured
			if err := json.Unmarshal(raw.Raw, &u.Object); err != nil {
				t.Errorf("conversion: %v", err)
				return
			}
			if u.GetAPIVersion() != review.Request.DesiredAPIVersion {
				if metres, ok, _ := unstructured.NestedFloat64(u.Object, "spec", "metres"); ok {
					u.Object["spec"] = map[string]any{"centimetres": metres * 100}
				} else if centimetres, ok, _ := unstructured.NestedFloat64(u.Object, "spec", "centimetres"); ok {
					u.Object["spec"] = map[string]any{"metres": centimetres / 100}
				}
				u.SetAPIVersion(review.Request.DesiredAPIVersion)
			}
			data, err := json.Marshal(u.Object)
			if err != nil {
				t.Errorf("conversion: %v", err)
			}
			review.Response.ConvertedObjects = append(review.Response.ConvertedObjects, runtime.RawExtension{Raw: data})
		}
		review.Request = nil
		json.NewEncoder(w).Encode(review)
	})
	fakeService(t, admin, ns, "converter", "10.20.0.5", hook)
	crd := definition(group, "soundings", "Sounding", []string{"v1", "v2"}, []string{"metres", "centimetres"})
	crd.Spec.Conversion = &apiextensionsv1.CustomResourceConversion{Strategy: apiextensionsv1.WebhookConverter, Webhook: &apiextensionsv1.WebhookConversion{
		ConversionReviewVersions: []string{"v1"},
		ClientConfig: &apiextensionsv1.WebhookClientConfig{
			Service: &apiextensionsv1.ServiceReference{Namespace: ns, Name: "converter"}, CABundle: server.pki.RootPEM(),
		},
	}}
	soundings := custom(t, crd)
	expect := func(version, name, field string, want int64) {
		t.Helper()
		u, err := soundings(version, ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got, ok, err := unstructured.NestedInt64(u.Object, "spec", field); !ok || err != nil || got != want || u.GetAPIVersion() != group+"/"+version {
			t.Errorf("%s of %s: %v, want %s of %d", version, name, u.Object, field, want)
		}
	}
	eventually(t, "create in the stored version", func() error {
		_, err := soundings("v1", ns).Create(t.Context(), object(group, "v1", "Sounding", "shoal", "metres", 3), metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
	if _, err := soundings("v2", ns).Create(t.Context(), object(group, "v2", "Sounding", "deep", "centimetres", 900), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("v2", "shoal", "centimetres", 300)
	expect("v1", "deep", "metres", 9)
	list, err := soundings("v2", ns).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 2 {
		t.Errorf("list in v2: %v, %v", list, err)
	}
}
