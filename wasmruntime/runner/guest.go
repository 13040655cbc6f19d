package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental"
	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/wasmruntime/internal/bundle"
	"github.com/coracle-edge/coracle/wasmruntime/internal/cache"
	"github.com/coracle-edge/coracle/wasmruntime/internal/jail"
	"github.com/coracle-edge/coracle/wasmruntime/internal/wasi"
)

// guestOrder is what a guest gets handed over. Descriptors are numbers.
type guestOrder struct {
	Status, Exit int
	Rest         [2]int // reading ends of stdout and stderr, or -1
	StdinWriter  int    // 0: stdin never ends
	Name         string
	Entry        string // where the cache's entry is by now
	Limit        int    // see bundle.LimitFile
	Imports      []string
	Args, Env    []string
	Listeners    []wasi.Listener
	Preopens     []wasi.Preopen
	Outbound     *wasi.Outbound
	NotifyTerm   bool
	BootID       string
	Walls        []string
	Jailed       bool
	// Starter is who the guest dies with; 0: nobody.
	Starter int
}

func guestMain() int {
	var order guestOrder
	if err := take(&order); err != nil {
		fmt.Fprintln(os.Stderr, "wasmrunner:", err)
		return 2
	}
	order.Jailed = true
	return guest(order)
}

func guest(order guestOrder) int {
	g := &guestRun{order: order}
	endBySignal(unix.SIGQUIT)
	if order.Starter != 0 {
		// Only now: a change of user clears it (prctl(2), PR_SET_PDEATHSIG).
		err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
		if err != nil || os.Getppid() != order.Starter {
			return g.failed(bundle.KindStart, fmt.Errorf("the starter is gone: %w", errors.Join(err, os.ErrProcessDone)))
		}
	}
	sys := wasi.New(wasi.Config{
		Args: order.Args, Env: order.Env, Stdin: 0, Stdout: 1, Stderr: 2,
		Listeners: order.Listeners, Preopens: order.Preopens, Outbound: order.Outbound, Exit: g.exited,
	})
	if order.StdinWriter > 0 {
		closeStdinWhenTold(order.StdinWriter)
	}
	if order.NotifyTerm {
		if err := g.notifyTerm(sys); err != nil {
			return g.failed(bundle.KindStart, err)
		}
	}
	if order.Jailed {
		wall := "seccomp"
		if err := jail.Seccomp(order.Outbound != nil); err != nil {
			wall = "no seccomp: " + err.Error()
		}
		g.order.Walls = append(g.order.Walls, wall)
	}
	ctx := experimental.WithMemoryAllocator(context.Background(), allocator{limit: order.Limit})
	start, kind, err := g.load(ctx, sys)
	if err != nil {
		return g.failed(kind, err)
	}
	// No collection here: it would take more (its own tables and workers)
	// than it gives back.
	if err := report(order.Status, bundle.Status{Walls: g.order.Walls}); err != nil {
		// Its successor may have looked before the state was there, and so would
		// never know of this guest.
		g.record(bundle.ExitStatus{Code: 128, Reason: bundle.ReasonStartError, Message: "who started the guest ended before it ran: " + err.Error(), Kind: bundle.KindStart})
		return 1
	}
	if err := start(ctx); err != nil {
		return g.trapped(err)
	}
	g.exited(0)
	return 0
}

// endBySignal gives a signal its default action. The Go runtime's own for
// SIGQUIT, which images ask to be stopped by, is to print its stacks and to
// exit with 2.
func endBySignal(sig unix.Signal) {
	var action [4]uint64 // struct sigaction of any architecture, SIG_DFL
	unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action[0])), 0, 8, 0, 0)
}

type guestRun struct{ order guestOrder }

// load brings the module from the cache to the point where _start can be
// called.
func (g *guestRun) load(ctx context.Context, sys *wasi.System) (start func(context.Context) error, kind string, err error) {
	module, err := mapFile(filepath.Join(g.order.Entry, cache.ModuleFile))
	if err != nil {
		return nil, bundle.KindCache, err
	}
	cfg := config()
	if hasCompiler {
		cc, err := wazero.NewCompilationCacheWithDir(g.order.Entry)
		if err != nil {
			return nil, bundle.KindCache, err
		}
		cfg = cfg.WithCompilationCache(cc)
	}
	rt := wazero.NewRuntimeWithConfig(ctx, cfg)
	// With a compiler this finds the code, or fails: the entry can't be
	// written, and what it would compile are stubs.
	compiled, err := rt.CompileModule(ctx, module)
	if err != nil {
		return nil, bundle.KindCache, err
	}
	if hasCompiler {
		if err := layCode(g.order.Entry, compiled); err != nil {
			return nil, bundle.KindCache, err
		}
	}
	if err := sys.Instantiate(ctx, rt, g.order.Imports); err != nil {
		return nil, bundle.KindImport, err
	}
	inst, err := rt.InstantiateModule(ctx, compiled, wazero.NewModuleConfig().WithName("").WithStartFunctions())
	if err != nil {
		return nil, bundle.KindUnsupported, err
	}
	main := inst.ExportedFunction("_start")
	if main == nil {
		return nil, bundle.KindUnsupported, fmt.Errorf("no function _start is exported")
	}
	return func(ctx context.Context) error {
		return main.CallWithStack(ctx, nil)
	}, "", nil
}

func mapFile(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	return unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_PRIVATE)
}

// notifyTerm gives the guest a descriptor that ends with SIGTERM.
func (g *guestRun) notifyTerm(sys *wasi.System) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	n := sys.AddTermFD(p[0])
	sys.SetEnv(append(g.order.Env, fmt.Sprintf("CORACLE_TERM_FD=%d", n)))
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGTERM)
	go func() { // ends with the process
		<-c
		unix.Close(p[1])
	}()
	return nil
}

// closeStdinWhenTold gives up the writing end of the guest's stdin, so that it
// ends when the last one who is attached has gone.
func closeStdinWhenTold(writer int) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, bundle.SignalCloseStdin)
	go func() { // ends with the process
		<-c
		unix.Close(writer)
	}()
}

// failed reports that the guest never ran.
func (g *guestRun) failed(kind string, err error) int {
	err = fmt.Errorf("module %s: %w", g.order.Name, err)
	g.record(bundle.ExitStatus{Code: 128, Reason: bundle.ReasonStartError, Message: err.Error(), Kind: kind})
	failed(g.order.Status, kind, err)
	return 128
}

// exited ends the process with the guest's own code.
func (g *guestRun) exited(code uint32) {
	c := int(code & 0xff)
	if c == 0 && code != 0 {
		c = 255
	}
	st := bundle.ExitStatus{Code: c, Reason: bundle.ReasonCompleted}
	if c != 0 {
		st.Reason = bundle.ReasonError
	}
	g.record(st)
	os.Exit(c)
}

// trapCode is what a shell says of a program that aborted.
const trapCode = 134

func (g *guestRun) trapped(err error) int {
	msg := fmt.Sprintf("module %s: %s", g.order.Name, trapText(err))
	fmt.Fprintln(os.Stderr, "wasmrunner:", msg)
	g.record(bundle.ExitStatus{Code: trapCode, Reason: bundle.ReasonError, Message: msg})
	return trapCode
}

// trapText is wazero's message: the trap, and the innermost frames.
func trapText(err error) string {
	const frames, most = 12, 2048
	text := err.Error()
	if strings.Contains(text, "stack overflow") && !hasCompiler {
		text = strings.Replace(text, "stack overflow", "stack overflow (the interpreter of this architecture allows 2000 frames)", 1)
	}
	lines := strings.Split(text, "\n")
	if len(lines) > frames {
		lines = append(lines[:frames], fmt.Sprintf("\t... %d more", len(lines)-frames))
	}
	text = strings.Join(lines, "\n")
	return text[:min(len(text), most)]
}

// record writes the exit record: one write to a file that was opened before
// the jail. A reader takes only a whole one.
func (g *guestRun) record(st bundle.ExitStatus) {
	if g.order.Exit < 0 {
		return
	}
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	st.FinishedAt, st.MonotonicNS, st.BootID = time.Now(), ts.Nano(), g.order.BootID
	st.StdoutRest, st.StderrRest = rest(g.order.Rest[0]), rest(g.order.Rest[1])
	b, err := json.Marshal(st)
	if err == nil {
		unix.Pwrite(g.order.Exit, append(b, '\n'), 0)
	}
}

// readerTime is how long a reader may take to empty a FIFO after the guest has
// ended before its rest goes into the exit record.
const readerTime = 20 * time.Millisecond

// rest takes out of a FIFO what nobody has read. All at once: a reader that
// looks before it takes must find either everything or nothing gone.
func rest(fd int) []byte {
	if fd < 0 {
		return nil
	}
	size := pipeSize
	for waited := time.Duration(0); ; waited += time.Millisecond {
		n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
		if err != nil || n == 0 {
			return nil
		}
		size = max(size, n)
		if waited >= readerTime {
			break
		}
		time.Sleep(time.Millisecond)
	}
	b := make([]byte, size)
	n, err := unix.Read(fd, b)
	if err != nil || n <= 0 {
		return nil
	}
	return b[:n]
}
