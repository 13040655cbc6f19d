package state

import (
	"encoding/binary"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// Buckets of schema 1. Values are messages of controlplane/api/fleet, which are
// never changed incompatibly.
var (
	bucketMeta     = []byte("meta")     // see keys
	bucketDesired  = []byte("desired")  // uid -> fleet.Object
	bucketReports  = []byte("reports")  // uid -> fleet.PodReport
	bucketAcked    = []byte("acked")    // uid -> fleet.Stamp of the acknowledged report
	bucketRecords  = []byte("records")  // uid -> opaque, edgelet/pods'
	bucketJournal  = []byte("journal")  // boot, seq (big endian) -> fleet.JournalEntry
	bucketGaps     = []byte("gaps")     // boot, from (big endian) -> fleet.Gap
	bucketSettings = []byte("settings") // name -> value
)

var (
	keySchema       = []byte("schema")        // big endian
	keyStore        = []byte("store")         // random id
	keyBoot         = []byte("boot")          // big endian
	keyFloor        = []byte("floor")         // big endian, Unix seconds
	keyVersion      = []byte("version")       // fleet.Version
	keyPartial      = []byte("partial")       // there if not all pods that should be here came yet
	keyNode         = []byte("node")          // fleet.NodeReport
	keyNodeAcked    = []byte("node-acked")    // fleet.Stamp
	keyJournalAcked = []byte("journal-acked") // boot, seq
)

// schemaVersion is what this code writes.
const schemaVersion = 1

// migrations[i] makes version i+1 out of version i, within one transaction with
// all others that are needed. They are never edited once released.
var migrations = []func(*bolt.Tx) error{
	func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketDesired, bucketReports, bucketAcked,
			bucketRecords, bucketJournal, bucketGaps, bucketSettings} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return putMeta(tx, keyStore, newID())
	},
}

// migrate brings the file to schemaVersion. Nothing is written if it is there.
func (s *Store) migrate(db *bolt.DB) error {
	var have uint64
	if err := db.View(func(tx *bolt.Tx) error {
		if tx.Bucket(bucketMeta) != nil {
			have = fromBE64(getMeta(tx, keySchema))
		}
		return nil
	}); err != nil {
		return s.writeError("reading the schema version", err)
	}
	if have > schemaVersion {
		return fmt.Errorf("%w: %s has schema %d, this edgelet knows up to %d; start the newer edgelet again, or move the file away to begin anew", ErrNewer, s.path, have, schemaVersion)
	}
	if have == schemaVersion {
		return nil
	}
	err := db.Update(func(tx *bolt.Tx) error {
		for v := have; v < schemaVersion; v++ {
			if err := migrations[v](tx); err != nil {
				return fmt.Errorf("to schema %d: %w", v+1, err)
			}
		}
		return putMeta(tx, keySchema, be64(schemaVersion))
	})
	return s.writeError("migrating the state file", err)
}

func getMeta(tx *bolt.Tx, key []byte) []byte { return tx.Bucket(bucketMeta).Get(key) }

func putMeta(tx *bolt.Tx, key, value []byte) error { return tx.Bucket(bucketMeta).Put(key, value) }

func be64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func fromBE64(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// pair is the key of something that has a boot and a number.
func pair(boot, seq uint64) []byte { return binary.BigEndian.AppendUint64(be64(boot), seq) }

func fromPair(b []byte) (boot, seq uint64) {
	if len(b) != 16 {
		return 0, 0
	}
	return fromBE64(b[:8]), fromBE64(b[8:])
}
