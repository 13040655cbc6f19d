package fleet

import (
	"cmp"
	"encoding/hex"
	"fmt"
)

// OrderVersion is [Version] as a comparable value.
type OrderVersion struct {
	Incarnation string // raw bytes
	Epoch       uint64
	Counter     uint64
	Hub         string // raw bytes
	Revision    uint64
}

// VersionFrom reads v, which may be nil.
func VersionFrom(v *Version) OrderVersion {
	return OrderVersion{string(v.GetIncarnation()), v.GetEpoch(), v.GetCounter(), string(v.GetHub()), v.GetRevision()}
}

// Proto is v on the wire.
func (v OrderVersion) Proto() *Version {
	return &Version{Incarnation: bytesOf(v.Incarnation), Epoch: v.Epoch, Counter: v.Counter, Hub: bytesOf(v.Hub), Revision: v.Revision}
}

// IsZero is true for a node that has never carried out an order.
func (v OrderVersion) IsZero() bool { return v == OrderVersion{} }

func (v OrderVersion) String() string {
	return fmt.Sprintf("%s/%d.%d", hex.EncodeToString([]byte(v.Incarnation[:min(4, len(v.Incarnation))])), v.Epoch, v.Counter)
}

// Relation of the version of an order to the version a node has.
type Relation int

const (
	// Newer: to be carried out.
	Newer Relation = iota
	// Same: carried out already.
	Same
	// Older: must not be carried out.
	Older
	// Foreign: of another incarnation of the cluster, or of a past of this one
	// that was restored. Must not be carried out, whatever its numbers say.
	Foreign
)

func (r Relation) String() string {
	return [...]string{"newer", "same", "older", "foreign"}[r]
}

// Compare says what a node that has carried out `have` must think of an order
// with version got.
//
//   - A node that has carried out nothing belongs to whoever speaks first (its
//     link has checked that it is a hub of the cluster that it joined).
//   - Another incarnation is foreign.
//   - Two hubs in one epoch can only come of an etcd that was restored: what
//     isn't the one already obeyed is foreign.
//   - A later epoch began with a write to etcd, so its revision is above
//     everything that was ever seen before, unless etcd was restored to a time
//     before an order that this node has carried out: foreign.
//     Revision 0 is unknown and says nothing.
func Compare(have, got OrderVersion) Relation {
	if have.Incarnation == "" {
		return Newer
	}
	if got.Incarnation != have.Incarnation {
		return Foreign
	}
	switch cmp.Compare(got.Epoch, have.Epoch) {
	case -1:
		return Older
	case 1:
		if have.Revision != 0 && got.Revision != 0 && got.Revision < have.Revision {
			return Foreign
		}
		return Newer
	}
	if got.Hub != have.Hub && have.Hub != "" {
		return Foreign
	}
	switch cmp.Compare(got.Counter, have.Counter) {
	case -1:
		return Older
	case 1:
		return Newer
	}
	return Same
}

// SessionID is [Session] as a comparable value.
type SessionID struct {
	Store string // raw bytes
	Boot  uint64
	Conn  uint64
	Hello uint64
}

// SessionFrom reads s, which may be nil.
func SessionFrom(s *Session) SessionID {
	return SessionID{string(s.GetStore()), s.GetBoot(), s.GetConn(), s.GetHello()}
}

// Proto is s on the wire.
func (s SessionID) Proto() *Session {
	return &Session{Store: bytesOf(s.Store), Boot: s.Boot, Conn: s.Conn, Hello: s.Hello}
}

// After is true if s was opened later than o by the same state file. Sessions
// of two state files (a reset node, a cloned card) have no order.
func (s SessionID) After(o SessionID) bool {
	if s.Store != o.Store {
		return false
	}
	return cmp.Or(cmp.Compare(s.Boot, o.Boot), cmp.Compare(s.Conn, o.Conn), cmp.Compare(s.Hello, o.Hello)) > 0
}

// SameConn is true if both were opened on one connection: a will speaks for all
// sessions of its connection.
func (s SessionID) SameConn(o SessionID) bool {
	return s.Store == o.Store && s.Boot == o.Boot && s.Conn == o.Conn
}

// GrantID is [Grant] as a comparable value.
type GrantID struct {
	Epoch  uint64
	Hub    string // raw bytes
	Number uint64
}

// GrantFrom reads g, which may be nil.
func GrantFrom(g *Grant) GrantID { return GrantID{g.GetEpoch(), string(g.GetHub()), g.GetNumber()} }

// Proto is g on the wire, nil if g is zero.
func (g GrantID) Proto() *Grant {
	if g == (GrantID{}) {
		return nil
	}
	return &Grant{Epoch: g.Epoch, Hub: bytesOf(g.Hub), Number: g.Number}
}

// StampID is [Stamp] as a comparable value.
type StampID struct {
	Store string // raw bytes
	Boot  uint64
	Seq   uint64
}

// StampFrom reads s, which may be nil.
func StampFrom(s *Stamp) StampID { return StampID{string(s.GetStore()), s.GetBoot(), s.GetSeq()} }

// Proto is s on the wire.
func (s StampID) Proto() *Stamp {
	return &Stamp{Store: bytesOf(s.Store), Boot: s.Boot, Seq: s.Seq}
}

// Obsoletes is true if what was said at s replaces what was said at o. Another
// state file's stamps have no order: what comes in now is the newer one, which
// holds because a session of a replaced state file isn't accepted any more.
func (s StampID) Obsoletes(o StampID) bool {
	if s.Store != o.Store {
		return true
	}
	return cmp.Or(cmp.Compare(s.Boot, o.Boot), cmp.Compare(s.Seq, o.Seq)) > 0
}

// String is the form of a stamp in an annotation: store/boot/seq.
func (s StampID) String() string {
	return fmt.Sprintf("%s/%d/%d", hex.EncodeToString([]byte(s.Store)), s.Boot, s.Seq)
}

// ParseStamp reads what [StampID.String] wrote.
func ParseStamp(text string) (StampID, error) {
	var store string
	var s StampID
	i := len(text)
	for j, c := range text {
		if c == '/' {
			i = j
			break
		}
	}
	store, rest := text[:i], text[i:]
	if n, err := fmt.Sscanf(rest, "/%d/%d", &s.Boot, &s.Seq); err != nil || n != 2 {
		return StampID{}, fmt.Errorf("%w: stamp %q, want store/boot/seq", ErrMalformed, text)
	}
	raw, err := hex.DecodeString(store)
	if err != nil {
		return StampID{}, fmt.Errorf("%w: stamp %q: %v", ErrMalformed, text, err)
	}
	s.Store = string(raw)
	if s.String() != text {
		return StampID{}, fmt.Errorf("%w: stamp %q, want store/boot/seq", ErrMalformed, text)
	}
	return s, nil
}

func bytesOf(s string) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}
