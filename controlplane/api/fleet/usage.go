package fleet

import (
	"encoding/json"
	"fmt"
	"io"
)

// UsagePath of the node's API, on its tunnel, serves what the node and its pods
// use now: a [Usage] as JSON. It is what `kubectl top` costs the link, so the
// names are short: some 40 bytes per container.
const UsagePath = "/coracle/v1/usage"

// MaxUsage bounds what a reader takes of one node, in bytes.
const MaxUsage = 4 << 20

// Usage of a node. CPU is in billionths of a core, memory is the working set in
// bytes.
type Usage struct {
	// UnixMilli is when it was measured, by the node's clock, and WindowMilli over
	// what time the CPU was.
	UnixMilli   int64      `json:"t"`
	WindowMilli int64      `json:"w"`
	NanoCores   uint64     `json:"c"`
	WorkingSet  uint64     `json:"m"`
	Pods        []PodUsage `json:"p,omitempty"`
}

// PodUsage is one pod that runs.
type PodUsage struct {
	Namespace  string           `json:"s"`
	Name       string           `json:"n"`
	UID        string           `json:"u"`
	Containers []ContainerUsage `json:"k"`
}

// ContainerUsage is one container that runs.
type ContainerUsage struct {
	Name       string `json:"n"`
	NanoCores  uint64 `json:"c"`
	WorkingSet uint64 `json:"m"`
}

// WriteUsage writes it.
func WriteUsage(w io.Writer, u *Usage) error { return json.NewEncoder(w).Encode(u) }

// ReadUsage reads what WriteUsage wrote. What isn't that is ErrMalformed; more
// than MaxUsage bytes are ErrTooLarge.
func ReadUsage(r io.Reader) (*Usage, error) {
	limited := &io.LimitedReader{R: r, N: MaxUsage + 1}
	var u Usage
	err := json.NewDecoder(limited).Decode(&u)
	switch {
	case limited.N <= 0:
		return nil, fmt.Errorf("%w: usage of more than %d bytes", ErrTooLarge, MaxUsage)
	case err != nil:
		return nil, fmt.Errorf("%w: usage: %w", ErrMalformed, err)
	case u.UnixMilli < 0 || u.WindowMilli <= 0 || u.WindowMilli > 1<<40:
		return nil, fmt.Errorf("%w: usage: time %d ms, window %d ms", ErrMalformed, u.UnixMilli, u.WindowMilli)
	}
	return &u, nil
}
