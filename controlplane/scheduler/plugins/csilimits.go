package plugins

import (
	"context"
	"maps"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/component-helpers/storage/volume"

	"github.com/coracle-edge/coracle/controlplane/scheduler/framework"
)

// CSILimits refuses nodes where a CSI driver would get more volumes than it said,
// in the CSINode, fit there (upstream: nodevolumelimits). Pods that share a volume
// count once; a claim that isn't bound yet counts for the provisioner of its
// class.
type CSILimits struct {
	claims  corelisters.PersistentVolumeClaimLister
	volumes corelisters.PersistentVolumeLister
	classes storagelisters.StorageClassLister
	nodes   storagelisters.CSINodeLister
}

// NewCSILimits returns the plugin.
func NewCSILimits(factory informers.SharedInformerFactory) *CSILimits {
	core, storage := factory.Core().V1(), factory.Storage().V1()
	return &CSILimits{core.PersistentVolumeClaims().Lister(), core.PersistentVolumes().Lister(), storage.StorageClasses().Lister(), storage.CSINodes().Lister()}
}

func (*CSILimits) Name() string { return "NodeVolumeLimits" }

// csiVolume is one volume of a driver.
type csiVolume struct{ driver, handle string }

// PrepareFilter finds out what the pod's claims are volumes of.
func (p *CSILimits) PrepareFilter(_ context.Context, pod *framework.Pod, _ *framework.Cluster) (framework.Filter, *framework.Status) {
	wants := map[csiVolume]bool{}
	p.add(pod.Pod, wants)
	if len(wants) == 0 {
		return nil, nil
	}
	return &csiWants{p, wants}, nil
}

// Filter is that of a single node.
func (p *CSILimits) Filter(ctx context.Context, pod *framework.Pod, node *framework.NodeInfo) *framework.Status {
	f, status := p.PrepareFilter(ctx, pod, nil)
	if f == nil {
		return status
	}
	return f.Filter(ctx, pod, node)
}

// add adds the volumes of a pod's claims. What isn't known is not counted:
// VolumeBinding refuses a pod whose claims can't be used.
func (p *CSILimits) add(pod *v1.Pod, to map[csiVolume]bool) {
	for i := range pod.Spec.Volumes {
		if csi := pod.Spec.Volumes[i].CSI; csi != nil {
			to[csiVolume{csi.Driver, string(pod.UID) + "/" + pod.Spec.Volumes[i].Name}] = true
		}
	}
	for _, name := range claimNames(pod) {
		claim, err := p.claims.PersistentVolumeClaims(pod.Namespace).Get(name)
		if err != nil {
			continue
		}
		if claim.Spec.VolumeName == "" {
			if class, err := p.classes.Get(volume.GetPersistentVolumeClaimClass(claim)); err == nil {
				to[csiVolume{class.Provisioner, "claim " + pod.Namespace + "/" + name}] = true
			}
			continue
		}
		if v, err := p.volumes.Get(claim.Spec.VolumeName); err == nil && v.Spec.CSI != nil {
			to[csiVolume{v.Spec.CSI.Driver, v.Spec.CSI.VolumeHandle}] = true
		}
	}
}

type csiWants struct {
	*CSILimits
	wants map[csiVolume]bool
}

func (w *csiWants) Filter(_ context.Context, _ *framework.Pod, node *framework.NodeInfo) *framework.Status {
	has, err := w.nodes.Get(node.Node.Name)
	if err != nil {
		return nil // no driver there says how many fit
	}
	limits := map[string]int{}
	for _, d := range has.Spec.Drivers {
		if d.Allocatable != nil && d.Allocatable.Count != nil {
			limits[d.Name] = int(*d.Allocatable.Count)
		}
	}
	if len(limits) == 0 {
		return nil
	}
	all := map[csiVolume]bool{}
	for _, pod := range node.Pods {
		w.add(pod.Pod, all)
	}
	before := map[string]int{}
	for v := range all {
		before[v.driver]++
	}
	maps.Copy(all, w.wants)
	after := map[string]int{}
	for v := range all {
		after[v.driver]++
	}
	for driver, n := range after {
		if limit, ok := limits[driver]; ok && n > limit && n > before[driver] {
			return framework.Refuse("node(s) exceed max volume count")
		}
	}
	return nil
}

// MayHelp implements [framework.Requeuer].
func (p *CSILimits) MayHelp(_ *framework.Pod, ev framework.Event) bool {
	switch ev.Kind {
	case framework.VolumeEvent, framework.PodLeft, framework.NodeChanged:
		return true
	}
	return false
}
