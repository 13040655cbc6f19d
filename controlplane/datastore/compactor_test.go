package datastore

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The last thing that was written is history, too, after an interval without
// another: and then nothing more is written, however many control planes compact.
func TestIdleHistoryEndsAndStaysQuiet(t *testing.T) {
	const interval = 100 * time.Millisecond
	s := open(t, Config{Dir: t.TempDir(), CompactInterval: interval, Logger: slog.Default()})
	other := startCompactor(s.Client().Client, interval, slog.Default())
	defer other.stop()
	put, err := s.Client().KV.Put(t.Context(), "/registry/a", "b")
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for {
		_, err := s.Client().KV.Get(t.Context(), "/registry/a", clientv3.WithRev(put.Header.Revision))
		if errors.Is(err, rpctypes.ErrCompacted) {
			break
		}
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("revision %d can still be read: %v", put.Header.Revision, err)
		}
		time.Sleep(interval / 4)
	}
	now, err := s.Client().KV.Get(t.Context(), "/registry/a")
	if err != nil || len(now.Kvs) != 1 {
		t.Fatalf("%v, %v", now, err)
	}
	// Both may have marked the end at the same moment, and no more.
	if n := now.Header.Revision - put.Header.Revision; n < 1 || n > 2 {
		t.Errorf("%d revisions to end history", n)
	}
	for _, c := range []*compactor{s.compactor, other} { // several of its intervals
		for c.CompactRevision() < put.Header.Revision && time.Now().Before(deadline) {
			time.Sleep(interval)
		}
	}
	time.Sleep(10 * interval)
	later, err := s.Client().KV.Get(t.Context(), "/registry/a")
	if err != nil {
		t.Fatal(err)
	}
	if later.Header.Revision > put.Header.Revision+2 {
		t.Errorf("revision %d after idle time, %d before", later.Header.Revision, now.Header.Revision)
	}
}
