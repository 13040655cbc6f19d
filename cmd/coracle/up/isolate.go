package up

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/coracle-edge/coracle/crishim/oci"
)

// Isolate says whether nodes get namespaces of their own.
type Isolate string

const (
	// IsolateAuto isolates nodes where that is possible, and says what is missing
	// where it isn't.
	IsolateAuto   Isolate = "auto"
	IsolateAlways Isolate = "always"
	IsolateNever  Isolate = "never"
)

// Set implements pflag.Value.
func (i *Isolate) Set(s string) error {
	switch v := Isolate(s); v {
	case IsolateAuto, IsolateAlways, IsolateNever:
		*i = v
		return nil
	}
	return fmt.Errorf("%q is none of auto, always and never", s)
}

func (i *Isolate) String() string { return string(*i) }

// Type implements pflag.Value.
func (i *Isolate) Type() string { return "auto|always|never" }

// errCannotIsolate is returned when this machine or user can't make boards of
// itself.
var errCannotIsolate = errors.New("nodes can't have namespaces of their own here")

// canIsolate is nil, or errCannotIsolate with what is missing.
func canIsolate(o Options) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: that needs root, this is user %d", errCannotIsolate, os.Geteuid())
	}
	if err := oci.CanRun(oci.PrivateConfig{Binary: o.Containerd, CNIBinDir: o.CNIBinDir}); err != nil {
		return fmt.Errorf("%w: %w", errCannotIsolate, err)
	}
	if _, err := exec.LookPath("iptables"); err != nil {
		return fmt.Errorf("%w: iptables isn't installed (apt-get install iptables)", errCannotIsolate)
	}
	return nil
}

// openLAN is the network of isolated nodes, nil if they share this machine's.
func openLAN(o Options) (*lan, error) {
	if o.Isolate == IsolateNever {
		return nil, nil
	}
	err := canIsolate(o)
	if err == nil && o.Nodes > maxBoards {
		err = fmt.Errorf("%w: there are addresses for %d, not for %d", errCannotIsolate, maxBoards, o.Nodes)
	}
	var n *lan
	if err == nil {
		n, err = newLAN(Layout{Root: o.DataDir})
	}
	if err == nil {
		err = n.up(o.NoOutbound)
	}
	switch {
	case err == nil:
		if n.noWayOut != nil {
			fmt.Fprintf(o.Notice, "Nodes reach this machine only: %v\n", n.noWayOut)
		}
		return n, nil
	case o.Isolate == IsolateAlways:
		return nil, err
	case os.Geteuid() == 0: // others are told at the end, with what else needs root
		fmt.Fprintf(o.Notice, "Nodes share this machine's network, mounts and processes: %v\n", err)
	}
	return nil, nil
}
