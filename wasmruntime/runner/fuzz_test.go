package runner

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"
)

// A file of wazero's cache, of another version or torn: the code's place is within
// it, and no more is taken into memory than it has.
func FuzzCode(f *testing.F) {
	code := []byte("native code")
	good := append([]byte(codeMagic), 3, '1', '.', '0')
	good = binary.LittleEndian.AppendUint32(good, 1)
	good = binary.LittleEndian.AppendUint64(good, 0)
	good = binary.LittleEndian.AppendUint64(good, uint64(len(code)))
	good = append(good, code...)
	sum := crc32.Checksum(code, crc32.MakeTable(crc32.Castagnoli))
	good = binary.LittleEndian.AppendUint32(good, sum)
	f.Add(good)
	f.Add(good[:len(good)-6])
	f.Add(append([]byte(codeMagic), 255))
	f.Add(binary.LittleEndian.AppendUint64(append([]byte(codeMagic), 0, 0, 0, 0, 0), 4<<30))
	file := filepath.Join(f.TempDir(), "code")
	want := codeSum{int64(len(code)), sum}
	f.Fuzz(func(t *testing.T, raw []byte) {
		offset, size, err := findCode(bytes.NewReader(raw))
		if err == nil && (offset < 0 || size < 0 || offset > int64(len(raw))) {
			t.Errorf("%d bytes at %d of %d", size, offset, len(raw))
		}
		if err := os.WriteFile(file, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if splitCode(file, file+".out", want) == nil && !bytes.Contains(raw, code) {
			t.Errorf("%q was taken for the module's code", raw)
		}
	})
}
