package datastore

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"google.golang.org/grpc/metadata"
)

// streamKey is metadata that etcd ignores: its client multiplexes the watches
// that agree in their metadata onto one stream.
const streamKey = "coracle-watches"

// ClientWithStream is Client, but its watches have a stream of their own. A
// watch cache needs that: it learns by progress notifications how far it is,
// and etcd sends none on a stream with a watch that begins at the next
// revision, as every new watch of an unchanged store does. With all watches on
// one stream a cache can wait for such a notification until something is
// written, and at boot all that would write may wait for the cache.
func (s *Store) ClientWithStream(name string) *kubernetes.Client {
	base := s.client.Client
	c := clientv3.NewCtxClient(base.Ctx())
	c.Cluster, c.KV, c.Lease, c.Auth, c.Maintenance = base.Cluster, base.KV, base.Lease, base.Auth, base.Maintenance
	c.Watcher = &streamWatcher{Watcher: base.Watcher, name: name}
	own := &kubernetes.Client{Client: c}
	own.Kubernetes = own
	return own
}

type streamWatcher struct {
	clientv3.Watcher
	name string
}

func (w *streamWatcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	return w.Watcher.Watch(metadata.AppendToOutgoingContext(ctx, streamKey, w.name), key, opts...)
}

func (w *streamWatcher) RequestProgress(ctx context.Context) error {
	return w.Watcher.RequestProgress(metadata.AppendToOutgoingContext(ctx, streamKey, w.name))
}
