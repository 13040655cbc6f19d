package datastore

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/coracle-edge/coracle/controlplane/snapshots"
)

var _ snapshots.Source = (*Store)(nil)

// Revision of etcd; every change raises it.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	resp, err := s.client.KV.Get(ctx, "/health", clientv3.WithKeysOnly())
	if err != nil {
		return 0, fmt.Errorf("etcd: %w", err)
	}
	return resp.Header.Revision, nil
}

// Object returns one of Kubernetes' objects as it is stored, nil if there is none:
// for what must be known before an API server runs.
func (s *Store) Object(ctx context.Context, resource, namespace, name string) ([]byte, error) {
	resp, err := s.client.KV.Get(ctx, "/registry/"+resource+"/"+namespace+"/"+name)
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	if len(resp.Kvs) == 0 {
		return nil, nil
	}
	return resp.Kvs[0].Value, nil
}

// SnapshotSize is about how many bytes WriteSnapshot writes.
func (s *Store) SnapshotSize(ctx context.Context) (int64, error) {
	endpoints := s.client.Endpoints()
	if len(endpoints) == 0 {
		endpoints = []string{""} // embedded
	}
	var last error
	for _, endpoint := range endpoints {
		status, err := s.client.Status(ctx, endpoint)
		if err == nil {
			return status.DbSize, nil
		}
		last = err
	}
	return 0, fmt.Errorf("etcd's size: %w", last)
}

// WriteSnapshot writes the database as of now, followed by its SHA-256: the file
// that etcd's own tools know. Of an external etcd it is the state of one member,
// which may be a moment behind.
func (s *Store) WriteSnapshot(ctx context.Context, w io.Writer) error {
	if err := s.writeSnapshot(ctx, w); err != nil {
		return fmt.Errorf("etcd's snapshot: %w", err)
	}
	return nil
}

// externalSnapshot has a member send it.
func externalSnapshot(client *clientv3.Client) func(context.Context, io.Writer) error {
	return func(ctx context.Context, w io.Writer) error {
		resp, err := client.SnapshotWithVersion(ctx)
		if err != nil {
			return err
		}
		defer resp.Snapshot.Close()
		_, err = io.Copy(w, resp.Snapshot)
		return err
	}
}

// embeddedSnapshot takes it from the database: the stream of etcd's in-process
// client ends with a cancellation instead of an EOF.
func embeddedSnapshot(etcd *embed.Etcd) func(context.Context, io.Writer) error {
	return func(ctx context.Context, w io.Writer) error {
		snap := etcd.Server.Backend().Snapshot()
		defer snap.Close()
		h := sha256.New()
		if _, err := snap.WriteTo(io.MultiWriter(&until{ctx, w}, h)); err != nil {
			return err
		}
		_, err := w.Write(h.Sum(nil))
		return err
	}
}

// until refuses to write once ctx has ended.
type until struct {
	ctx context.Context
	w   io.Writer
}

func (u *until) Write(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.w.Write(p)
}
