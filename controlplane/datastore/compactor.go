package datastore

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// looks is how often in an interval the compactor looks at the revision.
const looks = 2

// markerKey is written once when nothing else was for an interval: the last
// revision, too, can be compacted only below a later one, and a list's token of it
// would never expire. Whose revision is the newest already needs none, so an idle
// cluster is written to once, whoever and however many compact.
const markerKey = "/coracle/compacted"

// compactor removes revisions that are older than its interval. With several
// control planes each compacts, and the second one to do so finds it done.
type compactor struct {
	revision atomic.Int64
	cancel   context.CancelFunc
	wg       sync.WaitGroup
}

func startCompactor(client *clientv3.Client, interval time.Duration, logger *slog.Logger) *compactor {
	ctx, cancel := context.WithCancel(context.Background())
	c := &compactor{cancel: cancel}
	if interval < 0 {
		return c
	}
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		c.run(ctx, client, interval, logger)
	}()
	return c
}

// CompactRevision is up to where history is gone.
func (c *compactor) CompactRevision() int64 { return c.revision.Load() }

func (c *compactor) stop() {
	c.cancel()
	c.wg.Wait()
}

func (c *compactor) run(ctx context.Context, client *clientv3.Client, interval time.Duration, logger *slog.Logger) {
	// Looked at twice in an interval, so that what is older goes after one and a half
	// of it at most: clients that page wait for that, upstream's suite for two.
	tick := time.NewTicker(max(interval/looks, 1))
	defer tick.Stop()
	var seen [looks]int64 // the revisions of the last looks, the oldest first
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		resp, err := client.Get(ctx, markerKey, clientv3.WithKeysOnly())
		if err != nil {
			logger.Warn("etcd compaction", "err", err)
			continue
		}
		if old := seen[0]; old > c.revision.Load() {
			if old == resp.Header.Revision && (len(resp.Kvs) == 0 || resp.Kvs[0].ModRevision != old) {
				if marked, err := client.Put(ctx, markerKey, ""); err == nil {
					old, resp.Header.Revision = marked.Header.Revision, marked.Header.Revision
				}
			}
			if _, err := client.Compact(ctx, old); err != nil {
				// Another control plane may have compacted further: not an error of ours.
				logger.Debug("etcd compaction", "revision", old, "err", err)
			}
			c.revision.Store(old)
		}
		copy(seen[:], seen[1:])
		seen[looks-1] = resp.Header.Revision
	}
}
