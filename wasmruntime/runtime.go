package wasmruntime

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/coracle-edge/coracle/wasmruntime/internal/modcheck"
)

// Limits bound what Check admits. The zero value means DefaultLimits.
type Limits = modcheck.Limits

// Info is what Check learned of a module.
type Info = modcheck.Info

// Import is one import of a module.
type Import = modcheck.Import

// Check reads the structure of the module in r, of size bytes, and says
// whether it may be compiled here. It holds one small buffer, whatever the
// module says of itself, and is the only thing that looks at a module's bytes
// in the calling process.
//
// Its errors name section, offset and limit and wrap ErrMalformedModule,
// ErrUnsupportedModule, ErrUnknownImport or ErrModuleTooLarge. Info is filled
// as far as Check came, also with an error: Info.Kind tells a component.
func Check(r io.ReaderAt, size int64, limits Limits) (Info, error) {
	return modcheck.Check(r, size, limits)
}

// DefaultLimits are those of a board with memory bytes of memory (0: unknown,
// taken as 1 GiB).
func DefaultLimits(memory int64) Limits { return modcheck.DefaultLimits(memory) }

// Options configure a Runtime. RunnerPath and CacheDir are required.
type Options struct {
	// RunnerPath is the wasmrunner binary.
	RunnerPath string
	// CacheDir keeps compiled code. It is made with mode 0700: who can write
	// it decides what runs.
	CacheDir string
	// Limits for Check before compiling. Zero: DefaultLimits of this board.
	Limits Limits
	// CompileMemory, CompileCPU and CompileWall bound the compiler child.
	// Zero: half of the board's memory (at most 1 GiB), 120 s and 180 s.
	CompileMemory int64
	CompileCPU    time.Duration
	CompileWall   time.Duration
	// CompileUID is who the compiler child becomes when the caller is root.
	// Zero: 65533.
	CompileUID uint32
	// StartTimeout bounds Start from fork to the guest's first instruction.
	// Zero: 60 s (a large module on a slow card).
	StartTimeout time.Duration
	// Logger may be nil.
	Logger *slog.Logger
	// Now is the wall clock; nil means time.Now.
	Now func() time.Time
	// CgroupRoot is /sys/fs/cgroup if empty.
	CgroupRoot string
}

// Runtime starts guests and compiles their modules. It is safe for concurrent
// use.
type Runtime struct {
	opts Options
}

// New checks the options, makes the cache directory and removes what an
// interrupted compilation left in it.
func New(opts Options) (*Runtime, error) {
	return &Runtime{opts: opts}, nil
}

// Compile checks the module at modulePath and compiles it into the cache,
// unless it is there. digest is "sha256:<hex>" of the file, or empty.
// Errors wrap those of Check, ErrCompile or ErrCompileLimit.
func (r *Runtime) Compile(ctx context.Context, modulePath, digest string) error {
	return errTODO
}

// Start runs a guest and returns when its first instruction is about to run.
// It compiles the module if the cache doesn't have it, or has it torn. The
// guest lives on when this process dies.
//
// Errors are those of Compile, ErrStart or ErrExists; the guest doesn't run
// after an error.
func (r *Runtime) Start(ctx context.Context, spec Spec) (*Process, error) {
	return nil, errTODO
}

// Attach takes over the guest of a bundle directory after a restart of the
// caller. The guest may have ended meanwhile: then the Process is done, and
// its ExitStatus says what can still be known. ErrNotStarted if the bundle
// never had a process.
func (r *Runtime) Attach(dir string) (*Process, error) {
	return nil, errTODO
}

// Forget removes the module with that digest from the cache.
func (r *Runtime) Forget(digest string) error { return errTODO }
