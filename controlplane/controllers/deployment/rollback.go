package deployment

import (
	"context"
	"fmt"
	"strconv"

	apps "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/deployment/util"
)

// rollbackTo returns the revision that the deprecated annotation of extensions/v1beta1 asks for; nil if none is asked
// for. Zero means the last one. (kubectl rollout undo doesn't use it: it patches the template itself.)
func rollbackTo(d *apps.Deployment) *int64 {
	revision, err := strconv.ParseInt(d.Annotations[apps.DeprecatedRollbackTo], 10, 64)
	if err != nil {
		return nil
	}
	return &revision
}

// rollback copies the template and annotations of the asked revision into the Deployment and takes the request away; the
// rollout follows with the next key.
func (c *Controller) rollback(ctx context.Context, d *apps.Deployment, sets []*apps.ReplicaSet) error {
	newSet, old, err := c.revisions(ctx, d, sets, true)
	if err != nil {
		return err
	}
	all := append(old, newSet)
	want := *rollbackTo(d)
	if want == 0 {
		if want = util.LastRevision(klog.FromContext(ctx), all); want == 0 {
			c.opts.Recorder.Event(d, v1.EventTypeWarning, util.RollbackRevisionNotFound, "Unable to find last revision.")
			return c.clearRollback(ctx, d)
		}
	}
	for _, set := range all {
		if revision, err := util.Revision(set); err != nil || revision != want {
			continue
		}
		if util.EqualIgnoreHash(&d.Spec.Template, &set.Spec.Template) {
			c.opts.Recorder.Eventf(d, v1.EventTypeWarning, util.RollbackTemplateUnchanged,
				"The rollback revision contains the same template as current deployment %q", d.Name)
			return c.clearRollback(ctx, d)
		}
		util.SetFromReplicaSetTemplate(d, set.Spec.Template)
		// With the old set's annotations, change-cause among them: the Deployment's are copied to its new set.
		util.SetDeploymentAnnotationsTo(d, set)
		if err := c.clearRollback(ctx, d); err != nil {
			return err
		}
		c.opts.Recorder.Event(d, v1.EventTypeNormal, util.RollbackDone, fmt.Sprintf("Rolled back deployment %q to revision %d", d.Name, want))
		return nil
	}
	c.opts.Recorder.Event(d, v1.EventTypeWarning, util.RollbackRevisionNotFound, "Unable to find the revision to rollback to.")
	return c.clearRollback(ctx, d)
}

func (c *Controller) clearRollback(ctx context.Context, d *apps.Deployment) error {
	delete(d.Annotations, apps.DeprecatedRollbackTo)
	_, err := c.client.AppsV1().Deployments(d.Namespace).Update(ctx, d, metav1.UpdateOptions{})
	return err
}
