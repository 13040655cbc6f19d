package main

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	storageutil "k8s.io/kubernetes/pkg/apis/storage/util"
	"k8s.io/utils/ptr"

	"github.com/coracle-edge/coracle/controlplane/api/features"
	"github.com/coracle-edge/coracle/controlplane/api/localvolumes"
	"github.com/coracle-edge/coracle/controlplane/apiserver"
)

// wasmHandler is the RuntimeClass, and its handler, that runs WebAssembly.
const wasmHandler = "wasm"

// ownKinds are the manifests of the API's kinds that are ours, one file system per
// group: the package controlplane/api/GROUP embeds its *.yaml beside its types. It
// has none yet.
func ownKinds() []fs.FS { return nil }

// ensureObjects makes what the control plane itself needs in the API: its kinds,
// its namespace, the roles of its parts, the RuntimeClass, the StorageClass if
// localPath. It writes only what is missing; a role that an administrator annotated against reconciling is left alone.
func ensureObjects(ctx context.Context, server *apiserver.Server, kinds []fs.FS, localPath bool, logger *slog.Logger) error {
	client, err := typedClient(server.ClientConfig("system:coracle:bootstrap", "system:masters"))
	if err != nil {
		return err
	}
	if err := server.Define(ctx, kinds...); err != nil {
		return err
	}
	if err := create(client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: systemNamespace}}, metav1.CreateOptions{})); err != nil {
		return fmt.Errorf("namespace %s: %w", systemNamespace, err)
	}
	if err := ensureWasm(ctx, client); err != nil {
		return fmt.Errorf("RuntimeClass %s: %w", wasmHandler, err)
	}
	if localPath {
		if err := ensureLocalPath(ctx, client); err != nil {
			return fmt.Errorf("StorageClass %s: %w", localvolumes.Class, err)
		}
	}
	for _, role := range clusterRoles() {
		if err := reconcileClusterRole(client, role, logger); err != nil {
			return fmt.Errorf("ClusterRole %s: %w", role.Name, err)
		}
	}
	if err := reconcileAggregated(client, new(metricsReader()), logger); err != nil {
		return fmt.Errorf("ClusterRole %s: %w", metricsReader().Name, err)
	}
	for _, role := range namespaceRoles() {
		if err := reconcileRole(client, role, logger); err != nil {
			return fmt.Errorf("Role %s/%s: %w", role.Namespace, role.Name, err)
		}
	}
	return nil
}

// ensureWasm makes the RuntimeClass. Its pods need no containerd, so they tolerate
// that a node's is down. One without any scheduling was made before that was so; what
// an administrator put there stays.
func ensureWasm(ctx context.Context, client kubernetes.Interface) error {
	classes := client.NodeV1().RuntimeClasses()
	wanted := &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: wasmHandler}, Handler: wasmHandler, Scheduling: &nodev1.Scheduling{
		Tolerations: []corev1.Toleration{{Key: features.TaintContainerdDown, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}}}}
	if _, err := classes.Create(ctx, wanted, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		return err
	}
	have, err := classes.Get(ctx, wasmHandler, metav1.GetOptions{})
	if err != nil || have.Scheduling != nil || have.Handler != wasmHandler {
		return err
	}
	have.Scheduling = wanted.Scheduling
	if _, err = classes.Update(ctx, have, metav1.UpdateOptions{}); apierrors.IsConflict(err) {
		return nil // another control plane was first
	}
	return err
}

// ensureLocalPath makes the StorageClass of volumes that are folders of nodes. It is
// the default one unless there is another already; what an administrator made of it
// stays.
func ensureLocalPath(ctx context.Context, client kubernetes.Interface) error {
	classes := client.StorageV1().StorageClasses()
	if _, err := classes.Get(ctx, localvolumes.Class, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return err
	}
	all, err := classes.List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	other := slices.ContainsFunc(all.Items, func(c storagev1.StorageClass) bool { return storageutil.IsDefaultAnnotation(c.ObjectMeta) })
	return create(classes.Create(ctx, &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: localvolumes.Class, Annotations: map[string]string{
			storageutil.IsDefaultStorageClassAnnotation: strconv.FormatBool(!other)}},
		Provisioner:       localvolumes.Provisioner,
		ReclaimPolicy:     ptr.To(corev1.PersistentVolumeReclaimDelete),
		VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer),
		AllowedTopologies: []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{
			{Key: localvolumes.Label, Values: []string{"true"}}}}},
	}, metav1.CreateOptions{}))
}

// clusterRoles have the name of the one user they are bound to.
func clusterRoles() []rbacv1.ClusterRole {
	read := []string{"get", "list", "watch"}
	return []rbacv1.ClusterRole{{
		ObjectMeta: metav1.ObjectMeta{Name: hubUser},
		Rules: []rbacv1.PolicyRule{
			rule(read, "", "pods", "nodes", "configmaps", "secrets", "services", "namespaces"),
			rule(read, "node.k8s.io", "runtimeclasses"),
			rule([]string{"patch", "update"}, "", "nodes/status", "pods/status"),
			rule([]string{"delete"}, "", "pods"),
			rule([]string{"get", "patch"}, "", "persistentvolumes"),
			rule([]string{"create"}, "", "namespaces"),
			rule([]string{"create", "patch", "update"}, "", "events"),
			rule([]string{"create", "patch", "update"}, "events.k8s.io", "events"),
		},
	}, {
		ObjectMeta: metav1.ObjectMeta{Name: fleetUser},
		Rules:      []rbacv1.PolicyRule{rule([]string{"get", "create"}, "", "namespaces")},
	}}
}

// metricsReader lets everybody who may see pods see what they use, by the name
// that metrics-server's manifest gives it.
func metricsReader() rbacv1.ClusterRole {
	return rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "system:aggregated-metrics-reader", Labels: map[string]string{
			"rbac.authorization.k8s.io/aggregate-to-admin": "true",
			"rbac.authorization.k8s.io/aggregate-to-edit":  "true",
			"rbac.authorization.k8s.io/aggregate-to-view":  "true",
		}},
		Rules: []rbacv1.PolicyRule{rule([]string{"get", "list", "watch"}, "metrics.k8s.io", "pods", "nodes")},
	}
}

// namespaceRoles have the name of the one user they are bound to.
func namespaceRoles() []rbacv1.Role {
	return []rbacv1.Role{
		{
			ObjectMeta: metav1.ObjectMeta{Namespace: systemNamespace, Name: hubUser},
			Rules: []rbacv1.PolicyRule{
				rule([]string{"get", "create", "update"}, "", "secrets"),
				rule([]string{"get", "create", "update"}, "coordination.k8s.io", "leases"),
			},
		},
		{
			ObjectMeta: metav1.ObjectMeta{Namespace: systemNamespace, Name: fleetUser},
			Rules: []rbacv1.PolicyRule{
				rule([]string{"get", "list", "watch", "create", "update", "delete"}, "", "secrets"),
				rule([]string{"get", "create", "update"}, "", "configmaps"),
			},
		},
	}
}

func rule(verbs []string, group string, resources ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: verbs, APIGroups: []string{group}, Resources: resources}
}

// create makes an answer of "exists already" a success.
func create[T any](_ T, err error) error {
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func reconcileClusterRole(client kubernetes.Interface, role rbacv1.ClusterRole, logger *slog.Logger) error {
	if err := reconcileAggregated(client, &role, logger); err != nil {
		return err
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role.Name, Labels: role.Labels},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
		Subjects:   subject(role.Name),
	}
	bind := reconciliation.ReconcileRoleBindingOptions{
		RoleBinding: reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: binding},
		Client:      reconciliation.ClusterRoleBindingClientAdapter{Client: client.RbacV1().ClusterRoleBindings()},
		Confirm:     true,
	}
	_, err := bind.Run()
	return err
}

// reconcileAggregated makes a role that others are made of: nobody is bound to it.
func reconcileAggregated(client kubernetes.Interface, role *rbacv1.ClusterRole, logger *slog.Logger) error {
	metav1.SetMetaDataLabel(&role.ObjectMeta, "app.kubernetes.io/part-of", "coracle")
	opts := reconciliation.ReconcileRoleOptions{
		Role:    reconciliation.ClusterRoleRuleOwner{ClusterRole: role},
		Client:  reconciliation.ClusterRoleModifier{Client: client.RbacV1().ClusterRoles()},
		Confirm: true,
	}
	result, err := opts.Run()
	if err != nil {
		return err
	}
	warnProtected(logger, role.Name, result.Protected && result.Operation != reconciliation.ReconcileNone)
	return nil
}

func reconcileRole(client kubernetes.Interface, role rbacv1.Role, logger *slog.Logger) error {
	role.Labels = map[string]string{"app.kubernetes.io/part-of": "coracle"}
	opts := reconciliation.ReconcileRoleOptions{
		Role:    reconciliation.RoleRuleOwner{Role: &role},
		Client:  reconciliation.RoleModifier{Client: client.RbacV1(), NamespaceClient: client.CoreV1().Namespaces()},
		Confirm: true,
	}
	result, err := opts.Run()
	if err != nil {
		return err
	}
	warnProtected(logger, role.Name, result.Protected && result.Operation != reconciliation.ReconcileNone)
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: role.Namespace, Name: role.Name, Labels: role.Labels},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role.Name},
		Subjects:   subject(role.Name),
	}
	bind := reconciliation.ReconcileRoleBindingOptions{
		RoleBinding: reconciliation.RoleBindingAdapter{RoleBinding: binding},
		Client:      reconciliation.RoleBindingClientAdapter{Client: client.RbacV1(), NamespaceClient: client.CoreV1().Namespaces()},
		Confirm:     true,
	}
	_, err = bind.Run()
	return err
}

func subject(user string) []rbacv1.Subject {
	return []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}}
}

func warnProtected(logger *slog.Logger, name string, protected bool) {
	if protected {
		logger.Warn("a role of the control plane's is protected from reconciling and lacks rules", "role", name)
	}
}
