package datastore

import (
	"net"
	"net/url"
	"testing"

	"go.etcd.io/etcd/server/v3/embed"
)

// external starts an etcd that listens, and returns its endpoint.
func external(t *testing.T) string {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	endpoint := url.URL{Scheme: "http", Host: free.Addr().String()}
	free.Close()
	smallSegments() // of this process's, so of this one's, too
	c := embed.NewConfig()
	c.Dir = t.TempDir()
	c.ListenPeerUrls = nil
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{endpoint}, []url.URL{endpoint}
	c.EnableGRPCGateway = false
	c.LogLevel = "error"
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	return endpoint.String()
}

func TestSnapshotOfAnExternalEtcd(t *testing.T) {
	s := open(t, Config{Endpoints: []string{external(t)}})
	put(t, s, "/registry/a", "1")
	if size, err := s.SnapshotSize(t.Context()); err != nil || size == 0 {
		t.Errorf("size %d, %v", size, err)
	}
	file, info := take(t, s, t.TempDir())
	if now, err := s.Revision(t.Context()); err != nil || info.Revision != now {
		t.Errorf("snapshot as of %d, etcd is at %d, %v", info.Revision, now, err)
	}
	dir := t.TempDir()
	if _, err := Restore(t.Context(), RestoreConfig{Snapshot: file, Dir: dir}); err != nil {
		t.Fatal(err)
	}
	has(t, open(t, Config{Dir: dir}), "/registry/a", "1")
}
