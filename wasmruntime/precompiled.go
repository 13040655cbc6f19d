package wasmruntime

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/coracle-edge/coracle/wasmruntime/internal/aot"
	"github.com/coracle-edge/coracle/wasmruntime/internal/cache"
)

// ArtifactSuffix is how the names of artifacts end that a node looks at.
const ArtifactSuffix = ".coracle-wasm"

// Precompile says what to compile for another machine.
type Precompile struct {
	// RunnerPath is the wasmrunner of the machine that is compiled for. The engine
	// makes code for the machine that it runs on only, so it runs here.
	RunnerPath string
	// Emulator runs it, if this machine can't: qemu-aarch64-static -cpu cortex-a53.
	// The code is for the CPU that it shows.
	Emulator []string
	Module   string
	// Key is a file with the private Ed25519 key that signs, PEM.
	Key string
	Out string
	// Limits for Check; zero: DefaultLimits of a board of 1 GiB.
	Limits Limits
}

// Run compiles the module, signs the result and writes it to Out. It gives the words
// for the engine that the code is for. A board compiles modules that it may have been
// sent by anybody in a jail; this is for one's own on a build machine, and has none
// under an emulator.
func (p Precompile) Run(ctx context.Context) (engine string, err error) {
	key, err := aot.Private(p.Key)
	if err != nil {
		return "", fmt.Errorf("key to sign with: %w", err)
	}
	dir, err := os.MkdirTemp("", "coracle-wasm-compile-*")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, cache.Remove(dir)) }()
	if err := os.Chmod(dir, 0o755); err != nil { // the compiler is another user
		return "", err
	}
	if p.Limits == (Limits{}) {
		p.Limits = DefaultLimits(0)
	}
	r, err := New(Options{RunnerPath: p.RunnerPath, CacheDir: filepath.Join(dir, "cache"), Limits: p.Limits, CompileWall: time.Hour, CompileCPU: time.Hour})
	if err != nil {
		return "", err
	}
	r.emulator = p.Emulator
	if p.Module, err = filepath.Abs(p.Module); err != nil { // children work in /
		return "", err
	}
	entry, err := r.entry(ctx, p.Module, "", "")
	if err != nil {
		return "", err
	}
	index, err := cache.Read(entry)
	if err != nil {
		return "", err
	}
	if index.Engine.Name != compilerEngine {
		return "", fmt.Errorf("%w: wazero has no compiler for %s", ErrUnsupportedModule, index.Engine.Arch)
	}
	return describe(index.Engine), writeArtifact(p.Out, entry, key)
}

// compilerEngine is the name of the engine that makes native code.
const compilerEngine = "compiler"

func describe(e cache.Engine) string {
	if e.CPU == "" {
		return fmt.Sprintf("wazero %s, %s", e.Version, e.Arch)
	}
	return fmt.Sprintf("wazero %s, %s with %s", e.Version, e.Arch, e.CPU)
}

func writeArtifact(out, entry string, key ed25519.PrivateKey) error {
	f, err := os.CreateTemp(filepath.Dir(out), ".compile-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone if all went well
	err = aot.Write(f, entry, key)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), out)
}

// GenerateKey makes a pair of keys to sign compiled modules with and to trust, PEM.
func GenerateKey() (private, public []byte, err error) { return aot.Generate() }

// adopt takes the code of a module out of the folder of artifacts into staging, if
// there is one for this engine that a trusted key has signed. What is there for the
// module and isn't taken is named in the log, with the reason.
func (r *Runtime) adopt(digest string, engine cache.Engine, staging string) bool {
	if r.opts.ArtifactDir == "" {
		return false
	}
	files, err := filepath.Glob(filepath.Join(r.opts.ArtifactDir, "*"+ArtifactSuffix))
	if err != nil {
		r.log.Warn("folder of compiled wasm modules", "dir", r.opts.ArtifactDir, "err", err)
		return false
	}
	for _, file := range files {
		began := time.Now()
		key, err := r.take(file, digest, engine, staging)
		switch {
		case err == nil:
			r.log.Info("took a compiled wasm module", "file", file, "digest", digest, "signedBy", key, "took", time.Since(began).Round(time.Millisecond))
			return true
		case errors.Is(err, errOther):
		default:
			r.log.Warn("a compiled wasm module isn't taken; compiling it here", "file", file, "digest", digest, "err", err)
			if err := emptied(staging); err != nil {
				r.log.Warn("wasm code cache", "err", err)
				return false
			}
		}
	}
	return false
}

// errOther is for an artifact of another module.
var errOther = errors.New("of another module")

// take is adopt for one file.
func (r *Runtime) take(file, digest string, engine cache.Engine, staging string) (key string, err error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	a, err := aot.Read(f)
	if err != nil {
		return "", err
	}
	if a.Index.Digest != digest {
		return "", errOther
	}
	if a.Index.Engine != engine {
		return "", fmt.Errorf("it is for %s, this is %s", describe(a.Index.Engine), describe(engine))
	}
	keys, err := aot.Trusted(r.opts.TrustedKeys)
	if err != nil {
		r.log.Warn("trusted keys", "err", err)
	}
	if key, err = a.Trusted(keys); err != nil {
		return "", fmt.Errorf("%w (%d keys in %q)", err, len(keys), r.opts.TrustedKeys)
	}
	if err := a.Extract(staging); err != nil {
		return "", err
	}
	return key, cache.SealAs(staging, a.Index)
}

// emptied removes what an artifact left in the directory of a compilation.
func emptied(dir string) error {
	list, err := os.ReadDir(dir)
	for _, d := range list {
		err = errors.Join(err, cache.Remove(filepath.Join(dir, d.Name())))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
