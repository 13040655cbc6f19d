package apiserver

import (
	"net/http"

	apiextensionsapiserver "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apimachinery/pkg/runtime/schema"
	genericapiserver "k8s.io/apiserver/pkg/server"
	aggregatorv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
	aggregatorscheme "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	aggregatoropenapi "k8s.io/kube-aggregator/pkg/generated/openapi"
	controlplaneapiserver "k8s.io/kubernetes/pkg/controlplane/apiserver"
)

// newAggregator builds the outermost server: APIServices, and the proxy to
// aggregated API servers. Its handler chain is the only one that runs filters.
func (s *Server) newAggregator(st *storages, services aggregatorapiserver.ServiceResolver, proxyTransport *http.Transport,
	kube *genericapiserver.GenericAPIServer, crds *apiextensionsapiserver.CustomResourceDefinitions,
) (*aggregatorapiserver.APIAggregator, error) {
	generic := *s.generic
	generic.PostStartHooks = map[string]genericapiserver.PostStartHookConfigEntry{}
	generic.RESTOptionsGetter = st.aggregation
	generic.MergedResourceConfig = aggregatorapiserver.DefaultAPIResourceConfigSource()
	generic.OpenAPIV3Config = openAPIV3(aggregatoropenapi.GetOpenAPIDefinitions, aggregatorscheme.Scheme)
	generic.BuildHandlerChainFunc = func(h http.Handler, c *genericapiserver.Config) http.Handler {
		return traceReceived(untilLinkBreaks(genericapiserver.DefaultBuildHandlerChain(traceAuthorized(h), c)))
	}
	config := &aggregatorapiserver.Config{
		GenericConfig: &genericapiserver.RecommendedConfig{Config: generic, SharedInformerFactory: s.informers},
		ExtraConfig: aggregatorapiserver.ExtraConfig{
			ProxyClientCertFile: s.cfg.PKI.ProxyClientCertFile,
			ProxyClientKeyFile:  s.cfg.PKI.ProxyClientKeyFile,
			ServiceResolver:     services,
			ProxyTransport:      proxyTransport,
		},
	}
	return controlplaneapiserver.CreateAggregatorServer(config.Complete(), kube,
		crds.Informers.Apiextensions().V1().CustomResourceDefinitions(), true, groupPriorities())
}

// groupPriorities is upstream's order of groups in discovery. The generic
// server's list lacks the groups that only Kubernetes has.
func groupPriorities() map[schema.GroupVersion]controlplaneapiserver.APIServicePriority {
	all := controlplaneapiserver.DefaultGenericAPIServicePriorities()
	for gv, p := range map[schema.GroupVersion]controlplaneapiserver.APIServicePriority{
		{Group: "apps", Version: "v1"}:                 {Group: 17800, Version: 15},
		{Group: "autoscaling", Version: "v1"}:          {Group: 17500, Version: 15},
		{Group: "autoscaling", Version: "v2"}:          {Group: 17500, Version: 30},
		{Group: "batch", Version: "v1"}:                {Group: 17400, Version: 15},
		{Group: "networking.k8s.io", Version: "v1"}:    {Group: 17200, Version: 15},
		{Group: "policy", Version: "v1"}:               {Group: 17100, Version: 15},
		{Group: "storage.k8s.io", Version: "v1"}:       {Group: 16800, Version: 15},
		{Group: "scheduling.k8s.io", Version: "v1"}:    {Group: 16600, Version: 15},
		{Group: "node.k8s.io", Version: "v1"}:          {Group: 16300, Version: 15},
		{Group: "resource.k8s.io", Version: "v1"}:      {Group: 16200, Version: 21},
		{Group: "metrics.k8s.io", Version: "v1beta1"}:  {Group: 100, Version: 100}, // as metrics-server's
		{Group: aggregatorv1.GroupName, Version: "v1"}: {Group: 20000, Version: 1},
	} {
		all[gv] = p
	}
	return all
}
