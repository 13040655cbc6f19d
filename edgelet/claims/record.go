package claims

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// ErrRecord is returned when a record can't be read.
var ErrRecord = errors.New("unreadable record of a resource claim")

// driversKey is no claim's UID.
const driversKey = "drivers"

const recordVersion = 1

// claim is one that pods here use or used. It is never changed, only replaced.
type claim struct {
	Version   int    `json:"version"`
	UID       string `json:"uid"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Pods are the UIDs of those that use it, sorted.
	Pods []string `json:"pods"`
	// Allocation tells one allocation of the claim from another.
	Allocation string `json:"allocation"`
	// Drivers have its devices; what they prepared, once they did.
	Drivers map[string][]device `json:"drivers"`
	// Boot is the boot of the machine in which all of them did; empty before that.
	Boot string `json:"boot,omitempty"`
}

func (c *claim) key() string { return c.Namespace + "/" + c.Name }

func (c *claim) named() named { return named{c.Namespace, c.UID, c.Name} }

func (c *claim) usedBy(pod string) bool { return slices.Contains(c.Pods, pod) }

// with is the claim with another user.
func (c *claim) with(pod string) *claim {
	out := *c
	out.Pods = append(slices.Clone(c.Pods), pod)
	slices.Sort(out.Pods)
	out.Pods = slices.Compact(out.Pods)
	return &out
}

func (c *claim) without(pod string) *claim {
	out := *c
	out.Pods = slices.DeleteFunc(slices.Clone(c.Pods), func(p string) bool { return p == pod })
	return &out
}

// replaced is why another claim of the name can't be used yet, in a kubelet's words.
func (c *claim) replaced() error {
	return fmt.Errorf("old ResourceClaim with same name %s and different UID %s still exists (previous pod force-deleted?!)", c.Name, c.UID)
}

func (c *claim) encode() []byte {
	raw, err := json.Marshal(c)
	if err != nil {
		panic(err) // strings only
	}
	return raw
}

func decodeRecord(raw []byte) (*claim, error) {
	c := new(claim)
	if err := json.Unmarshal(raw, c); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	switch {
	case c.Version != recordVersion:
		return nil, fmt.Errorf("%w: version %d, this agent knows %d", ErrRecord, c.Version, recordVersion)
	case c.UID == "" || c.Namespace == "" || c.Name == "" || len(c.Pods) == 0:
		return nil, fmt.Errorf("%w: uid, namespace, name or pods are missing", ErrRecord)
	}
	slices.Sort(c.Pods)
	return c, nil
}

type driversRecord struct {
	Version int      `json:"version"`
	Names   []string `json:"names"`
}

// maxDrivers bounds the drivers that a node remembers.
const maxDrivers = 64

func encodeDrivers(names []string) []byte {
	raw, err := json.Marshal(driversRecord{recordVersion, names})
	if err != nil {
		panic(err) // strings only
	}
	return raw
}

func decodeDrivers(raw []byte) ([]string, error) {
	var r driversRecord
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("%w: drivers: %w", ErrRecord, err)
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("%w: drivers: version %d, this agent knows %d", ErrRecord, r.Version, recordVersion)
	}
	names := slices.DeleteFunc(r.Names, func(n string) bool { return n == "" })
	return names[:min(len(names), maxDrivers)], nil
}

// load reads all records, and leaves out what it can't read: that is said, and must
// not keep other pods from running.
func (m *Manager) load() error {
	records, err := m.Store.ClaimRecords()
	if err != nil {
		return fmt.Errorf("reading which resource claims are prepared: %w", err)
	}
	for _, key := range slices.Sorted(maps.Keys(records)) {
		if key == driversKey {
			names, err := decodeDrivers(records[key])
			if err != nil {
				m.Log.Error("which DRA drivers were here isn't known", "err", err)
			}
			for _, name := range names {
				m.drivers[name] = &driver{name: name}
			}
			continue
		}
		c, err := decodeRecord(records[key])
		if err == nil && c.UID != key {
			err = fmt.Errorf("%w: it is that of %s", ErrRecord, c.UID)
		}
		if err != nil {
			m.Log.Error("a record of a resource claim is not readable, what it was about stays prepared", "uid", key, "err", err)
			continue
		}
		m.claims[c.key()] = c
	}
	return nil
}

// replace makes claims what they are from now on. It is durable when it returns, or
// later if that will do.
func (m *Manager) replace(later bool, claims ...*claim) error {
	records := map[string][]byte{}
	for _, c := range claims {
		records[c.UID] = nil
		if len(c.Pods) > 0 {
			records[c.UID] = c.encode()
		}
	}
	switch {
	case len(records) == 0:
		return nil
	case later:
		m.Store.PutClaimRecordsLater(records)
	default:
		if err := m.Store.PutClaimRecords(records); err != nil {
			return fmt.Errorf("checkpoint ResourceClaim state: %w", err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range claims {
		if len(c.Pods) == 0 {
			delete(m.claims, c.key())
			continue
		}
		m.claims[c.key()] = c
	}
	return nil
}
