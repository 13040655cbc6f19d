package apiserver

import (
	"k8s.io/apiserver/pkg/registry/generic"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/metrics/pkg/apis/metrics"

	"github.com/coracle-edge/coracle/controlplane/apiserver/nodemetrics"
)

// metricsGroup is metrics.k8s.io among the built-in groups: what the aggregation
// layer proxies to metrics-server elsewhere. An APIService for it appears by itself.
type metricsGroup struct {
	source *nodemetrics.Source
	nodes  corelisters.NodeLister
	pods   corelisters.PodLister
}

// GroupName implements controlplaneapiserver.RESTStorageProvider.
func (metricsGroup) GroupName() string { return metrics.GroupName }

// NewRESTStorage implements controlplaneapiserver.RESTStorageProvider. Nothing is
// stored.
func (g metricsGroup) NewRESTStorage(serverstorage.APIResourceConfigSource, generic.RESTOptionsGetter) (genericapiserver.APIGroupInfo, error) {
	return nodemetrics.Group(g.source, g.nodes, g.pods), nil
}
