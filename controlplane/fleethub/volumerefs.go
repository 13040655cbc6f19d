package fleethub

import (
	"crypto/sha256"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	resourcelisters "k8s.io/client-go/listers/resource/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-edge/coracle/controlplane/api/localvolumes"
)

// Kinds of objects that nodes get because a pod's volume leads to them.
const (
	kindClaim      = "PersistentVolumeClaim"
	kindVolume     = "PersistentVolume"
	kindDriver     = "CSIDriver"
	kindAttachment = "VolumeAttachment"
)

// storageLists is where what volumes' claims lead to is looked up, and claims of
// devices.
type storageLists struct {
	claims      corelisters.PersistentVolumeClaimLister
	volumes     corelisters.PersistentVolumeLister
	drivers     storagelisters.CSIDriverLister
	attachments storagelisters.VolumeAttachmentLister
	devices     resourcelisters.ResourceClaimLister
}

func newStorageLists(f informers.SharedInformerFactory) storageLists {
	core, storage := f.Core().V1(), f.Storage().V1()
	return storageLists{core.PersistentVolumeClaims().Lister(), core.PersistentVolumes().Lister(),
		storage.CSIDrivers().Lister(), storage.VolumeAttachments().Lister(), f.Resource().V1().ResourceClaims().Lister()}
}

// informers are those that the lists read, by kind.
func (storageLists) informers(f informers.SharedInformerFactory) map[string]cache.SharedIndexInformer {
	core, storage := f.Core().V1(), f.Storage().V1()
	return map[string]cache.SharedIndexInformer{
		kindClaim:      core.PersistentVolumeClaims().Informer(),
		kindVolume:     core.PersistentVolumes().Informer(),
		kindDriver:     storage.CSIDrivers().Informer(),
		kindAttachment: storage.VolumeAttachments().Informer(),
		kindDevices:    f.Resource().V1().ResourceClaims().Informer(),
	}
}

// follow adds to refs what the claims in it lead to: their volumes, and of those
// the driver, the attachment to this node and the secrets that the driver's node
// half is given. So a node that boots without a network mounts everything again.
func (l storageLists) follow(node string, refs map[ref]bool) {
	for r := range refs {
		if r.kind != kindClaim {
			continue
		}
		claim, err := l.claims.PersistentVolumeClaims(r.namespace).Get(r.name)
		if err != nil || claim.Spec.VolumeName == "" {
			continue
		}
		refs[ref{kindVolume, "", claim.Spec.VolumeName}] = true
		volume, err := l.volumes.Get(claim.Spec.VolumeName)
		// Somebody else's volume brings no secrets.
		if err != nil || volume.Spec.CSI == nil || !claims(claim, volume) {
			continue
		}
		csi := volume.Spec.CSI
		refs[ref{kindDriver, "", csi.Driver}] = true
		refs[ref{kindAttachment, "", attachmentName(csi.VolumeHandle, csi.Driver, node)}] = true
		for _, s := range []*corev1.SecretReference{csi.NodeStageSecretRef, csi.NodePublishSecretRef, csi.NodeExpandSecretRef} {
			if s != nil && s.Name != "" {
				refs[ref{"Secret", s.Namespace, s.Name}] = true
			}
		}
	}
}

// claims reports whether a claim and a volume are bound to each other.
func claims(claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume) bool {
	to := volume.Spec.ClaimRef
	return to != nil && to.Namespace == claim.Namespace && to.Name == claim.Name && to.UID == claim.UID
}

// attachmentName is how upstream's attach/detach controller names the attachment
// of a volume to a node (pkg/volume/csi/csi_attacher.go).
func attachmentName(handle, driver, node string) string {
	return fmt.Sprintf("csi-%x", sha256.Sum256([]byte(handle+driver+node)))
}

// get returns an object of one of these kinds for describe, false if there is none.
func (l storageLists) get(r ref) (o described, ok bool) {
	var err error
	switch r.kind {
	case kindClaim:
		o, err = l.claims.PersistentVolumeClaims(r.namespace).Get(r.name)
	case kindVolume:
		o, err = l.volumes.Get(r.name)
	case kindDriver:
		o, err = l.drivers.Get(r.name)
	case kindAttachment:
		o, err = l.attachments.Get(r.name)
	case kindDevices:
		o, err = l.devices.ResourceClaims(r.namespace).Get(r.name)
	default:
		return nil, false
	}
	return o, err == nil
}

// The parts of a status that a node acts on; what else changes there is not sent
// again.

func projectClaim(from *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: project(from.ObjectMeta), Spec: from.Spec,
		Status: corev1.PersistentVolumeClaimStatus{Phase: from.Status.Phase, Capacity: from.Status.Capacity,
			AllocatedResources: from.Status.AllocatedResources, AllocatedResourceStatuses: from.Status.AllocatedResourceStatuses}}
}

func projectVolume(from *corev1.PersistentVolume) *corev1.PersistentVolume {
	out := &corev1.PersistentVolume{ObjectMeta: project(from.ObjectMeta), Spec: from.Spec}
	if localvolumes.ToRemove(from) {
		out.Status.Phase = from.Status.Phase
	}
	return out
}

func projectAttachment(from *storagev1.VolumeAttachment) *storagev1.VolumeAttachment {
	return &storagev1.VolumeAttachment{ObjectMeta: project(from.ObjectMeta), Spec: from.Spec,
		Status: storagev1.VolumeAttachmentStatus{Attached: from.Status.Attached, AttachmentMetadata: from.Status.AttachmentMetadata, AttachError: from.Status.AttachError}}
}
