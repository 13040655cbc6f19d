package affinity

import (
	"encoding/json"
	"errors"
	"fmt"
)

// ErrRecord is returned when a record can't be read.
var ErrRecord = errors.New("unreadable record of processors")

// machineKey is no pod's UID.
const machineKey = "machine"

const recordVersion = 1

// given is what a container has for itself.
type given struct {
	CPUs   Set
	Memory []Block
}

// Block is memory of one kind that a container was promised.
type Block struct {
	Type  string `json:"type"` // memory, or hugepages-SIZE
	Bytes uint64 `json:"bytes"`
	Nodes Nodes  `json:"nodes"` // it comes from, as a mask
}

// podGiven is what the containers of a pod have, by name.
type podGiven map[string]given

type givenRecord struct {
	CPUs   string  `json:"cpus,omitempty"` // a list, as people read it
	Memory []Block `json:"memory,omitempty"`
}

type podRecord struct {
	Version    int                    `json:"version"`
	Containers map[string]givenRecord `json:"containers"`
}

func (p podGiven) encode() []byte {
	r := podRecord{recordVersion, map[string]givenRecord{}}
	for name, g := range p {
		r.Containers[name] = givenRecord{g.CPUs.String(), g.Memory}
	}
	raw, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return raw
}

func decodePod(raw []byte) (podGiven, error) {
	var r podRecord
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("%w: version %d, this agent knows %d", ErrRecord, r.Version, recordVersion)
	}
	out := podGiven{}
	for name, c := range r.Containers {
		cpus, err := ParseSet(c.CPUs)
		if err != nil {
			return nil, fmt.Errorf("%w: container %q: %w", ErrRecord, name, err)
		}
		out[name] = given{cpus, c.Memory}
	}
	return out, nil
}

// machineRecord is what the machine was when the policies were last begun with. It
// is there as long as containers may be bound to processors.
type machineRecord struct {
	Version  int    `json:"version"`
	CPU      string `json:"cpu"`
	Memory   string `json:"memory"`
	Online   string `json:"online"`
	Reserved string `json:"reserved"`
}

func (m machineRecord) encode() []byte {
	m.Version = recordVersion
	raw, err := json.Marshal(m)
	if err != nil {
		panic(err) // strings only
	}
	return raw
}

func decodeMachine(raw []byte) (machineRecord, error) {
	var m machineRecord
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if m.Version != recordVersion {
		return m, fmt.Errorf("%w: version %d, this agent knows %d", ErrRecord, m.Version, recordVersion)
	}
	return m, nil
}
