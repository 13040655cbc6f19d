package static

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
)

// references refuses a pod that needs something of the API: it runs where there may
// be none, and its mirror would be refused there (upstream: HasAPIObjectReference in
// pkg/api/pod, whose words these are).
func references(pod *v1.Pod) error {
	if what := referenced(&pod.Spec); what != "" {
		return fmt.Errorf("static pods may not reference %s; write the values into the file, or mount a hostPath", what)
	}
	return nil
}

func referenced(s *v1.PodSpec) string {
	switch {
	case s.ServiceAccountName != "", s.DeprecatedServiceAccount != "":
		return "serviceaccounts"
	case len(s.ImagePullSecrets) > 0:
		return "secrets"
	case len(s.ResourceClaims) > 0:
		return "resourceclaims"
	}
	for _, list := range [][]v1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			if what := inEnvironment(&list[i]); what != "" {
				return what
			}
		}
	}
	for i := range s.Volumes {
		if what := inVolume(&s.Volumes[i].VolumeSource); what != "" {
			return what
		}
	}
	return ""
}

func inEnvironment(c *v1.Container) string {
	for _, from := range c.EnvFrom {
		switch {
		case from.SecretRef != nil:
			return "secrets"
		case from.ConfigMapRef != nil:
			return "configmaps"
		}
	}
	for _, e := range c.Env {
		switch {
		case e.ValueFrom == nil:
		case e.ValueFrom.SecretKeyRef != nil:
			return "secrets"
		case e.ValueFrom.ConfigMapKeyRef != nil:
			return "configmaps"
		}
	}
	return ""
}

// inVolume names what a volume is made of. Types that no node of ours has are
// refused when the pod starts, by their names.
func inVolume(v *v1.VolumeSource) string {
	switch {
	case v.ConfigMap != nil:
		return "configmaps (via configmap volumes)"
	case v.Secret != nil:
		return "secrets (via secret volumes)"
	case v.CSI != nil:
		return "csidrivers (via CSI volumes)"
	case v.Glusterfs != nil:
		return "endpoints (via glusterFS volumes)"
	case v.PersistentVolumeClaim != nil:
		return "persistentvolumeclaims"
	case v.Ephemeral != nil:
		return "persistentvolumeclaims (via ephemeral volumes)"
	case v.AzureFile != nil:
		return "secrets (via azureFile volumes)"
	case v.Projected == nil:
		return ""
	}
	for _, s := range v.Projected.Sources {
		switch {
		case s.ConfigMap != nil:
			return "configmaps (via projected volumes)"
		case s.Secret != nil:
			return "secrets (via projected volumes)"
		case s.ServiceAccountToken != nil:
			return "serviceaccounts (via projected volumes)"
		case s.ClusterTrustBundle != nil:
			return "clustertrustbundles"
		case s.PodCertificate != nil:
			return "podcertificates"
		}
	}
	return ""
}
