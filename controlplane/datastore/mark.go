package datastore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// markKey is outside of Kubernetes' registry: no client of the API can forge it,
// and it goes wherever the data goes.
const markKey = "/coracle/restored"

// ErrMark is returned when the mark of a restore can't be read. To take it for
// none would make nodes stop what the past doesn't know.
var ErrMark = errors.New("mark of a restore")

// Mark says that this etcd was put back to an earlier time on purpose: the
// cluster is another incarnation of itself from then on.
type Mark struct {
	// ID of the restore, random.
	ID string `json:"id"`
	// Incarnation that begins with it, hex of 16 random bytes.
	Incarnation string `json:"incarnation"`
	// Snapshot is the name of the file, empty if it isn't known.
	Snapshot string `json:"snapshot,omitempty"`
	// Revision up to which the snapshot went.
	Revision int64 `json:"revision,omitempty"`
	// At is when it was restored, by that machine's clock.
	At time.Time `json:"at"`
}

func newMark(snapshot string, revision int64, at time.Time) Mark {
	return Mark{ID: randomHex(8), Incarnation: randomHex(16), Snapshot: snapshot, Revision: revision, At: at.UTC().Truncate(time.Second)}
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// parseMark reads what PutMark wrote.
func parseMark(raw []byte) (*Mark, error) {
	var m Mark
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("%w: key %s in etcd: %w; write it anew with `coracle restore mark`", ErrMark, markKey, err)
	}
	if b, err := hex.DecodeString(m.Incarnation); err != nil || len(b) < 8 || m.ID == "" {
		return nil, fmt.Errorf("%w: key %s in etcd has no id or no incarnation; write it anew with `coracle restore mark`", ErrMark, markKey)
	}
	return &m, nil
}

// Mark returns the mark of the last restore, nil if this etcd was never put back.
func (s *Store) Mark(ctx context.Context) (*Mark, error) {
	resp, err := s.client.KV.Get(ctx, markKey)
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	if len(resp.Kvs) == 0 {
		return nil, nil
	}
	return parseMark(resp.Kvs[0].Value)
}

// PutMark begins a new incarnation of the cluster: hubs that start from now on
// are its. It is for an etcd that was put back by other means than Restore; no
// control plane may run on it meanwhile.
func (s *Store) PutMark(ctx context.Context, snapshot string, at time.Time) (Mark, error) {
	revision, err := s.Revision(ctx)
	if err != nil {
		return Mark{}, err
	}
	m := newMark(snapshot, revision, at)
	return m, putMark(ctx, s.client.Client, m)
}

func putMark(ctx context.Context, client *clientv3.Client, m Mark) error {
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if _, err := client.KV.Put(ctx, markKey, string(raw)); err != nil {
		return fmt.Errorf("mark the restore in etcd: %w", err)
	}
	return nil
}
