package datastore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"k8s.io/apiserver/pkg/storage/etcd3"
	"k8s.io/apiserver/pkg/storage/storagebackend"
)

var (
	// ErrLocked is returned when another process has the data folder open.
	ErrLocked = errors.New("data folder is in use by another process")
	// ErrNoSpace is returned when the file system of the data folder has no room
	// for another write. Reads and deletions still work.
	ErrNoSpace = errors.New("no space left for etcd")
	// ErrUnusable is returned when the data folder can't be a data folder of ours.
	ErrUnusable = errors.New("data folder can't be used")
	// ErrUnreachable is returned when no endpoint of an external etcd answers.
	ErrUnreachable = errors.New("external etcd doesn't answer")
	// ErrFailed is sent by Failed when the embedded etcd stopped by itself.
	ErrFailed = errors.New("embedded etcd failed")
)

// DefaultCompactInterval is how long old revisions are kept for slow watchers.
const DefaultCompactInterval = 5 * time.Minute

// defaultReserve is Config.Reserve, in bytes.
const defaultReserve = 16 << 20

// Config says where the cluster's state is.
type Config struct {
	// Dir is the folder of the embedded etcd; ignored if Endpoints is set.
	Dir string
	// Endpoints of an external etcd, such as https://10.0.0.1:2379.
	Endpoints []string
	// CAFile, CertFile and KeyFile are the TLS of the external etcd.
	CAFile, CertFile, KeyFile string
	// CompactInterval is DefaultCompactInterval if zero; negative means never.
	CompactInterval time.Duration
	// Reserve is how many bytes of the file system are kept free: below it, writes
	// other than deletions are refused with ErrNoSpace. Zero means 16 MiB.
	Reserve int64
	Logger  *slog.Logger
}

// Store is an opened etcd.
type Store struct {
	client    *kubernetes.Client
	transport storagebackend.TransportConfig
	compactor *compactor
	counters  counters
	failed    chan error
	// writeSnapshot is WriteSnapshot of the embedded or the external etcd.
	writeSnapshot func(context.Context, io.Writer) error
	close         func() error
	closeOnce     sync.Once
	closeErr      error
}

// Open starts the embedded etcd, or connects to the external one, and returns
// when it serves reads and writes.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.CompactInterval == 0 {
		cfg.CompactInterval = DefaultCompactInterval
	}
	if cfg.Reserve == 0 {
		cfg.Reserve = defaultReserve
	}
	s := &Store{failed: make(chan error, 1)}
	var client *clientv3.Client
	var err error
	var space spaceCheck
	if len(cfg.Endpoints) > 0 {
		client, err = s.openExternal(ctx, cfg)
	} else {
		client, err = s.openEmbedded(ctx, cfg)
		space = freeSpace(cfg.Dir, cfg.Reserve)
	}
	if err != nil {
		return nil, err
	}
	client.KV = &guardedKV{KV: etcd3.NewETCDLatencyTracker(client.KV), counters: &s.counters, space: space}
	s.client = &kubernetes.Client{Client: client}
	s.client.Kubernetes = s.client
	s.compactor = startCompactor(client, cfg.CompactInterval, cfg.Logger)
	return s, nil
}

// Client is the one etcd client; all API storages share it. Don't close it.
func (s *Store) Client() *kubernetes.Client { return s.client }

// Compactor tells watch caches up to which revision history is gone.
func (s *Store) Compactor() etcd3.Compactor { return s.compactor }

// Transport is for parts of upstream that dial etcd themselves.
func (s *Store) Transport() storagebackend.TransportConfig { return s.transport }

// Failed delivers one error when the embedded etcd can't go on, for example
// because its disk is full or broken. The process should then end.
func (s *Store) Failed() <-chan error { return s.failed }

// Health is nil if etcd answers a read.
func (s *Store) Health(ctx context.Context) error {
	if _, err := s.client.KV.Get(ctx, "/health", clientv3.WithSerializable(), clientv3.WithKeysOnly()); err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	return nil
}

// Close stops the compactor, the client and the embedded etcd.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		s.compactor.stop()
		s.closeErr = s.close()
	})
	return s.closeErr
}
