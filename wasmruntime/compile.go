package wasmruntime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/wasmruntime/internal/bundle"
	"github.com/coracle-edge/coracle/wasmruntime/internal/cache"
)

// stagingPrefix is that of directories in which a compiler works.
const stagingPrefix = "tmp-"

// compilation is one that runs; whoever wants the same waits for it.
type compilation struct {
	done chan struct{}
	err  error
}

func (r *Runtime) prepareCache() error {
	if err := os.MkdirAll(r.opts.CacheDir, 0o700); err != nil {
		return fmt.Errorf("wasm code cache: %w", err)
	}
	if err := os.Chmod(r.opts.CacheDir, 0o700); err != nil {
		return fmt.Errorf("wasm code cache: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(r.opts.CacheDir, stagingPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range left {
		lock, err := lockStaging(dir)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue // another process compiles there
		}
		if lock != nil {
			defer lock.Close()
		}
		if err := cache.Remove(dir); err != nil {
			r.log.Warn("can't remove an interrupted compilation", "dir", dir, "err", err)
		}
	}
	return nil
}

// makeStaging makes a directory to compile in. The lock on it keeps other
// processes that share the cache from removing it as left over.
func (r *Runtime) makeStaging() (dir string, lock *os.File, err error) {
	for range 10 {
		if dir, err = os.MkdirTemp(r.opts.CacheDir, stagingPrefix); err != nil {
			return "", nil, err
		}
		if lock, err = lockStaging(dir); err != nil {
			continue // it was taken for left over just now
		}
		if _, err = os.Stat(dir); err == nil {
			return dir, lock, nil
		}
		lock.Close()
	}
	return "", nil, err
}

func lockStaging(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Compile checks the module at modulePath and compiles it into the cache,
// unless it is there. digest is "sha256:<hex>" of the file, or empty.
// Errors wrap those of Check, ErrCompile or ErrCompileLimit.
func (r *Runtime) Compile(ctx context.Context, modulePath, digest string) error {
	_, err := r.entry(ctx, modulePath, digest, "")
	return err
}

// Forget removes the module with that digest from the cache. Guests that run
// it aren't disturbed.
func (r *Runtime) Forget(digest string) error {
	sum, ok := strings.CutPrefix(digest, "sha256:")
	if !ok || len(sum) != 64 || strings.ContainsAny(sum, "/.*?[") {
		return fmt.Errorf("module digest %q isn't sha256:<64 hexadecimal digits>", digest)
	}
	entries, err := filepath.Glob(filepath.Join(r.opts.CacheDir, sum+"-*"))
	for _, dir := range entries {
		err = errors.Join(err, r.drop(dir))
	}
	return err
}

// drop removes an entry so that no half of it can be found.
func (r *Runtime) drop(dir string) error {
	away := filepath.Join(r.opts.CacheDir, stagingPrefix+"drop-"+strconv.FormatInt(time.Now().UnixNano(), 36))
	if err := os.Rename(dir, away); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return cache.Remove(away)
}

// entry finds the cache entry of a module, compiling it if there is none. If
// bad names an entry that turned out to be torn, that one is removed first.
func (r *Runtime) entry(ctx context.Context, modulePath, digest, bad string) (string, error) {
	if digest == "" {
		var err error
		if digest, err = cache.DigestFile(modulePath); err != nil {
			return "", fmt.Errorf("wasm module: %w", err)
		}
	}
	engine, err := r.currentEngine(ctx, bad != "")
	if err != nil {
		return "", err
	}
	key, err := cache.Key(digest, engine)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(r.opts.CacheDir, key)
	if bad == "" {
		if _, err := cache.Read(dir); err == nil {
			r.touched(dir)
			return dir, nil
		}
	}
	return dir, r.joined(ctx, key, func() error {
		if err := r.drop(dir); err != nil {
			return fmt.Errorf("remove torn cache entry %s: %w", dir, err)
		}
		return r.compile(ctx, modulePath, digest, engine, dir)
	})
}

// joined runs f once for all that ask for key at the same time. One whose
// leader was cancelled takes over.
func (r *Runtime) joined(ctx context.Context, key string, f func() error) error {
	for {
		r.mu.Lock()
		c, running := r.compiling[key]
		if !running {
			c = &compilation{done: make(chan struct{})}
			r.compiling[key] = c
		}
		r.mu.Unlock()
		if !running {
			c.err = f()
			r.mu.Lock()
			delete(r.compiling, key)
			r.mu.Unlock()
			close(c.done)
			return c.err
		}
		select {
		case <-c.done:
			if !errors.Is(c.err, context.Canceled) && !errors.Is(c.err, context.DeadlineExceeded) {
				return c.err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// currentEngine asks the runner what it is, once, or again if it may have
// been replaced.
func (r *Runtime) currentEngine(ctx context.Context, again bool) (cache.Engine, error) {
	r.mu.Lock()
	e := r.engine
	r.mu.Unlock()
	if e != (cache.Engine{}) && !again {
		return e, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	out, err := r.command(ctx, "info").Output()
	if err != nil {
		return e, fmt.Errorf("wasm runner %s info: %w", r.opts.RunnerPath, err)
	}
	if err := json.Unmarshal(out, &e); err != nil {
		return e, fmt.Errorf("wasm runner %s info: %w", r.opts.RunnerPath, err)
	}
	r.mu.Lock()
	r.engine = e
	r.mu.Unlock()
	return e, nil
}

// Native says whether modules run as native code, or else are interpreted.
func (r *Runtime) Native(ctx context.Context) (bool, error) {
	e, err := r.currentEngine(ctx, false)
	return e.Name == compilerEngine, err
}

// compile makes one entry.
func (r *Runtime) compile(ctx context.Context, modulePath, digest string, engine cache.Engine, dir string) error {
	index, err := r.admit(modulePath, digest)
	if err != nil {
		return err
	}
	index.Engine = engine
	select {
	case r.compileSlot <- struct{}{}:
		defer func() { <-r.compileSlot }()
	case <-ctx.Done():
		return ctx.Err()
	}
	staging, lock, err := r.makeStaging()
	if err != nil {
		return fmt.Errorf("wasm code cache: %w", err)
	}
	defer lock.Close()
	defer cache.Remove(staging)
	began := time.Now()
	adopted := r.adopt(digest, engine, staging)
	if !adopted {
		if err := r.runCompiler(ctx, modulePath, staging); err != nil {
			return err
		}
		if err := seal(staging, index); err != nil {
			return fmt.Errorf("wasm code cache: %w", err)
		}
	}
	if err := os.Rename(staging, dir); err != nil {
		if _, have := cache.Read(dir); have == nil {
			return nil // another process was faster
		}
		return fmt.Errorf("wasm code cache: %w", err)
	}
	if !adopted {
		r.log.Info("compiled wasm module", "module", filepath.Base(modulePath), "digest", digest, "engine", engine.Name, "took", time.Since(began).Round(time.Millisecond))
	}
	err = syncDir(r.opts.CacheDir)
	r.trim(filepath.Base(dir))
	return err
}

// seal takes the directory from the compiler's user and writes the index.
func seal(dir string, index cache.Index) error {
	if os.Geteuid() == 0 {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, 0, 0)
		})
		if err != nil {
			return err
		}
	}
	return cache.Seal(dir, index)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// admit is the admission check of a file, whose digest must be the one given.
func (r *Runtime) admit(modulePath, digest string) (cache.Index, error) {
	name := filepath.Base(modulePath)
	f, err := os.Open(modulePath)
	if err != nil {
		return cache.Index{}, fmt.Errorf("wasm module: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return cache.Index{}, err
	}
	info, err := Check(f, st.Size(), r.opts.Limits)
	if err != nil {
		return cache.Index{}, fmt.Errorf("module %s: %w", name, err)
	}
	have, err := cache.DigestFile(modulePath)
	if err != nil {
		return cache.Index{}, err
	}
	if have != digest {
		return cache.Index{}, fmt.Errorf("%w: module %s has digest %s, not %s", ErrMalformedModule, modulePath, have, digest)
	}
	index := cache.Index{Digest: digest, Go: info.Go, MemoryPages: info.MemoryPages}
	for _, imp := range info.Imports {
		name := imp.Name
		if imp.Signature != "" {
			name += " " + string(imp.Signature)
		}
		index.Imports = append(index.Imports, name)
	}
	return index, nil
}

// runCompiler runs the child that does the work.
func (r *Runtime) runCompiler(ctx context.Context, modulePath, staging string) error {
	name := filepath.Base(modulePath)
	limits, err := json.Marshal(r.opts.Limits)
	if err != nil {
		return err
	}
	wall, cancel := context.WithTimeout(ctx, r.opts.CompileWall)
	defer cancel()
	args := []string{"compile"}
	if len(r.emulator) > 0 { // which has no seccomp, and can't execute its own file
		args = append(args, "--no-exec")
	}
	cmd := r.command(wall, append(args, "--module", modulePath, "--out", staging, "--status-fd", "3",
		"--memory", strconv.FormatInt(r.opts.CompileMemory, 10),
		"--cpu", strconv.FormatInt(int64(r.opts.CompileCPU/time.Second)+1, 10),
		"--uid", strconv.FormatUint(uint64(r.opts.CompileUID), 10), "--limits", string(limits))...)
	var said bytes.Buffer
	cmd.Stderr = &limited{to: &said, left: 4096}
	status, err := r.runWithStatus(cmd)
	switch {
	case err == nil && status.Kind == "":
		return nil
	case status.Kind != "":
		return fmt.Errorf("module %s: %w", name, failure(status))
	case ctx.Err() != nil:
		return ctx.Err()
	case wall.Err() != nil:
		return fmt.Errorf("module %s: %w: more than %v", name, ErrCompileLimit, r.opts.CompileWall)
	case strings.Contains(said.String(), "out of memory") || strings.Contains(said.String(), "cannot allocate memory"):
		return fmt.Errorf("module %s: %w: more than %d MiB of memory", name, ErrCompileLimit, r.opts.CompileMemory>>20)
	case cmd.ProcessState != nil && signalOf(cmd.ProcessState) != 0:
		return fmt.Errorf("module %s: %w: ended by %v (at most %v of CPU, %d MiB of memory)", name, ErrCompileLimit, signalOf(cmd.ProcessState), r.opts.CompileCPU, r.opts.CompileMemory>>20)
	default:
		return fmt.Errorf("module %s: %w: the compiler ended with %v: %.300s", name, ErrCompile, err, said.String())
	}
}

// failure makes an error with the right sentinel out of a runner's report.
func failure(st bundle.Status) error {
	kinds := map[string][]error{
		bundle.KindStart:       {ErrStart},
		bundle.KindCache:       {errTorn},
		bundle.KindMalformed:   {ErrMalformedModule},
		bundle.KindUnsupported: {ErrUnsupportedModule},
		bundle.KindImport:      {ErrUnsupportedModule, ErrUnknownImport},
		bundle.KindOutbound:    {ErrOutbound, ErrUnsupportedModule},
		bundle.KindTooLarge:    {ErrModuleTooLarge},
		bundle.KindCompile:     {ErrCompile},
	}[st.Kind]
	if kinds == nil {
		kinds = []error{ErrStart}
	}
	return &runnerError{text: st.Message, kinds: kinds}
}

// runnerError is an error that came over from a child.
type runnerError struct {
	text  string
	kinds []error
}

func (e *runnerError) Error() string {
	if strings.Contains(e.text, e.kinds[0].Error()) {
		return e.text
	}
	return e.kinds[0].Error() + ": " + e.text
}

func (e *runnerError) Unwrap() []error { return e.kinds }

// errTorn never leaves the package: the entry is compiled again.
var errTorn = errors.New("compiled wasm module is torn")
