package datastore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/storage/wal"
	noopoteltrace "go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/server/egressselector"
	"k8s.io/apiserver/pkg/storage/storagebackend"
)

const (
	// walSegment is what etcd preallocates, twice: 64 MB by default, too much for an SD card.
	walSegment = 4 << 20
	// snapshotCount raft entries are kept in memory with their values before a snapshot is cut;
	// catchUp entries are kept for slow members, of which there are none.
	snapshotCount = 2000
	catchUp       = 100
	// quota is etcd's limit of its database.
	quota = 2 << 30
	// startTimeout covers replaying the log from a slow card.
	startTimeout = 2 * time.Minute
	// The one member's name and address in its own list; nothing listens there.
	memberName = "coracle"
	memberHost = "127.0.0.1:2380"
	memberURL  = "http://" + memberHost
	// stopTimeout is how long etcd may take to stop before it is left behind.
	stopTimeout = 5 * time.Second
)

func (s *Store) openEmbedded(ctx context.Context, cfg Config) (*clientv3.Client, error) {
	unlock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if err := finishRestore(cfg.Dir); err != nil {
		unlock()
		return nil, explainDir(cfg.Dir, err)
	}
	if err := freeSpace(cfg.Dir, walSegment)(true); err != nil {
		unlock()
		return nil, err
	}
	logger := newLogger(cfg.Logger, func(message string) { s.fail(cfg.Dir, message) })
	started := make(chan struct{})
	var etcd *embed.Etcd
	go func() {
		// etcd ends its goroutine when it meets something fatal; see logger.
		defer close(started)
		var startErr error
		if etcd, startErr = startEtcd(cfg.Dir, logger); startErr != nil {
			etcd = nil
			err = startErr
		}
	}()
	<-started
	if etcd == nil {
		unlock()
		if err == nil {
			select {
			case err = <-s.failed:
			default:
				err = ErrFailed
			}
		}
		return nil, explainDir(cfg.Dir, err)
	}
	select {
	case <-etcd.Server.ReadyNotify():
	case err := <-s.failed:
		unlock()
		return nil, err
	case err := <-etcd.Err():
		etcd.Close()
		unlock()
		return nil, explainDir(cfg.Dir, err)
	case <-time.After(startTimeout):
		etcd.Close()
		unlock()
		return nil, fmt.Errorf("%w: %s: not ready after %v", ErrFailed, cfg.Dir, startTimeout)
	case <-ctx.Done():
		etcd.Close()
		unlock()
		return nil, ctx.Err()
	}
	client := v3client.New(etcd.Server)
	dialer := &pairDialer{server: v3rpc.Server(etcd.Server, nil, nil)}
	s.transport = storagebackend.TransportConfig{
		ServerList:     []string{"http://etcd.embedded"},
		TracerProvider: noopoteltrace.NewTracerProvider(),
		EgressLookup: func(egressselector.NetworkContext) (utilnet.DialFunc, error) {
			return dialer.dial, nil
		},
	}
	s.writeSnapshot = embeddedSnapshot(etcd)
	s.close = func() error {
		defer unlock()
		dialer.server.Stop()
		client.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			etcd.Close()
		}()
		select {
		case <-done:
			return nil
		case <-time.After(stopTimeout):
			return fmt.Errorf("%w: %s: didn't stop within %v", ErrFailed, cfg.Dir, stopTimeout)
		}
	}
	return client, nil
}

// smallSegments sets what etcd has for the whole process, once.
var smallSegments = sync.OnceFunc(func() { wal.SegmentSizeBytes = walSegment })

func startEtcd(dir string, logger *zap.Logger) (*embed.Etcd, error) {
	smallSegments()
	c := embed.NewConfig()
	c.Name = memberName
	c.Dir = dir
	// Nothing listens.
	c.ListenPeerUrls, c.ListenClientUrls = nil, nil
	c.AdvertiseClientUrls = nil
	c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: memberHost}}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.EnableGRPCGateway = false
	c.TickMs, c.ElectionMs = 100, 500
	c.SnapshotCount = snapshotCount
	c.SnapshotCatchUpEntries = catchUp
	c.MaxSnapFiles, c.MaxWalFiles = 2, 2
	c.QuotaBackendBytes = quota
	// Watches that see no event learn this often how far the store is, so that they
	// can go on after a compaction without listing everything again.
	c.WatchProgressNotifyInterval = 2 * time.Minute
	c.Metrics = "basic"
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger)
	return embed.StartEtcd(c)
}

// fail reports the first fatal error of the embedded etcd.
func (s *Store) fail(dir, message string) {
	err := explainDir(dir, fmt.Errorf("%w: %s", ErrFailed, message))
	select {
	case s.failed <- err:
	default:
	}
}

// explainDir adds to err the folder and what to do.
func explainDir(dir string, err error) error {
	switch {
	case errors.Is(err, ErrNoSpace), errors.Is(err, ErrUnusable):
		return err
	case errors.Is(err, syscall.ENOSPC), strings.Contains(err.Error(), syscall.ENOSPC.Error()):
		return fmt.Errorf("%w in %s: free some space on that file system (df -h %s) and start again: %w", ErrNoSpace, dir, dir, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %s: its owner must be the user that runs controlplane: %w", ErrUnusable, dir, err)
	}
	return fmt.Errorf("etcd in %s: %w", dir, err)
}

// lockDir makes dir and locks it for this process. etcd itself would wait
// for ever for another process's lock, without a word.
func lockDir(dir string) (unlock func(), err error) {
	if dir == "" {
		return nil, fmt.Errorf("%w: no folder given", ErrUnusable)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		if errors.Is(err, syscall.ENOSPC) {
			return nil, fmt.Errorf("%w in %s: free some space on that file system and start again: %w", ErrNoSpace, dir, err)
		}
		return nil, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		if errors.Is(err, syscall.ENOSPC) {
			return nil, fmt.Errorf("%w in %s: free some space on that file system and start again: %w", ErrNoSpace, dir, err)
		}
		return nil, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s: stop the other controlplane, or give this one another --data-dir", ErrLocked, dir)
		}
		return nil, fmt.Errorf("%w: lock %s: %w", ErrUnusable, path, err)
	}
	return func() { f.Close() }, nil
}

// pairDialer hands out one end of a socket pair and serves gRPC on the other.
type pairDialer struct{ server *grpc.Server }

func (d *pairDialer) dial(context.Context, string, string) (net.Conn, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("etcd socket pair: %w", err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "etcd")
		conns[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("etcd socket pair: %w", err)
		}
	}
	go d.server.Serve(&oneConn{conn: conns[1], done: make(chan struct{})})
	return conns[0], nil
}

// oneConn is a listener that accepts the connection it was made with.
type oneConn struct {
	conn net.Conn
	done chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if conn := l.conn; conn != nil {
		l.conn = nil
		return conn, nil
	}
	<-l.done
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error {
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	return nil
}

func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{Name: "etcd", Net: "unix"} }
