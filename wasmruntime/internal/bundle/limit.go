package bundle

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// LimitFile has how large a guest's memory may become, in bytes: eight of them, little
// endian, 0 for no limit. The starter writes it, also while the guest runs; the guest
// reads it whenever it grows.
const LimitFile = "memory"

// WriteLimit makes the file, or changes it if make is false: a guest without one began
// under a version that had none, and os.ErrNotExist says so.
func WriteLimit(dir string, limit int64, make bool) error {
	flags := os.O_WRONLY
	if make {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(filepath.Join(dir, LimitFile), flags, 0o600)
	if err != nil {
		return err
	}
	// In place and at once: the guest has it open.
	_, err = f.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(max(limit, 0))), 0)
	return errors.Join(err, f.Close())
}

// ReadLimit reads the open file.
func ReadLimit(fd int) (int64, error) {
	var b [8]byte
	n, err := unix.Pread(fd, b[:], 0)
	if err == nil && n != len(b) {
		err = fmt.Errorf("%d bytes instead of %d", n, len(b))
	}
	return int64(binary.LittleEndian.Uint64(b[:])), err
}

// MemoryLimit is how large the guest's linear memory may become, in bytes; 0: as
// large as any.
func (s *Spec) MemoryLimit() int64 {
	if s.MemoryBytes != 0 {
		return s.MemoryBytes
	}
	return s.Resources.MemoryBytes
}
