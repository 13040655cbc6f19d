package fleethub

import (
	"bytes"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

const (
	// AnnotationReport on pods and nodes is the stamp of the newest report that
	// was written: store/boot/seq.
	AnnotationReport = "coracle.dev/report"
	// annotationMirror and annotationHash are upstream's (pkg/kubelet/types).
	annotationMirror = corev1.MirrorPodAnnotationKey
	annotationHash   = "kubernetes.io/config.hash"
)

// ref names something that a pod refers to.
type ref struct {
	kind, namespace, name string
}

// object is an object on its way to nodes: the API's, and what nodes see of it.
type object struct {
	ref
	uid  string
	from runtime.Object // the informer's, never changed
	hash fleet.Hash
	size int
	rv   string
}

// encoder turns API objects into what nodes get.
type encoder struct {
	serializer runtime.Serializer
	hashKey    []byte
}

func newEncoder(hashKey []byte) *encoder {
	scheme := runtime.NewScheme()
	return &encoder{protobuf.NewSerializer(scheme, scheme), hashKey}
}

// described is what objects of the API are.
type described interface {
	runtime.Object
	metav1.Object
}

// describe hashes an object, or returns known if that is the same.
func (e *encoder) describe(r ref, from runtime.Object, meta metav1.Object, known object) (object, error) {
	if known.from != nil && known.rv == meta.GetResourceVersion() && known.uid == string(meta.GetUID()) && known.rv != "" {
		known.from = from
		return known, nil
	}
	o := object{ref: r, uid: string(meta.GetUID()), from: from, rv: meta.GetResourceVersion()}
	raw, err := e.raw(o)
	if err != nil {
		return o, err
	}
	o.size = len(raw)
	if r.kind == "Secret" {
		o.hash = fleet.HashSecret(e.hashKey, raw)
	} else {
		o.hash = fleet.HashObject(raw)
	}
	return o, nil
}

// raw is the object as nodes get it: "k8s\x00" and a runtime.Unknown, the same
// bytes for the same content. What changes without concerning the node is left
// out, so that it isn't ordered again: managed fields, resource versions, and a
// pod's status save what the node needs of it.
func (e *encoder) raw(o object) ([]byte, error) {
	var out runtime.Object
	switch from := o.from.(type) {
	case *corev1.Pod:
		pod := *from
		pod.ObjectMeta = project(from.ObjectMeta)
		pod.Status = projectStatus(from)
		out = &pod
	case *corev1.ConfigMap:
		c := *from
		c.ObjectMeta = project(from.ObjectMeta)
		out = &c
	case *corev1.Secret:
		c := *from
		c.ObjectMeta = project(from.ObjectMeta)
		out = &c
	case *corev1.Service:
		out = projectService(from)
	case *nodev1.RuntimeClass:
		c := *from
		c.ObjectMeta = project(from.ObjectMeta)
		out = &c
	case *corev1.PersistentVolumeClaim:
		out = projectClaim(from)
	case *corev1.PersistentVolume:
		out = projectVolume(from)
	case *storagev1.CSIDriver:
		c := *from
		c.ObjectMeta = project(from.ObjectMeta)
		out = &c
	case *storagev1.VolumeAttachment:
		out = projectAttachment(from)
	case *resourcev1.ResourceClaim:
		out = projectDevices(from)
	default:
		return nil, fmt.Errorf("%s %s/%s: no way to send a %T", o.kind, o.namespace, o.name, from)
	}
	gv := corev1.SchemeGroupVersion
	switch o.kind {
	case "RuntimeClass":
		gv = nodev1.SchemeGroupVersion
	case kindDriver, kindAttachment:
		gv = storagev1.SchemeGroupVersion
	case kindDevices:
		gv = resourcev1.SchemeGroupVersion
	}
	out.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{Group: gv.Group, Version: gv.Version, Kind: o.kind})
	var buf bytes.Buffer
	if err := e.serializer.Encode(out, &buf); err != nil {
		return nil, fmt.Errorf("encode %s %s/%s: %w", o.kind, o.namespace, o.name, err)
	}
	return buf.Bytes(), nil
}

func project(m metav1.ObjectMeta) metav1.ObjectMeta {
	m.ManagedFields = nil
	m.ResourceVersion = ""
	if _, ok := m.Annotations[AnnotationReport]; ok {
		m.Annotations = maps.Clone(m.Annotations)
		delete(m.Annotations, AnnotationReport)
		if len(m.Annotations) == 0 {
			m.Annotations = nil
		}
	}
	return m
}

// projectStatus keeps what others than the node say about a pod and the node has
// to act on: conditions of its readiness gates, and what its claims are called.
func projectStatus(pod *corev1.Pod) corev1.PodStatus {
	out := corev1.PodStatus{ResourceClaimStatuses: pod.Status.ResourceClaimStatuses, ExtendedResourceClaimStatus: pod.Status.ExtendedResourceClaimStatus}
	for _, gate := range pod.Spec.ReadinessGates {
		for _, c := range pod.Status.Conditions {
			if c.Type == gate.ConditionType {
				out.Conditions = append(out.Conditions, corev1.PodCondition{Type: c.Type, Status: c.Status, Reason: c.Reason, Message: c.Message})
			}
		}
	}
	return out
}

// references lists what a pod on a node refers to: image pull secrets, and
// ConfigMaps and Secrets in environment and volumes, as upstream's
// VisitPodSecretNames and VisitPodConfigmapNames do; its RuntimeClass; and the
// claims and CSI drivers of its volumes, see also storageLists.follow; and its claims
// of devices.
func references(pod *corev1.Pod) map[ref]bool {
	out := map[ref]bool{}
	add := func(kind, name string) {
		if name != "" {
			out[ref{kind, pod.Namespace, name}] = true
		}
	}
	for _, s := range pod.Spec.ImagePullSecrets {
		add("Secret", s.Name)
	}
	container := func(env []corev1.EnvVar, from []corev1.EnvFromSource) {
		for _, f := range from {
			if f.ConfigMapRef != nil {
				add("ConfigMap", f.ConfigMapRef.Name)
			}
			if f.SecretRef != nil {
				add("Secret", f.SecretRef.Name)
			}
		}
		for _, v := range env {
			if v.ValueFrom == nil {
				continue
			}
			if r := v.ValueFrom.ConfigMapKeyRef; r != nil {
				add("ConfigMap", r.Name)
			}
			if r := v.ValueFrom.SecretKeyRef; r != nil {
				add("Secret", r.Name)
			}
		}
	}
	for _, c := range pod.Spec.InitContainers {
		container(c.Env, c.EnvFrom)
	}
	for _, c := range pod.Spec.Containers {
		container(c.Env, c.EnvFrom)
	}
	for _, c := range pod.Spec.EphemeralContainers {
		container(c.Env, c.EnvFrom)
	}
	for _, v := range pod.Spec.Volumes {
		volume(v.VolumeSource, add)
		switch {
		case v.PersistentVolumeClaim != nil:
			add(kindClaim, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			add(kindClaim, pod.Name+"-"+v.Name)
		case v.CSI != nil:
			out[ref{kindDriver, "", v.CSI.Driver}] = true
		}
	}
	deviceClaims(pod, add)
	if pod.Spec.RuntimeClassName != nil && *pod.Spec.RuntimeClassName != "" {
		out[ref{"RuntimeClass", "", *pod.Spec.RuntimeClassName}] = true
	}
	return out
}

func volume(v corev1.VolumeSource, add func(kind, name string)) {
	local := func(r *corev1.LocalObjectReference) {
		if r != nil {
			add("Secret", r.Name)
		}
	}
	switch {
	case v.ConfigMap != nil:
		add("ConfigMap", v.ConfigMap.Name)
	case v.Secret != nil:
		add("Secret", v.Secret.SecretName)
	case v.Projected != nil:
		for _, s := range v.Projected.Sources {
			if s.ConfigMap != nil {
				add("ConfigMap", s.ConfigMap.Name)
			}
			if s.Secret != nil {
				add("Secret", s.Secret.Name)
			}
		}
	case v.AzureFile != nil:
		add("Secret", v.AzureFile.SecretName)
	case v.CephFS != nil:
		local(v.CephFS.SecretRef)
	case v.Cinder != nil:
		local(v.Cinder.SecretRef)
	case v.FlexVolume != nil:
		local(v.FlexVolume.SecretRef)
	case v.RBD != nil:
		local(v.RBD.SecretRef)
	case v.ScaleIO != nil:
		local(v.ScaleIO.SecretRef)
	case v.ISCSI != nil:
		local(v.ISCSI.SecretRef)
	case v.StorageOS != nil:
		local(v.StorageOS.SecretRef)
	case v.CSI != nil:
		local(v.CSI.NodePublishSecretRef)
	}
}

func isMirror(pod *corev1.Pod) bool {
	_, ok := pod.Annotations[annotationMirror]
	return ok
}

func podKey(pod *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
}
