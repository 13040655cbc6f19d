package fleethub

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/cache"
)

// kindServices with a namespace and no name stands for all Services of it: pods
// refer to them by their environment (enableServiceLinks).
const (
	kindService  = "Service"
	kindServices = "Services"
)

// servicesOf adds what a pod's environment is made of: the Services of its
// namespace, unless it wants none, and default/kubernetes always (as kubelet's
// getServiceEnvVarMap).
func servicesOf(pod *corev1.Pod, refs map[ref]bool) {
	if links := pod.Spec.EnableServiceLinks; links == nil || *links {
		refs[ref{kindServices, pod.Namespace, ""}] = true
	}
	refs[ref{kindService, metav1.NamespaceDefault, "kubernetes"}] = true
}

// services lists what a ref of either kind means: those that have an address.
func (h *Hub) services(r ref) []*corev1.Service {
	var all []*corev1.Service
	if r.kind == kindService {
		if s, err := h.serviceLister.Services(r.namespace).Get(r.name); err == nil {
			all = []*corev1.Service{s}
		}
	} else {
		all, _ = h.serviceLister.Services(r.namespace).List(labels.Everything()) // an informer's index: it can't fail
	}
	out := all[:0:0]
	for _, s := range all {
		if ip := s.Spec.ClusterIP; ip != "" && ip != corev1.ClusterIPNone {
			out = append(out, s)
		}
	}
	return out
}

// projectService keeps what a node makes of a Service: nothing else of it is sent
// again when it changes.
func projectService(from *corev1.Service) *corev1.Service {
	ports := make([]corev1.ServicePort, len(from.Spec.Ports))
	for i, p := range from.Spec.Ports {
		ports[i] = corev1.ServicePort{Name: p.Name, Protocol: p.Protocol, Port: p.Port}
	}
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: from.Namespace, Name: from.Name, UID: from.UID},
		Spec:       corev1.ServiceSpec{ClusterIP: from.Spec.ClusterIP, Ports: ports},
	}
}

// serviceHandler tells the nodes that have pods in a Service's namespace.
type serviceHandler struct{ h *Hub }

func (s serviceHandler) OnAdd(obj any, _ bool) { s.change(obj) }
func (s serviceHandler) OnUpdate(_, obj any)   { s.change(obj) }
func (s serviceHandler) OnDelete(obj any) {
	if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = last.Obj
	}
	s.change(obj)
}

func (s serviceHandler) change(obj any) {
	o, ok := obj.(*corev1.Service)
	if !ok {
		return
	}
	s.h.changed(o.ResourceVersion, ref{kindService, o.Namespace, o.Name}, ref{kindServices, o.Namespace, ""})
}
