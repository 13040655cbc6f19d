package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/transport"

	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/controlplane/apiserver"
	"github.com/coracle-edge/coracle/controlplane/datastore"
	"github.com/coracle-edge/coracle/controlplane/join"
	"github.com/coracle-edge/coracle/controlplane/pki"
)

const (
	// systemNamespace is where the control plane keeps its own objects.
	systemNamespace = "coracle-system"
	// partsGrace is how long the parts may take to end before the API that they use does.
	partsGrace = 3*time.Second + successorWithin
)

// run is the whole life of the process: it returns when ctx ends or a part
// fails for good. It ends what it started in the reverse order.
func run(ctx context.Context, o options, kinds []fs.FS, logger *slog.Logger) error {
	switch {
	case o.restore != "":
		return restore(ctx, o, logger)
	case o.markRestored:
		return markRestored(ctx, o, logger)
	}
	bridgeKlog(ctx, logger, o.klogLevel)
	tuneMemory()
	transport.CertCallbackRefreshDuration = certificateRefresh
	runPath := filepath.Join(o.dataDir, "run", "controlplane.json")
	if err := os.MkdirAll(filepath.Dir(runPath), 0o700); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	store, err := datastore.Open(ctx, o.datastore(logger))
	if err != nil {
		return err
	}
	defer store.Close()
	os.Remove(runPath) // of a predecessor that was killed
	keeper, err := openSnapshots(ctx, o, store, logger)
	if err != nil {
		return err
	}

	authority, err := pki.Open(pki.Options{Dir: o.pkiDir, Logger: logger})
	if err != nil {
		return err
	}
	if err := o.checkRoot(ctx, store, authority); err != nil {
		return err
	}
	listeners, err := openListeners(o)
	if err != nil {
		return err
	}
	// From here on the parts own the listeners; should one of the next steps fail,
	// the process ends and they with it.
	kubelet, err := authority.KubeletClient()
	if err != nil {
		return err
	}
	keys, err := apiKeys(authority, kubelet, o)
	if err != nil {
		return err
	}
	recorder := trace.NewRecorder(0)
	onDuty := &duty{}
	fleet := newFleet(store, authority, kubelet, listeners, o, onDuty, recorder, logger)
	ops := newOperations(keeper)
	server, err := apiserver.New(ctx, apiserver.Config{
		Store:            store,
		Listener:         fleet.clients.Listener(listeners.api),
		AdvertiseAddress: net.ParseIP(o.advertise),
		PKI:              keys,
		Extend:           fleet.extend,
		DialNode:         fleet.dialNode,
		DialCluster:      fleet.pods.DialContext,
		PodHost:          fleet.pods.Host,
		APIServers:       o.apiServers(),
		Operations:       ops,
		NodeLeases:       fleet,
		Trace:            recorder,
		SystemNamespaces: []string{systemNamespace},
		Logger:           logger,
	})
	if err != nil {
		return err
	}
	if err := fleet.pods.Use(server.Informers().Core().V1().Pods().Informer()); err != nil {
		return err
	}
	if len(o.etcdEndpoints) > 0 {
		if err := onDuty.compete(server, listeners, o, logger); err != nil {
			return err
		}
	}
	if err := ops.settleRestores(fleet, server); err != nil {
		return err
	}
	server.AddPostStartHook("coracle-objects", func(ctx context.Context) error {
		return apiserver.Retry(ctx, func(ctx context.Context) error { return ensureObjects(ctx, server, kinds, o.localPath, logger) })
	})
	admin, err := authority.Admin()
	if err != nil {
		return err
	}
	kubeconfig := func() error {
		return authority.WriteKubeconfig(filepath.Join(o.dataDir, "kubeconfig"), listeners.run.API, admin)
	}
	if err := kubeconfig(); err != nil {
		return err
	}
	parts, err := newParts(server, fleet, onDuty, authority, recorder, logger)
	if err != nil {
		return err
	}
	parts.add(part{name: "snapshots", run: keeper.Run})
	parts.aside = func(ctx context.Context) { onDuty.wait(ctx, listeners.mqtt) }
	parts.add(part{name: "kubeconfig", always: true, run: func(ctx context.Context) error { return keepKubeconfig(ctx, authority, kubeconfig) }})
	defer os.Remove(runPath)
	return live(ctx, store, server, parts, func() error {
		logger.Info("ready", "api", listeners.run.API, "mqtt", listeners.run.MQTT, "fleet", listeners.run.Fleet,
			"kubeconfig", filepath.Join(o.dataDir, "kubeconfig"))
		return writeRunFile(runPath, listeners.run)
	})
}

// live serves, runs the parts once the API is ready, and ends them before it.
func live(ctx context.Context, store *datastore.Store, server *apiserver.Server, parts *parts, ready func() error) error {
	asked := ctx // ends when the operator says so
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	// The API outlives ctx: the parts write their last words through it.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	served := make(chan error, 1)
	go func() { served <- server.Run(serving) }()

	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-ctx.Done():
			return
		case <-server.Ready():
		}
		if err := ready(); err != nil {
			fail(err)
			return
		}
		go settle(ctx)
		parts.run(ctx, fail)
	}()

	var err error
	select {
	case err = <-served:
		if err == nil {
			err = errors.New("the API server ended by itself")
		}
		fail(err)
		return err
	case err = <-store.Failed():
		fail(err)
		return err // without etcd nothing can be ended in order
	case <-ctx.Done():
	}
	select {
	case <-ended:
	case <-time.After(partsGrace):
	}
	stopServing()
	if err = <-served; err == nil && asked.Err() == nil {
		err = context.Cause(ctx)
	}
	return err
}

// maxAPIServers bounds the addresses that the endpoints of the kubernetes Service
// keep where several control planes share an etcd.
const maxAPIServers = 9

func (o options) apiServers() int {
	if len(o.etcdEndpoints) > 0 {
		return maxAPIServers
	}
	return 1
}

// checkRoot finds out, before anything is written, that an external etcd is another
// cluster's.
func (o options) checkRoot(ctx context.Context, store *datastore.Store, authority *pki.Authority) error {
	if len(o.etcdEndpoints) == 0 {
		return nil
	}
	raw, err := store.Object(ctx, "configmaps", join.EndpointNamespace, join.EndpointMap)
	if err != nil || raw == nil {
		return err
	}
	return join.CheckRoot(raw, authority.RootHash())
}

// apiKeys issues what the API server shows and tells it what it trusts.
func apiKeys(authority *pki.Authority, kubelet *pki.Leaf, o options) (apiserver.PKI, error) {
	serving, err1 := authority.APIServer(append(o.reachable(), "10.43.0.1")...)
	proxy, err2 := authority.FrontProxyClient()
	if err := errors.Join(err1, err2); err != nil {
		return apiserver.PKI{}, err
	}
	return apiserver.PKI{
		ServingCertFile: serving.CertFile(), ServingKeyFile: serving.KeyFile(),
		ClientCAFile:        authority.TrustFile(),
		RequestHeaderCAFile: authority.FrontProxyCAFile(),
		ProxyClientCertFile: proxy.CertFile(), ProxyClientKeyFile: proxy.KeyFile(),
		KubeletClientCertFile: kubelet.CertFile(), KubeletClientKeyFile: kubelet.KeyFile(), KubeletCAFile: authority.TrustFile(),
		ServiceAccountKey: authority.ServiceAccountKey(),
	}, nil
}

// keepKubeconfig writes it again when the administrator's certificate was renewed,
// or the root; what didn't change isn't written.
func keepKubeconfig(ctx context.Context, authority *pki.Authority, write func() error) error {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		changed := authority.Changed()
		if err := write(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
		}
	}
}
