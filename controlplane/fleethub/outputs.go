package fleethub

import "github.com/coracle-edge/coracle/controlplane/api/fleet"

// Output is something that the shell has to do.
type Output interface{ output() }

type (
	// SendWelcome in a message with Peer.Header.
	SendWelcome struct{ InSync bool }
	// SendOrder in a message with Peer.Header.
	SendOrder struct {
		Version      fleet.OrderVersion
		Base, Digest fleet.Hash
		Upserts      []string // UIDs; their content is the shell's
		Removes      []string
		More         bool      // pods are still missing after it
		List         fleet.Set // not nil: a list
	}
	// SendAdopt in a message with Peer.Header.
	SendAdopt struct {
		From string
		To   fleet.OrderVersion
	}
	// SendRebirth asks for a Hello.
	SendRebirth struct{}
	// SendResend asks for reports once more, in a message with Peer.Header.
	SendResend struct {
		UIDs []string
		Node bool
	}
	// Came says that the node speaks again, or for the first time.
	Came struct{ First bool }
	// Went says that the node is away.
	Went struct{ Reason string }
	// Foreign says that the node belongs to another incarnation, or to a later
	// time of this one than etcd knows. Nothing is ordered until it is adopted.
	Foreign struct{ Version fleet.OrderVersion }
	// Deposed says that the node obeys a hub of a later epoch.
	Deposed struct{ Version fleet.OrderVersion }
	// InSync says that the node has all it should have (as of this version).
	InSync struct{ Version fleet.OrderVersion }
	// Trouble is an order that the node didn't carry out.
	Trouble struct {
		Status  fleet.AckStatus
		Message string
	}
	// SendProbe in a message of this session, with this grant.
	SendProbe struct {
		Session fleet.SessionID
		Grant   fleet.GrantID
		Boot    string
	}
	// Cloned says that two boards have the node's identity, and which.
	Cloned struct{ One, Other Board }
)

func (SendWelcome) output() {}
func (SendOrder) output()   {}
func (SendAdopt) output()   {}
func (SendRebirth) output() {}
func (SendResend) output()  {}
func (Came) output()        {}
func (Went) output()        {}
func (Foreign) output()     {}
func (Deposed) output()     {}
func (InSync) output()      {}
func (Trouble) output()     {}
func (SendProbe) output()   {}
func (Cloned) output()      {}
