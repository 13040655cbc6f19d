package static

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// ErrInvalid is returned when a file doesn't hold a pod that this node can run.
var ErrInvalid = errors.New("invalid static pod")

// MaxFile bounds a file, in bytes.
const MaxFile = 10 << 20

// Annotations of static pods, as a kubelet sets them.
const (
	AnnotationHash   = "kubernetes.io/config.hash"
	AnnotationSource = "kubernetes.io/config.source"
	AnnotationSeen   = "kubernetes.io/config.seen"
	// AnnotationMirror is on mirrors in the API, which a file is none of.
	AnnotationMirror = v1.MirrorPodAnnotationKey
)

// Decode reads one pod from a file's content and completes it as a kubelet
// does: UID, name, node, source, and the API's defaults.
func Decode(data []byte, path, nodeName string) (*v1.Pod, error) {
	if len(data) > MaxFile {
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", ErrInvalid, path, MaxFile)
	}
	raw, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, path, err)
	}
	pod := new(v1.Pod)
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.DisallowUnknownFields() // a misspelt field would silently be another pod
	if err := d.Decode(pod); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, path, err)
	}
	if err := validate(pod); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, path, err)
	}
	if pod.UID == "" {
		h := sha256.New()
		h.Write(raw)
		fmt.Fprintf(h, "host:%sfile:%s", nodeName, path)
		pod.UID = types.UID(hex.EncodeToString(h.Sum(nil)[:16]))
	}
	pod.Name += "-" + strings.ToLower(nodeName)
	if pod.Namespace == "" {
		pod.Namespace = metav1.NamespaceDefault
	}
	pod.Spec.NodeName = nodeName
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[AnnotationHash] = string(pod.UID)
	pod.Annotations[AnnotationSource] = "file"
	delete(pod.Annotations, AnnotationMirror)
	pod.Spec.Tolerations = append(pod.Spec.Tolerations, v1.Toleration{Operator: v1.TolerationOpExists, Effect: v1.TaintEffectNoExecute})
	pod.Status = v1.PodStatus{Phase: v1.PodPending}
	setDefaults(pod)
	return pod, nil
}

// validate checks what would otherwise fail far from the file. It is no
// substitute for the API server's validation.
func validate(pod *v1.Pod) error {
	switch {
	case pod.Kind != "Pod" || (pod.APIVersion != "v1" && pod.APIVersion != ""):
		return fmt.Errorf("apiVersion %q, kind %q: want v1, Pod", pod.APIVersion, pod.Kind)
	case pod.Name == "":
		return errors.New("metadata.name: required")
	case strings.ContainsAny(pod.Name+pod.Namespace+string(pod.UID), "/\x00_ ") || strings.HasPrefix(pod.Name+pod.Namespace, "."):
		return fmt.Errorf("metadata: name %q, namespace %q, uid %q must not contain '/', '_' or spaces", pod.Name, pod.Namespace, pod.UID)
	case len(pod.Spec.Containers) == 0:
		return errors.New("spec.containers: at least one is required")
	case len(pod.Spec.EphemeralContainers) > 0:
		return errors.New("spec.ephemeralContainers: not allowed in a static pod")
	}
	seen := map[string]bool{}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			c := &list[i]
			switch {
			case c.Name == "" || strings.ContainsAny(c.Name, "/\x00_ .") || len(c.Name) > 63:
				return fmt.Errorf("spec.containers[%d].name: %q is not a DNS label", i, c.Name)
			case seen[c.Name]:
				return fmt.Errorf("spec.containers[%d].name: %q is there twice", i, c.Name)
			case c.Image == "":
				return fmt.Errorf("container %q: image: required", c.Name)
			}
			seen[c.Name] = true
		}
	}
	if err := references(pod); err != nil {
		return err
	}
	volumes := map[string]bool{}
	for i := range pod.Spec.Volumes {
		name := pod.Spec.Volumes[i].Name
		if name == "" || strings.ContainsAny(name, "/\x00_ .") || len(name) > 63 {
			return fmt.Errorf("spec.volumes[%d].name: %q is not a DNS label", i, name)
		}
		if volumes[name] {
			return fmt.Errorf("spec.volumes[%d].name: %q is there twice", i, name)
		}
		volumes[name] = true
	}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			for _, m := range list[i].VolumeMounts {
				if !volumes[m.Name] {
					return fmt.Errorf("container %q mounts volume %q, which the pod doesn't have", list[i].Name, m.Name)
				}
			}
		}
	}
	return nil
}

// setDefaults fills in what the API server would have.
func setDefaults(pod *v1.Pod) {
	s := &pod.Spec
	def(&s.RestartPolicy, v1.RestartPolicyAlways)
	def(&s.DNSPolicy, v1.DNSClusterFirst)
	def(&s.SchedulerName, v1.DefaultSchedulerName)
	defPtr(&s.TerminationGracePeriodSeconds, int64(v1.DefaultTerminationGracePeriodSeconds))
	defPtr(&s.EnableServiceLinks, v1.DefaultEnableServiceLinks)
	if s.SecurityContext == nil {
		s.SecurityContext = &v1.PodSecurityContext{}
	}
	for i := range s.Volumes {
		if v := &s.Volumes[i]; v.VolumeSource == (v1.VolumeSource{}) {
			v.EmptyDir = &v1.EmptyDirVolumeSource{}
		}
	}
	for _, list := range [][]v1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			c := &list[i]
			def(&c.TerminationMessagePath, v1.TerminationMessagePathDefault)
			def(&c.TerminationMessagePolicy, v1.TerminationMessageReadFile)
			def(&c.ImagePullPolicy, defaultPolicy(c.Image))
			for j := range c.Ports {
				def(&c.Ports[j].Protocol, v1.ProtocolTCP)
				if s.HostNetwork {
					def(&c.Ports[j].HostPort, c.Ports[j].ContainerPort)
				}
			}
			for name, q := range c.Resources.Limits {
				if _, ok := c.Resources.Requests[name]; !ok {
					if c.Resources.Requests == nil {
						c.Resources.Requests = v1.ResourceList{}
					}
					c.Resources.Requests[name] = q.DeepCopy()
				}
			}
		}
	}
}

func defaultPolicy(image string) v1.PullPolicy {
	if strings.Contains(image, "@") {
		return v1.PullIfNotPresent
	}
	last := image[strings.LastIndexByte(image, '/')+1:]
	if _, tag, ok := strings.Cut(last, ":"); ok && tag != "latest" {
		return v1.PullIfNotPresent
	}
	return v1.PullAlways
}

func def[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func defPtr[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}
