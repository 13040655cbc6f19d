package fleet

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
)

// Hash is the content hash of an object, see [HashObject] and [HashSecret].
type Hash [32]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// IsZero is true for the hash of nothing.
func (h Hash) IsZero() bool { return h == Hash{} }

// HashFrom reads a hash off the wire.
func HashFrom(b []byte) (Hash, error) {
	var h Hash
	if len(b) != len(h) {
		return h, fmt.Errorf("%w: hash of %d bytes, want %d", ErrMalformed, len(b), len(h))
	}
	copy(h[:], b)
	return h, nil
}

// HashObject is the content hash of everything but a Secret: SHA-256 of its raw
// bytes.
func HashObject(raw []byte) Hash { return sha256.Sum256(raw) }

// HashSecret is the content hash of a Secret. It is keyed (with a key that only
// the hub has), because a broker sees hashes, and a short password could be
// found by trying.
func HashSecret(key, raw []byte) Hash {
	m := hmac.New(sha256.New, key)
	m.Write(raw)
	return Hash(m.Sum(nil))
}

// Set is what a node should have, or has: UID to content hash.
type Set map[string]Hash

// Clone copies s; a nil set becomes an empty one.
func (s Set) Clone() Set {
	if s == nil {
		return Set{}
	}
	return maps.Clone(s)
}

// Digest is the same for equal sets and differs for others: SHA-256 over
// "coracle-set-1", then, in the order of the UIDs' bytes, the length of the UID
// (uvarint), the UID and its hash.
func (s Set) Digest() Hash {
	h := sha256.New()
	h.Write([]byte("coracle-set-1"))
	var buf [binary.MaxVarintLen64]byte
	for _, uid := range slices.Sorted(maps.Keys(s)) {
		n := binary.PutUvarint(buf[:], uint64(len(uid)))
		h.Write(buf[:n])
		h.Write([]byte(uid))
		hash := s[uid]
		h.Write(hash[:])
	}
	return Hash(h.Sum(nil))
}

// Entries are s on the wire, sorted by UID.
func (s Set) Entries() []*Entry {
	out := make([]*Entry, 0, len(s))
	for _, uid := range slices.Sorted(maps.Keys(s)) {
		hash := s[uid]
		out = append(out, &Entry{Uid: uid, Hash: hash[:]})
	}
	return out
}

// SetFrom reads a list off the wire.
func SetFrom(entries []*Entry) (Set, error) {
	out := make(Set, len(entries))
	for _, e := range entries {
		hash, err := HashFrom(e.GetHash())
		if err != nil {
			return nil, fmt.Errorf("entry %q: %w", e.GetUid(), err)
		}
		if e.GetUid() == "" {
			return nil, fmt.Errorf("%w: entry without UID", ErrMalformed)
		}
		if _, twice := out[e.GetUid()]; twice {
			return nil, fmt.Errorf("%w: entry %q twice", ErrMalformed, e.GetUid())
		}
		out[e.GetUid()] = hash
	}
	return out, nil
}
