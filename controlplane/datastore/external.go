package datastore

import (
	"context"
	"crypto/tls"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	noopoteltrace "go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"k8s.io/apiserver/pkg/storage/storagebackend"
)

const (
	dialTimeout      = 20 * time.Second
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 10 * time.Second
)

func (s *Store) openExternal(ctx context.Context, cfg Config) (*clientv3.Client, error) {
	var tlsConfig *tls.Config
	if cfg.CAFile != "" || cfg.CertFile != "" || cfg.KeyFile != "" {
		info := transport.TLSInfo{CertFile: cfg.CertFile, KeyFile: cfg.KeyFile, TrustedCAFile: cfg.CAFile}
		var err error
		if tlsConfig, err = info.ClientConfig(); err != nil {
			return nil, fmt.Errorf("TLS files of the external etcd: %w", err)
		}
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            cfg.Endpoints,
		TLS:                  tlsConfig,
		DialTimeout:          dialTimeout,
		DialKeepAliveTime:    keepaliveTime,
		DialKeepAliveTimeout: keepaliveTimeout,
		DialOptions:          []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1 << 30))},
		Logger:               zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("external etcd %s: %w", strings.Join(cfg.Endpoints, ","), err)
	}
	probe, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if _, err := client.Get(probe, "/health"); err != nil {
		client.Close()
		return nil, fmt.Errorf("%w: %s within %v: check --etcd-endpoints, the --etcd-*file flags, and that etcd runs: %w",
			ErrUnreachable, strings.Join(cfg.Endpoints, ","), dialTimeout, err)
	}
	s.transport = storagebackend.TransportConfig{
		ServerList:     cfg.Endpoints,
		CertFile:       cfg.CertFile,
		KeyFile:        cfg.KeyFile,
		TrustedCAFile:  cfg.CAFile,
		TracerProvider: noopoteltrace.NewTracerProvider(),
	}
	s.writeSnapshot = externalSnapshot(client)
	s.close = client.Close
	return client, nil
}
