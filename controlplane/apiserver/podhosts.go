package apiserver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	utilproxy "k8s.io/apimachinery/pkg/util/proxy"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/proxy"
	aggregatorapiserver "k8s.io/kube-aggregator/pkg/apiserver"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/capabilities"
	podregistry "k8s.io/kubernetes/pkg/registry/core/pod"
	podrest "k8s.io/kubernetes/pkg/registry/core/pod/rest"
	serviceregistry "k8s.io/kubernetes/pkg/registry/core/service"
)

// podHosts names pods to DialCluster. Upstream takes a pod's address for its name;
// where each board has a pod network of its own, many pods may have the same.
type podHosts struct {
	host   func(ip, node string) string // Config.PodHost
	slices proxy.EndpointSliceGetter
}

// of puts the node's pod into a location.
func (p *podHosts) of(location *url.URL, node string) {
	if p.host == nil || node == "" {
		return
	}
	ip, port, err := net.SplitHostPort(location.Host)
	if err != nil {
		return // no port: the scheme's
	}
	location.Host = net.JoinHostPort(p.host(ip, node), port)
}

// endpoint chooses among the Service's ready endpoints that have the location's
// address, one for each node.
func (p *podHosts) endpoint(namespace, service string, location *url.URL) {
	if p.host == nil {
		return
	}
	all, err := p.slices.GetEndpointSlices(namespace, service)
	if err != nil {
		return // upstream had them a moment ago: the address has to do
	}
	ip := location.Hostname()
	var nodes []string
	for _, slice := range all {
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if slices.Contains(e.Addresses, ip) && e.NodeName != nil && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
				nodes = append(nodes, *e.NodeName)
			}
		}
	}
	if len(nodes) > 0 {
		p.of(location, nodes[rand.IntN(len(nodes))])
	}
}

// resolver resolves a Service for webhooks and aggregated APIs, which verify it by
// the Service's name and not by the host that they are given here.
type resolver struct {
	aggregatorapiserver.ServiceResolver
	pods *podHosts
}

// ResolveEndpoint implements aggregatorapiserver.ServiceResolver.
func (r resolver) ResolveEndpoint(namespace, name string, port int32) (*url.URL, error) {
	location, err := r.ServiceResolver.ResolveEndpoint(namespace, name, port)
	if err == nil {
		r.pods.endpoint(namespace, name, location)
	}
	return location, err
}

// install puts it into the proxies to pods and Services.
func (p *podHosts) install(storages map[string]rest.Storage) error {
	pods, ok := storages["pods/proxy"].(*podrest.ProxyREST)
	if !ok {
		return fmt.Errorf("the proxy to pods is a %T", storages["pods/proxy"])
	}
	services, ok := storages["services/proxy"].(*serviceregistry.ProxyREST)
	if !ok {
		return fmt.Errorf("the proxy to Services is a %T", storages["services/proxy"])
	}
	storages["pods/proxy"] = &podProxy{pods, p}
	services.Redirector = redirector{services.Redirector, p}
	return nil
}

// redirector finds the endpoint of a Service proxy.
type redirector struct {
	rest.Redirector
	pods *podHosts
}

// ResourceLocation implements rest.Redirector.
func (r redirector) ResourceLocation(ctx context.Context, id string) (*url.URL, http.RoundTripper, error) {
	location, transport, err := r.Redirector.ResourceLocation(ctx, id)
	if err == nil {
		if _, name, _, ok := utilnet.SplitSchemeNamePort(id); ok {
			r.pods.endpoint(apirequest.NamespaceValue(ctx), name, location)
		}
	}
	return location, transport, err
}

// podProxy is upstream's proxy to a pod, on the node where the pod is.
type podProxy struct {
	*podrest.ProxyREST
	pods *podHosts
}

// Connect implements rest.Connecter.
func (r *podProxy) Connect(ctx context.Context, id string, opts runtime.Object, responder rest.Responder) (http.Handler, error) {
	options, ok := opts.(*api.PodProxyOptions)
	_, name, _, valid := utilnet.SplitSchemeNamePort(id)
	if !ok || !valid {
		return r.ProxyREST.Connect(ctx, id, opts, responder)
	}
	location, transport, err := podregistry.ResourceLocation(ctx, r.Store, r.ProxyTransport, id)
	if err != nil {
		return nil, err
	}
	obj, err := r.Store.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if pod, ok := obj.(*api.Pod); ok {
		r.pods.of(location, pod.Spec.NodeName)
	}
	location.Path = utilnet.JoinPreservingTrailingSlash(location.Path, options.Path)
	handler := utilproxy.NewUpgradeAwareHandler(location, transport, true, false, utilproxy.NewErrorResponder(responder))
	handler.MaxBytesPerSec = capabilities.Get().PerConnectionBandwidthLimitBytesPerSec
	return handler, nil
}
