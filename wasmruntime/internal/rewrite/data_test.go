package rewrite_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/tetratelabs/wazero"

	"github.com/coracle-edge/coracle/wasmruntime/internal/rewrite"
)

// withData is a module of 16 pages with these data segments, and a count of them if
// counted.
func withData(counted bool, segments ...[]byte) []byte {
	m := []byte("\x00asm\x01\x00\x00\x00")
	add := func(id byte, body []byte) {
		m = append(append(m, id), binary.AppendUvarint(nil, uint64(len(body)))...)
		m = append(m, body...)
	}
	add(5, []byte{1, 0, 16})
	add(7, append([]byte{1, 6}, "memory\x02\x00"...))
	if counted {
		add(12, binary.AppendUvarint(nil, uint64(len(segments))))
	}
	body := binary.AppendUvarint(nil, uint64(len(segments)))
	for _, s := range segments {
		body = append(body, s...)
	}
	add(11, body)
	return m
}

// active is a segment of memory 0.
func active(at uint32, data string) []byte {
	out := []byte{0, 0x41}
	// Five bytes, sign-extended as LEB128 wants it.
	for i, v := 0, int64(int32(at)); i < 5; i++ {
		b := byte(v & 0x7f)
		v >>= 7
		if i < 4 {
			b |= 0x80
		}
		out = append(out, b)
	}
	out = append(out, 0x0b)
	out = binary.AppendUvarint(out, uint64(len(data)))
	return append(out, data...)
}

// memoryOf is what a module's memory holds when it begins; nil if it can't.
func memoryOf(t *testing.T, module []byte) []byte {
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
	defer rt.Close(ctx)
	m, err := rt.Instantiate(ctx, module)
	if err != nil {
		return nil
	}
	b, _ := m.Memory().Read(0, m.Memory().Size())
	return bytes.Clone(b)
}

func TestMergeData(t *testing.T) {
	for name, c := range map[string]struct {
		module []byte
		merged bool
	}{
		"neighbours":                   {withData(false, active(10, "ab"), active(12, "cd"), active(20, "e")), true},
		"a gap that is too wide":       {withData(false, active(10, "ab"), active(1000, "cd")), false},
		"one that overwrites":          {withData(false, active(10, "abcd"), active(12, "X"), active(14, "e")), false},
		"a gap with something in it":   {withData(false, active(14, "abcd"), active(10, "X"), active(20, "e")), false},
		"one that goes back":           {withData(false, active(500, "abcd"), active(10, "X"), active(12, "e")), true},
		"the code may name them":       {withData(true, active(10, "ab"), active(12, "cd")), false},
		"a passive one":                {withData(true, active(10, "ab"), append([]byte{1, 2}, "cd"...)), false},
		"past the end of memory":       {withData(false, active(16<<16-2, "ab"), active(16<<16, "c")), true},
		"beyond what is positive":      {withData(false, active(1<<31-1, "a"), active(1<<31+1, "b")), true},
		"behind what is representable": {withData(false, active(1<<32-1, "a"), active(0, "b")), false},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := rewrite.MergeData(bytes.Clone(c.module))
			if err != nil {
				t.Fatal(err)
			}
			if merged := !bytes.Equal(out, c.module); merged != c.merged {
				t.Errorf("merged: %v, want %v", merged, c.merged)
			}
			if before, after := memoryOf(t, c.module), memoryOf(t, out); !bytes.Equal(before, after) {
				t.Errorf("the memory isn't what it was: %.40q, now %.40q", before, after)
			}
		})
	}
}

// Whatever the segments are, the memory is the same.
func TestMergedDataIsTheSame(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		var list [][]byte
		at := uint32(r.IntN(100))
		for range r.IntN(40) {
			data := make([]byte, r.IntN(50))
			for i := range data {
				data[i] = byte(r.IntN(256))
			}
			list = append(list, active(at, string(data)))
			at = uint32(max(0, int(at)+len(data)+r.IntN(300)-r.IntN(4)*r.IntN(100)))
		}
		m := withData(false, list...)
		out, err := rewrite.MergeData(bytes.Clone(m))
		if err != nil {
			t.Fatal(err)
		}
		if before, after := memoryOf(t, m), memoryOf(t, out); before == nil || !bytes.Equal(before, after) {
			t.Fatalf("seed %d: the memory isn't what it was", seed)
		}
	}
}
