package admission

import (
	"context"
	"fmt"
	"io"

	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/admission"

	corev1 "k8s.io/api/core/v1"
	api "k8s.io/kubernetes/pkg/apis/core"
)

// PluginName is the plugin's name in the admission chain.
const PluginName = "DefaultUnlimitedTolerations"

// taints are what a node gets when it is away or not ready.
var taints = [...]string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable}

// Register adds the plugin to plugins.
func Register(plugins *admission.Plugins) {
	plugins.Register(PluginName, func(io.Reader) (admission.Interface, error) {
		return NewDefaultUnlimitedTolerations(), nil
	})
}

// DefaultUnlimitedTolerations adds, to a pod that says nothing about them,
// NoExecute tolerations of not-ready and unreachable without TolerationSeconds.
type DefaultUnlimitedTolerations struct{ *admission.Handler }

var _ admission.MutationInterface = &DefaultUnlimitedTolerations{}

// NewDefaultUnlimitedTolerations returns the plugin.
func NewDefaultUnlimitedTolerations() *DefaultUnlimitedTolerations {
	return &DefaultUnlimitedTolerations{admission.NewHandler(admission.Create, admission.Update)}
}

// Admit adds what is missing. Like upstream's plugin it also runs on updates,
// where validation allows tolerations to be added.
func (*DefaultUnlimitedTolerations) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() != api.Resource("pods") || a.GetSubresource() != "" {
		return nil
	}
	pod, ok := a.GetObject().(*api.Pod)
	if !ok {
		return errors.NewBadRequest(fmt.Sprintf("expected a Pod but got %T", a.GetObject()))
	}
	for _, taint := range taints {
		if !says(pod.Spec.Tolerations, taint) {
			pod.Spec.Tolerations = append(pod.Spec.Tolerations, api.Toleration{
				Key:      taint,
				Operator: api.TolerationOpExists,
				Effect:   api.TaintEffectNoExecute,
			})
		}
	}
	return nil
}

// says is whether one of the tolerations already covers taint's NoExecute, with
// or without a limit.
func says(tolerations []api.Toleration, taint string) bool {
	for _, t := range tolerations {
		if (t.Key == taint || t.Key == "") && (t.Effect == api.TaintEffectNoExecute || t.Effect == "") {
			return true
		}
	}
	return false
}
