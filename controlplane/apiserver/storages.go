package apiserver

import (
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsv1beta1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1beta1"
	apiextensionsapiserver "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serveroptions "k8s.io/apiserver/pkg/server/options"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	apiregistrationv1beta1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1beta1"
	aggregatorscheme "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	"k8s.io/kubernetes/pkg/kubeapiserver"

	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/controlplane/datastore"
)

// registryPrefix is where all Kubernetes API servers keep their objects in etcd.
const registryPrefix = "/registry"

// storages are the getters of the chain's servers. They differ in the codec
// with which objects are stored: protobuf for built-in kinds, JSON for others.
type storages struct {
	factory         *serverstorage.DefaultStorageFactory
	kubernetes      *storageGetter
	definitions     *storageGetter // CustomResourceDefinitions
	customResources *storageGetter
	aggregation     *storageGetter // APIServices
}

func newStorages(store *datastore.Store, generic *genericapiserver.Config, resources *serverstorage.ResourceConfig, recorder *trace.Recorder) (*storages, error) {
	backend := storagebackend.NewDefaultConfig(registryPrefix, nil)
	backend.Transport = store.Transport()
	backend.CompactionInterval = 0 // the store compacts
	backend.DBMetricPollInterval = 0
	backend.EventsHistoryWindow = eventsHistory
	backend.StorageObjectCountTracker = generic.StorageObjectCountTracker

	options := serveroptions.NewEtcdOptions(backend)
	options.DefaultStorageMediaType = runtime.ContentTypeProtobuf
	config := kubeapiserver.NewStorageFactoryConfigEffectiveVersion(generic.EffectiveVersion)
	config.APIResourceConfig = resources
	config.DefaultResourceEncoding.SetEffectiveVersion(generic.EffectiveVersion)
	factory, err := config.Complete(options).New()
	if err != nil {
		return nil, err
	}
	getter := &storageGetter{factory: factory, store: store, objects: generic.StorageObjectCountTracker, trace: recorder}
	simple := func(codec runtime.Codec, encode runtime.GroupVersioner) *storageGetter {
		b := *backend
		b.Codec, b.EncodeVersioner = codec, encode
		return getter.with(&serveroptions.SimpleStorageFactory{StorageConfig: b})
	}
	return &storages{
		factory:    factory,
		kubernetes: getter,
		// Stored as v1beta1, as upstream does, because it is the smaller of the two.
		definitions: simple(
			apiextensionsapiserver.Codecs.LegacyCodec(apiextensionsv1beta1.SchemeGroupVersion, apiextensionsv1.SchemeGroupVersion),
			runtime.NewMultiGroupVersioner(apiextensionsv1beta1.SchemeGroupVersion, schema.GroupKind{Group: apiextensionsv1beta1.GroupName})),
		customResources: simple(unstructured.UnstructuredJSONScheme, nil),
		aggregation: simple(
			aggregatorscheme.Codecs.LegacyCodec(apiregistrationv1.SchemeGroupVersion, apiregistrationv1beta1.SchemeGroupVersion),
			runtime.NewMultiGroupVersioner(apiregistrationv1.SchemeGroupVersion, schema.GroupKind{Group: apiregistrationv1beta1.GroupName})),
	}, nil
}
