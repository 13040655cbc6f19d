package apiserver

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/kubernetes/pkg/controlplane/controller/clusterauthenticationtrust"
	"k8s.io/kubernetes/pkg/controlplane/controller/defaultservicecidr"
	"k8s.io/kubernetes/pkg/controlplane/controller/kubernetesservice"
	"k8s.io/kubernetes/pkg/controlplane/controller/systemnamespaces"
	"k8s.io/kubernetes/pkg/controlplane/reconcilers"
	utilsnet "k8s.io/utils/net"
)

// addHooks starts what upstream's API server keeps in existence: system
// namespaces, the `kubernetes` Service and its endpoints, the default
// ServiceCIDR, and the trust of aggregated API servers. None of them writes
// unless something differs.
func (s *Server) addHooks(server *genericapiserver.GenericAPIServer, auth *authentication) error {
	namespaces := append([]string{metav1.NamespaceSystem, metav1.NamespacePublic, metav1.NamespaceDefault, corev1.NamespaceNodeLease},
		s.cfg.SystemNamespaces...)
	server.AddPostStartHookOrDie("start-system-namespaces-controller", func(hook genericapiserver.PostStartHookContext) error {
		go systemnamespaces.NewController(namespaces, s.client, s.informers.Core().V1().Namespaces()).Run(hook.Done())
		return nil
	})

	trust := clusterauthenticationtrust.ClusterAuthenticationInfo{
		ClientCA:                         auth.clientCA,
		RequestHeaderCA:                  auth.requestHeader.CAContentProvider,
		RequestHeaderUsernameHeaders:     auth.requestHeader.UsernameHeaders,
		RequestHeaderUIDHeaders:          auth.requestHeader.UIDHeaders,
		RequestHeaderGroupHeaders:        auth.requestHeader.GroupHeaders,
		RequestHeaderExtraHeaderPrefixes: auth.requestHeader.ExtraHeaderPrefixes,
		RequestHeaderAllowedNames:        auth.requestHeader.AllowedClientNames,
	}
	server.AddPostStartHookOrDie("start-cluster-authentication-info-controller", func(hook genericapiserver.PostStartHookContext) error {
		controller := clusterauthenticationtrust.NewClusterAuthenticationTrustController(trust, s.client)
		trust.ClientCA.AddListener(controller)
		trust.RequestHeaderCA.AddListener(controller)
		go controller.Run(hook, 1)
		return nil
	})

	server.AddPostStartHookOrDie("start-kubernetes-service-cidr-controller", func(hook genericapiserver.PostStartHookContext) error {
		// Blocks until the ServiceCIDR exists: no Service gets an address before.
		defaultservicecidr.NewController(*s.cfg.ServiceCIDR, net.IPNet{}, s.client).Start(hook)
		return nil
	})

	s.AddPostStartHook("rbac/bootstrap-roles", func(ctx context.Context) error {
		return Retry(ctx, func(context.Context) error { return ensureRoles(s.client) })
	})
	s.AddPostStartHook("scheduling/bootstrap-system-priority-classes", func(ctx context.Context) error {
		return Retry(ctx, func(ctx context.Context) error { return ensurePriorityClasses(ctx, s.client) })
	})

	server.AddPostStartHookOrDie("storage-readiness", server.StorageReadinessHook.Hook)
	return s.addServiceHook(server)
}

// addServiceHook keeps the `kubernetes` Service and its endpoints. Upstream's
// lease reconciler would write to etcd every ten seconds.
func (s *Server) addServiceHook(server *genericapiserver.GenericAPIServer) error {
	serviceIP, err := utilsnet.GetIndexedIP(s.cfg.ServiceCIDR, 1)
	if err != nil {
		return fmt.Errorf("%w: service CIDR %s: %w", ErrConfig, s.cfg.ServiceCIDR, err)
	}
	_, port, err := s.generic.SecureServing.HostPort()
	if err != nil {
		return err
	}
	endpoints := reconcilers.NewNoneEndpointReconciler()
	if s.cfg.AdvertiseAddress != nil {
		endpoints = reconcilers.NewMasterCountEndpointReconciler(s.cfg.APIServers,
			reconcilers.NewEndpointsAdapter(s.client.CoreV1(), s.client.DiscoveryV1()))
	} else {
		s.cfg.Logger.Warn("this machine has no address but loopback: the kubernetes Service has no endpoints")
	}
	controller := kubernetesservice.New(kubernetesservice.Config{
		PublicIP:           s.cfg.AdvertiseAddress,
		EndpointReconciler: &keepEndpoints{EndpointReconciler: endpoints},
		EndpointInterval:   endpointInterval,
		ServiceIP:          serviceIP,
		ServicePort:        443,
		PublicServicePort:  port,
	}, s.client, s.informers.Core().V1().Services())
	server.AddPostStartHookOrDie("bootstrap-controller", func(hook genericapiserver.PostStartHookContext) error {
		controller.Start(hook.Done())
		return nil
	})
	server.AddPreShutdownHookOrDie("stop-kubernetes-service-controller", func() error {
		controller.Stop()
		return nil
	})
	return nil
}

// endpointInterval is how often the endpoints are compared with what they should be.
const endpointInterval = 30 * time.Second

// keepEndpoints leaves the endpoints as they are when the server starts or
// stops: it comes back at the same address, and what changes is replaced.
type keepEndpoints struct {
	reconcilers.EndpointReconciler
	stopping atomic.Bool
}

// StopReconciling implements reconcilers.EndpointReconciler.
func (k *keepEndpoints) StopReconciling() {
	k.stopping.Store(true)
	k.EndpointReconciler.StopReconciling()
}

// RemoveEndpoints removes nothing. Upstream's controller takes "not found" at
// the start and success at the end for the ordinary answers.
func (k *keepEndpoints) RemoveEndpoints(service string, _ net.IP, _ []corev1.EndpointPort) error {
	if k.stopping.Load() {
		return nil
	}
	return storage.NewKeyNotFoundError(service, 0)
}
