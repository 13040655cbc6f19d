package state

import (
	"bytes"

	bolt "go.etcd.io/bbolt"
)

// bucketAffinity: pod uid, or a name of edgelet/affinity's own -> opaque. It is made
// with the first policy that gives processors: a node without one doesn't have it,
// and an agent that doesn't know it reads the file all the same.
var bucketAffinity = []byte("affinity")

// AffinityRecords returns what edgelet/affinity keeps, by key.
func (s *Store) AffinityRecords() (map[string][]byte, error) { return s.records(bucketAffinity) }

// PutAffinityRecord replaces a record and returns when that is durable; nil deletes
// it.
func (s *Store) PutAffinityRecord(key string, record []byte) error {
	return s.putRecord(bucketAffinity, "storing the processors of "+key, key, record)
}

// records returns what is in a bucket, nothing if there is none.
func (s *Store) records(bucket []byte) (map[string][]byte, error) {
	out := map[string][]byte{}
	err := s.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucket)
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, v []byte) error {
			out[string(k)] = bytes.Clone(v)
			return nil
		})
	})
	return out, err
}

// putRecord replaces a record, in a bucket that is made for it; nil deletes it.
func (s *Store) putRecord(bucket []byte, what, key string, record []byte) error {
	record = bytes.Clone(record)
	return s.commit(what, func(tx *bolt.Tx) error { return putIn(tx, bucket, key, record) })
}

// putIn is putRecord in a transaction.
func putIn(tx *bolt.Tx, bucket []byte, key string, record []byte) error {
	if record == nil {
		if b := tx.Bucket(bucket); b != nil {
			return b.Delete([]byte(key))
		}
		return nil
	}
	b, err := tx.CreateBucketIfNotExists(bucket)
	if err != nil {
		return err
	}
	return b.Put([]byte(key), record)
}
