package modcheck_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/coracle-edge/coracle/wasmruntime/internal/modcheck"
)

// mod is a module of sections, each given as id and contents.
func mod(sections ...[]byte) []byte {
	return append([]byte("\x00asm\x01\x00\x00\x00"), bytes.Join(sections, nil)...)
}

func sec(id byte, body ...byte) []byte {
	return append(binary.AppendUvarint([]byte{id}, uint64(len(body))), body...)
}

func uv(n uint64) []byte { return binary.AppendUvarint(nil, n) }

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

var (
	voidType = sec(1, 1, 0x60, 0, 0)
	oneFunc  = sec(3, 1, 0)
	exported = sec(7, 1, 6, '_', 's', 't', 'a', 'r', 't', 0, 0)
)

func body(code ...byte) []byte {
	return sec(10, cat([]byte{1}, uv(uint64(len(code))), code)...)
}

// program is a sound module with the given function body.
func program(code ...byte) []byte { return mod(voidType, oneFunc, exported, body(code...)) }

// hostile are modules with the verdict that each must get.
var hostile = []struct {
	name   string
	module []byte
	want   error
	says   string
}{
	{"empty", nil, modcheck.ErrMalformed, "0 bytes"},
	{"text", []byte("#!/bin/sh\nexit 0\n"), modcheck.ErrMalformed, "doesn't start with"},
	{"header only", mod(), modcheck.ErrUnsupported, "_start"},
	{"component", []byte("\x00asm\x0d\x00\x01\x00"), modcheck.ErrUnsupported, "component"},
	{"future version", []byte("\x00asm\x02\x00\x00\x00"), modcheck.ErrUnsupported, "version"},
	// Counts without the bytes for them: what ends a decoder that trusts them.
	{"type count", mod(sec(1, uv(1<<31)...)), modcheck.ErrMalformed, "type section at offset 10: 2147483648 types announced, 0 bytes left"},
	{"param count", mod(sec(1, cat([]byte{1, 0x60}, uv(1<<30))...)), modcheck.ErrMalformed, "parameters announced"},
	{"result count", mod(sec(1, cat([]byte{1, 0x60, 0}, uv(1<<30))...)), modcheck.ErrMalformed, "results announced"},
	{"import count", mod(sec(2, uv(1<<31)...)), modcheck.ErrMalformed, "imports announced"},
	{"import name", mod(sec(2, cat([]byte{1}, uv(1<<31), []byte{0, 0})...)), modcheck.ErrMalformed, "bytes of module name announced"},
	{"function count", mod(sec(3, uv(1<<31)...)), modcheck.ErrMalformed, "functions announced"},
	{"table count", mod(sec(4, uv(1<<31)...)), modcheck.ErrMalformed, "tables announced"},
	{"global count", mod(sec(6, uv(1<<31)...)), modcheck.ErrMalformed, "globals announced"},
	{"export count", mod(sec(7, uv(1<<31)...)), modcheck.ErrMalformed, "exports announced"},
	{"element count", mod(sec(9, uv(1<<31)...)), modcheck.ErrMalformed, "element segments announced"},
	{"code count", mod(sec(10, uv(1<<31)...)), modcheck.ErrMalformed, "function bodies announced"},
	{"data count", mod(sec(11, uv(1<<31)...)), modcheck.ErrMalformed, "data segments announced"},
	{"data size", mod(sec(5, 1, 0, 1), sec(11, cat([]byte{1, 1}, uv(1<<31))...)), modcheck.ErrMalformed, "bytes of data announced"},
	{"data announced, none there", mod(voidType, oneFunc, exported, sec(12, 3), body(0, 0x0b)), modcheck.ErrMalformed, "3 data segments announced, none"},
	{"locals", program(cat([]byte{1}, uv(1<<32-1), []byte{0x7f, 0x0b})...), modcheck.ErrTooLarge, "4294967295 locals, the limit is 10000"},
	{"locals in many groups", program(cat([]byte{4}, bytes.Repeat(cat(uv(1<<31), []byte{0x7f}), 4), []byte{0x0b})...), modcheck.ErrTooLarge, "locals"},
	{"groups of locals", program(cat(uv(1<<31), []byte{0x0b})...), modcheck.ErrMalformed, "groups of locals announced"},
	{"br_table", program(cat([]byte{0, 0x41, 0, 0x0e}, uv(1<<31), []byte{0, 0x0b})...), modcheck.ErrMalformed, "branch targets announced"},
	{"nesting", program(cat([]byte{0}, bytes.Repeat([]byte{0x02, 0x40}, 5000), bytes.Repeat([]byte{0x0b}, 5001))...), modcheck.ErrTooLarge, "nested deeper than 1000"},
	{"big table", mod(sec(4, cat([]byte{1, 0x70, 0}, uv(1<<31))...)), modcheck.ErrTooLarge, "a table of 2147483648 entries"},
	{"impossible memory", mod(sec(5, cat([]byte{1, 0}, uv(70000))...)), modcheck.ErrMalformed, "70000 pages"},
	{"maximum below minimum", mod(sec(5, 1, 1, 5, 4)), modcheck.ErrMalformed, "minimum 5 is over the maximum 4"},
	{"shared memory", mod(sec(5, 1, 3, 1, 1)), modcheck.ErrUnsupported, "shared"},
	{"two memories", mod(sec(5, 2, 0, 1, 0, 1)), modcheck.ErrTooLarge, "2 memories, the limit is 1"},
	// Structure.
	{"section past the end", mod([]byte{1, 100, 0}), modcheck.ErrMalformed, "100 bytes announced, 1 left"},
	{"section twice", mod(voidType, voidType), modcheck.ErrMalformed, "twice"},
	{"sections out of order", mod(oneFunc, voidType), modcheck.ErrMalformed, "type has index 0, there are 0"},
	{"order", mod(voidType, exported, oneFunc), modcheck.ErrMalformed, "export section"},
	{"unknown section", mod([]byte{99, 0}), modcheck.ErrMalformed, "section id 99"},
	{"bytes left in section", mod(sec(1, 0, 0xff)), modcheck.ErrMalformed, "1 bytes too many in the section"},
	{"endless LEB", mod([]byte{1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0}), modcheck.ErrMalformed, "LEB128"},
	{"type index", mod(voidType, sec(3, 1, 7)), modcheck.ErrMalformed, "type has index 7, there are 1"},
	{"more bodies than functions", mod(voidType, oneFunc, exported, sec(10, 2, 2, 0, 0x0b, 2, 0, 0x0b)), modcheck.ErrMalformed, "1 functions declared, 2 bodies"},
	{"no code", mod(voidType, oneFunc, exported), modcheck.ErrMalformed, "1 functions declared, 0 bodies"},
	{"body without end", program(0, 0x01), modcheck.ErrMalformed, "unexpected end"},
	{"bytes after end", program(0, 0x0b, 0x0b), modcheck.ErrMalformed, "1 bytes after the end"},
	{"tag section", mod(sec(13, 1, 0, 0)), modcheck.ErrUnsupported, "exception handling"},
	{"throw", program(0, 0x08, 0, 0x0b), modcheck.ErrUnsupported, "exception handling"},
	{"atomics", program(0, 0xfe, 0x03, 0x00, 0x0b), modcheck.ErrUnsupported, "threads"},
	{"tail call", program(0, 0x12, 0, 0x0b), modcheck.ErrUnsupported, "tail calls"},
	{"unknown instruction", program(0, 0xff, 0x0b), modcheck.ErrUnsupported, "0xff"},
	{"unknown import", mod(voidType, sec(2, cat([]byte{1, 3}, []byte("env"), []byte{1, 'f', 0, 0})...), exported), modcheck.ErrUnknownImport, "env.f"},
	{"imported memory", mod(sec(2, cat([]byte{1, 3}, []byte("env"), []byte{1, 'm', 2, 0, 1})...)), modcheck.ErrUnknownImport, "no memories to import"},
	{"terminal control in an import", mod(voidType, sec(2, cat([]byte{1, 4}, []byte("\x1b[2J"), []byte{1, 'f', 0, 0})...)), modcheck.ErrUnknownImport, `"\x1b[2J"`},
	{"sound", program(0, 0x0b), nil, ""},
}

func TestHostileModules(t *testing.T) {
	for _, c := range hostile {
		t.Run(c.name, func(t *testing.T) {
			_, err := modcheck.Check(bytes.NewReader(c.module), int64(len(c.module)), modcheck.Limits{})
			if !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			if err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %q doesn't say %q", err, c.says)
			}
			var where *modcheck.Error
			if err != nil && (!errors.As(err, &where) || where.Offset > int64(len(c.module))) {
				t.Errorf("error %#v has no offset in the file", err)
			}
		})
	}
}

// Every cut of a real module is refused, at small cost.
func TestCutModules(t *testing.T) {
	whole, err := os.ReadFile("../../testdata/sleep.wasm")
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		if _, err := modcheck.Check(bytes.NewReader(whole[:n]), int64(n), modcheck.Limits{}); err == nil {
			// Only where sections end may it be whole again.
			if info, _ := modcheck.Check(bytes.NewReader(whole[:n]), int64(n), modcheck.Limits{}); !info.HasStart {
				t.Errorf("the first %d of %d bytes were admitted", n, len(whole))
			}
		}
	}
}

func TestSoundModules(t *testing.T) {
	files, _ := filepath.Glob("../../testdata/*.wasm")
	more, _ := filepath.Glob("../../../examples/*/*.wasm")
	refused := map[string]bool{"unknown-import.wasm": true, "wasi-unstable.wasm": true, "wrong-signature.wasm": true, "no-start.wasm": true, "big-memory.wasm": true}
	for _, f := range append(files, more...) {
		file, err := os.Open(f)
		if err != nil {
			t.Fatal(err)
		}
		st, _ := file.Stat()
		info, err := modcheck.Check(file, st.Size(), modcheck.Limits{})
		file.Close()
		if refused[filepath.Base(f)] != (err != nil) {
			t.Errorf("%s: %v", f, err)
		}
		if err == nil && (!info.HasStart || info.Functions == 0 || info.MemoryPages == 0) {
			t.Errorf("%s: %+v", f, info)
		}
	}
}

func TestLimits(t *testing.T) {
	m := program(0, 0x0b)
	for _, c := range []struct {
		limits modcheck.Limits
		says   string
	}{
		{modcheck.Limits{ModuleBytes: 10}, "the limit is 10"},
		{modcheck.Limits{FunctionBytes: 1}, "function 0 has 2 bytes, the limit is 1"},
	} {
		_, err := modcheck.Check(bytes.NewReader(m), int64(len(m)), c.limits)
		if !errors.Is(err, modcheck.ErrTooLarge) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v", c.limits, err)
		}
	}
}

// Check must cost nothing that the file's size doesn't explain.
func TestCheckAllocatesLittle(t *testing.T) {
	for _, c := range hostile {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _ = modcheck.Check(bytes.NewReader(c.module), int64(len(c.module)), modcheck.Limits{})
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 256<<10 {
			t.Errorf("%s: %d bytes allocated for a file of %d", c.name, n, len(c.module))
		}
	}
}

func FuzzCheck(f *testing.F) {
	for _, c := range hostile {
		f.Add(c.module)
	}
	files, _ := filepath.Glob("../../testdata/*.wasm")
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil && len(b) < 8<<10 {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, module []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		info, err := modcheck.Check(bytes.NewReader(module), int64(len(module)), modcheck.Limits{})
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20+uint64(len(module))*64 {
			t.Errorf("%d bytes allocated for a file of %d", n, len(module))
		}
		if err == nil && (info.Kind != modcheck.KindModule || !info.HasStart) {
			t.Errorf("admitted %+v", info)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	m, err := os.ReadFile("../../testdata/files.wasm")
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(m)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := modcheck.Check(bytes.NewReader(m), int64(len(m)), modcheck.Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}
