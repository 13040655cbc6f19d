package wasmruntime

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/internal/fdwatch"
	"github.com/coracle-edge/coracle/wasmruntime/internal/cache"
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
	// CacheBytes bounds CacheDir. When something was compiled and it is exceeded,
	// what was used longest ago goes, but nothing that a guest of this Runtime or,
	// by InUse, anybody else uses. Zero: DefaultCacheBytes.
	CacheBytes int64
	// InUse says whether a module, by its digest, is still needed: by a container
	// that doesn't run at the moment. May be nil.
	InUse func(digest string) bool
	// ArtifactDir holds modules that were compiled elsewhere, by Precompile, in files
	// *.coracle-wasm. Those that a key in TrustedKeys has signed are taken instead of
	// compiling; of others the log says why not. Empty: none.
	ArtifactDir string
	// TrustedKeys is a folder with public keys, *.pem, that only its owner may write.
	TrustedKeys string
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
	opts           Options
	log            *slog.Logger
	userNamespaces atomic.Bool // of guests, if this is an ordinary user; until the kernel refuses

	watcher fdwatch.Watcher // of guests' ends

	mu        sync.Mutex
	engine    cache.Engine // what the runner said; zero: not asked yet
	compiling map[string]*compilation
	used      map[string]int // module digest -> who has its code open

	trimming sync.Mutex // held while the cache is brought within its bound; before mu

	emulator []string // in front of the runner's command line

	// compileSlot is held while a compiler child runs: one at a time, for
	// each may take half of the board's memory.
	compileSlot chan struct{}
}

// New checks the options, makes the cache directory and removes what an
// interrupted compilation left in it.
func New(opts Options) (*Runtime, error) {
	if opts.RunnerPath == "" || opts.CacheDir == "" {
		return nil, errors.New("wasmruntime: RunnerPath and CacheDir are required")
	}
	if _, err := os.Stat(opts.RunnerPath); err != nil {
		return nil, fmt.Errorf("wasm runner: %w", err)
	}
	var err error
	if opts.RunnerPath, err = filepath.Abs(opts.RunnerPath); err != nil {
		return nil, err
	}
	if opts.CacheDir, err = filepath.Abs(opts.CacheDir); err != nil {
		return nil, err
	}
	memory := boardMemory()
	if opts.Limits == (Limits{}) {
		opts.Limits = DefaultLimits(memory)
	}
	if opts.CompileMemory == 0 {
		opts.CompileMemory = min(1<<30, memory/2)
	}
	setDefault(&opts.CompileCPU, 120*time.Second)
	setDefault(&opts.CompileWall, 180*time.Second)
	setDefault(&opts.StartTimeout, 60*time.Second)
	if opts.CompileUID == 0 {
		opts.CompileUID = 65533
	}
	if opts.CacheBytes == 0 {
		opts.CacheBytes = DefaultCacheBytes
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	r := &Runtime{opts: opts, log: opts.Logger, compiling: map[string]*compilation{}, used: map[string]int{}, compileSlot: make(chan struct{}, 1)}
	r.userNamespaces.Store(mayHaveUserNamespace())
	return r, r.prepareCache()
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d == 0 {
		*d = value
	}
}

// boardMemory is the machine's memory in bytes, 0 if unknown.
func boardMemory() int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 1 << 30
	}
	return int64(info.Totalram) * int64(info.Unit)
}
