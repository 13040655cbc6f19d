package apiserver

import (
	"net/http"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsapiserver "k8s.io/apiextensions-apiserver/pkg/apiserver"
	apiextensionsopenapi "k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/tools/cache"
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
)

// newCRDs builds the innermost server: CustomResourceDefinitions and what they define.
func (s *Server) newCRDs(st *storages, services webhook.ServiceResolver, proxyTransport *http.Transport,
	delegate genericapiserver.DelegationTarget,
) (*apiextensionsapiserver.CustomResourceDefinitions, error) {
	generic := *s.generic
	generic.PostStartHooks = map[string]genericapiserver.PostStartHookConfigEntry{}
	generic.RESTOptionsGetter = st.definitions
	generic.MergedResourceConfig = apiextensionsapiserver.DefaultAPIResourceConfigSource()
	// Managed fields of custom resources want the schemas of metadata.
	generic.OpenAPIV3Config = openAPIV3(apiextensionsopenapi.GetOpenAPIDefinitions, apiextensionsapiserver.Scheme)
	config := &apiextensionsapiserver.Config{
		GenericConfig: &genericapiserver.RecommendedConfig{Config: generic, SharedInformerFactory: s.informers},
		ExtraConfig: apiextensionsapiserver.ExtraConfig{
			CRDRESTOptionsGetter: st.customResources,
			MasterCount:          1,
			ServiceResolver:      services,
			AuthResolverWrapper: webhook.NewDefaultAuthenticationInfoResolverWrapper(
				proxyTransport, generic.EgressSelector, generic.LoopbackClientConfig, generic.TracerProvider),
		},
	}
	return config.Complete().New(delegate)
}

// resetOnNewKinds calls changed when a CRD or an APIService comes, changes or goes.
func resetOnNewKinds(changed func(), crds *apiextensionsapiserver.CustomResourceDefinitions, aggregator *aggregatorapiserver.APIAggregator) error {
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { changed() },
		DeleteFunc: func(any) { changed() },
		UpdateFunc: func(old, now any) {
			was, ok := old.(*apiextensionsv1.CustomResourceDefinition)
			is, ok2 := now.(*apiextensionsv1.CustomResourceDefinition)
			if !ok || !ok2 || was.ResourceVersion != is.ResourceVersion {
				changed()
			}
		},
	}
	if _, err := crds.Informers.Apiextensions().V1().CustomResourceDefinitions().Informer().AddEventHandler(handler); err != nil {
		return err
	}
	_, err := aggregator.APIRegistrationInformers.Apiregistration().V1().APIServices().Informer().AddEventHandler(handler)
	return err
}
