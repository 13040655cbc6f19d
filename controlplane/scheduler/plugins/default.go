package plugins

import (
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-edge/coracle/controlplane/scheduler/devices"
	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// Weighted is a score with its share in the sum.
type Weighted struct {
	framework.Score
	Weight int64
}

// Set is what a scheduler runs.
type Set struct {
	Filters []framework.Filter // asked in order, the first refusal of a node counts
	Scores  []Weighted
	// PostFilters are asked in order when no node passed.
	PostFilters []framework.PostFilter
}

// Default returns the plugins in the order in which they are asked: the cheap
// and the final ones first. Weights are upstream's.
func Default(client kubernetes.Interface, factory informers.SharedInformerFactory) Set {
	affinity := &PodAffinity{Namespaces: factory.Core().V1().Namespaces().Lister()}
	claimed := devices.New(client, factory, devices.GatesOf(utilfeature.DefaultFeatureGate))
	return Set{
		Filters: []framework.Filter{
			Unschedulable{},
			NodeName{},
			Taints{},
			NodeAffinity{},
			&RuntimeClass{Classes: factory.Node().V1().RuntimeClasses().Lister()},
			NewFeatures(),
			Ports{},
			Fit{Backed: claimed.Backs},
			NewVolumes(client, factory),
			NewCSILimits(factory),
			Spread{},
			affinity,
			claimed,
		},
		Scores: []Weighted{
			{Taints{}, 3},
			{NodeAffinity{}, 2},
			{LeastAllocated{}, 1},
			{Balanced{}, 1},
			{Images{}, 1},
			{Spread{}, 2},
			{affinity, 2},
			{claimed, 2},
		},
		PostFilters: []framework.PostFilter{
			claimed, // first: a claim can be given up for less than a pod
			&Preemption{Client: client, Budgets: factory.Policy().V1().PodDisruptionBudgets().Lister()},
		},
	}
}
