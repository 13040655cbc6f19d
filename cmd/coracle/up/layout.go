package up

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Layout names everything a local cluster keeps below its data folder.
type Layout struct{ Root string }

func (l Layout) Kubeconfig() string        { return filepath.Join(l.Root, "kubeconfig") }
func (l Layout) ControlPlane() string      { return filepath.Join(l.Root, "controlplane") }
func (l Layout) Registry() string          { return filepath.Join(l.Root, "registry") }
func (l Layout) Node(name string) string   { return filepath.Join(l.Root, "nodes", name) }
func (l Layout) Log(process string) string { return filepath.Join(l.Root, "logs", process+".log") }
func (l Layout) pidFile(process string) string {
	return filepath.Join(l.Root, "run", process+".pid")
}
func (l Layout) lock() string  { return filepath.Join(l.Root, "up.lock") }
func (l Layout) state() string { return filepath.Join(l.Root, "run", "up.json") }

// nodes are the names of those that have a data folder.
func (l Layout) nodes() ([]string, error) {
	entries, err := os.ReadDir(l.Node(""))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// State is what a running `coracle up` leaves in its data folder for `down` and
// for those who look.
type State struct {
	PID   int      `json:"pid"`
	API   string   `json:"api"`
	Nodes []string `json:"nodes"`
	// HostsDir is the registry hosts directory that leads to the local registry.
	HostsDir string `json:"hostsDir"`
	// Moved has a line for each port that was taken, and what was taken instead.
	Moved []string `json:"moved,omitempty"`
}

// Reach tells a person how to reach the cluster.
func (l Layout) Reach(s State) string {
	var b strings.Builder
	fmt.Fprintf(&b, "The cluster is at %s\n\n    export KUBECONFIG=%s\n\n", s.API, l.Kubeconfig())
	for _, line := range s.Moved {
		fmt.Fprintln(&b, line)
	}
	if len(s.Moved) > 0 {
		fmt.Fprintln(&b)
	}
	return b.String()
}

// ErrNotUp is returned when no cluster runs from the data folder.
var ErrNotUp = errors.New("no cluster is running")

// ReadState returns the state of the cluster that runs from l, or ErrNotUp.
func (l Layout) ReadState() (State, error) {
	var s State
	raw, err := os.ReadFile(l.state())
	if errors.Is(err, os.ErrNotExist) {
		return s, fmt.Errorf("%w from %s", ErrNotUp, l.Root)
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, fmt.Errorf("%s: %w; remove it if no `coracle up` runs", l.state(), err)
	}
	return s, nil
}

func (l Layout) writeState(s State) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return writeFile(l.state(), raw, 0o644)
}

// writeFile replaces file at once, so that nobody reads half of it.
func writeFile(file string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	tmp := file + ".new"
	if err := os.WriteFile(tmp, data, mode); err != nil {
		return err
	}
	return os.Rename(tmp, file)
}
