package apiserver

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/capabilities"
	controlplaneapiserver "k8s.io/kubernetes/pkg/controlplane/apiserver"
	noderest "k8s.io/kubernetes/pkg/registry/core/node/rest"
)

// coreGroup is upstream's provider of the core group.
type coreGroup interface {
	controlplaneapiserver.RESTStorageProvider
	genericapiserver.PostStartHookProvider
}

// withNodeProxy is upstream's group with a proxy to nodes that needs no DNS, and
// proxies to pods that name the pod's node.
type withNodeProxy struct {
	coreGroup
	pods *podHosts
}

// NewRESTStorage implements controlplaneapiserver.RESTStorageProvider.
func (p withNodeProxy) NewRESTStorage(resources serverstorage.APIResourceConfigSource, getter generic.RESTOptionsGetter) (genericapiserver.APIGroupInfo, error) {
	info, err := p.coreGroup.NewRESTStorage(resources, getter)
	if err != nil {
		return info, err
	}
	storages := info.VersionedResourcesStorageMap["v1"]
	upstream, ok := storages["nodes/proxy"].(*noderest.ProxyREST)
	if !ok {
		return info, fmt.Errorf("the proxy to nodes is a %T", storages["nodes/proxy"])
	}
	storages["nodes/proxy"] = &nodeProxy{upstream}
	return info, p.pods.install(storages)
}

// nodeProxy reaches a node's own API as logs do: by its name, which DialNode
// knows the way to. Upstream looks the name up first, to refuse those that lead
// back to the API server's host; here no name is ever looked up.
type nodeProxy struct{ *noderest.ProxyREST }

// Connect implements rest.Connecter. Other ports than the node's own are
// upstream's to refuse or reach.
func (r *nodeProxy) Connect(ctx context.Context, id string, opts runtime.Object, responder rest.Responder) (http.Handler, error) {
	_, name, port, valid := utilnet.SplitSchemeNamePort(id)
	options, ok := opts.(*api.NodeProxyOptions)
	if !valid || !ok {
		return r.ProxyREST.Connect(ctx, id, opts, responder)
	}
	info, err := r.Connection.GetConnectionInfo(ctx, types.NodeName(name))
	if err != nil {
		return nil, err
	}
	if port != "" && port != info.Port {
		return r.ProxyREST.Connect(ctx, id, opts, responder)
	}
	location := &url.URL{Scheme: info.Scheme, Host: net.JoinHostPort(info.Hostname, info.Port),
		Path: utilnet.JoinPreservingTrailingSlash("", options.Path)}
	handler := proxy.NewUpgradeAwareHandler(location, info.Transport, true, false, proxy.NewErrorResponder(responder))
	handler.MaxBytesPerSec = capabilities.Get().PerConnectionBandwidthLimitBytesPerSec
	return handler, nil
}
