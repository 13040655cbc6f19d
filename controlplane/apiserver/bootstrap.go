package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	schedulingapiv1 "k8s.io/kubernetes/pkg/apis/scheduling/v1"
	controlplaneapiserver "k8s.io/kubernetes/pkg/controlplane/apiserver"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
)

const (
	bootstrapTimeout = 30 * time.Second
	bootstrapRetry   = 50 * time.Millisecond
)

// withoutHook hides a provider's post-start hook: those of RBAC and of
// PriorityClasses begin with a pause of one second. See ensureRoles and
// ensurePriorityClasses.
type withoutHook struct {
	controlplaneapiserver.RESTStorageProvider
}

// ensurePriorityClasses brings upstream's system PriorityClasses into being, as its
// hook does.
func ensurePriorityClasses(ctx context.Context, client kubernetes.Interface) error {
	classes := client.SchedulingV1().PriorityClasses()
	for _, class := range schedulingapiv1.SystemPriorityClasses() {
		_, err := classes.Get(ctx, class.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			_, err = classes.Create(ctx, class, metav1.CreateOptions{})
		}
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("PriorityClass %s: %w", class.Name, err)
		}
	}
	return nil
}

// ensureRoles brings upstream's roles and bindings into being, and adds what is
// missing in those that exist, as upstream's hook does. It goes on after an error, so
// that one role doesn't keep the others away.
func ensureRoles(client kubernetes.Interface) error {
	var errs []error
	note := func(kind, name string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", kind, name, err))
		}
	}
	r := client.RbacV1()
	for _, role := range append(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()...) {
		note("ClusterRole", role.Name, reconcileRole(
			reconciliation.ClusterRoleRuleOwner{ClusterRole: &role}, reconciliation.ClusterRoleModifier{Client: r.ClusterRoles()}))
	}
	for _, binding := range append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...) {
		note("ClusterRoleBinding", binding.Name, reconcileBinding(
			reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &binding},
			reconciliation.ClusterRoleBindingClientAdapter{Client: r.ClusterRoleBindings()}))
	}
	for namespace, roles := range bootstrappolicy.NamespaceRoles() {
		for _, role := range roles {
			note("Role", namespace+"/"+role.Name, reconcileRole(
				reconciliation.RoleRuleOwner{Role: &role}, reconciliation.RoleModifier{Client: r, NamespaceClient: client.CoreV1().Namespaces()}))
		}
	}
	for namespace, bindings := range bootstrappolicy.NamespaceRoleBindings() {
		for _, binding := range bindings {
			note("RoleBinding", namespace+"/"+binding.Name, reconcileBinding(
				reconciliation.RoleBindingAdapter{RoleBinding: &binding},
				reconciliation.RoleBindingClientAdapter{Client: r, NamespaceClient: client.CoreV1().Namespaces()}))
		}
	}
	return errors.Join(errs...)
}

func reconcileRole(role reconciliation.RuleOwner, client reconciliation.RuleOwnerModifier) error {
	_, err := (&reconciliation.ReconcileRoleOptions{Role: role, Client: client, Confirm: true}).Run()
	return err
}

func reconcileBinding(binding reconciliation.RoleBinding, client reconciliation.RoleBindingModifier) error {
	_, err := (&reconciliation.ReconcileRoleBindingOptions{RoleBinding: binding, Client: client, Confirm: true}).Run()
	return err
}
