package apiserver

import (
	"fmt"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/registry/generic"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	corelisters "k8s.io/client-go/listers/core/v1"
	leasestorage "k8s.io/kubernetes/pkg/registry/coordination/lease/storage"
	coordinationrest "k8s.io/kubernetes/pkg/registry/coordination/rest"

	"github.com/coracle-edge/coracle/controlplane/apiserver/nodelease"
)

// withNodeLeases is upstream's group with the leases of nodes served from memory.
type withNodeLeases struct {
	coordinationrest.RESTStorageProvider
	source     nodelease.Source // nil: all leases are stored
	namespaces corelisters.NamespaceLister
}

// NewRESTStorage implements controlplaneapiserver.RESTStorageProvider.
func (p withNodeLeases) NewRESTStorage(resources serverstorage.APIResourceConfigSource, getter generic.RESTOptionsGetter) (genericapiserver.APIGroupInfo, error) {
	info, err := p.RESTStorageProvider.NewRESTStorage(resources, getter)
	if err != nil || p.source == nil {
		return info, err
	}
	storages := info.VersionedResourcesStorageMap[coordinationv1.SchemeGroupVersion.Version]
	stored, ok := storages["leases"].(*leasestorage.REST)
	if !ok {
		return info, fmt.Errorf("the storage of leases is a %T", storages["leases"])
	}
	storages["leases"] = nodelease.New(stored, p.source, func() bool {
		ns, err := p.namespaces.Get(corev1.NamespaceNodeLease)
		return err == nil && ns.DeletionTimestamp == nil
	})
	return info, nil
}
