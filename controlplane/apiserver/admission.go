package apiserver

import (
	"fmt"
	"net/http"

	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	admissionmetrics "k8s.io/apiserver/pkg/admission/metrics"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/apiserver/pkg/util/webhook"
	cacheddiscovery "k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/restmapper"
	controlplaneadmission "k8s.io/kubernetes/pkg/controlplane/apiserver/admission"
	kubeapiserveradmission "k8s.io/kubernetes/pkg/kubeapiserver/admission"
	kubeoptions "k8s.io/kubernetes/pkg/kubeapiserver/options"
	"k8s.io/kubernetes/plugin/pkg/admission/defaulttolerationseconds"
	"k8s.io/kubernetes/plugin/pkg/admission/noderestriction"

	ouradmission "github.com/coracle-edge/coracle/controlplane/admission"
)

// admissionPlugins are upstream's default plugins in upstream's order, with
// ours in the place of DefaultTolerationSeconds, and NodeRestriction, which
// every installer of upstream's switches on: a node speaks for itself only.
func admissionPlugins() (*admission.Plugins, []string) {
	upstream := kubeoptions.NewAdmissionOptions().GenericAdmission
	ouradmission.Register(upstream.Plugins)
	var names []string
	for _, name := range upstream.RecommendedPluginOrder {
		switch {
		case name == defaulttolerationseconds.PluginName:
			names = append(names, ouradmission.PluginName)
		case name == noderestriction.PluginName, !upstream.DefaultOffPlugins.Has(name):
			names = append(names, name)
		}
	}
	return upstream.Plugins, names
}

// installAdmission builds the admission chain into generic. It returns a
// function to be called when the served kinds change.
func installAdmission(
	generic *genericapiserver.Config,
	inf informers.SharedInformerFactory,
	client kubernetes.Interface,
	dynamicClient dynamic.Interface,
	resources *serverstorage.ResourceConfig,
	proxyTransport *http.Transport,
	services webhook.ServiceResolver,
) (kindsChanged func(), err error) {
	plugins, names := admissionPlugins()
	fromFile, err := admission.ReadAdmissionConfiguration(names, "", nil)
	if err != nil {
		return nil, fmt.Errorf("admission: %w", err)
	}
	// Upstream forgets this mapper every 30 s; here a CRD or APIService that changes does it.
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(cacheddiscovery.NewMemCacheClient(client.Discovery()))
	chain := admission.PluginInitializers{
		initializer.NewAPIServerIDInitializer(generic.APIServerID),
		initializer.New(client, dynamicClient, inf, generic.Authorization.Authorizer, utilfeature.DefaultFeatureGate,
			generic.EffectiveVersion, generic.DrainedNotify(), mapper),
	}
	more, err := (&controlplaneadmission.Config{
		ExternalInformers:    inf,
		LoopbackClientConfig: generic.LoopbackClientConfig,
		APIResourceConfig:    resources,
	}).New(proxyTransport, generic.EgressSelector, services, generic.TracerProvider)
	if err != nil {
		return nil, fmt.Errorf("admission: %w", err)
	}
	chain = append(chain, more...)
	if more, err = (&kubeapiserveradmission.Config{}).New(); err != nil {
		return nil, fmt.Errorf("admission: %w", err)
	}
	chain = append(chain, more...)
	decorators := admission.Decorators{admission.DecoratorFunc(admissionmetrics.WithControllerMetrics)}
	built, err := plugins.NewFromPlugins(names, fromFile, chain, decorators)
	if err != nil {
		return nil, fmt.Errorf("admission: %w", err)
	}
	generic.AdmissionControl = tracedAdmission{admissionmetrics.WithStepMetrics(built)}
	return mapper.Reset, nil
}
