package controllers_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
	"k8s.io/kubectl/pkg/polymorphichelpers"
	"k8s.io/utils/ptr"

	deploymentaway "github.com/coracle-edge/coracle/controlplane/controllers/deployment"
)

func deploymentOf(name, image string, replicas int32) *apps.Deployment {
	labels := map[string]string{"app": name}
	return &apps.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: apps.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: template(labels, image),
		},
	}
}

// rolledOut is what kubectl rollout status says.
func (c *cluster) rolledOut(t *testing.T, namespace, name string) error {
	t.Helper()
	viewer, err := polymorphichelpers.StatusViewerFor(schema.GroupKind{Group: "apps", Kind: "Deployment"})
	must(t, err)
	d, err := c.client.AppsV1().Deployments(namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	object, err := toUnstructured(d, "Deployment")
	must(t, err)
	message, done, err := viewer.Status(object, 0)
	if err == nil && !done {
		err = fmt.Errorf("kubectl rollout status: %s", strings.TrimSpace(message))
	}
	return err
}

func TestDeploymentRollsOutAndBackForKubectl(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	c.nodes(t, 2, nil)
	api := c.client.AppsV1().Deployments(ns)
	_, err := api.Create(t.Context(), deploymentOf("web", "one", 3), metav1.CreateOptions{})
	must(t, err)
	eventually(t, "first rollout", func() error { return c.rolledOut(t, ns, "web") })
	if pods := active(c.podsOf(t, ns, "app=web")); len(pods) != 3 {
		t.Fatalf("%d pods, want 3", len(pods))
	}

	setImage := func(image string) {
		eventually(t, "set image", func() error {
			d, err := api.Get(t.Context(), "web", metav1.GetOptions{})
			must(t, err)
			d.Spec.Template.Spec.Containers[0].Image = image
			_, err = api.Update(t.Context(), d, metav1.UpdateOptions{})
			return err
		})
	}
	setImage("two")
	eventually(t, "second rollout", func() error { return c.rolledOut(t, ns, "web") })
	for _, pod := range active(c.podsOf(t, ns, "app=web")) {
		if pod.Spec.Containers[0].Image != "two" {
			t.Errorf("pod %s has image %s after the rollout", pod.Name, pod.Spec.Containers[0].Image)
		}
	}

	// kubectl rollout history and undo, the code of both.
	d, err := api.Get(t.Context(), "web", metav1.GetOptions{})
	must(t, err)
	history, err := polymorphichelpers.HistoryViewerFor(schema.GroupKind{Group: "apps", Kind: "Deployment"}, c.client)
	must(t, err)
	text, err := history.ViewHistory(ns, "web", 0)
	must(t, err)
	if !strings.Contains(text, "1") || !strings.Contains(text, "2") {
		t.Errorf("kubectl rollout history shows no revisions 1 and 2:\n%s", text)
	}
	rollbacker, err := polymorphichelpers.RollbackerFor(schema.GroupKind{Group: "apps", Kind: "Deployment"}, c.client)
	must(t, err)
	_, err = rollbacker.Rollback(d, nil, 0, cmdutil.DryRunNone)
	must(t, err)
	eventually(t, "rollback", func() error {
		for _, pod := range active(c.podsOf(t, ns, "app=web")) {
			if pod.Spec.Containers[0].Image != "one" {
				return fmt.Errorf("pod %s still has image %s", pod.Name, pod.Spec.Containers[0].Image)
			}
		}
		return c.rolledOut(t, ns, "web")
	})
	d, err = api.Get(t.Context(), "web", metav1.GetOptions{})
	must(t, err)
	if got := d.Annotations["deployment.kubernetes.io/revision"]; got != "3" {
		t.Errorf("revision after the rollback is %q, want 3", got)
	}
}

func TestPodsOfAnAwayNodeStayAndAreNotReplaced(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	nodes := c.nodes(t, 3, map[string]string{"site": ns})
	d := deploymentOf("web", "one", 3)
	d.Spec.Template.Spec.NodeSelector = map[string]string{"site": ns}
	_, err := c.client.AppsV1().Deployments(ns).Create(t.Context(), d, metav1.CreateOptions{})
	must(t, err)
	_, err = c.client.CoreV1().Services(ns).Create(t.Context(), &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       v1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []v1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	must(t, err)
	eventually(t, "rollout", func() error { return c.rolledOut(t, ns, "web") })
	before := map[string]bool{}
	gone := ""
	for _, pod := range c.podsOf(t, ns, "app=web") {
		before[pod.Name] = true
		gone = pod.Spec.NodeName
	}

	c.boards.leave(t, gone)
	eventually(t, "taints and pods of the away node", func() error {
		node, err := c.client.CoreV1().Nodes().Get(t.Context(), gone, metav1.GetOptions{})
		must(t, err)
		effects := ""
		for _, taint := range node.Spec.Taints {
			if taint.Key == v1.TaintNodeUnreachable {
				effects += string(taint.Effect) + " "
			}
		}
		if effects != "NoSchedule NoExecute " {
			return fmt.Errorf("effects of taint unreachable are %q", effects)
		}
		for _, pod := range c.podsOf(t, ns, "app=web") {
			if ready := podReady(&pod); ready == (pod.Spec.NodeName == gone) {
				return fmt.Errorf("pod %s on %s: ready %v", pod.Name, pod.Spec.NodeName, ready)
			}
		}
		return nil
	})
	eventually(t, "endpoints", func() error {
		return c.endpoints(t, ns, "web", func(e discovery.Endpoint) error {
			if on := *e.NodeName == gone; *e.Conditions.Ready == on || *e.Conditions.Serving == on {
				return fmt.Errorf("endpoint on %s: ready %v, serving %v", *e.NodeName, *e.Conditions.Ready, *e.Conditions.Serving)
			}
			return nil
		}, 3)
	})
	always(t, "no replacement", 2*time.Second, func() error {
		pods := c.podsOf(t, ns, "app=web")
		for _, pod := range pods {
			if !before[pod.Name] || pod.DeletionTimestamp != nil {
				return fmt.Errorf("pod %s is new or being deleted", pod.Name)
			}
		}
		if len(pods) != 3 {
			return fmt.Errorf("%d pods", len(pods))
		}
		return nil
	})
	// A rollout goes round it.
	eventually(t, "set image", func() error {
		d, err := c.client.AppsV1().Deployments(ns).Get(t.Context(), "web", metav1.GetOptions{})
		must(t, err)
		d.Spec.Template.Spec.Containers[0].Image = "two"
		_, err = c.client.AppsV1().Deployments(ns).Update(t.Context(), d, metav1.UpdateOptions{})
		return err
	})
	eventually(t, "rollout with a node away", func() error { return c.rolledOut(t, ns, "web") })
	for _, pod := range active(c.podsOf(t, ns, "app=web")) {
		if pod.Spec.NodeName == gone {
			t.Errorf("pod %s was placed on the away node", pod.Name)
		}
	}
	c.boards.comeBack(t, gone)
	eventually(t, "return", func() error {
		node, err := c.client.CoreV1().Nodes().Get(t.Context(), gone, metav1.GetOptions{})
		must(t, err)
		if len(node.Spec.Taints) > 0 {
			return fmt.Errorf("taints %v", node.Spec.Taints)
		}
		if pods := c.podsOf(t, ns, "app=web"); len(pods) != 3 {
			return fmt.Errorf("%d pods", len(pods))
		}
		return nil
	})
	_ = nodes
}

func TestNewPodOnAnAwayNodeHoldsNobodyUp(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	labels := map[string]string{"site": ns}
	c.nodes(t, 2, labels)
	d := deploymentOf("web", "one", 4)
	d.Spec.ProgressDeadlineSeconds = ptr.To(int32(3))
	d.Spec.Strategy = apps.DeploymentStrategy{Type: apps.RollingUpdateDeploymentStrategyType, RollingUpdate: &apps.RollingUpdateDeployment{
		MaxUnavailable: ptr.To(intstr.FromInt32(0)), MaxSurge: ptr.To(intstr.FromInt32(1)),
	}}
	d.Spec.Template.Spec.NodeSelector = labels
	api := c.client.AppsV1().Deployments(ns)
	_, err := api.Create(t.Context(), d, metav1.CreateOptions{})
	must(t, err)
	eventually(t, "rollout", func() error { return c.rolledOut(t, ns, "web") })

	// The first pod of the new revision lands on a node that leaves before the pod is ready.
	trap := c.nodes(t, 1, map[string]string{"site": ns, "trap": "yes"})[0]
	update := func(f func(*apps.Deployment)) {
		eventually(t, "update", func() error {
			d, err := api.Get(t.Context(), "web", metav1.GetOptions{})
			must(t, err)
			f(d)
			_, err = api.Update(t.Context(), d, metav1.UpdateOptions{})
			return err
		})
	}
	c.boards.setAway(trap, true) // it takes the pod and reports nothing
	c.boards.bindNext(trap)
	update(func(d *apps.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "two" })
	eventually(t, "pod on the trap", func() error {
		for _, pod := range c.podsOf(t, ns, "app=web") {
			if pod.Spec.NodeName == trap {
				return nil
			}
		}
		return fmt.Errorf("none there")
	})
	must(t, c.boards.ready(t.Context(), trap, v1.ConditionUnknown))
	eventually(t, "the others are rolled out", func() error {
		one, two := 0, 0
		for _, pod := range active(c.podsOf(t, ns, "app=web")) {
			switch {
			case pod.Spec.Containers[0].Image == "one":
				one++
			case podReady(&pod):
				two++
			}
		}
		if one != 1 || two != 3 {
			return fmt.Errorf("%d old pods and %d ready new ones, want 1 and 3", one, two)
		}
		d, err := api.Get(t.Context(), "web", metav1.GetOptions{})
		must(t, err)
		for _, cond := range d.Status.Conditions {
			if cond.Type == apps.DeploymentProgressing && cond.Reason == deploymentaway.NodesAwayReason && cond.Status == v1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("conditions %+v", d.Status.Conditions)
	})
	always(t, "no deadline while away", 5*time.Second, func() error {
		d, err := api.Get(t.Context(), "web", metav1.GetOptions{})
		must(t, err)
		if d.Status.AvailableReplicas < 4 {
			return fmt.Errorf("%d replicas available", d.Status.AvailableReplicas)
		}
		for _, cond := range d.Status.Conditions {
			if cond.Reason == "ProgressDeadlineExceeded" {
				return fmt.Errorf("%s", cond.Message)
			}
		}
		return nil
	})
	c.boards.comeBack(t, trap)
	eventually(t, "rollout ends when the node is back", func() error { return c.rolledOut(t, ns, "web") })
}

func TestJobCountsEachPodOnce(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	c.nodes(t, 2, nil)
	jobs := c.client.BatchV1().Jobs(ns)
	job := func(name, image string, change func(*batch.JobSpec)) {
		spec := batch.JobSpec{Completions: ptr.To(int32(4)), Parallelism: ptr.To(int32(2)), Template: template(nil, image)}
		spec.Template.Spec.RestartPolicy = v1.RestartPolicyNever
		if change != nil {
			change(&spec)
		}
		_, err := jobs.Create(t.Context(), &batch.Job{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
		must(t, err)
	}
	job("plain", "exit0", nil)
	job("indexed", "exit0", func(s *batch.JobSpec) { s.CompletionMode = ptr.To(batch.IndexedCompletion) })
	job("failing", "exit1", func(s *batch.JobSpec) { s.BackoffLimit = ptr.To(int32(0)) })
	job("perindex", "exit1", func(s *batch.JobSpec) {
		s.CompletionMode, s.BackoffLimitPerIndex = ptr.To(batch.IndexedCompletion), ptr.To(int32(0))
	})
	job("policy", "exit0", func(s *batch.JobSpec) {
		s.CompletionMode = ptr.To(batch.IndexedCompletion)
		s.SuccessPolicy = &batch.SuccessPolicy{Rules: []batch.SuccessPolicyRule{{SucceededCount: ptr.To(int32(1))}}}
	})
	ends := func(name string, kind batch.JobConditionType, reason string, check func(batch.JobStatus) bool) {
		t.Helper()
		eventually(t, "job "+name, func() error {
			j, err := jobs.Get(t.Context(), name, metav1.GetOptions{})
			must(t, err)
			for _, cond := range j.Status.Conditions {
				if cond.Type == kind && cond.Status == v1.ConditionTrue && cond.Reason == reason && check(j.Status) {
					return nil
				}
			}
			return fmt.Errorf("status %+v", j.Status)
		})
	}
	ends("plain", batch.JobComplete, batch.JobReasonCompletionsReached, func(s batch.JobStatus) bool { return s.Succeeded == 4 && s.Failed == 0 && s.Active == 0 })
	ends("indexed", batch.JobComplete, batch.JobReasonCompletionsReached, func(s batch.JobStatus) bool { return s.CompletedIndexes == "0-3" })
	ends("failing", batch.JobFailed, batch.JobReasonBackoffLimitExceeded, func(s batch.JobStatus) bool { return s.Failed >= 1 && s.Succeeded == 0 })
	ends("perindex", batch.JobFailed, batch.JobReasonFailedIndexes, func(s batch.JobStatus) bool { return s.FailedIndexes != nil && *s.FailedIndexes == "0-3" })
	ends("policy", batch.JobComplete, batch.JobReasonSuccessPolicy, func(s batch.JobStatus) bool { return s.Succeeded >= 1 })
	eventually(t, "no finalizer stays", func() error {
		for _, pod := range c.podsOf(t, ns, "") {
			if len(pod.Finalizers) > 0 {
				return fmt.Errorf("pod %s has finalizers %v", pod.Name, pod.Finalizers)
			}
		}
		return nil
	})
}

func TestJobPodOnAnAwayNodeMayHaveFinishedThere(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	node := c.nodes(t, 1, map[string]string{"site": ns})[0]
	spec := batch.JobSpec{Template: template(nil, "runs"), BackoffLimit: ptr.To(int32(0))}
	spec.Template.Spec.RestartPolicy = v1.RestartPolicyNever
	spec.Template.Spec.NodeSelector = map[string]string{"site": ns}
	jobs := c.client.BatchV1().Jobs(ns)
	_, err := jobs.Create(t.Context(), &batch.Job{ObjectMeta: metav1.ObjectMeta{Name: "sum"}, Spec: spec}, metav1.CreateOptions{})
	must(t, err)
	eventually(t, "pod runs", func() error {
		if pods := c.podsOf(t, ns, ""); len(pods) != 1 || !podReady(&pods[0]) {
			return fmt.Errorf("%d pods", len(pods))
		}
		return nil
	})
	pod := c.podsOf(t, ns, "")[0]
	c.boards.leave(t, node)
	always(t, "no second pod", 2*time.Second, func() error {
		if pods := c.podsOf(t, ns, ""); len(pods) != 1 {
			return fmt.Errorf("%d pods", len(pods))
		}
		return nil
	})
	// Somebody deletes the pod, so it gets a replacement; but how it ended only its node can tell.
	must(t, c.client.CoreV1().Pods(ns).Delete(t.Context(), pod.Name, metav1.DeleteOptions{}))
	eventually(t, "replacement", func() error {
		if pods := c.podsOf(t, ns, ""); len(pods) != 2 {
			return fmt.Errorf("%d pods", len(pods))
		}
		return nil
	})
	j, err := jobs.Get(t.Context(), "sum", metav1.GetOptions{})
	must(t, err)
	if j.Status.Failed != 0 || len(j.Status.UncountedTerminatedPods.Failed) != 0 {
		t.Fatalf("the deleted pod is taken for failed: %+v", j.Status)
	}
	// It had finished before anybody asked it to stop.
	must(t, c.boards.ready(t.Context(), node, v1.ConditionTrue))
	fresh, err := c.client.CoreV1().Pods(ns).Get(t.Context(), pod.Name, metav1.GetOptions{})
	must(t, err)
	c.boards.report(t.Context(), fresh, v1.PodSucceeded, v1.ConditionFalse)
	c.boards.setAway(node, false)
	eventually(t, "job complete", func() error {
		j, err := jobs.Get(t.Context(), "sum", metav1.GetOptions{})
		must(t, err)
		for _, cond := range j.Status.Conditions {
			if cond.Type == batch.JobComplete && cond.Status == v1.ConditionTrue {
				if j.Status.Succeeded != 1 || j.Status.Failed != 0 {
					return fmt.Errorf("status %+v", j.Status)
				}
				return nil
			}
		}
		return fmt.Errorf("status %+v", j.Status)
	})
}

func TestDaemonSetRollsRoundAwayNodes(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	labels := map[string]string{"fleet": ns}
	nodes := c.nodes(t, 4, labels)
	set := &apps.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "agent"}, Spec: apps.DaemonSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "agent"}},
		Template: template(map[string]string{"app": "agent"}, "one"),
	}}
	set.Spec.Template.Spec.NodeSelector = labels
	sets := c.client.AppsV1().DaemonSets(ns)
	_, err := sets.Create(t.Context(), set, metav1.CreateOptions{})
	must(t, err)
	status := func(check func(apps.DaemonSetStatus) bool) func() error {
		return func() error {
			s, err := sets.Get(t.Context(), "agent", metav1.GetOptions{})
			must(t, err)
			if s.Status.ObservedGeneration != s.Generation || !check(s.Status) {
				return fmt.Errorf("status %+v", s.Status)
			}
			return nil
		}
	}
	eventually(t, "one on each node", status(func(s apps.DaemonSetStatus) bool { return s.DesiredNumberScheduled == 4 && s.NumberAvailable == 4 }))
	c.boards.leave(t, nodes[0])
	c.boards.leave(t, nodes[1])
	eventually(t, "two away", status(func(s apps.DaemonSetStatus) bool {
		return s.DesiredNumberScheduled == 2 && s.NumberMisscheduled == 0 && len(s.Conditions) == 1
	}))
	eventually(t, "set image", func() error {
		s, err := sets.Get(t.Context(), "agent", metav1.GetOptions{})
		must(t, err)
		s.Spec.Template.Spec.Containers[0].Image = "two"
		_, err = sets.Update(t.Context(), s, metav1.UpdateOptions{})
		return err
	})
	eventually(t, "rolled out over those that are there", status(func(s apps.DaemonSetStatus) bool {
		return s.UpdatedNumberScheduled == 2 && s.NumberAvailable == 2
	}))
	for _, pod := range c.podsOf(t, ns, "app=agent") {
		if on := pod.Spec.NodeName == nodes[0] || pod.Spec.NodeName == nodes[1]; on && (pod.DeletionTimestamp != nil || pod.Spec.Containers[0].Image != "one") {
			t.Errorf("pod %s on an away node was touched", pod.Name)
		}
	}
	c.boards.comeBack(t, nodes[0])
	c.boards.comeBack(t, nodes[1])
	eventually(t, "those that came back follow", status(func(s apps.DaemonSetStatus) bool {
		return s.DesiredNumberScheduled == 4 && s.UpdatedNumberScheduled == 4 && s.NumberAvailable == 4 && len(s.Conditions) == 0
	}))
	revisions, err := c.client.AppsV1().ControllerRevisions(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=agent"})
	must(t, err)
	if len(revisions.Items) != 2 {
		t.Errorf("%d revisions, want 2", len(revisions.Items))
	}
}

func TestReplicaSetAdoptsReleasesAndScales(t *testing.T) {
	c := shared
	ns := c.namespace(t)
	c.nodes(t, 1, nil)
	labels := map[string]string{"app": "rs"}
	orphan := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "orphan", Labels: labels}, Spec: template(labels, "one").Spec}
	_, err := c.client.CoreV1().Pods(ns).Create(t.Context(), orphan, metav1.CreateOptions{})
	must(t, err)
	_, err = c.client.AppsV1().ReplicaSets(ns).Create(t.Context(), &apps.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "rs"}, Spec: apps.ReplicaSetSpec{
		Replicas: ptr.To(int32(3)), Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template(labels, "one"),
	}}, metav1.CreateOptions{})
	must(t, err)
	counts := func(n int32) func() error {
		return func() error {
			rs, err := c.client.AppsV1().ReplicaSets(ns).Get(t.Context(), "rs", metav1.GetOptions{})
			must(t, err)
			if rs.Status.Replicas != n || rs.Status.AvailableReplicas != n {
				return fmt.Errorf("status %+v", rs.Status)
			}
			return nil
		}
	}
	eventually(t, "three with the orphan", counts(3))
	pod, err := c.client.CoreV1().Pods(ns).Get(t.Context(), "orphan", metav1.GetOptions{})
	must(t, err)
	if metav1.GetControllerOf(pod) == nil {
		t.Error("the orphan was not adopted")
	}
	_, err = c.client.CoreV1().Pods(ns).Patch(t.Context(), "orphan", "application/merge-patch+json", []byte(`{"metadata":{"labels":{"app":"free"}}}`), metav1.PatchOptions{})
	must(t, err)
	eventually(t, "released", func() error {
		pod, err := c.client.CoreV1().Pods(ns).Get(t.Context(), "orphan", metav1.GetOptions{})
		must(t, err)
		if metav1.GetControllerOf(pod) != nil {
			return fmt.Errorf("still owned")
		}
		return nil
	})
	eventually(t, "replaced", counts(3))
	_, err = c.client.AppsV1().ReplicaSets(ns).Patch(t.Context(), "rs", "application/merge-patch+json", []byte(`{"spec":{"replicas":1}}`), metav1.PatchOptions{})
	must(t, err)
	eventually(t, "scaled down", counts(1))
}

// endpoints checks every endpoint of a Service, and their number.
func (c *cluster) endpoints(t *testing.T, ns, service string, check func(discovery.Endpoint) error, want int) error {
	t.Helper()
	list, err := c.client.DiscoveryV1().EndpointSlices(ns).List(t.Context(), metav1.ListOptions{LabelSelector: discovery.LabelServiceName + "=" + service})
	must(t, err)
	n := 0
	for _, slice := range list.Items {
		for _, e := range slice.Endpoints {
			n++
			if err := check(e); err != nil {
				return err
			}
		}
	}
	if n != want {
		return fmt.Errorf("%d endpoints, want %d", n, want)
	}
	return nil
}

func podReady(pod *v1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == v1.PodReady {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}
