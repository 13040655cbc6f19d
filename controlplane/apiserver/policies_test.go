package apiserver_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// constraints is the rules in the form that policies want.
func constraints(rules []admissionregistrationv1.RuleWithOperations, where *metav1.LabelSelector) *admissionregistrationv1.MatchResources {
	m := &admissionregistrationv1.MatchResources{NamespaceSelector: where}
	for _, r := range rules {
		m.ResourceRules = append(m.ResourceRules, admissionregistrationv1.NamedRuleWithOperations{RuleWithOperations: r})
	}
	return m
}

// A policy denies with its own words, by a limit that an object in the cluster holds.
func TestValidatingAdmissionPolicyDenies(t *testing.T) {
	admin := server.admin(t)
	ns := namespace(t, admin)
	if _, err := admin.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "limits"}, Data: map[string]string{"crew": "3"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	api := admin.AdmissionregistrationV1()
	if _, err := api.ValidatingAdmissionPolicies().Create(t.Context(), &admissionregistrationv1.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: ns},
		Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{
			ParamKind:        &admissionregistrationv1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"},
			MatchConstraints: constraints(newConfigMaps(ns)),
			Validations: []admissionregistrationv1.Validation{{
				Expression:        `!has(object.data) || !("crew" in object.data) || int(object.data.crew) <= int(params.data.crew)`,
				MessageExpression: `"a crew of " + object.data.crew + " is more than " + params.data.crew`,
			}},
		},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { api.ValidatingAdmissionPolicies().Delete(context.Background(), ns, metav1.DeleteOptions{}) })
	if _, err := api.ValidatingAdmissionPolicyBindings().Create(t.Context(), &admissionregistrationv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: ns},
		Spec: admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: ns, ValidationActions: []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny},
			ParamRef: &admissionregistrationv1.ParamRef{Name: "limits", Namespace: ns, ParameterNotFoundAction: ptr.To(admissionregistrationv1.DenyAction)},
		},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		api.ValidatingAdmissionPolicyBindings().Delete(context.Background(), ns, metav1.DeleteOptions{})
	})
	eventually(t, "denied by the policy", func() error {
		cm, err := create(t, admin, ns, &corev1.ConfigMap{Data: map[string]string{"crew": "4"}})
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "a crew of 4 is more than 3") {
			return fmt.Errorf("%+v, %v", cm, err)
		}
		return nil
	})
	if _, err := create(t, admin, ns, &corev1.ConfigMap{Data: map[string]string{"crew": "3"}}); err != nil {
		t.Errorf("what the policy lets pass: %v", err)
	}
}

// Built-in kinds are patched by the types of the program, custom ones by the OpenAPI document of their definition, which
// is built when it is asked for.
func TestMutatingAdmissionPolicyMutates(t *testing.T) {
	const group = "mutate.test.coracle.dev"
	admin := server.admin(t)
	ns := namespace(t, admin)
	buoys := custom(t, definition(group, "buoys", "Buoy", []string{"v1"}, []string{"depth"}))
	rules, where := newConfigMaps(ns)
	rules = append(rules, admissionregistrationv1.RuleWithOperations{
		Operations: rules[0].Operations, Rule: admissionregistrationv1.Rule{APIGroups: []string{group}, APIVersions: []string{"v1"}, Resources: []string{"buoys"}},
	})
	api := admin.AdmissionregistrationV1()
	if _, err := api.MutatingAdmissionPolicies().Create(t.Context(), &admissionregistrationv1.MutatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: ns},
		Spec: admissionregistrationv1.MutatingAdmissionPolicySpec{
			MatchConstraints:   constraints(rules, where),
			ReinvocationPolicy: admissionregistrationv1.NeverReinvocationPolicy,
			Mutations: []admissionregistrationv1.Mutation{
				{PatchType: admissionregistrationv1.PatchTypeApplyConfiguration, ApplyConfiguration: &admissionregistrationv1.ApplyConfiguration{
					Expression: `Object{metadata: Object.metadata{labels: {"harbour": object.metadata.namespace}}}`,
				}},
				{PatchType: admissionregistrationv1.PatchTypeJSONPatch, JSONPatch: &admissionregistrationv1.JSONPatch{
					Expression: `[JSONPatch{op: "add", path: "/metadata/annotations", value: {"flag": "none"}}]`,
				}},
			},
		},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { api.MutatingAdmissionPolicies().Delete(context.Background(), ns, metav1.DeleteOptions{}) })
	if _, err := api.MutatingAdmissionPolicyBindings().Create(t.Context(), &admissionregistrationv1.MutatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: ns}, Spec: admissionregistrationv1.MutatingAdmissionPolicyBindingSpec{PolicyName: ns},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		api.MutatingAdmissionPolicyBindings().Delete(context.Background(), ns, metav1.DeleteOptions{})
	})
	mutated := func(m metav1.Object, err error) error {
		if err == nil && (m.GetLabels()["harbour"] != ns || m.GetAnnotations()["flag"] != "none") {
			err = fmt.Errorf("labels %v, annotations %v", m.GetLabels(), m.GetAnnotations())
		}
		return err
	}
	eventually(t, "a ConfigMap gets label and annotation", func() error {
		return mutated(create(t, admin, ns, &corev1.ConfigMap{}))
	})
	n := 0
	eventually(t, "a custom resource gets them too", func() error {
		n++
		return mutated(buoys("v1", ns).Create(t.Context(), object(group, "v1", "Buoy", fmt.Sprint("b", n), "depth", 3), metav1.CreateOptions{}))
	})
}
