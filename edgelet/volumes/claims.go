package volumes

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-edge/coracle/edgelet/pods/kubeobj"
)

// Kinds of the objects that a claim leads to; controlplane/fleethub sends them
// with the pod.
const (
	kindClaim      = "PersistentVolumeClaim"
	KindVolume     = "PersistentVolume"
	kindDriver     = "CSIDriver"
	kindAttachment = "VolumeAttachment"
)

const (
	finalizerClaim = "kubernetes.io/pvc-protection"
	annotationGID  = "pv.beta.kubernetes.io/gid"
)

// claim finds a pod's claim and the volume that is bound to it. Words are a
// kubelet's (desired_state_of_world_populator.go).
func (m *Manager) claim(pod *v1.Pod, name string, ephemeral bool) (*v1.PersistentVolumeClaim, *v1.PersistentVolume, error) {
	fail := func(format string, args ...any) (*v1.PersistentVolumeClaim, *v1.PersistentVolume, error) {
		return nil, nil, fmt.Errorf("%w %s/%s: %w", ErrClaim, pod.Namespace, name, fmt.Errorf(format, args...))
	}
	raw, found, err := m.Objects.Object(kindClaim, pod.Namespace, name)
	if err != nil {
		return fail("%w", err)
	}
	if !found {
		return fail("failed to fetch PVC from API server: persistentvolumeclaims %q %w", name, ErrNotFound)
	}
	claim, err := kubeobj.PersistentVolumeClaim(raw)
	if err != nil {
		return fail("%w", err)
	}
	switch {
	case ephemeral && !ownedBy(claim, pod):
		return fail("PVC was not created for pod %s/%s (pod is not owner)", pod.Namespace, pod.Name)
	case claim.DeletionTimestamp != nil && !slices.Contains(claim.Finalizers, finalizerClaim):
		return fail("PVC is being deleted")
	case claim.Status.Phase != v1.ClaimBound:
		return fail("PVC is not bound")
	case claim.Spec.VolumeName == "":
		return fail("PVC has empty pvc.Spec.VolumeName")
	}
	volume := claim.Spec.VolumeName
	if raw, found, err = m.Objects.Object(KindVolume, "", volume); err != nil {
		return fail("%w", err)
	}
	if !found {
		return fail("failed to fetch PV %s from API server: persistentvolumes %q %w", volume, volume, ErrNotFound)
	}
	pv, err := kubeobj.PersistentVolume(raw)
	if err != nil {
		return fail("%w", err)
	}
	ref := pv.Spec.ClaimRef
	switch {
	case ref == nil:
		return fail("found PV object %s but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim", volume)
	case ref.UID != claim.UID:
		return fail("found PV object %s but its pv.Spec.ClaimRef.UID %s does not point to claim.UID %s", volume, ref.UID, claim.UID)
	}
	return claim, pv, nil
}

// Ref names an object.
type Ref struct{ Kind, Namespace, Name string }

// Behind are the objects that a claim leads to on a node, as far as they are
// here: when one of them changes, what waits for the claim may go on.
func (m *Manager) Behind(node, namespace, claimName string) []Ref {
	raw, found, err := m.Objects.Object(kindClaim, namespace, claimName)
	if err != nil || !found {
		return nil
	}
	claim, err := kubeobj.PersistentVolumeClaim(raw)
	if err != nil || claim.Spec.VolumeName == "" {
		return nil
	}
	out := []Ref{{KindVolume, "", claim.Spec.VolumeName}}
	if raw, found, err = m.Objects.Object(KindVolume, "", claim.Spec.VolumeName); err != nil || !found {
		return out
	}
	pv, err := kubeobj.PersistentVolume(raw)
	if err != nil || pv.Spec.CSI == nil {
		return out
	}
	s := pv.Spec.CSI
	out = append(out, Ref{kindDriver, "", s.Driver}, Ref{kindAttachment, "", attachmentName(s.VolumeHandle, s.Driver, node)})
	for _, r := range []*v1.SecretReference{s.NodeStageSecretRef, s.NodePublishSecretRef, s.NodeExpandSecretRef} {
		if r != nil {
			out = append(out, Ref{"Secret", r.Namespace, r.Name})
		}
	}
	return out
}

func ownedBy(claim *v1.PersistentVolumeClaim, pod *v1.Pod) bool {
	return slices.ContainsFunc(claim.OwnerReferences, func(r metav1.OwnerReference) bool {
		return r.Kind == "Pod" && r.Name == pod.Name && r.UID == pod.UID && r.Controller != nil && *r.Controller
	})
}

// claimed makes a volume that a claim stands for.
func (m *Manager) claimed(ctx context.Context, pod *v1.Pod, name, claimName string, readOnly, ephemeral bool, out *Mounted) error {
	claim, pv, err := m.claim(pod, claimName, ephemeral)
	if err != nil {
		return err
	}
	block := pv.Spec.VolumeMode != nil && *pv.Spec.VolumeMode == v1.PersistentVolumeBlock
	mounts, devices := used(pod, name)
	switch {
	case mounts && block:
		return fmt.Errorf("%w %s/%s: volume %s has volumeMode Block, but is specified in volumeMounts", ErrClaim, claim.Namespace, claim.Name, name)
	case devices && !block:
		return fmt.Errorf("%w %s/%s: volume %s has volumeMode Filesystem, but is specified in volumeDevices", ErrClaim, claim.Namespace, claim.Name, name)
	}
	if err := m.takeAlone(pod, pv); err != nil {
		return err
	}
	if gid, err := strconv.ParseInt(pv.Annotations[annotationGID], 10, 64); err == nil && gid > 0 {
		out.Groups = append(out.Groups, gid)
	}
	s := &pv.Spec
	var path string
	had := true // the pod, before
	switch {
	case s.CSI != nil:
		return m.persistentCSI(ctx, pod, name, claim, pv, readOnly, out)
	case s.Local != nil && block:
		path, err = localDevice(s.Local.Path)
	case s.Local != nil:
		path, had, err = m.local(ctx, pod, pv, readOnly)
	case block:
		return fmt.Errorf("%w: a block device of a %s volume", ErrUnsupported, persistentSourceName(&s.PersistentVolumeSource))
	case s.HostPath != nil:
		path, err = s.HostPath.Path, checkHostPath(s.HostPath)
	case s.NFS != nil:
		readOnly = readOnly || s.NFS.ReadOnly
		path, err = m.nfs(ctx, pod, pv.Name, &v1.NFSVolumeSource{Server: s.NFS.Server, Path: s.NFS.Path, ReadOnly: readOnly}, s.MountOptions)
	default:
		return fmt.Errorf("PersistentVolume %s: %w", pv.Name, unsupported(persistentSourceName(&s.PersistentVolumeSource)))
	}
	if err != nil {
		return err
	}
	out.ReadOnly[name] = readOnly
	if block {
		out.Devices[name] = path
	} else {
		out.Paths[name] = path
	}
	if s.Local == nil {
		return nil
	}
	return m.grow(pod, claim, pv, readOnly, had, out, func(int64) error { return growLocal(ctx, s.Local, block, path) })
}

// Driven reports whether the pod has volumes that a driver or a server makes, which may
// not answer.
func Driven(pod *v1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v v1.Volume) bool {
		return v.PersistentVolumeClaim != nil || v.Ephemeral != nil || v.CSI != nil || v.NFS != nil
	})
}

// used says how the containers of a pod use a volume.
func used(pod *v1.Pod, volume string) (mounts, devices bool) {
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			mounts = mounts || slices.ContainsFunc(list[i].VolumeMounts, func(m v1.VolumeMount) bool { return m.Name == volume })
			devices = devices || slices.ContainsFunc(list[i].VolumeDevices, func(d v1.VolumeDevice) bool { return d.Name == volume })
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		mounts = mounts || slices.ContainsFunc(pod.Spec.EphemeralContainers[i].VolumeMounts, func(m v1.VolumeMount) bool { return m.Name == volume })
	}
	return mounts, devices
}

// takeAlone gives a volume of the mode ReadWriteOncePod to one pod until that is
// torn down. The scheduler looks, too, but not at pods that name their node.
func (m *Manager) takeAlone(pod *v1.Pod, pv *v1.PersistentVolume) error {
	if !slices.Contains(pv.Spec.AccessModes, v1.ReadWriteOncePod) {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if uid, taken := m.alone[pv.Name]; taken && uid != string(pod.UID) {
		return ErrInUse
	}
	m.alone[pv.Name] = string(pod.UID)
	return nil
}
