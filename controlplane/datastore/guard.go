package datastore

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"syscall"

	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Written counts what was asked of etcd, not what it made of it on disk.
type Written struct {
	// Transactions with at least one write; each is one sync of the write-ahead log at most.
	Transactions uint64
	// Bytes of keys and values.
	Bytes uint64
}

type counters struct{ transactions, bytes atomic.Uint64 }

// Written returns the counters since Open.
func (s *Store) Written() Written {
	return Written{Transactions: s.counters.transactions.Load(), Bytes: s.counters.bytes.Load()}
}

// spaceCheck is nil if there is room for a write that puts, or only deletes.
type spaceCheck func(puts bool) error

// freeSpace checks that reserve bytes are free in dir's file system, and a
// quarter of it for deletions, which are the way out. etcd itself ends the
// process when a write fails, so it must not come to that.
func freeSpace(dir string, reserve int64) spaceCheck {
	return func(puts bool) error {
		reserve := reserve
		if !puts {
			reserve /= 4
		}
		var st syscall.Statfs_t
		if err := syscall.Statfs(dir, &st); err != nil {
			return nil // nothing known, nothing refused
		}
		if free := int64(st.Bavail) * st.Bsize; free < reserve {
			return &NoSpaceError{Dir: dir, Free: free, Reserve: reserve}
		}
		return nil
	}
}

// NoSpaceError is an ErrNoSpace that the API server shows to its client as it is.
type NoSpaceError struct {
	Dir           string
	Free, Reserve int64 // bytes
}

func (e *NoSpaceError) Error() string {
	return fmt.Sprintf("%v in %s: %.1f MiB are free, %d MiB are needed: free some space on that file system (df -h %[2]s), then writes work again by themselves",
		ErrNoSpace, e.Dir, float64(e.Free)/(1<<20), e.Reserve>>20)
}

func (e *NoSpaceError) Unwrap() error { return ErrNoSpace }

// Status makes the error an API answer: 507 Insufficient Storage.
func (e *NoSpaceError) Status() metav1.Status {
	return metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInsufficientStorage, Reason: "InsufficientStorage", Message: e.Error()}
}

// guardedKV counts writes and refuses those for which there is no room.
type guardedKV struct {
	clientv3.KV
	counters *counters
	space    spaceCheck
}

func (g *guardedKV) Put(ctx context.Context, key, val string, opts ...clientv3.OpOption) (*clientv3.PutResponse, error) {
	if err := g.write(clientv3.OpPut(key, val)); err != nil {
		return nil, err
	}
	return g.KV.Put(ctx, key, val, opts...)
}

func (g *guardedKV) Delete(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.DeleteResponse, error) {
	if err := g.write(clientv3.OpDelete(key)); err != nil {
		return nil, err
	}
	return g.KV.Delete(ctx, key, opts...)
}

func (g *guardedKV) Do(ctx context.Context, op clientv3.Op) (clientv3.OpResponse, error) {
	if err := g.write(op); err != nil {
		return clientv3.OpResponse{}, err
	}
	return g.KV.Do(ctx, op)
}

func (g *guardedKV) Txn(ctx context.Context) clientv3.Txn {
	return &guardedTxn{Txn: g.KV.Txn(ctx), kv: g}
}

// write counts ops and checks the space that they need.
func (g *guardedKV) write(ops ...clientv3.Op) error {
	var size uint64
	puts, writes := false, false
	for _, op := range ops {
		puts = puts || op.IsPut()
		writes = writes || op.IsPut() || op.IsDelete()
		size += uint64(len(op.KeyBytes()) + len(op.ValueBytes()))
	}
	if !writes {
		return nil
	}
	if g.space != nil {
		if err := g.space(puts); err != nil {
			return err
		}
	}
	g.counters.transactions.Add(1)
	g.counters.bytes.Add(size)
	return nil
}

type guardedTxn struct {
	clientv3.Txn
	kv  *guardedKV
	ops []clientv3.Op
}

func (t *guardedTxn) If(cs ...clientv3.Cmp) clientv3.Txn {
	t.Txn = t.Txn.If(cs...)
	return t
}

func (t *guardedTxn) Then(ops ...clientv3.Op) clientv3.Txn {
	t.ops = append(t.ops, ops...)
	t.Txn = t.Txn.Then(ops...)
	return t
}

func (t *guardedTxn) Else(ops ...clientv3.Op) clientv3.Txn {
	t.Txn = t.Txn.Else(ops...)
	return t
}

func (t *guardedTxn) Commit() (*clientv3.TxnResponse, error) {
	if err := t.kv.write(t.ops...); err != nil {
		return nil, err
	}
	return t.Txn.Commit()
}
