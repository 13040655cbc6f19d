package apiserver

import (
	"context"
	"reflect"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
)

// keepers are the core resources whose objects may come back as what they were.
var keepers = map[string]bool{"pods": true, "configmaps": true, "secrets": true}

type formerKey struct{}

// former is what an object was before the cluster forgot it.
type former struct {
	uid     types.UID
	created metav1.Time
}

// WithFormerIdentity has the pod, ConfigMap or Secret that is created in ctx, by a
// client of ClientConfig, keep the UID and the creation time it once had: nodes
// know objects by their UID, so what they run goes on. All else is as with any
// creation: who asks must be allowed to, and admission and validation apply. Like
// an identity, it is a context value, which nothing that comes over a network can
// set.
func WithFormerIdentity(ctx context.Context, uid types.UID, created metav1.Time) context.Context {
	return context.WithValue(ctx, formerKey{}, former{uid, created})
}

// keepIdentity teaches a core resource's storage WithFormerIdentity.
func keepIdentity(resource string, storage rest.Storage) {
	if !keepers[resource] {
		return
	}
	for _, store := range storesIn(reflect.ValueOf(storage), 0) {
		next := store.BeginCreate
		store.BeginCreate = func(ctx context.Context, obj runtime.Object, options *metav1.CreateOptions) (genericregistry.FinishFunc, error) {
			if f, ok := ctx.Value(formerKey{}).(former); ok && f.uid != "" {
				object, err := meta.Accessor(obj)
				if err != nil {
					return nil, err
				}
				object.SetUID(f.uid)
				object.SetCreationTimestamp(f.created)
			}
			if next != nil {
				return next(ctx, obj, options)
			}
			return func(context.Context, bool) {}, nil
		}
	}
}
