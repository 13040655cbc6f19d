package restoration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/restmapper"

	"github.com/coracle-edge/coracle/controlplane/fleethub"
)

// AnnotationFormerOwner on a pod that was brought back names the owners that the
// cluster has forgotten. Who applies them again finds that their pods are adopted
// by their labels, as Kubernetes does it with any orphan.
const AnnotationFormerOwner = "coracle.dev/former-owner"

// accountWait is how long the service account of a new namespace may take.
const accountWait = 15 * time.Second

func (s *Service) adopt(ctx context.Context, hub Hub, who user.Info, request Request, tell func(Result)) error {
	standing := hub.Standing()
	nodes, err := chosen(standing, request)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(nodes, func(u fleethub.Unsettled) bool { return u.Later }) {
		return ErrUnmarked
	}
	a, err := s.adopter(hub, who, standing, request.DryRun)
	if err != nil {
		return err
	}
	s.each(ctx, nodes, func(ctx context.Context, u fleethub.Unsettled) { tell(a.node(ctx, u)) })
	return nil
}

// adopter does one request's work, by the rights of who asked.
type adopter struct {
	s        *Service
	hub      Hub
	standing fleethub.Standing
	dryRun   []string
	client   kubernetes.Interface
	objects  metadata.Interface
	mapper   meta.RESTMapper
}

func (s *Service) adopter(hub Hub, who user.Info, standing fleethub.Standing, dryRun bool) (*adopter, error) {
	config := s.c.ClientConfig(who.GetName(), who.GetGroups()...)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	objects, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	a := &adopter{s: s, hub: hub, standing: standing, client: client, objects: objects,
		mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery()))}
	if dryRun {
		a.dryRun = []string{metav1.DryRunAll}
	}
	return a, nil
}

// node brings back what one node holds, and then adopts it.
func (a *adopter) node(ctx context.Context, u fleethub.Unsettled) Result {
	r := Result{Node: u.Node}
	fail := func(err error) Result {
		r.Error = err.Error()
		return r
	}
	if !u.There {
		return fail(errors.New("it is away: adopt it when it is back"))
	}
	held, err := a.fetch(ctx, u.Node)
	if err != nil {
		return fail(err)
	}
	var back []string
	refused := 0
	for _, pod := range held.pods {
		known, note := a.known(ctx, pod)
		if known {
			continue
		}
		o := Object{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID)}
		if note == "" {
			var objects []Object
			objects, o.Note, err = a.bring(ctx, u.Node, held, pod)
			r.Objects = append(r.Objects, objects...)
			if err != nil {
				o.Note = err.Error()
			} else {
				o.Done = true
			}
		} else {
			o.Note = note
		}
		if o.Done {
			back = append(back, o.UID)
		} else {
			refused++
		}
		r.Objects = append(r.Objects, o)
	}
	switch {
	case refused > 0:
		return fail(fmt.Errorf("%d of its pods can't be brought back, so it is left as it is: make that possible and adopt again, or have them stop with `coracle restore confirm --node %s`", refused, u.Node))
	case len(a.dryRun) > 0:
		return r
	}
	if err := a.notThere(ctx, u.Missing); err != nil {
		return fail(err)
	}
	if err := a.hub.AwaitPods(ctx, u.Node, back); err != nil {
		return fail(err)
	}
	if err := a.s.move(ctx, a.hub, u.Node); err != nil {
		return fail(err)
	}
	// Their reports were answered for when there were no such pods.
	a.hub.Repeat(u.Node, back)
	r.Settled = true
	return r
}

// known says whether the cluster has the pod; note is why it can't be brought back
// although it hasn't.
func (a *adopter) known(ctx context.Context, pod *corev1.Pod) (known bool, note string) {
	if pod.DeletionTimestamp != nil {
		return true, "" // it is on its way out, and nothing is lost if it goes
	}
	have, err := a.client.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return false, err.Error()
	case have.UID == pod.UID:
		return true, ""
	default:
		if err := a.replace(ctx, have); err != nil {
			return false, err.Error()
		}
	}
	return false, ""
}

// replace removes a pod of the past that has the name of one that runs, if it
// surely doesn't run itself.
func (a *adopter) replace(ctx context.Context, old *corev1.Pod) error {
	if old.Spec.NodeName != "" {
		i := slices.IndexFunc(a.standing.Unsettled, func(u fleethub.Unsettled) bool { return u.Node == old.Spec.NodeName })
		gone := i >= 0 && a.standing.Unsettled[i].There &&
			slices.ContainsFunc(a.standing.Unsettled[i].Missing, func(r fleethub.Running) bool { return r.UID == string(old.UID) })
		if !gone {
			return fmt.Errorf("the cluster has another pod of this name, UID %s, on node %s, which may run it: delete one of the two", old.UID, old.Spec.NodeName)
		}
	}
	if len(a.dryRun) > 0 {
		return nil
	}
	now := int64(0)
	err := a.client.CoreV1().Pods(old.Namespace).Delete(ctx, old.Name, metav1.DeleteOptions{GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &old.UID}})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("the pod of the same name, UID %s, which no node runs: %w", old.UID, err)
	}
	return nil
}

// notThere says of pods that their node hasn't that they aren't ready. Else who
// owns them and those that were brought back would keep the ones that don't run.
func (a *adopter) notThere(ctx context.Context, missing []fleethub.Running) error {
	for _, m := range missing {
		pods := a.client.CoreV1().Pods(m.Namespace)
		pod, err := pods.Get(ctx, m.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && string(pod.UID) != m.UID {
			continue
		}
		if err != nil {
			return err
		}
		changed := false
		for i := range pod.Status.Conditions {
			c := &pod.Status.Conditions[i]
			if (c.Type == corev1.PodReady || c.Type == corev1.ContainersReady) && c.Status == corev1.ConditionTrue {
				c.Status, c.Reason, c.Message = corev1.ConditionFalse, "NotOnNode", "etcd was put back to a time at which it ran; the node doesn't have it now"
				c.LastTransitionTime = metav1.Now()
				changed = true
			}
		}
		if !changed {
			continue
		}
		if _, err := pods.UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			return fmt.Errorf("pod %s/%s: %w", m.Namespace, m.Name, err)
		}
	}
	return nil
}

// bring creates one pod again, and what it refers to. note says what is other
// than it was.
func (a *adopter) bring(ctx context.Context, node string, held *held, pod *corev1.Pod) (objects []Object, note string, err error) {
	if pod.Spec.NodeName != node {
		return nil, "", fmt.Errorf("the node says that the pod is bound to node %q", pod.Spec.NodeName)
	}
	newSpace, err := a.namespace(ctx, pod)
	if err != nil {
		return nil, "", err
	}
	for r := range fleethub.References(pod) {
		o, err := a.reference(ctx, held, r, newSpace)
		if err != nil {
			return objects, "", err
		}
		if o != nil {
			objects = append(objects, *o)
		}
	}
	next := pod.DeepCopy()
	var notes []string
	lost, err := a.owners(ctx, next)
	if err != nil {
		return objects, "", err
	}
	if len(lost) > 0 {
		notes = append(notes, "without its owner, which the cluster hasn't: "+strings.Join(lost, ", "))
	}
	if len(next.Spec.EphemeralContainers) > 0 {
		next.Spec.EphemeralContainers = nil
		notes = append(notes, "without its ephemeral containers")
	}
	if len(a.dryRun) > 0 && newSpace {
		return objects, strings.Join(append(notes, "in a namespace that would be made"), "; "), nil
	}
	if err := a.create(ctx, next); err != nil {
		return objects, "", err
	}
	return objects, strings.Join(notes, "; "), nil
}

// create first looks at what admission would make of it.
func (a *adopter) create(ctx context.Context, pod *corev1.Pod) error {
	created := pod.CreationTimestamp
	ctx = a.s.c.Former(ctx, pod.UID, created)
	pods := a.client.CoreV1().Pods(pod.Namespace)
	would, err := pods.Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		return err
	}
	if before, after := programs(pod), programs(would); !slices.Equal(before, after) {
		return fmt.Errorf("admission would change what it runs from %v to %v", before, after)
	}
	if len(a.dryRun) > 0 {
		return nil
	}
	_, err = pods.Create(ctx, pod, metav1.CreateOptions{})
	return err
}

// programs are what a pod runs; a change of them restarts it.
func programs(pod *corev1.Pod) []string {
	var out []string
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range list {
			out = append(out, c.Name+"="+c.Image)
		}
	}
	return out
}

// namespace makes the pod's if the cluster has forgotten it; made says so.
func (a *adopter) namespace(ctx context.Context, pod *corev1.Pod) (made bool, err error) {
	_, err = a.client.CoreV1().Namespaces().Get(ctx, pod.Namespace, metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		return false, err
	}
	_, err = a.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: pod.Namespace}}, metav1.CreateOptions{DryRun: a.dryRun})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return false, fmt.Errorf("namespace %s, which the cluster has forgotten: %w", pod.Namespace, err)
	}
	if len(a.dryRun) > 0 {
		return true, nil
	}
	return true, a.account(ctx, pod)
}

// account waits for the service account that controllers give a new namespace.
func (a *adopter) account(ctx context.Context, pod *corev1.Pod) error {
	if pod.Spec.ServiceAccountName != "default" {
		return nil // what is missing is said by admission
	}
	ctx, cancel := context.WithTimeout(ctx, accountWait)
	defer cancel()
	for {
		_, err := a.client.CoreV1().ServiceAccounts(pod.Namespace).Get(ctx, "default", metav1.GetOptions{})
		if err == nil || !apierrors.IsNotFound(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("service account %s/default, of a namespace that was made again: not there after %v", pod.Namespace, accountWait)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// reference creates a ConfigMap or Secret again that the node holds and the
// cluster hasn't. What the cluster has, it knows better.
func (a *adopter) reference(ctx context.Context, held *held, r fleethub.Ref, newSpace bool) (*Object, error) {
	source, ok := held.references[r]
	if !ok {
		return nil, nil // optional, or not of these kinds
	}
	o := &Object{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name, Done: true}
	if len(a.dryRun) > 0 && newSpace {
		return o, nil
	}
	var err error
	switch from := source.(type) {
	case *corev1.ConfigMap:
		if _, err = a.client.CoreV1().ConfigMaps(r.Namespace).Get(ctx, r.Name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			_, err = a.client.CoreV1().ConfigMaps(r.Namespace).Create(a.s.c.Former(ctx, from.UID, from.CreationTimestamp), from, metav1.CreateOptions{DryRun: a.dryRun})
			o.UID = string(from.UID)
		}
	case *corev1.Secret:
		if _, err = a.client.CoreV1().Secrets(r.Namespace).Get(ctx, r.Name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			_, err = a.client.CoreV1().Secrets(r.Namespace).Create(a.s.c.Former(ctx, from.UID, from.CreationTimestamp), from, metav1.CreateOptions{DryRun: a.dryRun})
			o.UID = string(from.UID)
		}
	}
	switch {
	case apierrors.IsAlreadyExists(err): // another pod, or a controller, was faster
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("%s %s/%s, which the pod refers to: %w", r.Kind, r.Namespace, r.Name, err)
	case o.UID == "": // the cluster has one
		return nil, nil
	}
	return o, nil
}

// owners takes away the owners that the cluster hasn't: the garbage collector
// would take the pod for theirs. It returns what was lost.
func (a *adopter) owners(ctx context.Context, pod *corev1.Pod) (lost []string, err error) {
	var kept []metav1.OwnerReference
	for _, owner := range pod.OwnerReferences {
		is, err := a.exists(ctx, pod.Namespace, owner)
		if err != nil {
			return nil, fmt.Errorf("owner %s %s: %w", owner.Kind, owner.Name, err)
		}
		if is {
			kept = append(kept, owner)
			continue
		}
		lost = append(lost, owner.Kind+"/"+owner.Name)
		if owner.Kind == "Job" { // nobody would take it off
			pod.Finalizers = slices.DeleteFunc(pod.Finalizers, func(f string) bool { return f == batchv1.JobTrackingFinalizer })
		}
	}
	pod.OwnerReferences = kept
	if len(lost) > 0 {
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		pod.Annotations[AnnotationFormerOwner] = strings.Join(lost, ",")
	}
	return lost, nil
}

func (a *adopter) exists(ctx context.Context, namespace string, owner metav1.OwnerReference) (bool, error) {
	gv, err := schema.ParseGroupVersion(owner.APIVersion)
	if err != nil {
		return false, err
	}
	mapping, err := a.mapper.RESTMapping(schema.GroupKind{Group: gv.Group, Kind: owner.Kind}, gv.Version)
	if meta.IsNoMatchError(err) {
		return false, nil // its kind is forgotten, too
	}
	if err != nil {
		return false, err
	}
	var objects metadata.ResourceInterface = a.objects.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		objects = a.objects.Resource(mapping.Resource).Namespace(namespace)
	}
	have, err := objects.Get(ctx, owner.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil && have.UID == owner.UID, err
}
