package upstream

import (
	"context"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	extensionscheme "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/scheme"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/kubernetes/pkg/controller/certificates/approver"
	"k8s.io/kubernetes/pkg/controller/certificates/cleaner"
	"k8s.io/kubernetes/pkg/controller/certificates/rootcacertpublisher"
	"k8s.io/kubernetes/pkg/controller/certificates/signer"
	"k8s.io/kubernetes/pkg/controller/clusterroleaggregation"
	"k8s.io/kubernetes/pkg/controller/cronjob"
	"k8s.io/kubernetes/pkg/controller/devicetainteviction"
	"k8s.io/kubernetes/pkg/controller/disruption"
	"k8s.io/kubernetes/pkg/controller/endpoint"
	"k8s.io/kubernetes/pkg/controller/endpointslicemirroring"
	"k8s.io/kubernetes/pkg/controller/podgc"
	"k8s.io/kubernetes/pkg/controller/replication"
	"k8s.io/kubernetes/pkg/controller/resourceclaim"
	serviceaccounts "k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/controller/servicecidrs"
	"k8s.io/kubernetes/pkg/controller/statefulset"
	"k8s.io/kubernetes/pkg/controller/tainteviction"
	"k8s.io/kubernetes/pkg/controller/ttlafterfinished"
	"k8s.io/kubernetes/pkg/controller/validatingadmissionpolicystatus"
	"k8s.io/kubernetes/pkg/features"
	"k8s.io/kubernetes/pkg/generated/openapi"
	"k8s.io/kubernetes/pkg/serviceaccount"
	"k8s.io/utils/clock"
)

const (
	// maxMirrored bounds what is mirrored of one hand-made Endpoints subset, upstream's default.
	maxMirrored = 1000
	// legacyTokenUnused is how long a token Secret made by an old release may be unused before it is taken for dead.
	legacyTokenUnused = 365 * 24 * time.Hour
)

// Controllers that are built of the cluster's roots.
const (
	tokensController  = "serviceaccount-token-controller"
	rootCAController  = "root-ca-certificate-publisher-controller"
	signingController = "certificatesigningrequest-signing-controller"
)

// entries lists the controllers, those first that others need to make progress.
func (s *Set) entries() []entry {
	return []entry{
		{tokensController, nil, s.tokens},
		{"serviceaccount-controller", nil, s.serviceAccounts},
		{rootCAController, nil, s.rootCA},
		{"clusterrole-aggregation-controller", nil, s.clusterRoles},
		{"namespace-controller", nil, s.namespaces},
		{"garbage-collector-controller", nil, s.garbage},
		{"pod-garbage-collector-controller", nil, s.podGarbage},
		{"taint-eviction-controller", nil, s.taintEviction},
		{"service-cidr-controller", s.anyOf(gvr("networking.k8s.io", "v1", "servicecidrs")), s.serviceCIDRs},

		{"endpoints-controller", s.anyService(selecting), s.endpoints},
		{"endpointslice-mirroring-controller", s.anyMatching(gvr("", "v1", "endpoints"), handMade), s.mirroring},
		{"statefulset-controller", s.anyOf(gvr("apps", "v1", "statefulsets")), s.statefulSets},
		{"cronjob-controller", s.anyOf(gvr("batch", "v1", "cronjobs")), s.cronJobs},
		{"ttl-after-finished-controller", s.anyOf(gvr("batch", "v1", "jobs")), s.ttlAfterFinished},
		{"replicationcontroller-controller", s.anyOf(gvr("", "v1", "replicationcontrollers")), s.replicationControllers},
		{"disruption-controller", s.anyOf(gvr("policy", "v1", "poddisruptionbudgets")), s.disruption},
		{"horizontal-pod-autoscaler-controller", s.anyOf(gvr("autoscaling", "v2", "horizontalpodautoscalers")), s.autoscaling},
		{"resourcequota-controller", s.anyOf(gvr("", "v1", "resourcequotas")), s.quota},
		{"resourceclaim-controller", s.anyOf(resourceClaims, gvr("resource.k8s.io", "v1", "resourceclaimtemplates")), s.resourceClaims},
		{"device-taint-eviction-controller", s.anyOf(resourceClaims), s.deviceTaints},

		{"persistentvolume-binder-controller", s.anyOf(persistentVolumes, persistentVolumeClaims), s.volumeBinder},
		{"persistentvolume-expander-controller", s.anyOf(persistentVolumeClaims), s.volumeExpander},
		{"persistentvolume-protection-controller", s.anyOf(persistentVolumes), s.volumeProtection},
		{"persistentvolumeclaim-protection-controller", s.anyOf(persistentVolumeClaims), s.claimProtection},
		{"volumeattributesclass-protection-controller", s.anyOf(gvr("storage.k8s.io", "v1", "volumeattributesclasses")), s.attributesProtection},
		{"ephemeral-volume-controller", s.anyPod(hasEphemeralVolume), s.ephemeralVolumes},
		{"persistentvolume-attach-detach-controller", s.anyOf(gvr("storage.k8s.io", "v1", "csidrivers"), gvr("storage.k8s.io", "v1", "volumeattachments")), s.attachDetach},

		{signingController, s.anyOf(signingRequests), s.signing},
		{"certificatesigningrequest-approving-controller", s.anyOf(signingRequests), s.approving},
		{"certificatesigningrequest-cleaner-controller", s.anyOf(signingRequests), s.signingCleaner},
		{"legacy-serviceaccount-token-cleaner-controller", s.anyTokenSecret(), s.legacyTokens},
		{"validatingadmissionpolicy-status-controller", s.anyOf(gvr("admissionregistration.k8s.io", "v1", "validatingadmissionpolicies")), s.policyStatus},
	}
}

func idle(ctx context.Context) { <-ctx.Done() }

func (s *Set) tokens(ctx context.Context, k *kit) (func(context.Context), error) {
	if s.deps.ServiceAccountKey == nil {
		return idle, nil
	}
	generator, err := serviceaccount.JWTTokenGenerator(serviceaccount.LegacyIssuer, s.deps.ServiceAccountKey)
	if err != nil {
		return nil, fmt.Errorf("service account key: %w", err)
	}
	// Only token Secrets: the contents of all others would lie in memory for nothing.
	c, err := serviceaccounts.NewTokensController(s.logger, k.Factory.Core().V1().ServiceAccounts(), k.private(tokenSecrets).Core().V1().Secrets(),
		s.Manager(), serviceaccounts.TokensControllerOptions{TokenGenerator: generator, RootCA: k.roots.CA})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func (s *Set) serviceAccounts(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("service-account-controller")
	if err != nil {
		return nil, err
	}
	c, err := serviceaccounts.NewServiceAccountsController(s.logger, k.Factory.Core().V1().ServiceAccounts(), k.Factory.Core().V1().Namespaces(),
		client, serviceaccounts.DefaultServiceAccountsControllerOptions())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func (s *Set) rootCA(ctx context.Context, k *kit) (func(context.Context), error) {
	if len(k.roots.CA) == 0 {
		return idle, nil
	}
	client, err := s.Client("root-ca-cert-publisher")
	if err != nil {
		return nil, err
	}
	own := k.private(fields.OneTermEqualSelector(metav1.ObjectNameField, rootcacertpublisher.RootCACertConfigMapName).String())
	c, err := rootcacertpublisher.NewPublisher(own.Core().V1().ConfigMaps(), k.Factory.Core().V1().Namespaces(), client, k.roots.CA)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func (s *Set) clusterRoles(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("clusterrole-aggregation-controller")
	if err != nil {
		return nil, err
	}
	c := clusterroleaggregation.NewClusterRoleAggregation(k.Factory.Rbac().V1().ClusterRoles(), client.RbacV1())
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func (s *Set) podGarbage(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("pod-garbage-collector")
	if err != nil {
		return nil, err
	}
	g := s.deps.PodGarbage.orDefaults()
	return podgc.NewPodGCInternal(ctx, client, k.Factory.Core().V1().Pods(), k.Factory.Core().V1().Nodes(), g.EndedPods, g.Every, g.Quarantine).Run, nil
}

func (s *Set) taintEviction(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("node-controller")
	if err != nil {
		return nil, err
	}
	c, err := tainteviction.New(ctx, client, k.Factory.Core().V1().Pods(), k.Factory.Core().V1().Nodes(), "taint-eviction-controller")
	if err != nil {
		return nil, err
	}
	return c.Run, nil
}

func (s *Set) serviceCIDRs(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("service-cidrs-controller")
	if err != nil {
		return nil, err
	}
	// Its constructor registers handlers before it has set what they read, so it
	// panics on informers that run already, as the shared ones do. These are its own.
	own := informers.NewSharedInformerFactory(client, 0)
	c := servicecidrs.NewController(ctx, own.Networking().V1().ServiceCIDRs(), own.Networking().V1().IPAddresses(), client)
	return func(ctx context.Context) {
		own.StartWithContext(ctx)
		c.Run(ctx, 1)
		own.Shutdown()
	}, nil
}

func (s *Set) endpoints(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("endpoint-controller")
	if err != nil {
		return nil, err
	}
	core := k.Factory.Core().V1()
	c := endpoint.NewEndpointController(ctx, core.Pods(), core.Services(), core.Endpoints(), client, 0)
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func (s *Set) mirroring(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("endpointslicemirroring-controller")
	if err != nil {
		return nil, err
	}
	core := k.Factory.Core().V1()
	c := endpointslicemirroring.NewController(ctx, core.Endpoints(), k.Factory.Discovery().V1().EndpointSlices(), core.Services(), maxMirrored, client, 0)
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func (s *Set) statefulSets(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("statefulset-controller")
	if err != nil {
		return nil, err
	}
	core, apps := k.Factory.Core().V1(), k.Factory.Apps().V1()
	c := statefulset.NewStatefulSetController(ctx, core.Pods(), apps.StatefulSets(), core.PersistentVolumeClaims(), apps.ControllerRevisions(), client)
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func (s *Set) cronJobs(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("cronjob-controller")
	if err != nil {
		return nil, err
	}
	c, err := cronjob.NewControllerV2(ctx, k.Factory.Batch().V1().Jobs(), k.Factory.Batch().V1().CronJobs(), client)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func (s *Set) ttlAfterFinished(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("ttl-after-finished-controller")
	if err != nil {
		return nil, err
	}
	c := ttlafterfinished.New(ctx, k.Factory.Batch().V1().Jobs(), client)
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func (s *Set) replicationControllers(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("replication-controller")
	if err != nil {
		return nil, err
	}
	core := k.Factory.Core().V1()
	c := replication.NewReplicationManager(ctx, core.Pods(), core.ReplicationControllers(), client, replication.BurstReplicas)
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func (s *Set) disruption(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("disruption-controller")
	if err != nil {
		return nil, err
	}
	scales, err := s.scaleClient("disruption-controller", client)
	if err != nil {
		return nil, err
	}
	core, apps := k.Factory.Core().V1(), k.Factory.Apps().V1()
	return disruption.NewDisruptionController(ctx, core.Pods(), k.Factory.Policy().V1().PodDisruptionBudgets(), core.ReplicationControllers(),
		apps.ReplicaSets(), apps.Deployments(), apps.StatefulSets(), client, s.disco.mapper, scales, client.Discovery()).Run, nil
}

func (s *Set) resourceClaims(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("resource-claim-controller")
	if err != nil {
		return nil, err
	}
	gate := utilfeature.DefaultFeatureGate
	c, err := resourceclaim.NewController(s.logger, resourceclaim.Features{
		AdminAccess:            gate.Enabled(features.DRAAdminAccess),
		PrioritizedList:        gate.Enabled(features.DRAPrioritizedList),
		WorkloadResourceClaims: gate.Enabled(features.DRAWorkloadResourceClaims),
	}, client, k.Factory.Core().V1().Pods(), k.Factory.Scheduling().V1alpha2().PodGroups(),
		k.Factory.Resource().V1().ResourceClaims(), k.Factory.Resource().V1().ResourceClaimTemplates())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

// deviceTaints evicts pods from devices, so it has nothing to do before a claim holds one.
func (s *Set) deviceTaints(ctx context.Context, k *kit) (func(context.Context), error) {
	const name = "device-taint-eviction-controller"
	client, err := s.Client(name)
	if err != nil {
		return nil, err
	}
	devices := k.Factory.Resource().V1()
	c := devicetainteviction.New(client, k.Factory.Core().V1().Pods(), devices.ResourceClaims(), devices.ResourceSlices(),
		k.Factory.Resource().V1beta2().DeviceTaintRules(), devices.DeviceClasses(), name,
		utilfeature.DefaultFeatureGate.Enabled(features.DRAWorkloadResourceClaims))
	return func(ctx context.Context) {
		if err := c.Run(ctx, 1); err != nil {
			s.logger.Error(err, "evicting pods from tainted devices failed")
		}
	}, nil
}

func (s *Set) signing(ctx context.Context, k *kit) (func(context.Context), error) {
	cert, key := k.roots.SigningCertFile, k.roots.SigningKeyFile
	if cert == "" || key == "" {
		return idle, nil
	}
	client, err := s.Client("certificate-controller")
	if err != nil {
		return nil, err
	}
	requests := k.Factory.Certificates().V1().CertificateSigningRequests()
	var all []*signer.CSRSigningController
	for _, name := range []string{v1KubeletServing, v1KubeletClient, v1APIClient, v1LegacyUnknown} {
		c, err := signer.NewCSRSigningController(ctx, "csrsigning-"+short(name), name, client, requests, cert, key, s.deps.SigningDuration)
		if err != nil {
			return nil, fmt.Errorf("signer %s: %w", name, err)
		}
		all = append(all, c)
	}
	return func(ctx context.Context) {
		runAll(ctx, len(all), func(ctx context.Context, i int) { all[i].Run(ctx, 1) })
	}, nil
}

func (s *Set) approving(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("certificate-controller")
	if err != nil {
		return nil, err
	}
	c := approver.NewCSRApprovingController(ctx, client, k.Factory.Certificates().V1().CertificateSigningRequests())
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func (s *Set) signingCleaner(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("certificate-controller")
	if err != nil {
		return nil, err
	}
	c := cleaner.NewCSRCleanerController(client.CertificatesV1().CertificateSigningRequests(), k.Factory.Certificates().V1().CertificateSigningRequests())
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

func (s *Set) legacyTokens(ctx context.Context, k *kit) (func(context.Context), error) {
	client, err := s.Client("legacy-service-account-token-cleaner")
	if err != nil {
		return nil, err
	}
	c, err := serviceaccounts.NewLegacySATokenCleaner(k.Factory.Core().V1().ServiceAccounts(), k.private(tokenSecrets).Core().V1().Secrets(),
		k.Factory.Core().V1().Pods(), client, clock.RealClock{}, serviceaccounts.LegacySATokenCleanerOptions{
			CleanUpPeriod: legacyTokenUnused, SyncInterval: serviceaccounts.DefaultCleanerSyncInterval,
		})
	if err != nil {
		return nil, err
	}
	return c.Run, nil
}

func (s *Set) policyStatus(ctx context.Context, k *kit) (func(context.Context), error) {
	const name = "validatingadmissionpolicy-status-controller"
	client, err := s.Client(name)
	if err != nil {
		return nil, err
	}
	// All definitions of all built-in kinds: some MiB, and the reason why this waits for the first policy.
	schemas := resolver.NewDefinitionsSchemaResolver(openapi.GetOpenAPIDefinitions, scheme.Scheme, extensionscheme.Scheme).
		Combine(&resolver.ClientDiscoveryResolver{Discovery: client.Discovery()})
	c, err := validatingadmissionpolicystatus.NewController(k.Factory.Admissionregistration().V1().ValidatingAdmissionPolicies(),
		client.AdmissionregistrationV1().ValidatingAdmissionPolicies(),
		&validating.TypeChecker{SchemaResolver: schemas, RestMapper: s.disco.mapper})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, 1) }, nil
}

const tokenSecrets = "type=" + string(v1.SecretTypeServiceAccountToken)
