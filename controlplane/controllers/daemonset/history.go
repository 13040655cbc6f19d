package daemonset

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"

	apps "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/controller"
	"k8s.io/kubernetes/pkg/controller/daemon"
	labelsutil "k8s.io/kubernetes/pkg/util/labels"
)

// revisions returns the ControllerRevision of the set's current template, made if need be, and those of earlier ones.
func (c *Controller) revisions(ctx context.Context, set *apps.DaemonSet) (current *apps.ControllerRevision, old []*apps.ControllerRevision, err error) {
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil {
		return nil, nil, err
	}
	all, err := c.history.ControllerRevisions(set.Namespace).List(labels.Everything())
	if err != nil {
		return nil, nil, err
	}
	control := controller.RealControllerRevisionControl{KubeClient: c.client}
	claimed, err := controller.NewControllerRevisionControllerRefManager(control, set, selector, kind, c.canAdopt(set)).ClaimControllerRevisions(ctx, all)
	if err != nil {
		return nil, nil, err
	}
	revisions := c.client.AppsV1().ControllerRevisions(set.Namespace)
	want := int64(1)
	var same []*apps.ControllerRevision
	for _, rev := range claimed {
		if _, ok := rev.Labels[apps.DefaultDaemonSetUniqueLabelKey]; !ok {
			labelled := rev.DeepCopy()
			labelled.Labels = labelsutil.CloneAndAddLabel(rev.Labels, apps.DefaultDaemonSetUniqueLabelKey, rev.Name)
			if rev, err = revisions.Update(ctx, labelled, metav1.UpdateOptions{}); err != nil {
				return nil, nil, err
			}
		}
		match, err := daemon.Match(set, rev)
		if err != nil {
			return nil, nil, err
		}
		if match {
			same = append(same, rev)
		} else {
			old = append(old, rev)
			want = max(want, rev.Revision+1)
		}
	}
	if len(same) == 0 {
		current, err = c.snapshot(ctx, set, want)
		return current, old, err
	}
	if current, err = c.dedup(ctx, set, same); err != nil {
		return nil, nil, err
	}
	if current.Revision < want {
		// Rolled back: the newest revision is the one that was taken up again.
		raised := current.DeepCopy()
		raised.Revision = want
		if current, err = revisions.Update(ctx, raised, metav1.UpdateOptions{}); err != nil {
			return nil, nil, err
		}
	}
	return current, old, nil
}

// snapshot stores the current template under its hash.
func (c *Controller) snapshot(ctx context.Context, set *apps.DaemonSet, revision int64) (*apps.ControllerRevision, error) {
	patch, err := templatePatch(set)
	if err != nil {
		return nil, err
	}
	hash := controller.ComputeHash(&set.Spec.Template, set.Status.CollisionCount)
	name := set.Name + "-" + hash
	revisions := c.client.AppsV1().ControllerRevisions(set.Namespace)
	created, err := revisions.Create(ctx, &apps.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Name:            name,
			Namespace:       set.Namespace,
			Labels:          labelsutil.CloneAndAddLabel(set.Spec.Template.Labels, apps.DefaultDaemonSetUniqueLabelKey, hash),
			Annotations:     set.Annotations,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(set, kind)},
		},
		Data:     runtime.RawExtension{Raw: patch},
		Revision: revision,
	}, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		return created, err
	}
	exists := err
	stored, err := revisions.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if bytes.Equal(patch, stored.Data.Raw) {
		return stored, nil // made by an earlier pass that the cache has not shown
	}
	// Two templates have one hash. The collision count changes the next hash; it is raised on the newest object only.
	fresh, err := c.client.AppsV1().DaemonSets(set.Namespace).Get(ctx, set.Name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if !reflect.DeepEqual(fresh.Status.CollisionCount, set.Status.CollisionCount) {
		return nil, fmt.Errorf("the cache has not shown the raised collision count yet")
	}
	if fresh.Status.CollisionCount == nil {
		fresh.Status.CollisionCount = new(int32)
	}
	*fresh.Status.CollisionCount++
	if _, err := c.client.AppsV1().DaemonSets(set.Namespace).UpdateStatus(ctx, fresh, metav1.UpdateOptions{}); err != nil {
		return nil, err
	}
	return nil, exists
}

// dedup keeps the newest of several revisions of one template and gives the pods of the others its hash.
func (c *Controller) dedup(ctx context.Context, set *apps.DaemonSet, same []*apps.ControllerRevision) (*apps.ControllerRevision, error) {
	if len(same) == 1 {
		return same[0], nil
	}
	keep := slices.MaxFunc(same, func(a, b *apps.ControllerRevision) int { return cmp.Compare(a.Revision, b.Revision) })
	hash := keep.Labels[apps.DefaultDaemonSetUniqueLabelKey]
	pods, err := c.claim(ctx, set)
	if err != nil {
		return nil, err
	}
	for _, pod := range pods {
		if pod.Labels[apps.DefaultDaemonSetUniqueLabelKey] == hash {
			continue
		}
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]any{apps.DefaultDaemonSetUniqueLabelKey: hash}}})
		if err != nil {
			return nil, err
		}
		if _, err := c.client.CoreV1().Pods(set.Namespace).Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return nil, err
		}
	}
	for _, rev := range same {
		if rev.Name == keep.Name {
			continue
		}
		if err := c.client.AppsV1().ControllerRevisions(set.Namespace).Delete(ctx, rev.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return nil, err
		}
	}
	return keep, nil
}

// trimHistory deletes revisions beyond the limit, oldest first, but none that a pod still has.
func (c *Controller) trimHistory(ctx context.Context, set *apps.DaemonSet, old []*apps.ControllerRevision) error {
	if set.Spec.RevisionHistoryLimit == nil {
		return nil
	}
	excess := len(old) - int(*set.Spec.RevisionHistoryLimit)
	if excess <= 0 {
		return nil
	}
	pods, err := c.claim(ctx, set) // those that ended and are being deleted too
	if err != nil {
		return err
	}
	live := map[string]bool{}
	for _, pod := range pods {
		live[pod.Labels[apps.DefaultDaemonSetUniqueLabelKey]] = true
	}
	slices.SortFunc(old, func(a, b *apps.ControllerRevision) int { return cmp.Compare(a.Revision, b.Revision) })
	for _, rev := range old {
		if excess <= 0 {
			break
		}
		if live[rev.Labels[apps.DefaultDaemonSetUniqueLabelKey]] {
			continue
		}
		if err := c.client.AppsV1().ControllerRevisions(set.Namespace).Delete(ctx, rev.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		excess--
	}
	return nil
}

// templatePatch is the patch that would restore the set's template, byte for byte upstream's: revisions are compared by
// it (daemon.Match), by kubectl rollout too.
func templatePatch(set *apps.DaemonSet) ([]byte, error) {
	data, err := json.Marshal(set)
	if err != nil {
		return nil, err
	}
	var raw struct {
		Spec struct {
			Template map[string]any `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, err
	}
	raw.Spec.Template["$patch"] = "replace"
	return json.Marshal(map[string]any{"spec": map[string]any{"template": raw.Spec.Template}})
}
