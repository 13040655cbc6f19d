package controllers_test

import (
	"context"
	"fmt"
	"testing"

	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	v1 "k8s.io/api/core/v1"
	policy "k8s.io/api/policy/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdclient "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/dynamic"
	"k8s.io/utils/ptr"
)

func toUnstructured(obj runtime.Object, kind string) (runtime.Unstructured, error) {
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		return nil, err
	}
	u := &unstructured.Unstructured{Object: m}
	u.SetAPIVersion("apps/v1")
	u.SetKind(kind)
	return u, nil
}

func TestDeletedOwnersAreFollowed(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	c.nodes(t, 1, nil)
	_, err := c.client.AppsV1().Deployments(ns).Create(t.Context(), deploymentOf("web", "one", 2), metav1.CreateOptions{})
	must(t, err)
	eventually(t, "rollout", func() error { return c.rolledOut(t, ns, "web") })
	must(t, c.client.AppsV1().Deployments(ns).Delete(t.Context(), "web", metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationForeground)}))
	eventually(t, "ReplicaSets and pods follow their Deployment", func() error {
		sets, err := c.client.AppsV1().ReplicaSets(ns).List(t.Context(), metav1.ListOptions{})
		must(t, err)
		if _, err := c.client.AppsV1().Deployments(ns).Get(t.Context(), "web", metav1.GetOptions{}); !apierrors.IsNotFound(err) || len(sets.Items)+len(c.podsOf(t, ns, "")) > 0 {
			return fmt.Errorf("deployment: %v, %d ReplicaSets, %d pods", err, len(sets.Items), len(c.podsOf(t, ns, "")))
		}
		return nil
	})
}

func TestObjectsOfNewKindsAreCollected(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	crds, err := crdclient.NewForConfig(c.ClientConfig("test", "system:masters"))
	must(t, err)
	group := ns + ".example.com"
	crd := &apiextensions.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "boats." + group}, Spec: apiextensions.CustomResourceDefinitionSpec{
		Group: group, Scope: apiextensions.NamespaceScoped, Names: apiextensions.CustomResourceDefinitionNames{Plural: "boats", Singular: "boat", Kind: "Boat", ListKind: "BoatList"},
		Versions: []apiextensions.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true, Schema: &apiextensions.CustomResourceValidation{
			OpenAPIV3Schema: &apiextensions.JSONSchemaProps{Type: "object", XPreserveUnknownFields: ptr.To(true)},
		}}},
	}}
	_, err = crds.ApiextensionsV1().CustomResourceDefinitions().Create(t.Context(), crd, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() {
		_ = crds.ApiextensionsV1().CustomResourceDefinitions().Delete(context.Background(), crd.Name, metav1.DeleteOptions{})
	})
	config := c.ClientConfig("test", "system:masters")
	config.ContentType, config.AcceptContentTypes = "application/json", "application/json"
	objects, err := dynamic.NewForConfig(config)
	must(t, err)
	boats := objects.Resource(schema.GroupVersionResource{Group: group, Version: "v1", Resource: "boats"}).Namespace(ns)
	boat := func(name string, owners ...metav1.OwnerReference) *unstructured.Unstructured {
		u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": group + "/v1", "kind": "Boat"}}
		u.SetName(name)
		u.SetOwnerReferences(owners)
		return u
	}
	var owner *unstructured.Unstructured
	eventually(t, "new kind", func() error {
		owner, err = boats.Create(t.Context(), boat("owner"), metav1.CreateOptions{})
		return err
	})
	_, err = boats.Create(t.Context(), boat("dependent", metav1.OwnerReference{APIVersion: group + "/v1", Kind: "Boat", Name: "owner", UID: owner.GetUID()}), metav1.CreateOptions{})
	must(t, err)
	must(t, boats.Delete(t.Context(), "owner", metav1.DeleteOptions{}))
	eventually(t, "dependent follows", func() error {
		if _, err := boats.Get(t.Context(), "dependent", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("dependent: %v", err)
		}
		return nil
	})
}

func TestDeletedNamespaceTakesEverythingWithIt(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	c.nodes(t, 1, nil)
	_, err := c.client.AppsV1().Deployments(ns).Create(t.Context(), deploymentOf("web", "one", 2), metav1.CreateOptions{})
	must(t, err)
	_, err = c.client.CoreV1().ConfigMaps(ns).Create(t.Context(), &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}}, metav1.CreateOptions{})
	must(t, err)
	eventually(t, "rollout", func() error { return c.rolledOut(t, ns, "web") })
	must(t, c.client.CoreV1().Namespaces().Delete(t.Context(), ns, metav1.DeleteOptions{}))
	eventually(t, "namespace gone", func() error {
		if _, err := c.client.CoreV1().Namespaces().Get(t.Context(), ns, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("namespace: %v", err)
		}
		return nil
	})
}

func TestNamespacesGetRootCAAndTokens(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	eventually(t, "kube-root-ca.crt", func() error {
		cm, err := c.client.CoreV1().ConfigMaps(ns).Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
		if err == nil && cm.Data["ca.crt"] == "" {
			err = fmt.Errorf("is empty")
		}
		return err
	})
	must(t, c.client.CoreV1().ConfigMaps(ns).Delete(t.Context(), "kube-root-ca.crt", metav1.DeleteOptions{}))
	eventually(t, "kube-root-ca.crt is made again", func() error {
		_, err := c.client.CoreV1().ConfigMaps(ns).Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
		return err
	})
	_, err := c.client.CoreV1().Secrets(ns).Create(t.Context(), &v1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "token", Annotations: map[string]string{v1.ServiceAccountNameKey: "default"}}, Type: v1.SecretTypeServiceAccountToken,
	}, metav1.CreateOptions{})
	must(t, err)
	eventually(t, "token Secret", func() error {
		s, err := c.client.CoreV1().Secrets(ns).Get(t.Context(), "token", metav1.GetOptions{})
		if err == nil && len(s.Data[v1.ServiceAccountTokenKey]) == 0 {
			err = fmt.Errorf("has no token")
		}
		return err
	})
}

func TestQuotaCountsAndReplenishes(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	c.nodes(t, 1, nil)
	_, err := c.client.CoreV1().ResourceQuotas(ns).Create(t.Context(), &v1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "q"}, Spec: v1.ResourceQuotaSpec{Hard: v1.ResourceList{v1.ResourcePods: resource.MustParse("2")}},
	}, metav1.CreateOptions{})
	must(t, err)
	used := func(want string) func() error {
		return func() error {
			q, err := c.client.CoreV1().ResourceQuotas(ns).Get(t.Context(), "q", metav1.GetOptions{})
			must(t, err)
			got := q.Status.Used[v1.ResourcePods]
			if len(q.Status.Used) == 0 || got.String() != want {
				return fmt.Errorf("used %v, want %s pods", q.Status.Used, want)
			}
			return nil
		}
	}
	eventually(t, "quota is counted", used("0"))
	_, err = c.client.AppsV1().Deployments(ns).Create(t.Context(), deploymentOf("web", "one", 3), metav1.CreateOptions{})
	must(t, err)
	eventually(t, "quota is full", used("2"))
	eventually(t, "the ReplicaSet says why", func() error {
		sets, err := c.client.AppsV1().ReplicaSets(ns).List(t.Context(), metav1.ListOptions{})
		must(t, err)
		for _, cond := range sets.Items[0].Status.Conditions {
			if cond.Type == apps.ReplicaSetReplicaFailure && cond.Reason == "FailedCreate" {
				return nil
			}
		}
		return fmt.Errorf("conditions %v", sets.Items[0].Status.Conditions)
	})
	_, err = c.client.AppsV1().Deployments(ns).Patch(t.Context(), "web", "application/merge-patch+json", []byte(`{"spec":{"replicas":1}}`), metav1.PatchOptions{})
	must(t, err)
	eventually(t, "quota is free again", used("1"))
}

func TestControllersThatWaitForTheirFirstObject(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	c.nodes(t, 1, nil)
	labels := map[string]string{"app": "db"}
	_, err := c.client.AppsV1().StatefulSets(ns).Create(t.Context(), &apps.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "db"}, Spec: apps.StatefulSetSpec{
		Replicas: ptr.To(int32(2)), Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template(labels, "one"),
	}}, metav1.CreateOptions{})
	must(t, err)
	_, err = c.client.CoreV1().ReplicationControllers(ns).Create(t.Context(), &v1.ReplicationController{ObjectMeta: metav1.ObjectMeta{Name: "old"}, Spec: v1.ReplicationControllerSpec{
		Replicas: ptr.To(int32(1)), Selector: map[string]string{"app": "old"}, Template: ptr.To(template(map[string]string{"app": "old"}, "one")),
	}}, metav1.CreateOptions{})
	must(t, err)
	_, err = c.client.PolicyV1().PodDisruptionBudgets(ns).Create(t.Context(), &policy.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "db"}, Spec: policy.PodDisruptionBudgetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: labels}, MaxUnavailable: ptr.To(intstr.FromInt32(1)),
	}}, metav1.CreateOptions{})
	must(t, err)
	_, err = c.client.AutoscalingV2().HorizontalPodAutoscalers(ns).Create(t.Context(), &autoscaling.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Name: "h"}, Spec: autoscaling.HorizontalPodAutoscalerSpec{
		ScaleTargetRef: autoscaling.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db"}, MaxReplicas: 3,
	}}, metav1.CreateOptions{})
	must(t, err)
	c.volume(t, ns)
	c.claim(t, ns, "data")

	eventually(t, "StatefulSet", func() error {
		s, err := c.client.AppsV1().StatefulSets(ns).Get(t.Context(), "db", metav1.GetOptions{})
		must(t, err)
		if s.Status.ReadyReplicas != 2 {
			return fmt.Errorf("status %+v", s.Status)
		}
		return nil
	})
	eventually(t, "ReplicationController", func() error {
		rc, err := c.client.CoreV1().ReplicationControllers(ns).Get(t.Context(), "old", metav1.GetOptions{})
		must(t, err)
		if rc.Status.ReadyReplicas != 1 {
			return fmt.Errorf("status %+v", rc.Status)
		}
		return nil
	})
	eventually(t, "PodDisruptionBudget", func() error {
		b, err := c.client.PolicyV1().PodDisruptionBudgets(ns).Get(t.Context(), "db", metav1.GetOptions{})
		must(t, err)
		if b.Status.CurrentHealthy != 2 || b.Status.DisruptionsAllowed != 1 {
			return fmt.Errorf("status %+v", b.Status)
		}
		return nil
	})
	eventually(t, "HorizontalPodAutoscaler without metrics", func() error {
		h, err := c.client.AutoscalingV2().HorizontalPodAutoscalers(ns).Get(t.Context(), "h", metav1.GetOptions{})
		must(t, err)
		for _, cond := range h.Status.Conditions {
			if cond.Type == autoscaling.ScalingActive && cond.Status == v1.ConditionFalse {
				return nil
			}
		}
		return fmt.Errorf("conditions %+v", h.Status.Conditions)
	})
}
