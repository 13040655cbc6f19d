package datastore

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apiserver/pkg/server/egressselector"
)

func open(t *testing.T, cfg Config) *Store {
	t.Helper()
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestEmbeddedKeepsWhatWasWrittenAndOpensNoSocket(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(t.TempDir())
	s := open(t, Config{Dir: dir, Logger: slog.Default()})
	if _, err := s.Client().KV.Put(t.Context(), "/registry/a", "b"); err != nil {
		t.Fatal(err)
	}
	if w := s.Written(); w.Transactions != 1 || w.Bytes != uint64(len("/registry/ab")) {
		t.Errorf("Written() = %+v", w)
	}
	if got, _ := os.ReadDir("."); len(got) != 0 {
		t.Errorf("etcd left %v in the working directory", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Dir: dir})
	resp, err := s.Client().KV.Get(t.Context(), "/registry/a")
	if err != nil || len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "b" {
		t.Fatalf("after reopening: %v, %v", resp, err)
	}
}

func TestTransportReachesTheSameStore(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	dial, err := s.transport.EgressLookup(egressselector.Etcd.AsNetworkContext())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := dial(t.Context(), "tcp", "etcd.embedded:80")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestSecondOpenIsRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, Config{Dir: dir})
	_, err := Open(t.Context(), Config{Dir: dir})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("err = %v", err)
	}
}

func TestDirThatCannotBe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), Config{Dir: filepath.Join(file, "etcd")})
	if !errors.Is(err, ErrUnusable) || !strings.Contains(err.Error(), file) {
		t.Fatalf("err = %v", err)
	}
}

func TestExternalThatDoesNotAnswer(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 1e9)
	defer cancel()
	_, err := Open(ctx, Config{Endpoints: []string{"http://127.0.0.1:1"}})
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Fatalf("err = %v", err)
	}
}

// tmpfs mounts a small file system or skips.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("needs root, to mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

func TestFullDiskRefusesWritesAndGoesOnByItself(t *testing.T) {
	dir := tmpfs(t, "36m")
	s := open(t, Config{Dir: dir})
	kv := s.Client().KV
	if _, err := kv.Put(t.Context(), "a", "1"); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	exec.Command("dd", "if=/dev/zero", "of="+filler, "bs=1M", "count=64").Run()

	_, err := kv.Txn(t.Context()).Then(clientv3.OpPut("a", "2")).Commit()
	var noSpace *NoSpaceError
	if !errors.As(err, &noSpace) || !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("write to a full disk: %v", err)
	}
	if noSpace.Status().Code != 507 {
		t.Errorf("status = %+v", noSpace.Status())
	}
	if resp, err := kv.Get(t.Context(), "a"); err != nil || string(resp.Kvs[0].Value) != "1" {
		t.Errorf("read on a full disk: %v", err)
	}
	if _, err := kv.Delete(t.Context(), "a"); !errors.Is(err, ErrNoSpace) {
		t.Errorf("delete on a disk without a byte: %v", err)
	}
	if err := os.Truncate(filler, 16<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "a", "2"); !errors.Is(err, ErrNoSpace) {
		t.Errorf("write to a nearly full disk: %v", err)
	}
	if _, err := kv.Delete(t.Context(), "a"); err != nil {
		t.Errorf("delete on a nearly full disk: %v", err)
	}
	os.Remove(filler)
	if _, err := kv.Put(t.Context(), "a", "3"); err != nil {
		t.Errorf("write after space was freed: %v", err)
	}
}

func TestStartOnAFullDiskSaysSo(t *testing.T) {
	dir := tmpfs(t, "2m")
	_, err := Open(t.Context(), Config{Dir: filepath.Join(dir, "etcd")})
	if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("err = %v", err)
	}
}

// A cache's progress must not wait for the watches of others: a watch of what
// comes next is what keeps etcd from telling it.
func TestStreamsHaveProgressOfTheirOwn(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	put, err := s.Client().KV.Put(t.Context(), "/registry/a", "1")
	if err != nil {
		t.Fatal(err)
	}
	now := put.Header.Revision
	ctx := clientv3.WithRequireLeader(t.Context())
	watch := func(c clientv3.Watcher, from int64) clientv3.WatchChan {
		ch := c.Watch(ctx, "/registry/", clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithCreatedNotify())
		if r := <-ch; !r.Created {
			t.Fatalf("no watch: %+v", r)
		}
		return ch
	}
	watch(s.Client(), now+1)
	watch(s.ClientWithStream("b"), now+1)
	mine := s.ClientWithStream("a")
	ch := watch(mine, now)
	<-ch // the put itself
	for range 100 {
		if err := mine.RequestProgress(ctx); err != nil {
			t.Fatal(err)
		}
		select {
		case r := <-ch:
			if !r.IsProgressNotify() || r.Header.Revision != now {
				t.Fatalf("%+v", r)
			}
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatal("no progress was told in five seconds")
}
