package nodelease

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	utilflowcontrol "k8s.io/apiserver/pkg/util/flowcontrol"
	"k8s.io/kubernetes/pkg/apis/coordination"
	leasestorage "k8s.io/kubernetes/pkg/registry/coordination/lease/storage"
)

// readOnly is what a write is answered.
const readOnly = "the Leases in " + corev1.NamespaceNodeLease + " are served from the memory of the fleet hub, which hears the nodes, and can only be read; to be rid of one, delete its Node"

// REST is the storage of Leases.
type REST struct {
	*leasestorage.REST
	board *board
}

var (
	_ rest.StandardStorage = &REST{}
	_ rest.TableConvertor  = &REST{}
)

// New puts the leases of nodes in front of upstream's storage. open says whether
// the namespace kube-node-lease is there and isn't being deleted.
func New(stored *leasestorage.REST, source Source, open func() bool) *REST {
	return &REST{stored, newBoard(source, open, time.Now)}
}

// scope says which leases a request is about.
type scope int

const (
	others scope = iota // of other namespaces
	nodes
	both
)

func scopeOf(ctx context.Context, options *metainternalversion.ListOptions) scope {
	namespace := genericapirequest.NamespaceValue(ctx)
	if namespace == "" && options != nil && options.FieldSelector != nil {
		namespace, _ = options.FieldSelector.RequiresExactMatch("metadata.namespace")
	}
	switch namespace {
	case corev1.NamespaceNodeLease:
		return nodes
	case "":
		return both
	}
	return others
}

// notYet is the answer before the hub has begun: an empty list would say that
// the nodes are gone.
func notYet() error {
	return apierrors.NewServiceUnavailable("the fleet hub hasn't begun yet, so nothing is known of the nodes' leases; try again in a moment")
}

// Get implements rest.Getter.
func (r *REST) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	if scopeOf(ctx, nil) != nodes {
		return r.REST.Get(ctx, name, options)
	}
	lease, known := r.board.get(name)
	switch {
	case lease != nil:
		return lease, nil
	case !known:
		return nil, notYet()
	}
	return nil, apierrors.NewNotFound(coordination.Resource("leases"), name)
}

// List implements rest.Lister.
func (r *REST) List(ctx context.Context, options *metainternalversion.ListOptions) (runtime.Object, error) {
	s := scopeOf(ctx, options)
	if s == others {
		return r.REST.List(ctx, options)
	}
	if s == nodes {
		list, rev, known := r.board.list()
		if !known {
			return nil, notYet()
		}
		if err := checkList(options, rev); err != nil {
			return nil, err
		}
		return &coordination.LeaseList{ListMeta: metav1.ListMeta{ResourceVersion: strconv.FormatUint(rev, 10)}, Items: r.matching(list, options)}, nil
	}
	out, err := r.REST.List(ctx, options)
	if err != nil {
		return nil, err
	}
	all, ok := out.(*coordination.LeaseList)
	if !ok {
		return nil, fmt.Errorf("list of leases: a %T", out)
	}
	all.Items = slices.DeleteFunc(all.Items, func(l coordination.Lease) bool { return l.Namespace == corev1.NamespaceNodeLease })
	if all.Continue == "" { // the last page
		list, _, _ := r.board.list()
		all.Items = append(all.Items, r.matching(list, options)...)
	}
	return all, nil
}

// checkList refuses what can't be had: only what is now is known.
func checkList(options *metainternalversion.ListOptions, now uint64) error {
	if options == nil {
		return nil
	}
	if options.Continue != "" {
		return apierrors.NewResourceExpired("the list of nodes' leases is never continued: it comes in one piece; list from the start")
	}
	asked, err := parseRevision(options.ResourceVersion)
	if err != nil {
		return err
	}
	if asked > now || asked != 0 && asked != now && options.ResourceVersionMatch == metav1.ResourceVersionMatchExact {
		return expired(asked)
	}
	return nil
}

func parseRevision(text string) (uint64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, apierrors.NewBadRequest(fmt.Sprintf("resourceVersion %q is not a number", text))
	}
	return n, nil
}

func expired(rev uint64) error {
	return apierrors.NewResourceExpired(fmt.Sprintf("resourceVersion %d of the nodes' leases is not of this API server's memory; list again", rev))
}

func (r *REST) matching(list []coordination.Lease, options *metainternalversion.ListOptions) []coordination.Lease {
	matches := r.matcher(options)
	return slices.DeleteFunc(list, func(l coordination.Lease) bool { return !matches(&l) })
}

func (r *REST) matcher(options *metainternalversion.ListOptions) func(*coordination.Lease) bool {
	label, field := labels.Everything(), fields.Everything()
	if options != nil && options.LabelSelector != nil {
		label = options.LabelSelector
	}
	if options != nil && options.FieldSelector != nil {
		field = options.FieldSelector
	}
	predicate := r.PredicateFunc(label, field)
	return func(l *coordination.Lease) bool {
		ok, err := predicate.Matches(l)
		return err == nil && ok
	}
}

// Watch implements rest.Watcher.
func (r *REST) Watch(ctx context.Context, options *metainternalversion.ListOptions) (watch.Interface, error) {
	if options == nil {
		options = &metainternalversion.ListOptions{}
	}
	switch scopeOf(ctx, options) {
	case nodes:
		return r.watchNodes(ctx, options)
	case both:
		return r.watchAll(ctx, options)
	}
	return r.REST.Watch(ctx, options)
}

func (r *REST) watchNodes(ctx context.Context, options *metainternalversion.ListOptions) (watch.Interface, error) {
	rev, err := parseRevision(options.ResourceVersion)
	if err != nil {
		return nil, err
	}
	_, now, known := r.board.list()
	if !known {
		return nil, notYet()
	}
	s := start{rev: rev}
	switch {
	case options.SendInitialEvents != nil && *options.SendInitialEvents:
		s = start{all: true, bookmark: options.AllowWatchBookmarks}
		if rev > now {
			return nil, expired(rev)
		}
	case rev == 0 && options.SendInitialEvents != nil:
		s.rev = now
	case rev == 0:
		s.all = true
	}
	w := r.board.watch(r.matcher(options), nil, "", s)
	if w == nil {
		return nil, expired(rev)
	}
	utilflowcontrol.WatchInitialized(ctx)
	go w.run(ctx) // ends with ctx or Stop
	return w, nil
}

// watchAll shows the leases of all namespaces. Its revisions are etcd's.
func (r *REST) watchAll(ctx context.Context, options *metainternalversion.ListOptions) (watch.Interface, error) {
	position := options.ResourceVersion
	var s start
	initial := options.SendInitialEvents
	switch {
	case initial != nil && *initial, initial == nil && (position == "" || position == "0"):
		s.all = true
		// Whatever the stored watch begins with is at least as new as this.
		now, err := r.REST.List(ctx, &metainternalversion.ListOptions{Limit: 1})
		if err != nil {
			return nil, err
		}
		position = now.(metav1.ListInterface).GetResourceVersion()
	case position == "" || position == "0": // from now on
		_, s.rev, _ = r.board.list()
	default:
		s.unknown = true
	}
	stored, err := r.REST.Watch(ctx, options)
	if err != nil {
		return nil, err
	}
	w := r.board.watch(r.matcher(options), stored, position, s)
	if w == nil { // it went on at once from a revision that is forgotten already
		stored.Stop()
		return nil, expired(s.rev)
	}
	go w.run(ctx) // ends with ctx, Stop or the stored watch
	return w, nil
}

// Create implements rest.Creater.
func (r *REST) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error) {
	if scopeOf(ctx, nil) != nodes {
		return r.REST.Create(ctx, obj, validate, options)
	}
	if l, ok := obj.(*coordination.Lease); ok {
		if there, _ := r.board.get(l.Name); there != nil {
			return nil, apierrors.NewAlreadyExists(coordination.Resource("leases"), l.Name)
		}
	}
	return nil, refuse("create")
}

// Update implements rest.Updater, and with it patch and apply.
func (r *REST) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc, update rest.ValidateObjectUpdateFunc, force bool, options *metav1.UpdateOptions) (runtime.Object, bool, error) {
	if scopeOf(ctx, nil) != nodes {
		return r.REST.Update(ctx, name, info, create, update, force, options)
	}
	return nil, false, refuse("update")
}

// Delete implements rest.GracefulDeleter.
func (r *REST) Delete(ctx context.Context, name string, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions) (runtime.Object, bool, error) {
	if scopeOf(ctx, nil) != nodes {
		return r.REST.Delete(ctx, name, validate, options)
	}
	lease, known := r.board.get(name)
	if lease == nil && known {
		return nil, false, apierrors.NewNotFound(coordination.Resource("leases"), name)
	}
	return nil, false, refuse("delete")
}

// DeleteCollection implements rest.CollectionDeleter. A namespace that is being
// deleted has no leases any more, so there is nothing to refuse; what an earlier
// version of the cluster stored there goes.
func (r *REST) DeleteCollection(ctx context.Context, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions, list *metainternalversion.ListOptions) (runtime.Object, error) {
	if scopeOf(ctx, nil) != nodes || !r.board.open() {
		return r.REST.DeleteCollection(ctx, validate, options, list)
	}
	return nil, refuse("deletecollection")
}

func refuse(verb string) error {
	err := apierrors.NewMethodNotSupported(coordination.Resource("leases"), verb)
	err.ErrStatus.Message = readOnly
	return err
}
