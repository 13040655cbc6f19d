package state

import (
	"maps"
	"slices"
	"strings"

	bolt "go.etcd.io/bbolt"
)

// bucketClaims: claim uid, or a name of edgelet/claims' own -> opaque. It is made
// with the first claim that is prepared: a node without drivers doesn't have it, and
// an agent that doesn't know it reads the file all the same.
var bucketClaims = []byte("claims")

// ClaimRecords returns what edgelet/claims keeps, by key.
func (s *Store) ClaimRecords() (map[string][]byte, error) { return s.records(bucketClaims) }

// PutClaimRecords replaces records in one transaction and returns when that is
// durable; nil deletes one.
func (s *Store) PutClaimRecords(records map[string][]byte) error {
	records = maps.Clone(records)
	keys := strings.Join(slices.Sorted(maps.Keys(records)), ", ")
	return s.commit("storing the resource claims "+keys, func(tx *bolt.Tx) error { return putClaims(tx, records) })
}

// PutClaimRecordsLater replaces records soon, with the next write of anything
// else: for what costs no more than a driver's answer if it is lost.
func (s *Store) PutClaimRecordsLater(records map[string][]byte) {
	s.mu.Lock()
	if s.dirtyClaims == nil {
		s.dirtyClaims = map[string][]byte{}
	}
	maps.Copy(s.dirtyClaims, records)
	s.mu.Unlock()
	s.wake()
}

func putClaims(tx *bolt.Tx, records map[string][]byte) error {
	for key, record := range records {
		if err := putIn(tx, bucketClaims, key, record); err != nil {
			return err
		}
	}
	return nil
}
