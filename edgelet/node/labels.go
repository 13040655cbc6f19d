package node

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// ErrLabel is returned by New for a label that a node can't have: the API server
// would refuse all that the node says of itself because of it.
var ErrLabel = errors.New("this label can't be given to a node by itself")

// Of the labels below kubernetes.io and k8s.io a node may set these only, as
// k8s.io/kubelet/pkg/apis lists them and the NodeRestriction plugin demands.
var (
	ownLabels = []string{v1.LabelHostname, v1.LabelTopologyZone, v1.LabelTopologyRegion, v1.LabelFailureDomainBetaZone, v1.LabelFailureDomainBetaRegion,
		v1.LabelInstanceType, v1.LabelInstanceTypeStable, v1.LabelOSStable, v1.LabelArchStable, labelBetaOS, labelBetaArch}
	ownNamespaces = []string{v1.LabelNamespaceSuffixKubelet, v1.LabelNamespaceSuffixNode}
)

// Labels that a kubelet still sets beside those that took their place.
const (
	labelBetaOS   = "beta.kubernetes.io/os"
	labelBetaArch = "beta.kubernetes.io/arch"
)

func checkLabels(labels map[string]string) error {
	var errs []error
	for k, v := range labels {
		if problems := validation.IsQualifiedName(k); len(problems) > 0 {
			errs = append(errs, fmt.Errorf("%w: %s=%s: the name: %s", ErrLabel, k, v, strings.Join(problems, "; ")))
		}
		if problems := validation.IsValidLabelValue(v); len(problems) > 0 {
			errs = append(errs, fmt.Errorf("%w: %s=%s: the value: %s", ErrLabel, k, v, strings.Join(problems, "; ")))
		}
		if !mayLabel(k) {
			errs = append(errs, fmt.Errorf("%w: %s: of kubernetes.io and k8s.io it may set those below %s, and %s; "+
				"an administrator sets others with `kubectl label node`", ErrLabel, k, strings.Join(ownNamespaces, " and "), strings.Join(ownLabels, ", ")))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

func mayLabel(name string) bool {
	namespace, _, ok := strings.Cut(name, "/")
	if !ok || slices.Contains(ownLabels, name) {
		return true
	}
	in := func(domain string) bool { return namespace == domain || strings.HasSuffix(namespace, "."+domain) }
	return slices.ContainsFunc(ownNamespaces, in) || !in("kubernetes.io") && !in("k8s.io")
}
