package upstream

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"
	csitranslation "k8s.io/csi-translation-lib"
	"k8s.io/kubernetes/pkg/controller/volume/attachdetach"
	"k8s.io/kubernetes/pkg/controller/volume/ephemeral"
	"k8s.io/kubernetes/pkg/controller/volume/expand"
	"k8s.io/kubernetes/pkg/controller/volume/persistentvolume"
	"k8s.io/kubernetes/pkg/controller/volume/pvcprotection"
	"k8s.io/kubernetes/pkg/controller/volume/pvprotection"
	"k8s.io/kubernetes/pkg/controller/volume/vacprotection"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/csi"
	"k8s.io/kubernetes/pkg/volume/csimigration"
	"k8s.io/kubernetes/pkg/volume/hostpath"
)

const (
	// binderSync is how often all claims and volumes are looked at again, from the cache, upstream's default.
	binderSync = 15 * time.Second
	// attachSync is how often attached volumes are compared with what should be.
	attachSync = time.Minute
	// recyclerTimeout bounds a pod that wipes a volume: upstream's minimum and increment per GiB.
	recyclerMinimum, recyclerIncrement = 60, 30
)

func (s *Set) volumeBinder(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("persistent-volume-binder")
	if err != nil {
		return nil, err
	}
	core := k.Factory.Core().V1()
	c, err := persistentvolume.NewController(ctx, persistentvolume.ControllerParameters{
		KubeClient: client,
		SyncPeriod: binderSync,
		VolumePlugins: hostpath.ProbeVolumePlugins(volume.VolumeConfig{
			RecyclerMinimumTimeout:   recyclerMinimum,
			RecyclerTimeoutIncrement: recyclerIncrement,
			RecyclerPodTemplate:      volume.NewPersistentVolumeRecyclerPodTemplate(),
		}),
		VolumeInformer:            core.PersistentVolumes(),
		ClaimInformer:             core.PersistentVolumeClaims(),
		ClassInformer:             k.Factory.Storage().V1().StorageClasses(),
		PodInformer:               core.Pods(),
		NodeInformer:              core.Nodes(),
		EnableDynamicProvisioning: true,
	})
	if err != nil {
		return nil, err
	}
	return c.Run, nil
}

// volumeExpander says who is to expand a claim's volume: an external resizer, always, since no plugin in the tree
// expands one any more. Its ten workers are started for the first claim that is to grow, and not for the first claim.
func (s *Set) volumeExpander(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("expand-controller")
	if err != nil {
		return nil, err
	}
	if err := s.await(ctx, s.anyClaim(growing)); err != nil || ctx.Err() != nil {
		return idle, err
	}
	translator := csitranslation.New()
	c, err := expand.NewExpandController(ctx, client, k.Factory.Core().V1().PersistentVolumeClaims(), nil, translator, csimigration.NewPluginManager(translator))
	if err != nil {
		return nil, err
	}
	return c.Run, nil
}

// growing reports whether a claim asks for more than it has got.
func growing(claim *v1.PersistentVolumeClaim) bool {
	has := claim.Status.Capacity[v1.ResourceStorage]
	return claim.Status.Phase == v1.ClaimBound && claim.Spec.Resources.Requests.Storage().Cmp(has) > 0
}

func (s *Set) volumeProtection(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("pv-protection-controller")
	if err != nil {
		return nil, err
	}
	c := pvprotection.NewPVProtectionController(s.logger, k.Factory.Core().V1().PersistentVolumes(), client)
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func (s *Set) claimProtection(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("pvc-protection-controller")
	if err != nil {
		return nil, err
	}
	c, err := pvcprotection.NewPVCProtectionController(s.logger, k.Factory.Core().V1().PersistentVolumeClaims(), k.Factory.Core().V1().Pods(), client)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func (s *Set) attributesProtection(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("volumeattributesclass-protection-controller")
	if err != nil {
		return nil, err
	}
	core := k.Factory.Core().V1()
	c, err := vacprotection.NewVACProtectionController(s.logger, client, core.PersistentVolumeClaims(), core.PersistentVolumes(), k.Factory.Storage().V1().VolumeAttributesClasses())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func (s *Set) ephemeralVolumes(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("ephemeral-volume-controller")
	if err != nil {
		return nil, err
	}
	core := k.Factory.Core().V1()
	c, err := ephemeral.NewController(ctx, client, core.Pods(), core.PersistentVolumeClaims())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func (s *Set) attachDetach(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("attachdetach-controller")
	if err != nil {
		return nil, err
	}
	core, storage := k.Factory.Core().V1(), k.Factory.Storage().V1()
	c, err := attachdetach.NewAttachDetachController(ctx, client, core.Pods(), core.Nodes(), core.PersistentVolumeClaims(), core.PersistentVolumes(),
		storage.CSINodes(), storage.CSIDrivers(), storage.VolumeAttachments(), csi.ProbeVolumePlugins(), nil,
		false, attachSync, true /* an away node keeps its volumes: it may be using them */, attachdetach.DefaultTimerConfig)
	if err != nil {
		return nil, err
	}
	return c.Run, nil
}

func hasEphemeralVolume(pod *v1.Pod) bool {
	for i := range pod.Spec.Volumes {
		if pod.Spec.Volumes[i].Ephemeral != nil {
			return true
		}
	}
	return false
}
