package state

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
)

// PodRecord returns edgelet/pods' own record of a pod, false if there is none.
func (s *Store) PodRecord(uid string) ([]byte, bool, error) {
	var out []byte
	err := s.db.View(func(tx *bolt.Tx) error {
		out = bytes.Clone(tx.Bucket(bucketRecords).Get([]byte(uid)))
		return nil
	})
	return out, out != nil, err
}

// PodRecords returns all records by UID.
func (s *Store) PodRecords() (map[string][]byte, error) {
	out := map[string][]byte{}
	err := s.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketRecords).ForEach(func(k, v []byte) error {
			out[string(k)] = bytes.Clone(v)
			return nil
		})
	})
	return out, err
}

// PutPodRecord replaces a pod's record and returns when that is durable; nil
// deletes it. Writing what is there already costs nothing.
func (s *Store) PutPodRecord(uid string, record []byte) error {
	old, had, err := s.PodRecord(uid)
	if err == nil && had == (record != nil) && bytes.Equal(old, record) {
		return nil
	}
	record = bytes.Clone(record)
	return s.commit("storing the record of pod "+uid, func(tx *bolt.Tx) error {
		if record == nil {
			return tx.Bucket(bucketRecords).Delete([]byte(uid))
		}
		return tx.Bucket(bucketRecords).Put([]byte(uid), record)
	})
}

// TimeFloor is a time that has surely passed, zero if none is known.
func (s *Store) TimeFloor() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.floor
}

// RaiseTimeFloor raises the floor to t, which must come from an authenticated
// source. An earlier t is ignored; less than a day's difference isn't written,
// for the flash's sake.
func (s *Store) RaiseTimeFloor(t time.Time) error {
	t = t.UTC().Truncate(time.Second)
	s.mu.Lock()
	old := s.floor
	s.mu.Unlock()
	if t.Sub(old) < 24*time.Hour {
		return nil
	}
	if err := s.commit("raising the time floor", func(tx *bolt.Tx) error {
		return putMeta(tx, keyFloor, be64(uint64(t.Unix())))
	}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.After(s.floor) {
		s.floor = t
	}
	return nil
}

// Setting returns a named value that the link was told, empty if unknown.
func (s *Store) Setting(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settings[name]
}

// PutSetting stores a named value and returns when it is durable.
func (s *Store) PutSetting(name, value string) error {
	return s.PutSettings(map[string]string{name: value})
}

// PutSettings stores named values in one transaction and returns when they are
// durable. Storing what is there already costs nothing.
func (s *Store) PutSettings(values map[string]string) error {
	news := map[string]string{}
	s.mu.Lock()
	for name, value := range values {
		if s.settings[name] != value {
			news[name] = value
		}
	}
	s.mu.Unlock()
	if len(news) == 0 {
		return nil
	}
	names := strings.Join(slices.Sorted(maps.Keys(news)), ", ")
	if err := s.commit("storing settings "+names, func(tx *bolt.Tx) error {
		for name, value := range news {
			if err := tx.Bucket(bucketSettings).Put([]byte(name), []byte(value)); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(s.settings, news)
	return nil
}
