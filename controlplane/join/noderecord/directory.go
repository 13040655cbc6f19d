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
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = "type=" + string(SecretType) }),
		informers.WithTransform(func(obj any) (any, error) {
			if secret, ok := obj.(*corev1.Secret); ok && secret.ManagedFields != nil {
				slim := *secret // others may have it, too
				slim.ManagedFields = nil
				return &slim, nil
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
// another key) or gone, with the record as it was and as it is; nil where there is
// none, or none that can be read. f must not block. Call it before Run.
func (d *Directory) OnChange(f func(node string, before, now *Record)) error {
	read := func(obj any) *Record {
		if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = last.Obj
		}
		secret, ok := obj.(*corev1.Secret)
		if !ok || secret.Type != SecretType {
			return nil
		}
		r, err := Parse(secret)
		if err != nil {
			d.logger.Error("node record", "err", err)
			return nil
		}
		return &r
	}
	tell := func(before, now *Record) {
		switch {
		case now != nil:
			f(now.Node, before, now)
		case before != nil:
			f(before.Node, before, nil)
		}
	}
	_, err := d.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { tell(nil, read(obj)) },
		UpdateFunc: func(old, obj any) { tell(read(old), read(obj)) },
		DeleteFunc: func(obj any) { tell(read(obj), nil) },
	})
	return err
}

// Names waits until all records are in memory, and returns whose they are, in any
// standing; ctx's error if that ends first. Run must have been called.
func (d *Directory) Names(ctx context.Context) ([]string, error) {
	if !cache.WaitForCacheSync(ctx.Done(), d.informer.HasSynced) {
		return nil, ctx.Err()
	}
	var names []string
	for _, obj := range d.informer.GetStore().List() {
		secret, ok := obj.(*corev1.Secret)
		if !ok {
			continue
		}
		r, err := Parse(secret)
		if err != nil {
			continue // OnChange's caller was told
		}
		names = append(names, r.Node)
	}
	return names, nil
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

// Admitted is Lookup for whoever needs a node in good standing: the error of one
// that isn't is Record.Standing's.
func (d *Directory) Admitted(ctx context.Context, node string) (Record, error) {
	r, err := d.Lookup(ctx, node)
	if err != nil {
		return Record{}, err
	}
	return r, r.Standing()
}

// Identified is Lookup for whoever must know who it is that speaks: also a node
// that was removed may come, to be told so. The error of one whose identity
// counts no more is Record.Refused's.
func (d *Directory) Identified(ctx context.Context, node string) (Record, error) {
	r, err := d.Lookup(ctx, node)
	if err != nil {
		return Record{}, err
	}
	return r, r.Refused()
}

// Unknown says whether err means that there is no record.
func Unknown(err error) bool { return errors.Is(err, enrollment.ErrNodeUnknown) }
