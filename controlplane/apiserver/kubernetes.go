package apiserver

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	genericapi "k8s.io/apiserver/pkg/endpoints"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/egressselector"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/client-go/applyconfigurations"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	controlplaneapiserver "k8s.io/kubernetes/pkg/controlplane/apiserver"
	kubeoptions "k8s.io/kubernetes/pkg/kubeapiserver/options"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"
	"k8s.io/kubernetes/pkg/routes"
	"k8s.io/kubernetes/pkg/serviceaccount"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	admissionregistrationrest "k8s.io/kubernetes/pkg/registry/admissionregistration/rest"
	appsrest "k8s.io/kubernetes/pkg/registry/apps/rest"
	authenticationrest "k8s.io/kubernetes/pkg/registry/authentication/rest"
	authorizationrest "k8s.io/kubernetes/pkg/registry/authorization/rest"
	autoscalingrest "k8s.io/kubernetes/pkg/registry/autoscaling/rest"
	batchrest "k8s.io/kubernetes/pkg/registry/batch/rest"
	certificatesrest "k8s.io/kubernetes/pkg/registry/certificates/rest"
	corerest "k8s.io/kubernetes/pkg/registry/core/rest"
	discoveryrest "k8s.io/kubernetes/pkg/registry/discovery/rest"
	eventsrest "k8s.io/kubernetes/pkg/registry/events/rest"
	flowcontrolrest "k8s.io/kubernetes/pkg/registry/flowcontrol/rest"
	networkingrest "k8s.io/kubernetes/pkg/registry/networking/rest"
	noderest "k8s.io/kubernetes/pkg/registry/node/rest"
	policyrest "k8s.io/kubernetes/pkg/registry/policy/rest"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
	resourcerest "k8s.io/kubernetes/pkg/registry/resource/rest"
	schedulingrest "k8s.io/kubernetes/pkg/registry/scheduling/rest"
	storagerest "k8s.io/kubernetes/pkg/registry/storage/rest"
	svmrest "k8s.io/kubernetes/pkg/registry/storagemigration/rest"

	"github.com/coracle-edge/coracle/controlplane/apiserver/nodemetrics"
)

const (
	eventTTL     = time.Hour
	maxExtension = 365 * 24 * time.Hour // of legacy-style service account tokens, upstream's
	// repairInterval is of the Services' IP and port repair loops; they only read unless something is wrong.
	repairInterval = 3 * time.Minute
	kubeletPort    = 10250
	kubeletTimeout = 5 * time.Second
)

// newKubernetes builds the server of all built-in groups of upstream's default set.
// maxTokenLife bounds what a TokenRequest may ask for.
const maxTokenLife = 365 * 24 * time.Hour

func (s *Server) newKubernetes(auth *authentication, st *storages, resources *serverstorage.ResourceConfig,
	proxyTransport *http.Transport, pods *podHosts, delegate genericapiserver.DelegationTarget,
) (*genericapiserver.GenericAPIServer, error) {
	generic := *s.generic
	server, err := generic.Complete(s.informers).New("kube-apiserver", delegate)
	if err != nil {
		return nil, err
	}
	issuerDocuments, err := serviceaccount.NewOpenIDMetadataProvider(s.cfg.Issuer, "", generic.ExternalAddress, auth.publicKeys)
	if err != nil {
		return nil, fmt.Errorf("issuer discovery: %w", err)
	}
	routes.NewOpenIDMetadataServer(issuerDocuments).Install(server.Handler.GoRestfulContainer)

	providers, err := s.storageProviders(auth, st, proxyTransport, pods)
	if err != nil {
		return nil, err
	}
	in := installer{server: server, config: &generic, converter: newLazyTypeConverter(), share: sharePrinters()}
	if in.expired, err = genericapiserver.NewResourceExpirationEvaluatorFromOptions(genericapiserver.ResourceExpirationEvaluatorOptions{
		CurrentVersion: server.EffectiveVersion.EmulationVersion(),
		Prerelease:     server.EffectiveVersion.BinaryVersion().PreRelease(),
	}); err != nil {
		return nil, err
	}
	for _, p := range providers {
		if err := in.install(p, resources, st.kubernetes); err != nil {
			return nil, fmt.Errorf("group %q: %w", p.GroupName(), err)
		}
	}
	slimRoutes(server.Handler.GoRestfulContainer)
	return server, s.addHooks(server, auth)
}

// storageProviders is upstream's list, in upstream's order, which is the order
// in which short names are resolved.
func (s *Server) storageProviders(auth *authentication, st *storages, proxyTransport *http.Transport, pods *podHosts) ([]controlplaneapiserver.RESTStorageProvider, error) {
	authz := s.generic.Authorization.Authorizer
	core, err := corerest.New(corerest.Config{
		GenericConfig: corerest.GenericConfig{
			StorageFactory:       st.factory,
			EventTTL:             eventTTL,
			ServiceAccountIssuer: auth.issuer,
			// A node asks for its pods' tokens: whoever holds its key shall not have one
			// that outlives everything that could end it.
			ServiceAccountMaxExpiration: maxTokenLife,
			ExtendExpiration:            true,
			MaxExtendedExpiration:       maxExtension,
			APIAudiences:                auth.audiences,
			LoopbackClientConfig:        s.generic.LoopbackClientConfig,
			Informers:                   s.informers,
		},
		Proxy: corerest.ProxyConfig{Transport: proxyTransport, KubeletClientConfig: s.kubeletClient()},
		Services: corerest.ServicesConfig{
			ClusterIPRange:   *s.cfg.ServiceCIDR,
			NodePortRange:    kubeoptions.DefaultServiceNodePortRange,
			IPRepairInterval: repairInterval,
		},
	}, authz)
	if err != nil {
		return nil, err
	}
	usage, err := s.NodeTransport()
	if err != nil {
		return nil, err
	}
	return []controlplaneapiserver.RESTStorageProvider{
		withNodeProxy{core, pods},
		authenticationrest.RESTStorageProvider{Authenticator: auth.Request, APIAudiences: auth.audiences},
		authorizationrest.RESTStorageProvider{Authorizer: authz, RuleResolver: s.generic.RuleResolver},
		autoscalingrest.RESTStorageProvider{},
		batchrest.RESTStorageProvider{},
		certificatesrest.RESTStorageProvider{Authorizer: authz},
		withNodeLeases{source: s.cfg.NodeLeases, namespaces: s.informers.Core().V1().Namespaces().Lister()},
		discoveryrest.StorageProvider{},
		networkingrest.RESTStorageProvider{},
		noderest.RESTStorageProvider{},
		policyrest.RESTStorageProvider{},
		withoutHook{rbacrest.RESTStorageProvider{Authorizer: authz}},
		withoutHook{schedulingrest.RESTStorageProvider{}},
		storagerest.RESTStorageProvider{},
		svmrest.RESTStorageProvider{},
		flowcontrolrest.RESTStorageProvider{InformerFactory: s.informers},
		appsrest.StorageProvider{},
		admissionregistrationrest.RESTStorageProvider{Authorizer: authz, DiscoveryClient: s.client.Discovery()},
		eventsrest.RESTStorageProvider{TTL: eventTTL},
		resourcerest.RESTStorageProvider{NamespaceClient: s.client.CoreV1().Namespaces(), Authorizer: authz},
		metricsGroup{source: nodemetrics.NewSource(usage, s.cfg.Logger), nodes: s.informers.Core().V1().Nodes().Lister(), pods: s.informers.Core().V1().Pods().Lister()},
	}, nil
}

// kubeletClient reaches nodes by name through the dialer that was passed in.
func (s *Server) kubeletClient() kubeletclient.KubeletClientConfig {
	return kubeletclient.KubeletClientConfig{
		Port:                  kubeletPort,
		PreferredAddressTypes: []string{string(corev1.NodeHostName), string(corev1.NodeInternalIP)},
		TLSClientConfig: kubeletclient.KubeletTLSConfig{
			CertFile: s.cfg.PKI.KubeletClientCertFile,
			KeyFile:  s.cfg.PKI.KubeletClientKeyFile,
			CAFile:   s.cfg.PKI.KubeletCAFile,
		},
		HTTPTimeout: kubeletTimeout,
		Lookup:      func(egressselector.NetworkContext) (utilnet.DialFunc, error) { return s.dialNode, nil },
	}
}

// NodeTransport speaks with nodes' APIs as the API server itself does: through
// DialNode, with its certificate. Hosts are NODE:10250.
func (s *Server) NodeTransport() (http.RoundTripper, error) {
	config := s.kubeletClient()
	return kubeletclient.MakeTransport(&config)
}

func newProxyTransport(dial utilnet.DialFunc) *http.Transport {
	return utilnet.SetTransportDefaults(&http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return dial(ctx, network, address)
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	})
}

// installer adds API groups to a server. Upstream's InstallAPIGroups would build
// OpenAPI models of everything at once and keep them.
type installer struct {
	server    *genericapiserver.GenericAPIServer
	config    *genericapiserver.Config
	converter managedfields.TypeConverter
	expired   genericapiserver.ResourceExpirationEvaluator
	share     func(rest.Storage)
}

func (in *installer) install(p controlplaneapiserver.RESTStorageProvider, resources *serverstorage.ResourceConfig, getter *storageGetter) error {
	info, err := p.NewRESTStorage(resources, getter)
	if err != nil {
		return err
	}
	if err := in.expired.RemoveUnavailableKinds(p.GroupName(), info.Scheme, info.VersionedResourcesStorageMap, resources); err != nil {
		return err
	}
	if len(info.VersionedResourcesStorageMap) == 0 {
		return nil
	}
	if hook, ok := p.(genericapiserver.PostStartHookProvider); ok {
		name, run, err := hook.PostStartHook()
		if err != nil {
			return err
		}
		in.server.AddPostStartHookOrDie(name, run)
	}
	prefix, manager := genericapiserver.APIGroupPrefix, in.server.AggregatedDiscoveryGroupManager
	if p.GroupName() == "" {
		prefix, manager = genericapiserver.DefaultLegacyAPIPrefix, in.server.AggregatedLegacyDiscoveryGroupManager
	}
	var served []metav1.GroupVersionForDiscovery
	for _, gv := range info.PrioritizedVersions {
		storages := info.VersionedResourcesStorageMap[gv.Version]
		if len(storages) == 0 {
			continue
		}
		for resource, storage := range storages {
			in.share(storage)
			if gv.Group == "" {
				keepIdentity(resource, storage)
			}
			if r, ok := storage.(rest.StorageWithReadiness); ok {
				in.server.StorageReadinessHook.RegisterStorage(metav1.GroupVersionResource{Group: gv.Group, Version: gv.Version, Resource: resource}, r)
			}
		}
		discovered, _, err := in.version(&info, gv, prefix, storages).InstallREST(in.server.Handler.GoRestfulContainer)
		if err != nil {
			return err
		}
		manager.AddGroupVersion(gv.Group, apidiscoveryv2.APIVersionDiscovery{
			Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent, Version: gv.Version, Resources: discovered,
		})
		served = append(served, metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: gv.Version})
	}
	in.server.RegisterDestroyFunc(func() {
		for _, storages := range info.VersionedResourcesStorageMap {
			for _, s := range storages {
				s.Destroy()
			}
		}
	})
	in.discover(p.GroupName(), served)
	return nil
}

func (in *installer) version(info *genericapiserver.APIGroupInfo, gv schema.GroupVersion, prefix string, storages map[string]rest.Storage) *genericapi.APIGroupVersion {
	served := map[string][]string{}
	for version, resources := range info.VersionedResourcesStorageMap {
		for resource := range resources {
			served[resource] = append(served[resource], schema.GroupVersion{Group: gv.Group, Version: version}.String())
		}
	}
	return &genericapi.APIGroupVersion{
		Storage:                     storages,
		Root:                        prefix,
		GroupVersion:                gv,
		AllServedVersionsByResource: served,
		OptionsExternalVersion:      info.OptionsExternalVersion,
		MetaGroupVersion:            info.MetaGroupVersion,
		ParameterCodec:              info.ParameterCodec,
		Serializer:                  info.NegotiatedSerializer,
		Creater:                     info.Scheme,
		Convertor:                   info.Scheme,
		ConvertabilityChecker:       info.Scheme,
		UnsafeConvertor:             runtime.UnsafeObjectConvertor(info.Scheme),
		Defaulter:                   info.Scheme,
		Typer:                       info.Scheme,
		Namer:                       runtime.Namer(meta.NewAccessor()),
		TypeConverter:               in.converter,
		EquivalentResourceRegistry:  in.server.EquivalentResourceRegistry,
		Admit:                       in.config.AdmissionControl,
		Authorizer:                  in.config.Authorization.Authorizer,
		MinRequestTimeout:           time.Duration(in.config.MinRequestTimeout) * time.Second,
		MaxRequestBodyBytes:         in.config.MaxRequestBodyBytes,
	}
}

// discover serves the list of versions of a group.
func (in *installer) discover(group string, served []metav1.GroupVersionForDiscovery) {
	if group == "" {
		root := discovery.NewLegacyRootAPIHandler(in.config.DiscoveryAddresses, in.server.Serializer, genericapiserver.DefaultLegacyAPIPrefix)
		wrapped := aggregated.WrapAggregatedDiscoveryToHandler(root, in.server.AggregatedLegacyDiscoveryGroupManager, in.server.AggregatedLegacyDiscoveryGroupManager)
		in.server.Handler.GoRestfulContainer.Add(wrapped.GenerateWebService("/api", metav1.APIVersions{}))
		return
	}
	g := metav1.APIGroup{Name: group, Versions: served, PreferredVersion: served[0]}
	in.server.DiscoveryGroupManager.AddGroup(g)
	in.server.Handler.GoRestfulContainer.Add(discovery.NewAPIGroupHandler(in.server.Serializer, g).WebService())
}

// lazyTypeConverter makes upstream's generated schemas at the first write. What
// has no schema there, such as Binding and TokenRequest, is never stored: what
// its fields are is told from the object.
type lazyTypeConverter struct {
	generated func() managedfields.TypeConverter
	deduced   managedfields.TypeConverter
}

func newLazyTypeConverter() *lazyTypeConverter {
	return &lazyTypeConverter{
		generated: sync.OnceValue(func() managedfields.TypeConverter {
			return applyconfigurations.NewTypeConverter(legacyscheme.Scheme)
		}),
		deduced: managedfields.NewDeducedTypeConverter(),
	}
}

// ObjectToTyped implements managedfields.TypeConverter.
func (l *lazyTypeConverter) ObjectToTyped(obj runtime.Object, opts ...typed.ValidationOptions) (*typed.TypedValue, error) {
	value, err := l.generated().ObjectToTyped(obj, opts...)
	if err != nil && strings.Contains(err.Error(), "no type found matching") { // upstream has no error value for it
		return l.deduced.ObjectToTyped(obj, opts...)
	}
	return value, err
}

// TypedToObject implements managedfields.TypeConverter.
func (l *lazyTypeConverter) TypedToObject(value *typed.TypedValue) (runtime.Object, error) {
	return l.generated().TypedToObject(value)
}
