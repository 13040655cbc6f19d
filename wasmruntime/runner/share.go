package runner

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"unsafe"

	"github.com/tetratelabs/wazero"
	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/wasmruntime/internal/cache"
)

// wazero reads native code from its cache's file into memory of its own, so each
// replica of a module has its own copy of all of it: half of a small C guest's
// private memory, and of a Go guest's. In the file the code begins at no page's
// border, so it can't be mapped from there. Therefore the compiler takes the code
// out into a file of its own and leaves a hole, and a guest lays a private mapping of
// that file over what wazero has read: replicas share the pages, and those that never
// run are never read.

// errLayout is returned when wazero's file isn't laid out as this version's is.
var errLayout = errors.New("unexpected layout of the engine's file")

// codeMagic begins wazero's file.
const codeMagic = "WAZEVO"

// findCode gives where the native code begins in a file of wazero's cache, and how
// long it is: magic, length and text of the version, number of functions, their
// offsets, length of the code, code, its CRC.
func findCode(r io.ReaderAt) (offset, size int64, err error) {
	at := int64(len(codeMagic))
	head := make([]byte, len(codeMagic)+1)
	if _, err := r.ReadAt(head, 0); err != nil || string(head[:at]) != codeMagic {
		return 0, 0, fmt.Errorf("%w: %w", errLayout, errors.Join(err, errors.New("no magic number")))
	}
	at += 1 + int64(head[at])
	var word [8]byte
	if _, err := r.ReadAt(word[:4], at); err != nil {
		return 0, 0, fmt.Errorf("%w: %w", errLayout, err)
	}
	at += 4 + 8*int64(binary.LittleEndian.Uint32(word[:4]))
	if _, err := r.ReadAt(word[:], at); err != nil {
		return 0, 0, fmt.Errorf("%w: %w", errLayout, err)
	}
	size = int64(binary.LittleEndian.Uint64(word[:]))
	if size < 0 || size > 4<<30 {
		return 0, 0, fmt.Errorf("%w: %d bytes of code", errLayout, size)
	}
	return at + 8, size, nil
}

// codeSum is what a module's code is in memory.
type codeSum struct {
	size int64
	crc  uint32
}

// sumCode finds the code of what was just compiled as a guest will find it.
func sumCode(compiled wazero.CompiledModule) (codeSum, error) {
	at, size, err := executable(compiled)
	if err != nil || size == 0 {
		return codeSum{}, err
	}
	return codeSum{size, crc32.Checksum(unsafe.Slice((*byte)(at), size), crc32.MakeTable(crc32.Castagnoli))}, nil
}

// splitCode moves the code of a file of wazero's cache to the file out, and leaves a
// hole that passes wazero's check. want is the code in memory: what can't be found
// there when it runs isn't moved.
func splitCode(file, out string, want codeSum) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	offset, size, err := findCode(f)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	tail := st.Size() - offset - size
	if tail < 4 {
		return fmt.Errorf("%w: %d bytes after the code", errLayout, tail)
	}
	code := make([]byte, size)
	head, rest := make([]byte, offset), make([]byte, tail)
	for _, part := range []struct {
		to []byte
		at int64
	}{{head, 0}, {code, offset}, {rest, offset + size}} {
		if _, err := f.ReadAt(part.to, part.at); err != nil {
			return err
		}
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	if have := (codeSum{size, crc32.Checksum(code, table)}); have.crc != binary.LittleEndian.Uint32(rest) || have != want {
		return fmt.Errorf("%w: the code in the file isn't the one in memory", errLayout)
	}
	if err := os.WriteFile(out, code, 0o644); err != nil {
		return err
	}
	clear(code)
	binary.LittleEndian.PutUint32(rest, crc32.Checksum(code, table))
	hollow, err := os.Create(file + ".hollow")
	if err != nil {
		return err
	}
	_, err = hollow.WriteAt(head, 0)
	if err == nil {
		_, err = hollow.WriteAt(rest, offset+size)
	}
	if err = errors.Join(err, hollow.Close()); err != nil {
		return err
	}
	return os.Rename(file+".hollow", file)
}

// layCode lays the entry's code over what wazero has read of the hole. It is called
// before anything else is compiled or made an instance of.
func layCode(entry string, compiled wazero.CompiledModule) error {
	fd, err := unix.Open(filepath.Join(entry, cache.CodeFile), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // the engine's own file is whole
	}
	if err != nil {
		return fmt.Errorf("open code: %w", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	at, size, err := executable(compiled)
	if err != nil {
		return err
	}
	if size != st.Size {
		return fmt.Errorf("%w: the engine has %d bytes of code, the entry %d", errLayout, size, st.Size)
	}
	if size == 0 {
		return nil
	}
	_, err = unix.MmapPtr(fd, 0, at, uintptr(size), unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_FIXED)
	if err == nil {
		return nil
	}
	// A file system that is mounted noexec: a copy of one's own will do.
	if _, err = unix.MmapPtr(-1, 0, at, uintptr(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_FIXED|unix.MAP_ANON); err != nil {
		return fmt.Errorf("map code: %w", err)
	}
	code := unsafe.Slice((*byte)(at), size)
	if err := readAll(fd, code); err != nil {
		return fmt.Errorf("read code: %w", err)
	}
	// Data that became code: the processor must hear of it where it has two caches.
	return unix.Mprotect(code, unix.PROT_READ|unix.PROT_EXEC)
}

func readAll(fd int, to []byte) error {
	for n := 0; n < len(to); {
		k, err := unix.Pread(fd, to[n:], int64(n))
		if err != nil || k == 0 {
			return errors.Join(err, io.ErrUnexpectedEOF)
		}
		n += k
	}
	return nil
}

// executable finds the memory of a module's code. wazero doesn't show it, so its
// structures are read by their names, of the one version that go.mod pins; the
// compiler does the same on what it has made, and keeps wazero's file whole if they
// have changed.
func executable(compiled wazero.CompiledModule) (at unsafe.Pointer, size int64, err error) {
	defer func() { // reflect's
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errLayout, p)
		}
	}()
	engine := follow(reflect.ValueOf(compiled)).FieldByName("compiledEngine")
	modules := follow(engine).FieldByName("compiledModules")
	if n := modules.Len(); n != 1 {
		return nil, 0, fmt.Errorf("%w: %d compiled modules", errLayout, n)
	}
	for it := modules.MapRange(); it.Next(); {
		code := follow(follow(it.Value()).FieldByName("compiledModule")).FieldByName("executables")
		code = follow(code).FieldByName("executable")
		if code.Type() != reflect.TypeFor[[]byte]() {
			return nil, 0, fmt.Errorf("%w: code is %s", errLayout, code.Type())
		}
		at, size = code.UnsafePointer(), int64(code.Len())
	}
	if uintptr(at)%uintptr(os.Getpagesize()) != 0 {
		return nil, 0, fmt.Errorf("%w: the code isn't at a page's border", errLayout)
	}
	return at, size, nil
}

func follow(v reflect.Value) reflect.Value {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	return v
}
