package controllers

import (
	"context"
	"crypto"
	"fmt"
	"log/slog"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/kubernetes/pkg/controller"
	"k8s.io/utils/clock"

	localapi "github.com/coracle-edge/coracle/controlplane/api/localvolumes"
	"github.com/coracle-edge/coracle/controlplane/controllers/daemonset"
	"github.com/coracle-edge/coracle/controlplane/controllers/deployment"
	"github.com/coracle-edge/coracle/controlplane/controllers/endpointslice"
	"github.com/coracle-edge/coracle/controlplane/controllers/job"
	"github.com/coracle-edge/coracle/controlplane/controllers/localvolumes"
	"github.com/coracle-edge/coracle/controlplane/controllers/node"
	"github.com/coracle-edge/coracle/controlplane/controllers/reconciler"
	"github.com/coracle-edge/coracle/controlplane/controllers/replicaset"
	"github.com/coracle-edge/coracle/controlplane/controllers/upstream"
)

// Manager is the user that informers should be made with: RBAC lets it list and watch everything.
const Manager = upstream.Manager

// Trim is the transform for the typed informer factory: it drops field managers.
func Trim(obj any) (any, error) { return upstream.Trim(obj) }

// Roots are those of the cluster, and what signs.
type Roots = upstream.Roots

// Deps is what the controllers run with. Config and Factory must be set.
type Deps struct {
	// Config returns a client configuration that acts as a user with groups, such as apiserver.Server.ClientConfig.
	Config func(user string, groups ...string) *rest.Config
	// Factory holds the informers that all parts of the process share, made without resync and with Trim as transform. Run
	// starts those that controllers ask for; they live until Run's context ends.
	Factory informers.SharedInformerFactory

	// Roots returns the cluster's roots as of now. Nil: none are published, and no CertificateSigningRequest is signed.
	Roots func() Roots
	// ServiceAccountKey signs legacy token Secrets, *rsa.PrivateKey or *ecdsa.PrivateKey. Nil: they get no token.
	ServiceAccountKey crypto.PrivateKey
	// PodGarbage is upstream's pod garbage collection; zero values are the defaults.
	PodGarbage upstream.PodGarbage

	// Logger is slog.Default if nil, Clock the real one.
	Logger *slog.Logger
	Clock  clock.WithTicker
}

// Run runs all controllers until ctx ends, and returns when all have ended. It returns an error only if they can't be
// prepared; one that fails later is started again.
func Run(ctx context.Context, deps Deps) error {
	if deps.Logger == nil {
		deps.Logger = slog.Default()
	}
	if deps.Clock == nil {
		deps.Clock = clock.RealClock{}
	}
	others, err := upstream.New(ctx, upstream.Deps{
		Config: deps.Config, Factory: deps.Factory,
		Roots:             deps.Roots,
		ServiceAccountKey: deps.ServiceAccountKey, PodGarbage: deps.PodGarbage, Logger: deps.Logger,
	})
	if err != nil {
		return fmt.Errorf("controllers: %w", err)
	}
	events := record.NewBroadcaster(record.WithContext(ctx))
	events.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: others.Manager().CoreV1().Events("")})
	defer events.Shutdown()

	var all sync.WaitGroup
	start := func(name string, run func(context.Context) error) {
		s := supervisor{name: name, clock: deps.Clock, logger: deps.Logger}
		all.Go(func() { s.run(ctx, run) })
	}
	// They look whether an index is there and add it, which must not be done by two at once.
	var making sync.Mutex
	if err := controller.AddPodControllerIndexer(deps.Factory.Core().V1().Pods().Informer()); err != nil { // upstream's share it
		return fmt.Errorf("controllers: index of pods by owner: %w", err)
	}
	for _, o := range ours() {
		start(o.name, func(runCtx context.Context) error {
			client, err := others.Client(o.account)
			if err != nil {
				return err
			}
			making.Lock()
			c, err := o.make(client, deps.Factory, reconciler.Options{
				Recorder: events.NewRecorder(scheme.Scheme, v1.EventSource{Component: o.component}),
				Clock:    deps.Clock,
				Logger:   deps.Logger,
				Workers:  o.workers,
			})
			making.Unlock()
			if err != nil {
				return err
			}
			// They outlive this run of this controller.
			deps.Factory.StartWithContext(ctx)
			return c.Run(runCtx)
		})
	}
	for _, c := range others.Controllers() {
		start(c.Name, c.Run)
	}
	all.Wait()
	return nil
}

type runner interface{ Run(context.Context) error }

// own is one of our own controllers.
type own struct {
	name, account, component string // account it acts as, component that its events name
	workers                  int
	make                     func(kubernetes.Interface, informers.SharedInformerFactory, reconciler.Options) (runner, error)
}

func ours() []own {
	return []own{
		{"node-controller", "node-controller", "node-controller", 2, as(node.New)},
		{"replicaset-controller", "replicaset-controller", "replicaset-controller", 2, as(replicaset.New)},
		{"deployment-controller", "deployment-controller", "deployment-controller", 2, as(deployment.New)},
		{"daemonset-controller", "daemon-set-controller", "daemonset-controller", 1, as(daemonset.New)},
		{"job-controller", "job-controller", "job-controller", 2, as(job.New)},
		{"endpointslice-controller", "endpointslice-controller", "endpoint-slice-controller", 2, as(endpointslice.New)},
		// The rights of upstream's binder are those that it needs.
		{"local-volumes-provisioner", "persistent-volume-binder", localapi.Provisioner, 1, as(localvolumes.New)},
	}
}

func as[C runner](make func(kubernetes.Interface, informers.SharedInformerFactory, reconciler.Options) (C, error)) func(kubernetes.Interface, informers.SharedInformerFactory, reconciler.Options) (runner, error) {
	return func(client kubernetes.Interface, factory informers.SharedInformerFactory, opts reconciler.Options) (runner, error) {
		return make(client, factory, opts)
	}
}

// Back-off of a controller that ends. It starts afresh once the controller has run for steady.
const (
	firstBackoff = time.Second
	lastBackoff  = 5 * time.Minute
	steady       = 10 * time.Minute
)
