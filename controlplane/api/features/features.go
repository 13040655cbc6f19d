package features

import (
	"slices"
	"strings"
)

// Annotation of a pod lists, separated by commas, the features that its node must
// have, beside those that follow from its spec.
const Annotation = "coracle.dev/requires-features"

// maxName is a DNS subdomain's, as upstream bounds names of features.
const maxName = 253

// Needed are the names in the annotation of a pod, each once, as they are written.
func Needed(annotations map[string]string) []string {
	var need []string
	for name := range strings.SplitSeq(annotations[Annotation], ",") {
		if name = strings.TrimSpace(name); name != "" && !contains(need, name) {
			need = append(need, name)
		}
	}
	return need
}

// Missing are those of need that a node which declares have doesn't have.
func Missing(need, have []string) []string {
	var missing []string
	for _, name := range need {
		if !contains(have, name) {
			missing = append(missing, name)
		}
	}
	return missing
}

// Declare returns names as status.declaredFeatures must hold them: sorted, each
// once.
func Declare(names ...string) []string {
	out := slices.Clone(names)
	slices.Sort(out)
	return slices.Compact(out)
}

// Valid says whether the API server takes a name in status.declaredFeatures:
// segments of letters and digits with slashes between them, each beginning with a
// letter, the first one with a capital (upstream's validateNodeDeclaredFeatureName).
func Valid(name string) bool {
	if len(name) > maxName {
		return false
	}
	for i, segment := range strings.Split(name, "/") {
		if segment == "" || !letter(segment[0]) || i == 0 && segment[0] > 'Z' {
			return false
		}
		for j := range len(segment) {
			if c := segment[j]; !letter(c) && (c < '0' || c > '9') {
				return false
			}
		}
	}
	return true
}

func letter(c byte) bool { return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' }

func contains(list []string, name string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return strings.EqualFold(s, name) })
}
