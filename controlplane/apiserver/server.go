package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	genericapifilters "k8s.io/apiserver/pkg/endpoints/filters"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	genericfilters "k8s.io/apiserver/pkg/server/filters"
	"k8s.io/apiserver/pkg/server/healthz"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/apiserver/pkg/util/compatibility"
	utilflowcontrol "k8s.io/apiserver/pkg/util/flowcontrol"
	"k8s.io/apiserver/pkg/util/notfoundhandler"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	basecompatibility "k8s.io/component-base/compatibility"
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/capabilities"
	"k8s.io/kubernetes/pkg/controlplane"

	"github.com/coracle-edge/coracle/controlplane/apiserver/inprocess"
)

const (
	// shutdownGrace is how long watches and requests may take to end.
	shutdownGrace  = 2 * time.Second
	requestTimeout = time.Minute
	protobuf       = "application/vnd.kubernetes.protobuf"
)

// Server is an assembled API server.
type Server struct {
	cfg       Config
	handler   *inprocess.Server
	informers informers.SharedInformerFactory
	client    *kubernetes.Clientset
	generic   *genericapiserver.Config
	outermost *genericapiserver.GenericAPIServer
	ready     chan struct{}
	hooks     []namedHook
	metrics   *prometheus.Registry // besides upstream's
}

type namedHook struct {
	name string
	run  func(ctx context.Context) error
}

// New assembles the server. It serves nothing before Run, but clients made by
// ClientConfig and listers of Informers may already be handed out.
func New(ctx context.Context, cfg Config) (*Server, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	if err := setFeatures(); err != nil {
		return nil, err
	}
	capabilities.Setup(true, 0)
	s := &Server{cfg: cfg, handler: inprocess.NewServer(), ready: make(chan struct{}), metrics: prometheus.NewRegistry()}
	var err error
	if s.client, err = kubernetes.NewForConfig(s.loopback()); err != nil {
		return nil, err
	}
	s.informers = informers.NewSharedInformerFactoryWithOptions(s.client, 0, informers.WithTransform(stripManagedFields))
	if err := s.assemble(ctx); err != nil {
		return nil, fmt.Errorf("assemble API server: %w", err)
	}
	return s, nil
}

// ClientConfig is for a client in this process that acts as the named user. The
// user is in the groups given and in system:authenticated. There is no rate
// limit. Clients of built-in kinds should set the content type to protobuf.
func (s *Server) ClientConfig(name string, groups ...string) *rest.Config {
	return &rest.Config{
		Host:                      "https://kubernetes.default.svc",
		Transport:                 s.handler.Transport(&user.DefaultInfo{Name: name, Groups: groups}),
		UserAgent:                 "coracle/" + name,
		QPS:                       -1,
		DisableCompression:        true,
		WarningHandlerWithContext: rest.NoWarnings{},
	}
}

// Informers is the process's one informer factory. Objects in it carry no managed fields.
func (s *Server) Informers() informers.SharedInformerFactory { return s.informers }

// Retry calls ensure until it succeeds, for at most half a minute: in its first
// moments the server refuses writes, because its caches aren't filled yet.
func Retry(ctx context.Context, ensure func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, bootstrapTimeout)
	defer cancel()
	for {
		err := ensure(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(bootstrapRetry):
		}
	}
}

// Ready is closed once /readyz answers ok for the first time.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// AddPostStartHook runs hook when the server begins to serve; /readyz waits
// for it. It must be called before Run.
func (s *Server) AddPostStartHook(name string, hook func(ctx context.Context) error) {
	s.hooks = append(s.hooks, namedHook{name, hook})
}

// Run serves until ctx ends, then ends watches and requests and returns. A hook
// that fails ends it too.
func (s *Server) Run(ctx context.Context) error {
	asked := ctx
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	for _, h := range s.hooks {
		if err := s.outermost.AddPostStartHook(h.name, func(hook genericapiserver.PostStartHookContext) error {
			if err := h.run(hook); err != nil && hook.Err() == nil {
				// To return it would end the process on the spot.
				fail(fmt.Errorf("hook %s: %w", h.name, err))
				<-hook.Done()
			}
			return nil
		}); err != nil {
			return err
		}
	}
	prepared := s.outermost.PrepareRun()
	s.handler.Serve(s.outermost.Handler)
	go s.announce(ctx)
	if err := prepared.RunWithContext(ctx); err != nil {
		return fmt.Errorf("API server: %w", err)
	}
	if asked.Err() == nil {
		return fmt.Errorf("API server: %w", context.Cause(ctx))
	}
	return nil
}

// announce closes ready when the server is.
func (s *Server) announce(ctx context.Context) {
	client := s.client.Discovery().RESTClient()
	for {
		if _, err := client.Get().AbsPath("/readyz").DoRaw(ctx); err == nil {
			close(s.ready)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(25 * time.Millisecond):
		}
	}
}

// loopback is the server's own client: it may do anything.
func (s *Server) loopback() *rest.Config {
	c := s.ClientConfig(user.APIServerUser, user.SystemPrivilegedGroup)
	c.ContentConfig = rest.ContentConfig{ContentType: protobuf, AcceptContentTypes: protobuf + ",application/json"}
	return c
}

func stripManagedFields(obj any) (any, error) {
	if accessor, err := meta.Accessor(obj); err == nil && accessor.GetManagedFields() != nil {
		accessor.SetManagedFields(nil)
	}
	return obj, nil
}

// assemble builds the chain aggregator -> Kubernetes' own API -> CRDs.
func (s *Server) assemble(ctx context.Context) error {
	resources := controlplane.DefaultAPIResourceConfigSource()
	auth, err := newAuthentication(ctx, &s.cfg, s.client, s.informers, s.ClientConfig)
	if err != nil {
		return err
	}
	if err := s.configure(auth, resources); err != nil {
		return err
	}
	storages, err := newStorages(s.cfg.Store, s.generic, resources, s.cfg.Trace)
	if err != nil {
		return err
	}
	s.generic.RESTOptionsGetter = storages.kubernetes

	slices, err := proxy.NewEndpointSliceIndexerGetter(s.informers.Discovery().V1().EndpointSlices())
	if err != nil {
		return err
	}
	pods := &podHosts{host: s.cfg.PodHost, slices: slices}
	services := aggregatorapiserver.NewLoopbackServiceResolver(
		resolver{aggregatorapiserver.NewEndpointServiceResolver(s.informers.Core().V1().Services().Lister(), slices), pods},
		&url.URL{Scheme: "https", Host: s.cfg.Listener.Addr().String()})
	proxyTransport := s.proxyTransport()
	dynamicClient, err := dynamic.NewForConfig(s.ClientConfig(user.APIServerUser, user.SystemPrivilegedGroup))
	if err != nil {
		return err
	}
	kindsChanged, err := installAdmission(s.generic, s.informers, s.client, dynamicClient, resources, proxyTransport, services)
	if err != nil {
		return err
	}

	notFound := notfoundhandler.New(s.generic.Serializer, genericapifilters.NoMuxAndDiscoveryIncompleteKey)
	crds, err := s.newCRDs(storages, services, proxyTransport, genericapiserver.NewEmptyDelegateWithCustomHandler(notFound))
	if err != nil {
		return fmt.Errorf("custom resources: %w", err)
	}
	kube, err := s.newKubernetes(auth, storages, resources, proxyTransport, pods, crds.GenericAPIServer)
	if err != nil {
		return fmt.Errorf("built-in resources: %w", err)
	}
	aggregator, err := s.newAggregator(storages, services, proxyTransport, kube, crds)
	if err != nil {
		return fmt.Errorf("aggregation: %w", err)
	}
	if err := resetOnNewKinds(kindsChanged, crds, aggregator); err != nil {
		return err
	}
	// /healthz lists these two under upstream's names, and monitoring asks for them.
	s.AddPostStartHook("start-apiserver-admission-initializer", func(context.Context) error {
		kindsChanged() // what admission may have asked before the kinds were served
		return nil
	})
	s.AddPostStartHook("apiservice-openapi-controller", func(context.Context) error {
		return nil // documents are built when they are asked for: ready with the server
	})
	s.outermost = aggregator.GenericAPIServer
	s.outermost.ShutdownTimeout = shutdownGrace
	s.installOpenAPI(auth, kube, crds, aggregator, services)
	s.installMetrics()
	s.outermost.Handler.NonGoRestfulMux.UnlistedHandle(TracePath, traceHandler(s.cfg.Trace, s.client))
	if s.cfg.Operations != nil {
		s.outermost.Handler.NonGoRestfulMux.UnlistedHandlePrefix(OperationsPath, s.cfg.Operations)
	}
	return nil
}

// configure fills the configuration that all servers of the chain start from.
func (s *Server) configure(auth *authentication, resources *serverstorage.ResourceConfig) error {
	c := genericapiserver.NewConfig(legacyscheme.Codecs)
	serving, err := dynamiccertificates.NewDynamicServingContentFromFiles("serving-cert", s.cfg.PKI.ServingCertFile, s.cfg.PKI.ServingKeyFile)
	if err != nil {
		return fmt.Errorf("serving certificate: %w", err)
	}
	c.SecureServing = &genericapiserver.SecureServingInfo{Listener: s.cfg.Listener, Cert: serving}
	c.Authentication = genericapiserver.AuthenticationInfo{
		APIAudiences: auth.audiences, Authenticator: auth.Request, RequestHeaderConfig: auth.requestHeader,
	}
	for _, ca := range []dynamiccertificates.CAContentProvider{auth.clientCA, auth.requestHeader.CAContentProvider} {
		if err := c.Authentication.ApplyClientCert(ca, c.SecureServing); err != nil {
			return err
		}
	}
	c.Authorization.Authorizer, c.RuleResolver = newAuthorizer(s.informers)
	c.LoopbackClientConfig = s.loopback()
	c.EffectiveVersion = compatibility.DefaultComponentGlobalsRegistry.EffectiveVersionFor(basecompatibility.DefaultKubeComponent)
	c.MergedResourceConfig = resources
	c.ExternalAddress = s.cfg.ExternalHost
	c.PublicAddress = s.cfg.AdvertiseAddress
	long := genericfilters.BasicLongRunningRequestCheck(
		sets.NewString("watch", "proxy"), sets.NewString("attach", "exec", "proxy", "log", "portforward"))
	c.LongRunningFunc = func(r *http.Request, info *apirequest.RequestInfo) bool {
		return long(r, info) || strings.HasPrefix(r.URL.Path, OperationsPath)
	}
	c.RequestTimeout = requestTimeout
	c.ShutdownWatchTerminationGracePeriod = shutdownGrace
	c.AuditBackend, c.AuditPolicyRuleEvaluator = s.cfg.Audit, s.cfg.AuditPolicy
	c.AggregatedDiscoveryGroupManager = aggregated.NewResourceManager("apis")
	c.FlowControl = utilflowcontrol.New(s.informers, s.client.FlowcontrolV1(), c.MaxRequestsInFlight+c.MaxMutatingRequestsInFlight)
	c.DiscoveryAddresses = discovery.DefaultAddresses{DefaultAddress: c.ExternalAddress}
	c.SkipOpenAPIInstallation = true // see openapi.go
	c.BuildHandlerChainFunc = func(h http.Handler, _ *genericapiserver.Config) http.Handler { return h }
	c.AddHealthChecks(healthz.NamedCheck("etcd", func(req *http.Request) error { return s.cfg.Store.Health(req.Context()) }))
	s.generic = c
	return nil
}

// proxyTransport reaches pods and Services; who asked for a proxy verifies
// nothing of the certificate behind it, as upstream.
func (s *Server) proxyTransport() *http.Transport {
	return newProxyTransport(s.cfg.DialCluster)
}
