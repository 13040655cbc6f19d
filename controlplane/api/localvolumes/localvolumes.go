package localvolumes

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

const (
	// Class is the StorageClass that every cluster has, by the name that k3s gave it:
	// manifests that name it run here.
	Class = "local-path"
	// Provisioner is that of Class, and of any other StorageClass of its kind.
	Provisioner = "coracle.dev/local-path"

	// Label on a Node says that it makes volumes. The class asks for it, so that the
	// scheduler looks for such a node.
	Label = "coracle.dev/local-volumes"
	// AnnotationDir on a Node is the folder below which it makes volumes. A node
	// without it makes none.
	AnnotationDir = "coracle.dev/local-volumes-dir"
	// AnnotationGone on a Node that reports itself is a JSON list of Gone. It isn't stored.
	AnnotationGone = "coracle.dev/gone-local-volumes"
	// AnnotationRemoved on a PersistentVolume says that its node has removed the folder.
	AnnotationRemoved = "coracle.dev/local-volume-removed"

	// annotationProvisionedBy is upstream's (pkg/controller/volume/persistentvolume).
	annotationProvisionedBy = "pv.kubernetes.io/provisioned-by"
)

// Gone is a volume whose folder is no longer on the node.
type Gone struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// Mark says in a volume that it is one of ours, on a node.
func Mark(pv *corev1.PersistentVolume, node string) {
	if pv.Annotations == nil {
		pv.Annotations = map[string]string{}
	}
	pv.Annotations[annotationProvisionedBy] = Provisioner
	pv.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}}}}
}

// Ours reports whether a volume's folder is made and removed by its node.
func Ours(pv *corev1.PersistentVolume) bool {
	return pv.Spec.Local != nil && pv.Annotations[annotationProvisionedBy] == Provisioner
}

// Node is the node of one of our volumes, empty if that can't be told. A node's
// hostname label is its name.
func Node(pv *corev1.PersistentVolume) string {
	a := pv.Spec.NodeAffinity
	if !Ours(pv) || a == nil || a.Required == nil || len(a.Required.NodeSelectorTerms) != 1 {
		return ""
	}
	terms := a.Required.NodeSelectorTerms[0].MatchExpressions
	i := slices.IndexFunc(terms, func(r corev1.NodeSelectorRequirement) bool {
		return r.Key == corev1.LabelHostname && r.Operator == corev1.NodeSelectorOpIn && len(r.Values) == 1
	})
	if i < 0 {
		return ""
	}
	return terms[i].Values[0]
}

// ToRemove reports whether the node is to remove a volume's folder and has not said
// that it did.
func ToRemove(pv *corev1.PersistentVolume) bool {
	return Released(pv) && pv.Annotations[AnnotationRemoved] == ""
}

// Released reports whether a volume ends with its folder.
func Released(pv *corev1.PersistentVolume) bool {
	return Ours(pv) && pv.Status.Phase == corev1.VolumeReleased && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
}
