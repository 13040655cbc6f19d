package wasmruntime_test

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coracle-edge/coracle/wasmruntime"
)

// section is one of a module.
func section(id byte, body []byte) []byte {
	return append(binary.AppendUvarint([]byte{id}, uint64(len(body))), body...)
}

// compileBomb is a small valid module that is expensive to compile: a branch
// table of one byte per target, each of which passes all the block's results.
func compileBomb(results, targets int) []byte {
	code := []byte{0, 0x02, 1} // no locals, block of type 1
	for i := range results {
		code = append(code, 0x41)
		code = append(code, byte(i&0x3f)) // i32.const
	}
	code = append(code, 0x41, 0, 0x28, 2, 0) // i32.load of 0
	code = append(code, 0x0e)
	code = binary.AppendUvarint(code, uint64(targets))
	code = append(code, make([]byte, targets+1)...)
	code = append(code, 0x0b)
	for range results {
		code = append(code, 0x1a) // drop
	}
	code = append(code, 0x0b)
	types := append([]byte{2, 0x60, 0, 0, 0x60, 0}, binary.AppendUvarint(nil, uint64(results))...)
	for range results {
		types = append(types, 0x7f)
	}
	m := []byte("\x00asm\x01\x00\x00\x00")
	m = append(m, section(1, types)...)
	m = append(m, section(3, []byte{1, 0})...)
	m = append(m, section(5, []byte{1, 0, 1})...)
	m = append(m, section(7, append([]byte{1, 6}, "_start\x00\x00"...))...)
	body := append(binary.AppendUvarint([]byte{1}, uint64(len(code))), code...)
	return append(m, section(10, body)...)
}

func TestCompileBombs(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name             string
		results, targets int
		change           func(*wasmruntime.Options)
		most             time.Duration
	}{
		{"memory", 1000, 50000, func(o *wasmruntime.Options) { o.CompileMemory = 96 << 20 }, 30 * time.Second},
		{"cpu", 1000, 50000, func(o *wasmruntime.Options) { o.CompileMemory, o.CompileCPU = 4<<30, time.Second }, 15 * time.Second},
		{"wall", 1000, 50000, func(o *wasmruntime.Options) { o.CompileMemory, o.CompileWall = 4<<30, time.Second }, 3 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			bomb := compileBomb(c.results, c.targets)
			path := filepath.Join(dir, c.name+".wasm")
			if err := os.WriteFile(path, bomb, 0o644); err != nil {
				t.Fatal(err)
			}
			var cacheDir string
			rt := newRuntime(t, func(o *wasmruntime.Options) { c.change(o); cacheDir = o.CacheDir })
			began := time.Now()
			err := rt.Compile(t.Context(), path, "")
			took := time.Since(began)
			t.Logf("%d bytes: %v after %v", len(bomb), err, took)
			if !errors.Is(err, wasmruntime.ErrCompileLimit) || took > c.most {
				t.Errorf("error %v after %v, want ErrCompileLimit within %v", err, took, c.most)
			}
			if left, _ := os.ReadDir(cacheDir); len(left) > 0 {
				t.Errorf("left in the cache: %v", left)
			}
		})
	}
}
