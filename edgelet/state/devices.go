package state

import (
	"bytes"

	bolt "go.etcd.io/bbolt"
)

// bucketDevices: pod uid, or a name of edgelet/devices' own -> opaque. It is made
// with the first device that a pod gets: a node without device plugins doesn't
// have it, and an agent that doesn't know it reads the file all the same.
var bucketDevices = []byte("devices")

// DeviceRecords returns what edgelet/devices keeps, by key.
func (s *Store) DeviceRecords() (map[string][]byte, error) {
	out := map[string][]byte{}
	err := s.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketDevices)
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

// PutDeviceRecord replaces a record and returns when that is durable; nil deletes
// it.
func (s *Store) PutDeviceRecord(key string, record []byte) error {
	record = bytes.Clone(record)
	return s.commit("storing the devices of "+key, func(tx *bolt.Tx) error {
		if record == nil {
			if b := tx.Bucket(bucketDevices); b != nil {
				return b.Delete([]byte(key))
			}
			return nil
		}
		b, err := tx.CreateBucketIfNotExists(bucketDevices)
		if err != nil {
			return err
		}
		return b.Put([]byte(key), record)
	})
}
