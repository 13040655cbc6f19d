package rewrite_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/tetratelabs/wazero"

	"github.com/coracle-edge/coracle/wasmruntime/internal/rewrite"
)

// pressure makes a module whose function f computes with more values at a time than a
// machine has registers, remainders among them, and gives what f must return.
func pressure(seed uint64) (module []byte, want uint64) {
	r := rand.New(rand.NewPCG(seed, 7))
	locals := 24 + r.IntN(24)
	vals := make([]uint64, locals)
	var code []byte
	get := func(i int) { code = binary.AppendUvarint(append(code, 0x20), uint64(i)) }
	set := func(i int) { code = binary.AppendUvarint(append(code, 0x21), uint64(i)) }
	// From memory, which the compiler can't know.
	data := make([]byte, 8*locals)
	for i := range vals {
		vals[i] = r.Uint64() >> r.IntN(60)
		binary.LittleEndian.PutUint64(data[8*i:], vals[i])
		code = append(code, 0x41, 0)                                    // i32.const 0
		code = binary.AppendUvarint(append(code, 0x29, 3), uint64(8*i)) // i64.load
		set(i)
	}
	for range 60 + r.IntN(120) {
		a, b, c := r.IntN(locals), r.IntN(locals), r.IntN(locals)
		x, y := vals[b], vals[c]
		switch r.IntN(8) {
		case 0:
			get(b)
			get(c)
			code = append(code, 0x7c) // add
			vals[a] = x + y
		case 1:
			get(b)
			get(c)
			code = append(code, 0x85) // xor
			vals[a] = x ^ y
		case 2, 3: // i64.rem_u by an odd number
			get(b)
			get(c)
			code = append(code, 0x42, 1, 0x84, 0x82)
			vals[a] = x % (y | 1)
		case 4, 5: // i64.rem_s
			get(b)
			get(c)
			code = append(code, 0x42, 1, 0x84, 0x81)
			vals[a] = 0
			if d := int64(y | 1); d != -1 {
				vals[a] = uint64(int64(x) % d)
			}
		case 6: // i32.rem_u of both wrapped
			get(b)
			code = append(code, 0xa7)
			get(c)
			code = append(code, 0xa7, 0x41, 1, 0x72, 0x70, 0xad)
			vals[a] = uint64(uint32(x) % (uint32(y) | 1))
		case 7: // i32.rem_s
			get(b)
			code = append(code, 0xa7)
			get(c)
			code = append(code, 0xa7, 0x41, 1, 0x72, 0x6f, 0xac)
			vals[a] = 0
			if d := int32(uint32(y) | 1); d != -1 {
				vals[a] = uint64(int64(int32(uint32(x)) % d))
			}
		}
		set(a)
	}
	code = append(code, 0x42, 0)
	for i, v := range vals {
		get(i)
		code = append(code, 0x7c)                   // add
		code = append(code, 0x42, 0xb1, 0x01, 0x7e) // mul by 177
		want = (want + v) * 177
	}
	body := append([]byte{1}, binary.AppendUvarint(nil, uint64(locals))...)
	body = append(append(append(body, 0x7e), code...), 0x0b)
	module = []byte("\x00asm\x01\x00\x00\x00")
	add := func(id byte, content []byte) {
		module = append(binary.AppendUvarint(append(module, id), uint64(len(content))), content...)
	}
	add(1, []byte{1, 0x60, 0, 1, 0x7e})
	add(3, []byte{1, 0})
	add(5, []byte{1, 0, 1})
	add(7, []byte{1, 1, 'f', 0, 0})
	add(10, append(binary.AppendUvarint([]byte{1}, uint64(len(body))), body...))
	add(11, append(binary.AppendUvarint([]byte{1, 0, 0x41, 0, 0x0b}, uint64(len(data))), data...))
	return module, want
}

func call(t *testing.T, module []byte) (uint64, error) {
	ctx := context.Background()
	rt := wazero.NewRuntime(ctx)
	defer rt.Close(ctx)
	m, err := rt.Instantiate(ctx, module)
	if err != nil {
		return 0, err
	}
	out, err := m.ExportedFunction("f").Call(ctx)
	if err != nil {
		return 0, err
	}
	return out[0], nil
}

// Under pressure the engine's own remainders are wrong on arm64 (wazero up to 1.12.0,
// wazero/wazero#2508); the replaced ones are right everywhere.
func TestRemaindersUnderRegisterPressure(t *testing.T) {
	wrong := 0
	for seed := range uint64(40) {
		m, want := pressure(seed)
		if have, err := call(t, m); err != nil || have != want {
			wrong++
		}
		out, err := rewrite.ReplaceRemainders(bytes.Clone(m))
		if err != nil {
			t.Fatal(err)
		}
		if have, err := call(t, out); err != nil || have != want {
			t.Errorf("seed %d: %x (%v) with remainders replaced, want %x", seed, have, err, want)
		}
	}
	t.Logf("%s: the engine's own remainders are wrong in %d of 40 modules", runtime.GOARCH, wrong)
	if runtime.GOARCH != "arm64" && wrong > 0 {
		t.Errorf("the modules say what isn't so, or %s needs the replacement too", runtime.GOARCH)
	}
	if runtime.GOARCH == "arm64" && wrong == 0 {
		t.Error("the engine's own remainders are right: without the bug the replacement is only slow, and this test sees nothing")
	}
}

// The same, on arm64.
func TestRemaindersOnArm64(t *testing.T) {
	if runtime.GOARCH == "arm64" {
		t.Skip("this is arm64")
	}
	const qemu = "qemu-aarch64-static"
	if _, err := exec.LookPath(qemu); err != nil {
		t.Skipf("no emulator: %v (package qemu-user-static)", err)
	}
	binary := filepath.Join(t.TempDir(), "rewrite.test")
	build := exec.Command("go", "test", "-c", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=arm64")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	run := exec.Command(qemu, binary, "-test.v", "-test.run", "^(TestRemaindersUnderRegisterPressure|TestReplacedRemaindersAreRight)$")
	out, err := run.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || bytes.Count(out, []byte("--- PASS")) != 2 {
		t.Error(fmt.Errorf("on arm64: %v", err))
	}
}
