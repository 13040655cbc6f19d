package bundle

import (
	"syscall"
	"time"
)

// Names of the files in a bundle directory.
const (
	SpecFile   = "spec.json"  // written by the starter
	StateFile  = "state.json" // written by the runner: who it is
	ExitFile   = "exit.json"  // written by the runner: how it ended
	StopFile   = "stop.json"  // written by the starter before it signals
	StdinFifo  = "stdin"
	StdoutFifo = "stdout"
	StderrFifo = "stderr"
)

// SignalCloseStdin tells a runner to let its guest's stdin end.
const SignalCloseStdin = syscall.SIGUSR1

// Spec says what to run and within which walls.
type Spec struct {
	// Dir is the bundle directory, absolute, 0700, made by the caller. One
	// guest per directory.
	Dir string `json:"dir"`
	// ID is the caller's name for the guest; it appears in messages.
	ID string `json:"id,omitempty"`
	// Module is the file with the module. Digest is "sha256:<hex>" of its
	// bytes; empty means that Start computes it.
	Module string `json:"module"`
	Digest string `json:"digest,omitempty"`
	// Name is what messages call the module; empty means the base name of
	// Module.
	Name string `json:"name,omitempty"`
	// Args is the guest's argv, with argv[0]. Empty means the module's name.
	Args []string `json:"args,omitempty"`
	// Env is KEY=VALUE, and nothing of the runner's own is added to it but
	// LISTEN_FDS with Listen, and CORACLE_TERM_FD with NotifyTerm.
	Env []string `json:"env,omitempty"`
	// WorkingDir is the guest path that relative paths of wasi-libc programs
	// start at. WASI has no working directory; it is passed as PWD if Env
	// has none.
	WorkingDir string  `json:"workingDir,omitempty"`
	Mounts     []Mount `json:"mounts,omitempty"`
	// Listen are opened in NetNS and handed over as fd 3, 4, ...; the
	// preopened directories come after them.
	Listen []Listen `json:"listen,omitempty"`
	// Outbound lets the guest make sockets of its own, to connect to others
	// and to look up names, by the functions of WasmEdge's socket extension.
	// A module that imports them isn't started without it.
	Outbound *Outbound `json:"outbound,omitempty"`
	// NetNS is the path of a network namespace; empty means the starter's.
	NetNS string `json:"netns,omitempty"`
	// UID, GID and Groups are the guest's. A starter that isn't root can't
	// change them, and they are ignored (State.Walls says so).
	// UID 0 means DefaultUID unless AllowRoot is set.
	UID       uint32   `json:"uid,omitempty"`
	GID       uint32   `json:"gid,omitempty"`
	Groups    []uint32 `json:"groups,omitempty"`
	AllowRoot bool     `json:"allowRoot,omitempty"`
	// Cgroup is the guest's cgroup as a path below each hierarchy's mount,
	// e.g. "/kubepods/pod1/c1". It is made if missing, with Resources as its
	// limits. Empty, or no permission: the guest stays in the starter's.
	Cgroup    string    `json:"cgroup,omitempty"`
	Resources Resources `json:"resources,omitzero"`
	// MemoryBytes bounds the guest's linear memory: memory.grow beyond it
	// fails. 0 means Resources.MemoryBytes, and without that 4 GiB.
	MemoryBytes int64 `json:"memoryBytes,omitempty"`
	// OOMScoreAdj is set if not nil; failing to is not an error.
	OOMScoreAdj *int `json:"oomScoreAdj,omitempty"`
	// Stdin makes the runner open the FIFO Dir/stdin; without it the guest
	// reads end of file at once.
	Stdin bool `json:"stdin,omitempty"`
	// StdinOnce lets stdin end: see Process.CloseStdin. Else it never does.
	StdinOnce bool `json:"stdinOnce,omitempty"`
	// InheritStdio hands the starter's own stdin, stdout and stderr to the
	// guest instead of FIFOs.
	InheritStdio bool `json:"inheritStdio,omitempty"`
	// NotifyTerm is the guest's opt-in to graceful termination. WASI
	// preview 1 has no signals: without it SIGTERM ends the guest at once
	// (exit code 143). With it the guest finds the number of a file
	// descriptor in CORACLE_TERM_FD that becomes readable (end of file) on
	// SIGTERM, and is ended by SIGKILL only.
	NotifyTerm bool `json:"notifyTerm,omitempty"`
	// DieWithStarter kills the guest when its starter dies, for a guest in the
	// foreground. Others outlive it.
	DieWithStarter bool `json:"dieWithStarter,omitempty"`
	// ReadOnlyRoot etc. have no meaning here: a guest has no root file
	// system but its Mounts.
}

// DefaultUID is who a guest is when nobody said: nonroot of distroless.
const DefaultUID = 65532

// Mount makes a host directory or file visible to the guest as a preopen.
type Mount struct {
	Host string `json:"host"`
	// Guest is absolute for a container's volumes. A relative one is the name
	// of a preopen for programs that know no root.
	Guest    string `json:"guest"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Listen is a socket that the runner opens inside Spec.NetNS.
type Listen struct {
	// Network is tcp, tcp4 or tcp6; WASI preview 1 has nothing for others.
	Network string `json:"network"`
	// Address is host:port, e.g. "0.0.0.0:8080" or "[::]:8080".
	Address string `json:"address"`
	// NonBlocking hands it over with the NONBLOCK flag set. Modules made by
	// the Go toolchain always get it so: their runtime relies on it.
	NonBlocking bool `json:"nonBlocking,omitempty"`
}

// Outbound is where names are looked up.
type Outbound struct {
	// Servers are the addresses of name servers, port 53 if there is none;
	// Searches and Ndots are as in resolv.conf(5).
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Ndots    int      `json:"ndots,omitempty"`
	// ResolvConf and Hosts are files of that name, or empty. They are read
	// before the guest starts; what stands above goes before ResolvConf.
	ResolvConf string `json:"resolvConf,omitempty"`
	Hosts      string `json:"hosts,omitempty"`
}

// Resources are cgroup limits. Zero means no limit.
type Resources struct {
	MemoryBytes int64  `json:"memoryBytes,omitempty"`
	SwapBytes   int64  `json:"swapBytes,omitempty"` // memory+swap, as in the CRI
	CPUShares   int64  `json:"cpuShares,omitempty"` // 2..262144; weight on v2
	CPUQuota    int64  `json:"cpuQuota,omitempty"`  // µs per period
	CPUPeriod   int64  `json:"cpuPeriod,omitempty"` // µs, 100000 when zero
	CPUSet      string `json:"cpuset,omitempty"`
	MemorySet   string `json:"memset,omitempty"`
	// PidsMax bounds the threads of the runner; 0 means no limit.
	PidsMax int64 `json:"pidsMax,omitempty"`
}

// Reasons of an ExitStatus, as the CRI spells them.
const (
	ReasonCompleted = "Completed"
	ReasonError     = "Error"
	ReasonOOMKilled = "OOMKilled"
	// ReasonUnknown is for a guest that left no record, of which nobody can
	// say any more how it ended; its code is 255, as containerd's.
	ReasonUnknown = "Unknown"
	// ReasonStartError is for a runner that couldn't start its guest.
	ReasonStartError = "StartError"
)

// ExitStatus says how a guest ended. The runner writes it when it can; after
// a SIGKILL the starter works it out.
type ExitStatus struct {
	// Code is the guest's own exit code (0..255), 128+Signal, 134 for a trap,
	// 137 for OOM, 128 when it couldn't be started.
	Code int `json:"code"`
	// Signal is not zero if a signal ended it.
	Signal int `json:"signal,omitempty"`
	// Reason is one of the Reason constants.
	Reason string `json:"reason"`
	// Message names the module, and the trap if there was one. Empty if the
	// guest just ended.
	Message string `json:"message,omitempty"`
	// FinishedAt is by the wall clock, which on a board may be wrong;
	// MonotonicNS is CLOCK_BOOTTIME in nanoseconds, valid for boot BootID.
	FinishedAt  time.Time `json:"finishedAt"`
	MonotonicNS int64     `json:"monotonicNS"`
	BootID      string    `json:"bootID,omitempty"`
	// Kind tells a failed start's sentinel across the process border.
	Kind string `json:"kind,omitempty"`
	// StdoutRest and StderrRest are the end of the output if nobody had read
	// it from the FIFOs when the guest ended: a FIFO that no process has open
	// forgets what is in it. Each was taken out of its FIFO in one read.
	StdoutRest []byte `json:"stdoutRest,omitempty"`
	StderrRest []byte `json:"stderrRest,omitempty"`
}

// State is who runs a bundle, written by the runner before anything else.
type State struct {
	PID int `json:"pid"`
	// StartTime is field 22 of /proc/PID/stat: clock ticks since boot.
	StartTime uint64    `json:"startTime"`
	BootID    string    `json:"bootID"`
	StartedAt time.Time `json:"startedAt"`
}

// Stop is what the starter was about to do to the guest; it tells, after
// everybody died, why there is no exit record.
type Stop struct {
	Signal int       `json:"signal"`
	At     time.Time `json:"at"`
}
