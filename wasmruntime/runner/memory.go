package runner

import (
	"github.com/tetratelabs/wazero/experimental"
	"golang.org/x/sys/unix"
)

// allocator reserves a linear memory's maximum as address space and commits
// what it grows to. wazero's own allocator copies on growth, and then needs
// several times the memory's size.
type allocator struct{}

func (allocator) Allocate(_, most uint64) experimental.LinearMemory {
	m := &linear{}
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
	reserved  []byte
	committed uint64
}

// Reallocate gives nil if there is no memory, and memory.grow fails.
func (m *linear) Reallocate(size uint64) []byte {
	if size > uint64(len(m.reserved)) {
		if !m.move(size) {
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

// move makes a larger reservation and copies. The memories are private to
// their one instance, whose base address wazero reads again after growth.
func (m *linear) move(size uint64) bool {
	if size > 1<<31 && ^uint(0)>>63 == 0 {
		return false
	}
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
