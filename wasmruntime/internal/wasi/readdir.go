package wasi

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// openDir opens a directory for listing. Preopens are O_PATH, opened before
// the guest's user was taken on, so that listing asks for that user's rights.
func (f *file) openDir() errno {
	if f.dirFD >= 0 || f.fd < 0 {
		return ok
	}
	fd, err := unix.Openat(f.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return toErrno(err)
	}
	f.dirFD = fd
	return ok
}

// direntSize is the fixed part of an entry of fd_readdir.
const direntSize = 24

func fdReaddir(s *System, m memory, a []uint64) errno {
	f, e := s.get(uint32(a[0]), 0)
	if e != ok {
		return e
	}
	if !f.isDir() {
		return eNotdir
	}
	if f.base&rightReaddir == 0 {
		return eNotcap
	}
	buf, in := m.bytes(a[1], a[2])
	if !in {
		return eFault
	}
	used := 0
	// put adds an entry, cut off at the end of the buffer as preview 1 says;
	// false when nothing more fits.
	put := func(next, ino uint64, kind byte, name []byte) bool {
		var head [direntSize]byte
		le.PutUint64(head[0:], next)
		le.PutUint64(head[8:], ino)
		le.PutUint32(head[16:], uint32(len(name)))
		head[20] = kind
		used += copy(buf[used:], head[:])
		used += copy(buf[used:], name)
		return used < len(buf)
	}
	// Cookies up to this number are of single files, those from it on of the others.
	first := uint64(len(f.singles))
	for i := a[3]; i < first; i++ {
		if !put(i+1, i+1, typeRegular, []byte(f.singles[i].name)) {
			return m.put32(a[4], uint32(used))
		}
	}
	if f.fd < 0 {
		return m.put32(a[4], uint32(used))
	}
	if e := f.openDir(); e != ok {
		return e
	}
	if s.dirents == nil {
		s.dirents = make([]byte, 8<<10)
	}
	cookie := max(a[3], first) - first
	if cookie != f.dirPos || cookie == 0 {
		if _, err := unix.Seek(f.dirFD, int64(cookie), unix.SEEK_SET); err != nil {
			return toErrno(err)
		}
		f.dirPos = cookie
	}
	for used < len(buf) {
		n, err := retry(func() (int, error) { return unix.Getdents(f.dirFD, s.dirents) })
		if err != nil {
			return toErrno(err)
		}
		if n == 0 {
			break
		}
		// The kernel is further than the guest will be: the next call seeks.
		f.dirPos = ^uint64(0)
		for rest := s.dirents[:n]; len(rest) >= 19; {
			size := int(binary.NativeEndian.Uint16(rest[16:]))
			ino, next, kind := binary.NativeEndian.Uint64(rest), binary.NativeEndian.Uint64(rest[8:]), rest[18]
			name := rest[19:size]
			if i := bytes.IndexByte(name, 0); i >= 0 {
				name = name[:i]
			}
			rest = rest[size:]
			if len(f.singles) > 0 && f.single(string(name)) != nil {
				continue // what the single file hides
			}
			if !put(first+next, ino, direntType(kind), name) {
				return m.put32(a[4], uint32(used))
			}
		}
	}
	return m.put32(a[4], uint32(used))
}

func direntType(t byte) byte {
	switch t {
	case unix.DT_DIR:
		return typeDirectory
	case unix.DT_REG:
		return typeRegular
	case unix.DT_LNK:
		return typeSymlink
	case unix.DT_CHR:
		return typeChar
	case unix.DT_BLK:
		return typeBlock
	case unix.DT_SOCK:
		return typeStream
	}
	return typeUnknown
}
