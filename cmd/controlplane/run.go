package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/coracle-edge/coracle/controlplane/api/trace"
	"github.com/coracle-edge/coracle/controlplane/apiserver"
	"github.com/coracle-edge/coracle/controlplane/datastore"
	"github.com/coracle-edge/coracle/controlplane/pki"
)

// systemNamespace is where the control plane keeps its own objects.
const systemNamespace = "coracle-system"

// runFile is what run/controlplane.json says of a running control plane.
type runFile struct {
	API   string `json:"api"`
	MQTT  string `json:"mqtt,omitempty"`
	Fleet string `json:"fleet,omitempty"`
	PID   int    `json:"pid"`
}

// run is the whole life of the process: it returns when ctx ends or a part fails for good.
func run(ctx context.Context, o options, logger *slog.Logger) error {
	bridgeKlog(logger, o.klogLevel)
	tuneMemory()
	if err := os.MkdirAll(o.dataDir, 0o700); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	runPath := filepath.Join(o.dataDir, "run", "controlplane.json")
	if err := os.MkdirAll(filepath.Dir(runPath), 0o700); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	store, err := datastore.Open(ctx, datastore.Config{
		Dir:       filepath.Join(o.dataDir, "etcd"),
		Endpoints: o.etcdEndpoints,
		CAFile:    o.etcdCAFile, CertFile: o.etcdCertFile, KeyFile: o.etcdKeyFile,
		Logger: logger,
	})
	if err != nil {
		return err
	}
	defer store.Close()
	os.Remove(runPath) // of a predecessor that was killed

	listener, err := listen(o.bindAddress, o.securePort, o.portFallback)
	if err != nil {
		return err
	}
	authority, err := pki.Open(pki.Options{Dir: filepath.Join(o.dataDir, "pki"), Logger: logger})
	if err != nil {
		return err
	}
	keys, err := apiKeys(authority, o)
	if err != nil {
		return err
	}
	recorder := trace.NewRecorder(0)
	server, err := apiserver.New(ctx, apiserver.Config{
		Store:            store,
		Listener:         listener,
		AdvertiseAddress: net.ParseIP(o.advertise),
		PKI:              keys,
		Trace:            recorder,
		SystemNamespaces: []string{systemNamespace},
		Logger:           logger,
	})
	if err != nil {
		return err
	}
	addresses := runFile{API: serverURL(listener, o), PID: os.Getpid()}
	if err := writeKubeconfig(authority, filepath.Join(o.dataDir, "kubeconfig"), addresses.API); err != nil {
		return err
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	served := make(chan error, 1)
	go func() { served <- server.Run(ctx) }()
	go func() {
		select {
		case <-ctx.Done():
			return
		case <-server.Ready():
		}
		if err := writeRunFile(runPath, addresses); err != nil {
			cancel(err)
			return
		}
		logger.Info("ready", "api", addresses.API, "kubeconfig", filepath.Join(o.dataDir, "kubeconfig"))
		settle(ctx)
	}()
	select {
	case err = <-served:
	case err = <-store.Failed():
		cancel(err)
	case <-ctx.Done():
		if err = <-served; err == nil && !errors.Is(context.Cause(ctx), context.Canceled) {
			err = context.Cause(ctx)
		}
	}
	os.Remove(runPath)
	return err
}

// apiKeys issues what the API server shows and tells it what it trusts.
func apiKeys(authority *pki.Authority, o options) (apiserver.PKI, error) {
	hosts := append([]string{o.bindAddress, o.advertise, "10.43.0.1"}, o.hosts...)
	if name, err := os.Hostname(); err == nil {
		hosts = append(hosts, name)
	}
	serving, err := authority.APIServer(hosts...)
	if err != nil {
		return apiserver.PKI{}, err
	}
	kubelet, err := authority.KubeletClient()
	if err != nil {
		return apiserver.PKI{}, err
	}
	proxy, err := authority.FrontProxyClient()
	if err != nil {
		return apiserver.PKI{}, err
	}
	return apiserver.PKI{
		ServingCertFile: serving.CertFile(), ServingKeyFile: serving.KeyFile(),
		ClientCAFile:        authority.CAFile(),
		RequestHeaderCAFile: authority.FrontProxyCAFile(),
		ProxyClientCertFile: proxy.CertFile(), ProxyClientKeyFile: proxy.KeyFile(),
		KubeletClientCertFile: kubelet.CertFile(), KubeletClientKeyFile: kubelet.KeyFile(), KubeletCAFile: authority.CAFile(),
		ServiceAccountKey: authority.ServiceAccountKey(),
	}, nil
}

func writeKubeconfig(authority *pki.Authority, path, server string) error {
	admin, err := authority.Admin()
	if err != nil {
		return err
	}
	return authority.WriteKubeconfig(path, server, admin)
}

// listen takes the wanted port or, if fallback and it is in use, any other.
func listen(address string, port int, fallback bool) (net.Listener, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(port)))
	if err == nil || !errors.Is(err, syscall.EADDRINUSE) {
		return l, err
	}
	if !fallback {
		return nil, fmt.Errorf("port %d of %s is in use: stop what uses it, choose another, or give --port-fallback: %w", port, address, err)
	}
	return net.Listen("tcp", net.JoinHostPort(address, "0"))
}

// serverURL is where an administrator on this machine reaches the listener.
func serverURL(l net.Listener, o options) string {
	host, port, _ := net.SplitHostPort(l.Addr().String())
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return (&url.URL{Scheme: "https", Host: net.JoinHostPort(host, port)}).String()
}

func writeRunFile(path string, f runFile) error {
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.Rename(tmp, path)
}

// settleAfter is when what the start needed has become garbage.
const settleAfter = 5 * time.Second
