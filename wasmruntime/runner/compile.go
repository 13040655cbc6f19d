package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental"
	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/wasmruntime/internal/bundle"
	"github.com/coracle-edge/coracle/wasmruntime/internal/cache"
	"github.com/coracle-edge/coracle/wasmruntime/internal/jail"
	"github.com/coracle-edge/coracle/wasmruntime/internal/modcheck"
	"github.com/coracle-edge/coracle/wasmruntime/internal/rewrite"
)

// compileOrder is what the compiler gets handed over.
type compileOrder struct {
	Status, Module int
	Out            string
	Limits         modcheck.Limits
	Walls          []string
}

func compileMain(args []string) int {
	fs := flag.NewFlagSet("compile", flag.ContinueOnError)
	module := fs.String("module", "", "")
	out := fs.String("out", "", "")
	status := fs.Int("status-fd", -1, "")
	memory := fs.Int64("memory", 0, "")
	seconds := fs.Uint64("cpu", 0, "")
	uid := fs.Uint("uid", 65533, "")
	limits := fs.String("limits", "{}", "")
	noExec := fs.Bool("no-exec", false, "")
	if fs.Parse(args) != nil {
		return 2
	}
	order := compileOrder{Status: *status, Out: *out}
	err := json.Unmarshal([]byte(*limits), &order.Limits)
	if err == nil {
		err = compileStage(order, *module, uint32(*uid), *memory, *seconds, *noExec)
	}
	if err != nil {
		return failed(*status, bundle.KindStart, err)
	}
	return 0
}

// failed reports, to the pipe or else to stderr.
func failed(status int, kind string, err error) int {
	if status < 0 {
		fmt.Fprintf(os.Stderr, "wasmrunner: %s: %v\n", kind, err)
	}
	report(status, bundle.Status{Kind: kind, Message: err.Error()})
	return 1
}

func compileStage(order compileOrder, module string, uid uint32, memory int64, seconds uint64, noExec bool) error {
	var err error
	if order.Module, err = unix.Open(module, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
		order.Module, err = above(order.Module)
	}
	if err != nil {
		return fmt.Errorf("open module %s: %w", module, err)
	}
	out, err := unix.Open(order.Out, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", order.Out, err)
	}
	if noExec {
		return compile(order)
	}
	// Whoever runs already goes first; on this thread, and so in what it executes.
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, compileNice); err != nil {
		order.Walls = append(order.Walls, "no nice: "+err.Error())
	}
	exe, err := self()
	if err != nil {
		return err
	}
	cfg := jail.Config{
		Chroot: -1, Files: 64, CPUSeconds: seconds, FileBytes: 2 << 30,
		Paths: []jail.Path{{FD: out, Dir: true, Write: true}, {FD: exe, Exec: true}},
	}
	if memory > 0 {
		// What the runtime and the code itself take comes on top.
		cfg.DataBytes = uint64(memory) + 64<<20
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(order.Out, int(uid), int(uid)); err == nil {
			cfg.SetUser, cfg.UID, cfg.GID, cfg.Chroot = true, uid, uid, out
			order.Out = "/"
		}
	}
	if order.Walls, err = jail.Enter(cfg); err != nil {
		return err
	}
	handover, err := put(order)
	if err != nil {
		return err
	}
	inherit(order.Status, order.Module)
	return execSelf(exe, handover, "compiler", filepath.Base(module), tuning(compilers(memory), memory*3/4))
}

// compileNice is the compiler's niceness: a module that is pulled must not slow down
// those that run.
const compileNice = 10

// compilers is how many functions are compiled at a time: each takes memory.
func compilers(memory int64) int {
	return int(max(1, min(int64(runtime.NumCPU()), 4, memory/(128<<20))))
}

func compilerMain() int {
	var order compileOrder
	if err := take(&order); err != nil {
		fmt.Fprintln(os.Stderr, "wasmrunner:", err)
		return 2
	}
	if err := jail.Seccomp(false); err != nil {
		order.Walls = append(order.Walls, "no seccomp: "+err.Error())
	}
	if err := compile(order); err != nil {
		return failed(order.Status, compileKind(err), err)
	}
	return 0
}

func compileKind(err error) string {
	switch {
	case errors.Is(err, modcheck.ErrUnknownImport):
		return bundle.KindImport
	case errors.Is(err, modcheck.ErrUnsupported):
		return bundle.KindUnsupported
	case errors.Is(err, modcheck.ErrTooLarge):
		return bundle.KindTooLarge
	case errors.Is(err, modcheck.ErrMalformed):
		return bundle.KindMalformed
	case errors.Is(err, errOutput):
		return bundle.KindStart
	}
	return bundle.KindCompile
}

// errOutput is for what isn't the module's fault.
var errOutput = errors.New("write compiled module")

// nameBytes is how large a name section may be to stay in the running
// module, where it names the functions of a trap's stack.
const nameBytes = 64 << 10

func compile(order compileOrder) error {
	var st unix.Stat_t
	if err := unix.Fstat(order.Module, &st); err != nil {
		return err
	}
	if st.Size == 0 {
		return fmt.Errorf("%w: the file is empty", modcheck.ErrMalformed)
	}
	module, err := unix.Mmap(order.Module, 0, int(st.Size), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("map module: %w", err)
	}
	if _, err := modcheck.Check(bytes.NewReader(module), st.Size, order.Limits); err != nil {
		return err
	}
	most := order.Limits.TableMax
	if most == 0 {
		most = modcheck.DefaultLimits(0).TableMax
	}
	if module, err = rewrite.CapTables(module, most); err != nil {
		return err
	}
	if replaceRemainders {
		if module, err = rewrite.ReplaceRemainders(module); err != nil {
			return err
		}
	}
	if !hasCompiler {
		// It has nothing to keep, but it says whether the module is valid.
		if err := build(module, nil, nil); err != nil {
			return err
		}
		return output(order, module)
	}
	stub, err := rewrite.Stub(module, nameBytes)
	if err != nil {
		return err
	}
	if stub, err = rewrite.MergeData(stub); err != nil {
		return err
	}
	var sum codeSum
	var hidden error // why the code can't be found in memory
	code, err := buildInto(order.Out, module, func(c wazero.CompiledModule) { sum, hidden = sumCode(c) })
	if err != nil {
		return err
	}
	// The stub gets the code of the module: wazero looks for code by the
	// digest of the bytes that it is given.
	stubCode, err := buildInto(order.Out, stub, nil)
	if err != nil {
		return fmt.Errorf("%w: the stub of the module: %w", errOutput, err)
	}
	if code != stubCode {
		if err := os.Rename(code, stubCode); err != nil {
			return fmt.Errorf("%w: %w", errOutput, err)
		}
	}
	if hidden == nil {
		hidden = splitCode(stubCode, filepath.Join(order.Out, cache.CodeFile), sum)
	}
	if hidden != nil && !errors.Is(hidden, errLayout) {
		return fmt.Errorf("%w: %w", errOutput, hidden)
	}
	if hidden != nil {
		order.Walls = append(order.Walls, "no shared code: "+hidden.Error())
	}
	return output(order, stub)
}

func output(order compileOrder, module []byte) error {
	if err := os.WriteFile(filepath.Join(order.Out, cache.ModuleFile), module, 0o644); err != nil {
		return fmt.Errorf("%w: %w", errOutput, err)
	}
	report(order.Status, bundle.Status{Walls: order.Walls})
	return nil
}

// buildInto compiles with dir as the cache, and gives the file of the code.
// look, which may be nil, sees what was compiled.
func buildInto(dir string, module []byte, look func(wazero.CompiledModule)) (string, error) {
	before := map[string]bool{}
	pattern := filepath.Join(dir, "wazero-*", "*")
	old, _ := filepath.Glob(pattern)
	for _, f := range old {
		before[f] = true
	}
	cc, err := wazero.NewCompilationCacheWithDir(dir)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errOutput, err)
	}
	if err := build(module, cc, look); err != nil {
		return "", err
	}
	files, _ := filepath.Glob(pattern)
	for _, f := range files {
		if !before[f] {
			return f, nil
		}
	}
	if len(files) == 1 {
		return files[0], nil // module and stub are the same
	}
	return "", fmt.Errorf("%w: the engine left no code in %s", errOutput, dir)
}

func build(module []byte, cc wazero.CompilationCache, look func(wazero.CompiledModule)) error {
	ctx := experimental.WithCompilationWorkers(context.Background(), runtime.GOMAXPROCS(0))
	cfg := config()
	if cc != nil {
		cfg = cfg.WithCompilationCache(cc)
		defer cc.Close(ctx)
	}
	rt := wazero.NewRuntimeWithConfig(ctx, cfg)
	defer rt.Close(ctx)
	compiled, err := rt.CompileModule(ctx, module)
	if err != nil {
		return err
	}
	if look != nil {
		look(compiled)
	}
	return compiled.Close(ctx)
}
