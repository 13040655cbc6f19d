package localvolumes

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	"github.com/coracle-edge/coracle/controlplane/api/localvolumes"
	"github.com/coracle-edge/coracle/controlplane/controllers/reconciler"
)

const (
	// finalizer is that of upstream's library: a volume deleted before its claim still has its folder removed.
	finalizer = "external-provisioner.volume.kubernetes.io/finalizer"
	// longestName is of a file on Linux.
	longestName = 255
)

// errRefused is wrapped by what can't be provisioned however often it is tried.
var errRefused = errors.New("refused")

// Controller is the provisioner; its keys are claims (namespace/name) and volumes (name).
type Controller struct {
	*reconciler.Reconciler
	client  kubernetes.Interface
	opts    reconciler.Options
	claims  corelisters.PersistentVolumeClaimLister
	volumes corelisters.PersistentVolumeLister
	nodes   corelisters.NodeLister
	classes storagelisters.StorageClassLister
}

// New makes the controller and registers what it watches: claims, volumes, nodes and StorageClasses. The factory must be
// started by the caller.
func New(client kubernetes.Interface, factory informers.SharedInformerFactory, opts reconciler.Options) (*Controller, error) {
	opts = opts.WithDefaults()
	core, classes := factory.Core().V1(), factory.Storage().V1().StorageClasses()
	c := &Controller{client: client, opts: opts, claims: core.PersistentVolumeClaims().Lister(), volumes: core.PersistentVolumes().Lister(),
		nodes: core.Nodes().Lister(), classes: classes.Lister()}
	c.Reconciler = reconciler.New("local-volumes", c.reconcile, opts, 0, 0)
	return c, errors.Join(
		c.Watch(core.PersistentVolumeClaims().Informer(), c.Everything()),
		c.Watch(core.PersistentVolumes().Informer(), c.Everything()),
		// A claim that was refused for its class may be none any more.
		c.Watch(classes.Informer(), cache.ResourceEventHandlerFuncs{AddFunc: c.classCame, UpdateFunc: func(_, cur any) { c.classCame(cur) }}),
		// Nobody is left to remove the folders of a node that goes.
		c.Watch(core.Nodes().Informer(), cache.ResourceEventHandlerFuncs{DeleteFunc: c.nodeGone}))
}

func (c *Controller) classCame(obj any) {
	class, ok := obj.(*storagev1.StorageClass)
	if !ok || class.Provisioner != localvolumes.Provisioner {
		return
	}
	all, err := c.claims.List(labels.Everything())
	if err != nil {
		return
	}
	for _, claim := range all {
		if claim.Spec.VolumeName == "" && volume.GetPersistentVolumeClaimClass(claim) == class.Name {
			c.Enqueue(claim)
		}
	}
}

func (c *Controller) nodeGone(obj any) {
	name, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj)
	if err != nil {
		return
	}
	all, err := c.volumes.List(labels.Everything())
	if err != nil {
		return
	}
	for _, pv := range all {
		if localvolumes.Node(pv) == name {
			c.Add(pv.Name)
		}
	}
}

func (c *Controller) reconcile(ctx context.Context, key string) error {
	if !strings.Contains(key, "/") {
		return c.reclaim(ctx, key)
	}
	err := c.provision(ctx, key)
	if errors.Is(err, errRefused) {
		return nil // said in an event; a changed claim comes again
	}
	return err
}

// provision makes the volume of a claim that waits for one on a node.
func (c *Controller) provision(ctx context.Context, key string) error {
	namespace, name, _ := strings.Cut(key, "/")
	claim, err := c.claims.PersistentVolumeClaims(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if claim.Spec.VolumeName != "" || claim.DeletionTimestamp != nil || claim.Annotations[volume.AnnStorageProvisioner] != localvolumes.Provisioner {
		return nil
	}
	class, err := c.classes.Get(volume.GetPersistentVolumeClaimClass(claim))
	if apierrors.IsNotFound(err) {
		return nil // the volume binder says so
	}
	if err != nil {
		return err
	}
	if class.Provisioner != localvolumes.Provisioner {
		return nil
	}
	pv, err := c.volumeFor(claim, class)
	if err != nil {
		c.opts.Recorder.Eventf(claim, v1.EventTypeWarning, "ProvisioningFailed", "failed to provision volume with StorageClass %q: %v", class.Name, err)
		if errors.Is(err, errElsewhere) {
			return c.chooseAgain(ctx, claim)
		}
		return err
	}
	if pv == nil {
		return nil // no pod uses it yet
	}
	if _, err = c.client.CoreV1().PersistentVolumes().Create(ctx, pv, metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("persistentvolumeclaim %s: %w", key, err)
	}
	c.opts.Recorder.Eventf(claim, v1.EventTypeNormal, "ProvisioningSucceeded", "Successfully provisioned volume %s", pv.Name)
	return nil
}

// errElsewhere is returned if another node may do.
var errElsewhere = errors.New("the node makes no volumes")

// volumeFor is a claim's volume, nil if no node is selected yet.
func (c *Controller) volumeFor(claim *v1.PersistentVolumeClaim, class *storagev1.StorageClass) (*v1.PersistentVolume, error) {
	if ptr.Deref(class.VolumeBindingMode, storagev1.VolumeBindingImmediate) != storagev1.VolumeBindingWaitForFirstConsumer {
		return nil, fmt.Errorf("%w: volumeBindingMode has to be WaitForFirstConsumer: a folder is on the node of its first pod", errRefused)
	}
	name, selected := claim.Annotations[volume.AnnSelectedNode]
	if !selected {
		return nil, nil
	}
	switch {
	case ptr.Deref(claim.Spec.VolumeMode, v1.PersistentVolumeFilesystem) == v1.PersistentVolumeBlock:
		return nil, fmt.Errorf("%w: volumeMode Block: a folder is no device; use a PersistentVolume of the type local", errRefused)
	case claim.Spec.DataSource != nil || claim.Spec.DataSourceRef != nil:
		return nil, fmt.Errorf("%w: dataSource: it can't be made of a snapshot or another volume", errRefused)
	case claim.Spec.Selector != nil:
		return nil, fmt.Errorf("%w: selector: a volume that is made for the claim has no labels", errRefused)
	case len(class.Parameters) > 0 || len(class.MountOptions) > 0:
		return nil, fmt.Errorf("%w: StorageClass %s has parameters or mountOptions, and there are none; a node's folder is given by its --local-volumes-dir", errRefused, class.Name)
	}
	for _, mode := range claim.Spec.AccessModes {
		if mode != v1.ReadWriteOnce && mode != v1.ReadWriteOncePod {
			return nil, fmt.Errorf("%w: access mode %s: the volume is on one node only; use ReadWriteOnce or ReadWriteOncePod", errRefused, mode)
		}
	}
	node, err := c.nodes.Get(name)
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("%w: node %s is gone", errElsewhere, name)
	}
	if err != nil {
		return nil, err
	}
	dir := node.Annotations[localvolumes.AnnotationDir]
	if dir == "" {
		return nil, fmt.Errorf("%w: node %s has no annotation %s: its edgelet is too old, or runs without root", errElsewhere, name, localvolumes.AnnotationDir)
	}
	pv := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-" + string(claim.UID)}, Spec: v1.PersistentVolumeSpec{
		Capacity:                      v1.ResourceList{v1.ResourceStorage: claim.Spec.Resources.Requests[v1.ResourceStorage]},
		AccessModes:                   claim.Spec.AccessModes,
		PersistentVolumeReclaimPolicy: ptr.Deref(class.ReclaimPolicy, v1.PersistentVolumeReclaimDelete),
		StorageClassName:              class.Name,
		VolumeMode:                    claim.Spec.VolumeMode,
		ClaimRef: &v1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name,
			UID: claim.UID, ResourceVersion: claim.ResourceVersion},
	}}
	// As k3s names them, for people who look there.
	folder := pv.Name + "_" + claim.Namespace + "_" + claim.Name
	if len(folder) > longestName {
		folder = pv.Name
	}
	pv.Spec.Local = &v1.LocalVolumeSource{Path: path.Join(dir, folder)}
	localvolumes.Mark(pv, name)
	if pv.Spec.PersistentVolumeReclaimPolicy == v1.PersistentVolumeReclaimDelete {
		pv.Finalizers = []string{finalizer}
	}
	return pv, nil
}

// chooseAgain gives the claim back to the scheduler, as upstream's library does.
func (c *Controller) chooseAgain(ctx context.Context, claim *v1.PersistentVolumeClaim) error {
	changed := claim.DeepCopy()
	delete(changed.Annotations, volume.AnnSelectedNode)
	_, err := c.client.CoreV1().PersistentVolumeClaims(claim.Namespace).Update(ctx, changed, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // it comes again
	}
	return err
}

// reclaim ends a released volume once its folder is removed, and keeps the finalizer as the reclaim policy has it.
func (c *Controller) reclaim(ctx context.Context, name string) error {
	pv, err := c.volumes.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil || !localvolumes.Ours(pv) {
		return err
	}
	if !localvolumes.Released(pv) {
		return c.setFinalizer(ctx, pv, pv.Spec.PersistentVolumeReclaimPolicy == v1.PersistentVolumeReclaimDelete)
	}
	if pv.Annotations[localvolumes.AnnotationRemoved] == "" {
		node := localvolumes.Node(pv)
		if _, err := c.nodes.Get(node); err == nil || !apierrors.IsNotFound(err) {
			return err // its node is told
		}
		c.opts.Logger.Warn("a released volume's node is gone: the volume goes, and its folder stays on that board", "volume", pv.Name, "node", node, "folder", pv.Spec.Local.Path)
	}
	if err := c.setFinalizer(ctx, pv, false); err != nil {
		return err
	}
	err = c.client.CoreV1().PersistentVolumes().Delete(ctx, pv.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(pv.UID))})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (c *Controller) setFinalizer(ctx context.Context, pv *v1.PersistentVolume, want bool) error {
	if slices.Contains(pv.Finalizers, finalizer) == want || want && pv.DeletionTimestamp != nil {
		return nil
	}
	finalizers := slices.DeleteFunc(slices.Clone(pv.Finalizers), func(f string) bool { return f == finalizer })
	if want {
		finalizers = append(finalizers, finalizer)
	}
	changed := pv.DeepCopy()
	changed.Finalizers = finalizers
	_, err := c.client.CoreV1().PersistentVolumes().Update(ctx, changed, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
