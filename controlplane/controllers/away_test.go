package controllers_test

import (
	"fmt"
	"testing"
	"time"

	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// Nobody can say that the pods of a node are gone while it is away; deleting its
// Node says that it doesn't come back. Until then nothing takes the place of a
// StatefulSet's pod, then everything is made anew elsewhere.
func TestNodeThatNeverReturnsIsDeleted(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	labels := map[string]string{"site": ns}
	lost := c.nodes(t, 1, labels)[0]
	on := func(app string) v1.PodTemplateSpec {
		out := template(map[string]string{"app": app}, "runs")
		out.Spec.NodeSelector = labels
		return out
	}
	d := deploymentOf("web", "runs", 1)
	d.Spec.Template = on("web")
	_, err := c.client.AppsV1().Deployments(ns).Create(t.Context(), d, metav1.CreateOptions{})
	must(t, err)
	_, err = c.client.AppsV1().StatefulSets(ns).Create(t.Context(), &apps.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec: apps.StatefulSetSpec{ServiceName: "db", Replicas: ptr.To(int32(2)), PodManagementPolicy: apps.ParallelPodManagement,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}}, Template: on("db")},
	}, metav1.CreateOptions{})
	must(t, err)
	job := &batch.Job{ObjectMeta: metav1.ObjectMeta{Name: "sum"}, Spec: batch.JobSpec{Template: on("sum")}}
	job.Spec.Template.Spec.RestartPolicy = v1.RestartPolicyNever
	_, err = c.client.BatchV1().Jobs(ns).Create(t.Context(), job, metav1.CreateOptions{})
	must(t, err)
	before := map[string]v1.Pod{}
	eventually(t, "all run", func() error {
		pods := c.podsOf(t, ns, "")
		for _, pod := range pods {
			if !podReady(&pod) || pod.Spec.NodeName != lost {
				return fmt.Errorf("pod %s on %q isn't ready", pod.Name, pod.Spec.NodeName)
			}
			before[pod.Name] = pod
		}
		if len(pods) != 4 {
			return fmt.Errorf("%d pods", len(pods))
		}
		return nil
	})
	other := c.nodes(t, 1, labels)[0]
	c.boards.leave(t, lost)
	must(t, c.client.CoreV1().Pods(ns).Delete(t.Context(), "db-0", metav1.DeleteOptions{}))
	always(t, "the name is taken", 2*time.Second, func() error {
		pods := c.podsOf(t, ns, "")
		for _, pod := range pods {
			if before[pod.Name].UID != pod.UID || (pod.DeletionTimestamp != nil) != (pod.Name == "db-0") {
				return fmt.Errorf("pod %s (%s) on %s, being deleted: %v", pod.Name, pod.UID, pod.Spec.NodeName, pod.DeletionTimestamp != nil)
			}
		}
		if len(pods) != 4 {
			return fmt.Errorf("%d pods", len(pods))
		}
		return nil
	})

	must(t, c.client.CoreV1().Nodes().Delete(t.Context(), lost, metav1.DeleteOptions{}))
	eventually(t, "all run elsewhere", func() error {
		pods := c.podsOf(t, ns, "")
		names := map[string]bool{}
		for _, pod := range pods {
			names[pod.Name] = true
			if !podReady(&pod) || pod.Spec.NodeName != other || pod.UID == before[pod.Name].UID {
				return fmt.Errorf("pod %s (%s) on %q, ready: %v", pod.Name, pod.UID, pod.Spec.NodeName, podReady(&pod))
			}
		}
		if len(pods) != 4 || !names["db-0"] || !names["db-1"] {
			return fmt.Errorf("pods %v", names)
		}
		return nil
	})
	eventually(t, "the job counts its lost pod as failed", func() error {
		j, err := c.client.BatchV1().Jobs(ns).Get(t.Context(), "sum", metav1.GetOptions{})
		must(t, err)
		if j.Status.Failed != 1 || j.Status.Active != 1 || j.Status.Succeeded != 0 {
			return fmt.Errorf("status %+v", j.Status)
		}
		return nil
	})
}

// With Services: a pod that ran on while its node was away gets its traffic back
// although the node has nothing to say of it.
func TestEndpointsReturnWithTheNode(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	node := c.nodes(t, 1, nil)[0]
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Labels: map[string]string{"app": "web"}}, Spec: template(nil, "runs").Spec}
	pod.Spec.NodeName = node
	_, err := c.client.CoreV1().Pods(ns).Create(t.Context(), pod, metav1.CreateOptions{})
	must(t, err)
	_, err = c.client.CoreV1().Services(ns).Create(t.Context(), &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       v1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []v1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	must(t, err)
	serves := func(want bool) {
		t.Helper()
		eventually(t, fmt.Sprintf("serving: %v", want), func() error {
			return c.endpoints(t, ns, "web", func(e discovery.Endpoint) error {
				if *e.Conditions.Ready != want {
					return fmt.Errorf("endpoint ready: %v", *e.Conditions.Ready)
				}
				return nil
			}, 1)
		})
	}
	serves(true)
	c.boards.leave(t, node)
	serves(false)
	// It stays silent: only its Node is ready again.
	must(t, c.boards.ready(t.Context(), node, v1.ConditionTrue))
	serves(true)
}
