package wasi

import (
	"context"
	"encoding/binary"
	"fmt"
	stdstrings "strings"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"golang.org/x/sys/unix"
)

// Config is what a guest gets. The host descriptors become the System's.
type Config struct {
	Args, Env []string
	Stdin     int
	Stdout    int
	Stderr    int
	Listeners []Listener
	Preopens  []Preopen
	// Outbound lets the guest make sockets of its own; nil: it can't.
	Outbound *Outbound
	// Exit ends the process with the guest's exit code; it doesn't return.
	Exit func(code uint32)
}

// Listener is a listening socket.
type Listener struct {
	FD          int
	NonBlocking bool
}

// Preopen is a directory. Singles lie in it and hide what has their names there;
// without an FD there is nothing else.
type Preopen struct {
	FD       int // O_PATH|O_DIRECTORY; -1 for none, which Singles allow
	Guest    string
	ReadOnly bool
	Singles  []Single
}

// Single is one file, found as HostName in the directory Parent.
type Single struct {
	Name     string
	Parent   int
	HostName string
	ReadOnly bool
}

// System is the state of one guest.
type System struct {
	cfg   Config
	files []*file
	start time.Time
	mono  int64 // CLOCK_MONOTONIC at start, ns

	noOpenat2 bool
	dirents   []byte
	iovs      [][]byte
	pollFDs   []unix.PollFd
	pollSubs  []int32
	pollDue   []int64
}

// New makes the table of descriptors.
func New(cfg Config) *System {
	s := &System{cfg: cfg, start: time.Now()}
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) == nil {
		s.mono = ts.Nano()
	}
	for i, fd := range []int{cfg.Stdin, cfg.Stdout, cfg.Stderr} {
		f := &file{fd: fd, dirFD: -1, kind: typeUnknown, base: rightsStdout, stdio: true}
		if i == 0 {
			f.base = rightsStdin
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil {
			f.kind = hostType(st.Mode)
		}
		if f.kind == typeRegular {
			f.base |= rightSeek | rightTell
		}
		s.files = append(s.files, f)
	}
	for _, l := range cfg.Listeners {
		f := &file{fd: l.FD, dirFD: -1, kind: typeStream, base: rightsListener, inherit: rightsSocket, listener: true}
		if l.NonBlocking {
			f.flags = flagNonblock
		}
		unix.SetNonblock(l.FD, l.NonBlocking)
		s.files = append(s.files, f)
	}
	for _, p := range cfg.Preopens {
		f := &file{fd: p.FD, dirFD: -1, kind: typeDirectory, base: rightsDir, inherit: rightsDir | rightsFile, preopen: p.Guest, readOnly: p.ReadOnly}
		for _, one := range p.Singles {
			f.singles = append(f.singles, single{name: one.Name, parent: one.Parent, hostName: one.HostName, readOnly: one.ReadOnly})
		}
		s.files = append(s.files, f)
	}
	return s
}

// AddTermFD adds the termination pipe after everything else and gives its number.
func (s *System) AddTermFD(fd int) uint32 {
	n, _ := s.add(&file{fd: fd, dirFD: -1, kind: typeUnknown, base: rightsStdin})
	return n
}

// SetEnv replaces the environment, before the guest starts.
func (s *System) SetEnv(env []string) { s.cfg.Env = env }

// hostFunc is one function of the host module: a gets the parameters, the
// result is its errno.
type hostFunc func(s *System, m memory, a []uint64) errno

// memory is the guest's.
type memory struct{ api.Memory }

var le = binary.LittleEndian

func (m memory) bytes(off, n uint64) ([]byte, bool) {
	if m.Memory == nil || off|n > 1<<32-1 {
		return nil, false
	}
	return m.Memory.Read(uint32(off), uint32(n))
}

func (m memory) put32(off uint64, v uint32) errno {
	if m.Memory == nil || off > 1<<32-1 || !m.WriteUint32Le(uint32(off), v) {
		return eFault
	}
	return ok
}

func (m memory) put16(off uint64, v uint16) errno {
	if m.Memory == nil || off > 1<<32-1 || !m.WriteUint16Le(uint32(off), v) {
		return eFault
	}
	return ok
}

func (m memory) get32(off uint64) (uint32, errno) {
	if m.Memory == nil || off > 1<<32-1 {
		return 0, eFault
	}
	v, in := m.ReadUint32Le(uint32(off))
	if !in {
		return 0, eFault
	}
	return v, ok
}

func (m memory) put64(off uint64, v uint64) errno {
	if m.Memory == nil || off > 1<<32-1 || !m.WriteUint64Le(uint32(off), v) {
		return eFault
	}
	return ok
}

// ModuleName is that of the host module.
const ModuleName = "wasi_snapshot_preview1"

// Instantiate adds the host module, with the named functions only: each
// costs a compiled trampoline. Those of the socket extension have their
// signature after the name.
func (s *System) Instantiate(ctx context.Context, r wazero.Runtime, names []string) error {
	if len(names) == 0 {
		return nil
	}
	b := r.NewHostModuleBuilder(ModuleName)
	for _, name := range names {
		fn, params, results := lookup(name)
		name, _, _ := stdstrings.Cut(name, " ")
		if fn == nil {
			return fmt.Errorf("unknown import: %s.%s", ModuleName, name)
		}
		b.NewFunctionBuilder().WithGoModuleFunction(
			api.GoModuleFunc(func(_ context.Context, mod api.Module, stack []uint64) {
				// The upper half of an i32's slot is anything.
				for i, t := range params {
					if t == api.ValueTypeI32 {
						stack[i] = uint64(uint32(stack[i]))
					}
				}
				e := fn(s, memory{mod.Memory()}, stack)
				if len(results) == 1 {
					stack[0] = uint64(e)
				}
			}), params, results).WithName(name).Export(name)
	}
	_, err := b.Instantiate(ctx)
	return err
}
