package broker

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"slices"
	"sync"
)

const (
	// sessionID is how long the name of a TLS session is, in bytes.
	sessionID = 16
	// sessionsPerNode are kept: the one in use, and the one before, should the
	// node not have heard of the last.
	sessionsPerNode = 2
)

// sessions keeps the nodes' TLS sessions in memory and gives them short names.
// A ticket of crypto/tls carries the whole session, the node's certificates
// included, 1.3 KB: up with each ClientHello that resumes it and down again as
// the next one, as much as all the rest of a reconnect. A node's session is some
// 1.5 KB here.
type sessions struct {
	most int // of all nodes

	mu     sync.Mutex
	states map[string]session
	nodes  map[[sha256.Size]byte][]string // by certificate: names, the oldest first
	order  []string                       // of all, the oldest first; some may be gone
}

type session struct {
	state []byte
	node  [sha256.Size]byte
}

func newSessions(most int) *sessions {
	return &sessions{most: most, states: map[string]session{}, nodes: map[[sha256.Size]byte][]string{}}
}

// serve has config use s.
func (s *sessions) serve(config *tls.Config) {
	config.WrapSession, config.UnwrapSession = s.wrap, s.unwrap
}

// wrap is a tls.Config's WrapSession: what it returns is seen by anybody.
func (s *sessions) wrap(conn tls.ConnectionState, state *tls.SessionState) ([]byte, error) {
	raw, err := state.Bytes()
	if err != nil {
		return nil, err
	}
	random := make([]byte, sessionID)
	_, _ = rand.Read(random) // never fails
	if len(conn.PeerCertificates) == 0 {
		return random, nil // of nobody: it is not to be resumed
	}
	name := string(random)
	node := sha256.Sum256(conn.PeerCertificates[0].Raw)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.states[name] = session{raw, node}
	s.nodes[node] = append(s.nodes[node], name)
	s.order = append(s.order, name)
	for len(s.nodes[node]) > sessionsPerNode {
		s.forget(s.nodes[node][0])
	}
	for len(s.states) > s.most {
		s.forget(s.order[0]) // nothing if it is gone already
		s.order = s.order[1:]
	}
	if len(s.order) > 2*len(s.states) {
		s.order = slices.DeleteFunc(slices.Clone(s.order), s.gone)
	}
	return random, nil
}

func (s *sessions) gone(name string) bool {
	_, ok := s.states[name]
	return !ok
}

func (s *sessions) forget(name string) {
	state, ok := s.states[name]
	if !ok {
		return
	}
	delete(s.states, name)
	names := slices.DeleteFunc(s.nodes[state.node], func(n string) bool { return n == name })
	if len(names) == 0 {
		delete(s.nodes, state.node)
	} else {
		s.nodes[state.node] = names
	}
}

// unwrap is a tls.Config's UnwrapSession; nil means a full handshake.
func (s *sessions) unwrap(identity []byte, _ tls.ConnectionState) (*tls.SessionState, error) {
	s.mu.Lock()
	state, ok := s.states[string(identity)]
	s.mu.Unlock()
	if !ok {
		return nil, nil
	}
	return tls.ParseSessionState(state.state)
}
