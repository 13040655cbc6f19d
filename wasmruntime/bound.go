package wasmruntime

import (
	"os"
	"path/filepath"

	"github.com/coracle-edge/coracle/wasmruntime/internal/cache"
)

// DefaultCacheBytes bounds compiled code where Options don't.
const DefaultCacheBytes = 512 << 20

// use counts those that have a module's code open, by digest, and gives the function
// that ends it.
func (r *Runtime) use(digest string) (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used[digest]++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.used[digest]--; r.used[digest] == 0 {
			delete(r.used, digest)
		}
	}
}

func (r *Runtime) inUse(digest string) bool {
	r.mu.Lock()
	n := r.used[digest]
	r.mu.Unlock()
	return n > 0 || r.opts.InUse != nil && r.opts.InUse(digest)
}

// touched notes an entry's use.
func (r *Runtime) touched(dir string) {
	if err := cache.Touch(dir, r.opts.Now()); err != nil && !os.IsNotExist(err) {
		r.log.Warn("can't note the last use of compiled code", "dir", dir, "err", err)
	}
}

// trim removes what was used longest ago until the bound is kept, but not the entry
// keep, which was just made, and nothing that is in use.
func (r *Runtime) trim(keep string) {
	r.trimming.Lock()
	defer r.trimming.Unlock()
	entries, err := cache.Entries(r.opts.CacheDir, stagingPrefix)
	if err != nil {
		r.log.Warn("wasm code cache can't be listed", "dir", r.opts.CacheDir, "err", err)
		return
	}
	var sum int64
	for _, e := range entries {
		sum += e.Bytes
	}
	for _, e := range entries {
		if sum <= r.opts.CacheBytes {
			return
		}
		if e.Key == keep || r.inUse(e.Digest()) {
			continue
		}
		if err := r.drop(filepath.Join(r.opts.CacheDir, e.Key)); err != nil {
			r.log.Warn("compiled code can't be removed", "entry", e.Key, "err", err)
			continue
		}
		sum -= e.Bytes
		r.log.Info("removed compiled code, for its space", "digest", e.Digest(), "bytes", e.Bytes, "lastUsed", e.Used)
	}
	if sum > r.opts.CacheBytes {
		r.log.Warn("compiled code that is in use takes more than its bound", "bytes", sum, "bound", r.opts.CacheBytes)
	}
}
