package upstream

import (
	"context"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/controller"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	"k8s.io/kubernetes/pkg/controller/namespace"
	"k8s.io/kubernetes/pkg/controller/podautoscaler"
	hpametrics "k8s.io/kubernetes/pkg/controller/podautoscaler/metrics"
	"k8s.io/kubernetes/pkg/controller/resourcequota"
	quotainstall "k8s.io/kubernetes/pkg/quota/v1/install"
	resourceclient "k8s.io/metrics/pkg/client/clientset/versioned/typed/metrics/v1beta1"
	"k8s.io/metrics/pkg/client/custom_metrics"
	"k8s.io/metrics/pkg/client/external_metrics"

	"k8s.io/apiserver/pkg/quota/v1/generic"
)

const (
	// discoveryPoll is how often garbage collection and quota ask which kinds there are. They ask our memory (resources).
	discoveryPoll = 10 * time.Second
	// gcSync is how long garbage collection waits for its first lists before it works with those it has.
	gcSync = 30 * time.Second
	// gcWorkers: deleting dependents in the foreground waits for each, so more than one.
	gcWorkers = 4
	// Autoscaling, upstream's defaults.
	hpaSync, hpaDownscale, hpaCPUInit, hpaReadyDelay = 15 * time.Second, 5 * time.Minute, 5 * time.Minute, 30 * time.Second
	hpaTolerance                                     = 0.1
)

func (s *Set) namespaces(ctx context.Context, k *kit) (func(context.Context), error) {
	const account = "namespace-controller"
	client, err := s.Client(account)
	if err != nil {
		return nil, err
	}
	meta, err := s.metadataClient(account)
	if err != nil {
		return nil, err
	}
	// Real discovery: a kind that is a second old may have objects in the namespace already.
	c := namespace.NewNamespaceController(ctx, client, meta, client.Discovery().ServerPreferredNamespacedResources,
		k.Factory.Core().V1().Namespaces(), 0, v1.FinalizerKubernetes)
	return func(ctx context.Context) { c.Run(ctx, 2) }, nil
}

func (s *Set) garbage(ctx context.Context, k *kit) (func(context.Context), error) {
	const account = "generic-garbage-collector"
	client, err := s.Client(account)
	if err != nil {
		return nil, err
	}
	meta, err := s.metadataClient(account)
	if err != nil {
		return nil, err
	}
	started := make(chan struct{})
	close(started) // the factories can be started at any time
	factory := k.mixed(hot)
	graph := garbagecollector.NewDependencyGraphBuilder(ctx, meta, s.disco.mapper, garbagecollector.DefaultIgnoredResources(), factory, started)
	c, err := garbagecollector.NewComposedGarbageCollector(ctx, client, meta, s.disco.mapper, graph)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		runAll(ctx, 2, func(ctx context.Context, i int) {
			if i == 0 {
				c.Run(ctx, gcWorkers, gcSync)
			} else {
				c.Sync(ctx, s.disco, discoveryPoll)
			}
		})
	}, nil
}

func (s *Set) quota(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("resourcequota-controller")
	if err != nil {
		return nil, err
	}
	lister := generic.ListerFuncForResourceFunc(k.Factory.ForResource)
	config, err := quotainstall.NewQuotaConfigurationForControllers(lister, k.Factory)
	if err != nil {
		return nil, err
	}
	started := make(chan struct{})
	close(started)
	options := &resourcequota.ControllerOptions{
		QuotaClient:               client.CoreV1(),
		ResourceQuotaInformer:     k.Factory.Core().V1().ResourceQuotas(),
		ResyncPeriod:              controller.StaticResyncPeriodFunc(5 * time.Minute),
		InformerFactory:           k.mixed(hot, quotaInFull),
		ReplenishmentResyncPeriod: controller.NoResyncPeriodFunc,
		DiscoveryFunc:             s.disco.ServerPreferredNamespacedResources,
		IgnoredResourcesFunc:      config.IgnoredResources,
		InformersStarted:          started,
		Registry:                  generic.NewRegistry(config.Evaluators()),
		UpdateFilter:              quotainstall.DefaultUpdateFilter(),
	}
	c, err := resourcequota.NewController(ctx, options)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		runAll(ctx, 2, func(ctx context.Context, i int) {
			if i == 0 {
				c.Run(ctx, 1)
			} else {
				c.Sync(ctx, s.disco.ServerPreferredNamespacedResources, discoveryPoll)
			}
		})
	}, nil
}

func (s *Set) autoscaling(ctx context.Context, k *kit) (func(context.Context), error) {
	const account = "horizontal-pod-autoscaler"
	client, err := s.Client(account)
	if err != nil {
		return nil, err
	}
	scales, err := s.scaleClient(account, client)
	if err != nil {
		return nil, err
	}
	config := unthrottled(s.account(account))
	// Metrics may have no server. Then each autoscaler says so in its conditions, as upstream.
	resource, err := resourceclient.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("resource metrics client: %w", err)
	}
	external, err := external_metrics.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("external metrics client: %w", err)
	}
	versions := custom_metrics.NewAvailableAPIsGetter(client.Discovery())
	metrics := hpametrics.NewRESTMetricsClient(resource, custom_metrics.NewForConfig(config, s.disco.mapper, versions), external)
	c := podautoscaler.NewHorizontalController(ctx, client.CoreV1(), scales, client.AutoscalingV2(), s.disco.mapper, metrics,
		k.Factory.Autoscaling().V2().HorizontalPodAutoscalers(), k.Factory.Core().V1().Pods(),
		hpaSync, hpaDownscale, hpaTolerance, hpaCPUInit, hpaReadyDelay)
	return func(ctx context.Context) {
		runAll(ctx, 2, func(ctx context.Context, i int) {
			if i == 0 {
				c.Run(ctx, 1)
			} else {
				custom_metrics.PeriodicallyInvalidate(versions, hpaSync, ctx.Done())
			}
		})
	}, nil
}
