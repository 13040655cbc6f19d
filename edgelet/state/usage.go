package state

import (
	"encoding/binary"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Usage is what the node has used of a day's data, as it is kept.
type Usage struct {
	// Bytes of the day, sent and received.
	Bytes int64
	// Elapsed of the day, on clocks that ran: those of this start and of earlier
	// ones, as far as they were kept.
	Elapsed time.Duration
	// Began is when the day began by authenticated time; zero if that isn't known.
	Began time.Time
}

var keyUsage = []byte("usage") // bytes, nanoseconds, Unix seconds; big endian

// Usage returns what was last put, also before this start.
func (s *Store) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.usage
}

// PutUsage replaces it. It goes to the disk with the next durable write, or, if
// now, within FlushDelay: counting must not cost flash.
func (s *Store) PutUsage(u Usage, now bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.usage == u {
		return
	}
	s.usage, s.usageDirty = u, true
	if now {
		s.wake()
	}
}

func (u Usage) encode() []byte {
	out := be64(uint64(u.Bytes))
	out = binary.BigEndian.AppendUint64(out, uint64(u.Elapsed))
	var began int64
	if !u.Began.IsZero() {
		began = u.Began.Unix()
	}
	return binary.BigEndian.AppendUint64(out, uint64(began))
}

// decodeUsage reads what encode wrote; anything else is no usage.
func decodeUsage(b []byte) Usage {
	if len(b) != 24 {
		return Usage{}
	}
	u := Usage{Bytes: int64(fromBE64(b[:8])), Elapsed: time.Duration(fromBE64(b[8:16]))}
	if began := int64(fromBE64(b[16:])); began != 0 {
		u.Began = time.Unix(began, 0).UTC()
	}
	if u.Bytes < 0 || u.Elapsed < 0 {
		return Usage{}
	}
	return u
}

func (u Usage) write(tx *bolt.Tx) error { return putMeta(tx, keyUsage, u.encode()) }
