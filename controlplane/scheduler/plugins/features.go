package plugins

import (
	"context"
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/version"
	baseversion "k8s.io/component-base/version"
	ndf "k8s.io/component-helpers/nodedeclaredfeatures"
	upstream "k8s.io/component-helpers/nodedeclaredfeatures/features"

	"github.com/coracle-edge/coracle/controlplane/api/features"
	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// Features refuses nodes that don't declare a feature that the pod needs
// (KEP-5328), by its spec or by its annotation [features.Annotation], and names
// the feature.
type Features struct {
	known   []ndf.Feature
	version *version.Version
}

// NewFeatures returns a Features that infers needs for the version of
// Kubernetes that is linked.
func NewFeatures() *Features {
	return &Features{known: upstream.AllFeatures, version: version.MustParse(baseversion.DefaultKubeBinaryVersion + ".0")}
}

func (*Features) Name() string { return "NodeDeclaredFeatures" }

func (f *Features) PrepareFilter(_ context.Context, pod *framework.Pod, _ *framework.Cluster) (framework.Filter, *framework.Status) {
	if need := f.needs(pod); len(need) > 0 {
		return featureNeeds(need), nil
	}
	return nil, nil
}

func (f *Features) Filter(_ context.Context, pod *framework.Pod, node *framework.NodeInfo) *framework.Status {
	return featureNeeds(f.needs(pod)).on(node.Node)
}

func (f *Features) MayHelp(pod *framework.Pod, ev framework.Event) bool {
	need := featureNeeds(f.needs(pod))
	return ev.Kind == framework.PodChanged || framework.NodeMayHelp(pod, ev,
		func(_ *framework.Pod, node *v1.Node) *framework.Status { return need.on(node) })
}

func (f *Features) needs(pod *framework.Pod) []string {
	var need []string
	info := &ndf.PodInfo{Spec: &pod.Spec}
	for _, feature := range f.known {
		if last := feature.MaxVersion(); last != nil && f.version.GreaterThan(last) {
			continue // every node has it
		}
		if feature.InferForScheduling(info) {
			need = append(need, feature.Name())
		}
	}
	return append(need, features.Needed(pod.Annotations)...)
}

type featureNeeds []string

func (featureNeeds) Name() string { return (*Features)(nil).Name() }

func (need featureNeeds) Filter(_ context.Context, _ *framework.Pod, node *framework.NodeInfo) *framework.Status {
	return need.on(node.Node)
}

func (need featureNeeds) on(node *v1.Node) *framework.Status {
	missing := features.Missing(need, node.Status.DeclaredFeatures)
	if len(missing) == 0 {
		return nil
	}
	return framework.Exclude(fmt.Sprintf("node(s) didn't declare the required feature(s) %s", strings.Join(missing, ", ")))
}
