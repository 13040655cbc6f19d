package runner

import (
	"github.com/tetratelabs/wazero/experimental"
	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/wasmruntime/internal/bundle"
)

// allocator reserves what a linear memory may become as address space and commits
// what it grows to. wazero's own allocator copies on growth, and then needs
// several times the memory's size.
type allocator struct{ limit int } // see bundle.LimitFile

func (a allocator) Allocate(_, most uint64) experimental.LinearMemory {
	m := &linear{limit: a.limit}
	if ^uint(0)>>63 == 0 {
		most = min(most, m.bound()) // address space is scarce; a limit that is raised moves it
	}
	// On 32-bit machines the maximum may not fit; growth moves it then.
	for size := most; size > 0 && size <= maxReserve; size /= 2 {
		b, err := unix.Mmap(-1, 0, int(size), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
		if err == nil {
			m.reserved = b
			break
		}
	}
	return m
}

// maxReserve is the largest reservation that is tried.
const maxReserve = 1 << (28 + 8*(^uint(0)>>63)) // 256 MiB, or 64 GiB

type linear struct {
	limit     int
	reserved  []byte
	committed uint64
}

// bound is how large it may become by now.
func (m *linear) bound() uint64 {
	const all = 1 << 32
	limit, err := bundle.ReadLimit(m.limit)
	switch {
	case err != nil:
		return m.committed // what isn't known isn't given
	case limit <= 0:
		return all
	}
	return min(max(uint64(limit)/65536, 1)*65536, all)
}

// Reallocate gives nil if there is no memory, and memory.grow fails.
func (m *linear) Reallocate(size uint64) []byte {
	bound := m.bound()
	if size > m.committed && size > bound {
		return nil
	}
	if size > uint64(len(m.reserved)) {
		if !m.move(size, bound) {
			return nil
		}
	}
	if size > m.committed {
		if err := unix.Mprotect(m.reserved[m.committed:size], unix.PROT_READ|unix.PROT_WRITE); err != nil {
			return nil
		}
		m.committed = size
	}
	return m.reserved[:size:size]
}

// move makes a larger reservation, of what it may become by now if that is to be
// had, and copies. The memories are private to their one instance, whose base
// address wazero reads again after growth.
func (m *linear) move(size, bound uint64) bool {
	if size > 1<<31 && ^uint(0)>>63 == 0 {
		return false
	}
	if bound > size && bound <= maxReserve && m.moveTo(bound) {
		return true
	}
	return m.moveTo(size)
}

func (m *linear) moveTo(size uint64) bool {
	b, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return false
	}
	copy(b, m.reserved[:m.committed])
	if m.reserved != nil {
		unix.Munmap(m.reserved)
	}
	m.reserved, m.committed = b, size
	return true
}

func (m *linear) Free() {
	if m.reserved != nil {
		unix.Munmap(m.reserved)
		m.reserved = nil
	}
}
