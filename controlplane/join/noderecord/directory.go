package noderecord

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-edge/coracle/controlplane/api/enrollment"
)

// Directory answers who a node is from memory, kept up to date by a watch on the
// records alone. Lookup works before Run too, by asking the API.
type Directory struct {
	store    Store
	informer cache.SharedIndexInformer
	logger   *slog.Logger
	misses   *rate.Limiter
}

// NewDirectory returns a Directory; nothing happens until Run or Lookup.
func NewDirectory(client kubernetes.Interface, logger *slog.Logger) *Directory {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = "type=" + string(SecretType) }),
		informers.WithTransform(func(obj any) (any, error) {
			if secret, ok := obj.(*corev1.Secret); ok {
				secret.ManagedFields = nil
			}
			return obj, nil
		}))
	return &Directory{
		store:    Store{Client: client},
		informer: factory.Core().V1().Secrets().Informer(),
		logger:   logger,
		// A record that the watch hasn't brought yet is a rare thing; a name out of a forged token isn't.
		misses: rate.NewLimiter(20, 50),
	}
}

// Run watches until ctx ends.
func (d *Directory) Run(ctx context.Context) error {
	d.informer.Run(ctx.Done())
	return nil
}

// Synced is true once all records are in memory.
func (d *Directory) Synced() bool { return d.informer.HasSynced() }

// OnChange calls f for every record that is there, new, changed (a revocation,
// another key) or gone. f must not block. Call it before Run.
func (d *Directory) OnChange(f func(r Record, gone bool)) error {
	tell := func(obj any, gone bool) {
		if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = last.Obj
		}
		secret, ok := obj.(*corev1.Secret)
		if !ok || secret.Type != SecretType {
			return
		}
		r, err := Parse(secret)
		if err != nil {
			d.logger.Error("node record", "err", err)
			return
		}
		f(r, gone)
	}
	_, err := d.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { tell(obj, false) },
		UpdateFunc: func(_, obj any) { tell(obj, false) },
		DeleteFunc: func(obj any) { tell(obj, true) },
	})
	return err
}

// Lookup returns the record of node, revoked or not; enrollment.ErrNodeUnknown if there is none.
func (d *Directory) Lookup(ctx context.Context, node string) (Record, error) {
	obj, ok, err := d.informer.GetStore().GetByKey(Namespace + "/" + SecretName(node))
	if err == nil && ok {
		if secret, ok := obj.(*corev1.Secret); ok {
			return Parse(secret)
		}
	}
	if d.Synced() && !d.misses.Allow() {
		return Record{}, fmt.Errorf("%w: %q", enrollment.ErrNodeUnknown, node)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return d.store.Get(ctx, node)
}

// Admitted is Lookup for whoever needs a node in good standing: a revoked one is
// enrollment.ErrRevoked.
func (d *Directory) Admitted(ctx context.Context, node string) (Record, error) {
	r, err := d.Lookup(ctx, node)
	if err != nil {
		return Record{}, err
	}
	return r, r.RevokedError()
}

// Unknown says whether err means that there is no record.
func Unknown(err error) bool { return errors.Is(err, enrollment.ErrNodeUnknown) }
