package upstream

import (
	"cmp"
	"context"
	"crypto"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/scale"
	"k8s.io/klog/v2"
)

// Manager is the user that holds the informers, discovery and whatever has no service account of its own.
const Manager = "system:kube-controller-manager"

// Deps is what the controllers are built with. Config and Factory must be set.
type Deps struct {
	// Config returns a client configuration that acts as a user. Nothing throttles it.
	Config func(user string, groups ...string) *rest.Config
	// Factory is the process's shared informers, made without resync. They are started with the context given to New.
	Factory informers.SharedInformerFactory

	// Roots returns the cluster's roots as of now; what depends on them is built again when they change. May be nil.
	Roots func() Roots
	// SigningDuration is the longest lifetime of a certificate signed. Default: a year.
	SigningDuration time.Duration
	// ServiceAccountKey (*rsa.PrivateKey or *ecdsa.PrivateKey) signs the tokens of Secrets of type
	// kubernetes.io/service-account-token. Nil: these get none.
	ServiceAccountKey crypto.PrivateKey
	// PodGarbage is how pods that nobody looks after are collected; zero values are the defaults.
	PodGarbage PodGarbage

	Logger *slog.Logger
}

// PodGarbage says which pods are garbage, and when.
type PodGarbage struct {
	// EndedPods is how many pods that have ended are kept; the oldest beyond it are deleted. Default: 1000. Upstream keeps
	// 12500, which would be some 80 MB of our memory.
	EndedPods int
	// Every is the time between two looks, in the cache. Default: 20 s, as upstream.
	Every time.Duration
	// Quarantine is how long a node must have been gone before the pods bound to it are. Default: 40 s, as upstream.
	Quarantine time.Duration
}

func (g PodGarbage) orDefaults() PodGarbage {
	return PodGarbage{
		EndedPods:  cmp.Or(g.EndedPods, 1000),
		Every:      cmp.Or(g.Every, 20*time.Second),
		Quarantine: cmp.Or(g.Quarantine, 40*time.Second),
	}
}

// Roots are those of the cluster, and what signs.
type Roots struct {
	// CA, in PEM, is published to every namespace as ConfigMap kube-root-ca.crt. Empty: it isn't published.
	CA []byte
	// SigningCertFile and SigningKeyFile sign approved CertificateSigningRequests. Empty: nothing is signed.
	SigningCertFile, SigningKeyFile string
	// Changed is closed when another look would show others; nil: never.
	Changed <-chan struct{}
}

// Set is upstream's controllers, ready to be run one by one.
type Set struct {
	deps   Deps
	ctx    context.Context
	logger klog.Logger
	disco  *resources
	kinds  *kinds

	mu      sync.Mutex
	clients map[string]kubernetes.Interface
}

// Controller is one of them.
type Controller struct {
	Name string
	// Run waits until there is something to control, builds the controller and runs it until ctx ends. It may be called
	// again after it returned. It returns nil only after ctx ended.
	Run func(ctx context.Context) error
}

// New prepares the controllers. Informers that they start live until ctx ends, longer than a single run. It makes no
// request.
func New(ctx context.Context, deps Deps) (*Set, error) {
	if deps.Config == nil || deps.Factory == nil {
		return nil, fmt.Errorf("upstream controllers: Config and Factory must be set")
	}
	if deps.Logger == nil {
		deps.Logger = slog.Default()
	}
	if deps.SigningDuration == 0 {
		deps.SigningDuration = 365 * 24 * time.Hour
	}
	s := &Set{deps: deps, ctx: ctx, clients: map[string]kubernetes.Interface{}}
	s.logger = logr.FromSlogHandler(quieter{deps.Logger.Handler()})
	client, err := discovery.NewDiscoveryClientForConfig(deps.Config(Manager))
	if err != nil {
		return nil, fmt.Errorf("upstream controllers: discovery client: %w", err)
	}
	meta, err := metadata.NewForConfig(unthrottled(deps.Config(Manager)))
	if err != nil {
		return nil, fmt.Errorf("upstream controllers: metadata client: %w", err)
	}
	s.kinds = newKinds(ctx, meta)
	s.disco = newResources(client, s.kinds.drop)
	return s, nil
}

// builder makes one controller and returns the function that runs it until ctx ends.
type builder func(ctx context.Context, k *kit) (run func(context.Context), err error)

// entry is a controller's line in the list.
type entry struct {
	name  string
	gates []gate // the controller is built once any of them opens; none: at once
	build builder
}

// ofRoots says whether the controller is built of the cluster's roots.
func (e entry) ofRoots() bool {
	switch e.name {
	case tokensController, rootCAController, signingController:
		return true
	}
	return false
}

// Controllers returns all of them in the order in which they should be started.
func (s *Set) Controllers() []Controller {
	var list []Controller
	for _, e := range s.entries() {
		run := func(ctx context.Context) error { return s.run(ctx, e, s.roots()) }
		if e.ofRoots() {
			run = func(ctx context.Context) error { return s.runByRoots(ctx, e) }
		}
		list = append(list, Controller{Name: e.name, Run: run})
	}
	return append(list, Controller{Name: "discovery-refresh", Run: func(ctx context.Context) error {
		return s.disco.watch(ctx, s)
	}})
}

func (s *Set) roots() Roots {
	if s.deps.Roots == nil {
		return Roots{}
	}
	return s.deps.Roots()
}

// runByRoots runs a controller and builds it again whenever the roots change.
func (s *Set) runByRoots(ctx context.Context, e entry) error {
	for {
		roots := s.roots()
		once, cancel := context.WithCancel(ctx)
		stop := make(chan struct{})
		go func() {
			defer close(stop)
			select {
			case <-roots.Changed:
				cancel()
			case <-once.Done():
			}
		}()
		err := s.run(once, e, roots)
		changed := once.Err() != nil && ctx.Err() == nil
		cancel()
		<-stop
		if !changed {
			return err
		}
	}
}

func (s *Set) run(ctx context.Context, e entry, roots Roots) error {
	if err := s.await(ctx, e.gates); err != nil || ctx.Err() != nil {
		return err
	}
	ctx, cancel := context.WithCancel(klog.NewContext(ctx, s.logger.WithName(e.name)))
	defer cancel()
	k := &kit{Set: s, handlers: newHandlers(), roots: roots}
	k.Factory = tracked{s.deps.Factory, k.handlers}
	defer k.handlers.remove()
	run, err := e.build(ctx, k)
	k.handlers.open(err)
	if err != nil {
		return fmt.Errorf("build: %w", err)
	}
	s.startInformers()
	for _, start := range k.starts {
		start(ctx)
	}
	run(ctx)
	cancel()
	for _, stop := range k.stops {
		stop()
	}
	return nil
}

// startInformers starts those that were asked for since the last call.
func (s *Set) startInformers() {
	s.deps.Factory.StartWithContext(s.ctx)
}

// kit is what one run of one controller is built with.
type kit struct {
	*Set
	// Factory is the shared one; handlers added through it are taken off when the run ends.
	Factory  informers.SharedInformerFactory
	handlers *handlers
	roots    Roots // as of this run
	starts   []func(context.Context)
	stops    []func()
}

// private returns a factory of the run's own, for informers that see a part of their kind only.
func (k *kit) private(fieldSelector string) informers.SharedInformerFactory {
	client := k.Manager()
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(Trim), informers.WithTweakListOptions(selectFields(fieldSelector)))
	k.starts = append(k.starts, factory.StartWithContext)
	k.stops = append(k.stops, factory.Shutdown)
	return factory
}

// account returns the configuration of a service account in kube-system.
func (s *Set) account(name string) *rest.Config {
	return AccountConfig(s.deps.Config, name)
}

// AccountConfig returns a configuration that acts as a controller's service account in kube-system.
func AccountConfig(config func(user string, groups ...string) *rest.Config, name string) *rest.Config {
	return config("system:serviceaccount:kube-system:"+name,
		"system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated")
}

// TypedClient makes a client for built-in kinds. It speaks protobuf and isn't throttled: the API server is in the same
// process, or has its own fairness.
func TypedClient(config *rest.Config) (kubernetes.Interface, error) {
	config = rest.CopyConfig(config)
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	config.QPS, config.Burst = -1, 0
	return kubernetes.NewForConfig(config)
}

func unthrottled(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = -1, 0
	return config
}

// Client returns the typed client of a service account in kube-system, one per account.
func (s *Set) Client(account string) (kubernetes.Interface, error) {
	return s.typed(account, func() *rest.Config { return s.account(account) })
}

// Manager returns the typed client of the user Manager.
func (s *Set) Manager() kubernetes.Interface {
	client, err := s.typed(Manager, func() *rest.Config { return s.deps.Config(Manager) })
	if err != nil {
		panic(fmt.Sprintf("client for %s: %v", Manager, err)) // a configuration that New has used already
	}
	return client
}

func (s *Set) typed(key string, config func() *rest.Config) (kubernetes.Interface, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if client, ok := s.clients[key]; ok {
		return client, nil
	}
	client, err := TypedClient(config())
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", key, err)
	}
	s.clients[key] = client
	return client, nil
}

func (s *Set) metadataClient(account string) (metadata.Interface, error) {
	return metadata.NewForConfig(unthrottled(s.account(account)))
}

// scaleClient reads and writes the scale subresource of any kind.
func (s *Set) scaleClient(account string, client kubernetes.Interface) (scale.ScalesGetter, error) {
	return scale.NewForConfig(unthrottled(s.account(account)), s.disco.mapper, dynamic.LegacyAPIPathResolverFunc,
		scale.NewDiscoveryScaleKindResolver(client.Discovery()))
}

func gvr(group, version, resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: version, Resource: resource}
}
