package link

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"sync"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
)

// Trust knows whose orders to obey. Safe for concurrent use.
type Trust struct {
	verify func(chain [][]byte) (ed25519.PublicKey, error)
	mu     sync.Mutex
	keys   []ed25519.PublicKey // newest last, a few
}

// maxHubKeys bounds what a node remembers: several hubs, and their next keys.
const maxHubKeys = 8

// NewTrust starts with the hub keys that are known (from joining), and verify,
// which says whether a chain (DER, leaf first) is that of a hub of this cluster
// and returns its key; edgelet/identity has both. verify may be nil.
func NewTrust(verify func(chain [][]byte) (ed25519.PublicKey, error), known ...ed25519.PublicKey) *Trust {
	return &Trust{verify: verify, keys: known}
}

// Known are the ids of the keys that need no certificate.
func (t *Trust) Known() [][]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([][]byte, len(t.keys))
	for i, k := range t.keys {
		out[i] = fleet.KeyID(k)
	}
	return out
}

// Key is a fleet.KeyFunc. A key that isn't known yet is taken from the chain that
// came along, if that is a hub's.
func (t *Trust) Key(keyID []byte, chain [][]byte) (ed25519.PublicKey, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range t.keys {
		if bytes.Equal(fleet.KeyID(k), keyID) {
			return k, nil
		}
	}
	if len(chain) == 0 || t.verify == nil {
		return nil, fmt.Errorf("%w: %x", fleet.ErrUnknownKey, keyID)
	}
	key, err := t.verify(chain)
	if err != nil {
		return nil, fmt.Errorf("%w: %x: %w", fleet.ErrUnknownKey, keyID, err)
	}
	if !bytes.Equal(fleet.KeyID(key), keyID) {
		return nil, fmt.Errorf("%w: %x isn't the key of the certificate that came along", fleet.ErrUnknownKey, keyID)
	}
	if len(t.keys) >= maxHubKeys {
		t.keys = t.keys[1:]
	}
	t.keys = append(t.keys, key)
	return key, nil
}
