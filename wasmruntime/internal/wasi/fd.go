package wasi

import (
	"golang.org/x/sys/unix"
)

// vectors reads the guest's list of (pointer, length) pairs. The slices are
// views of its memory, valid until the next call.
func (s *System) vectors(m memory, list, n uint64) ([][]byte, errno) {
	const most = 1024 // IOV_MAX
	if n > most {
		return nil, eInval
	}
	s.iovs = s.iovs[:0]
	table, in := m.bytes(list, n*8)
	if !in {
		return nil, eFault
	}
	for i := uint64(0); i < n; i++ {
		b, in := m.bytes(uint64(le.Uint32(table[i*8:])), uint64(le.Uint32(table[i*8+4:])))
		if !in {
			return nil, eFault
		}
		if len(b) > 0 {
			s.iovs = append(s.iovs, b)
		}
	}
	return s.iovs, ok
}

// transfer finds a descriptor that is open for reading or for writing. Others
// are BADF, as they are to read(2) and write(2) and in other runtimes, and not
// NOTCAPABLE, which no program knows.
func (s *System) transfer(fd, right uint64) (*file, errno) {
	f, e := s.get(uint32(fd), right)
	if e == eNotcap {
		e = eBadf
	}
	return f, e
}

func fdRead(s *System, m memory, a []uint64) errno {
	f, e := s.transfer(a[0], rightRead)
	if e != ok {
		return e
	}
	if f.isDir() {
		return eIsdir
	}
	iovs, e := s.vectors(m, a[1], a[2])
	if e != ok {
		return e
	}
	if f.fd < 0 || len(iovs) == 0 {
		return m.put32(a[3], 0)
	}
	n, err := retry(func() (int, error) {
		if len(iovs) == 1 {
			return unix.Read(f.fd, iovs[0])
		}
		return unix.Readv(f.fd, iovs)
	})
	if err != nil {
		return toErrno(err)
	}
	return m.put32(a[3], uint32(n))
}

// retry repeats what a signal interrupted. The runtime's own signals come at
// any time; they are no business of the guest.
func retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}

func fdWrite(s *System, m memory, a []uint64) errno {
	f, e := s.transfer(a[0], rightWrite)
	if e != ok {
		return e
	}
	if f.isDir() {
		return eIsdir
	}
	iovs, e := s.vectors(m, a[1], a[2])
	if e != ok {
		return e
	}
	if len(iovs) == 0 {
		return m.put32(a[3], 0)
	}
	n, err := retry(func() (int, error) {
		if f.flags&flagAppend != 0 && f.kind == typeRegular {
			return appendTo(f.fd, iovs)
		}
		if len(iovs) == 1 {
			return unix.Write(f.fd, iovs[0])
		}
		return unix.Writev(f.fd, iovs)
	})
	if err != nil {
		return toErrno(err)
	}
	return m.put32(a[3], uint32(n))
}

// appendTo writes at the end. The host's O_APPEND isn't used, because on
// Linux it makes pwrite append too.
func appendTo(fd int, iovs [][]byte) (int, error) {
	n, err := unix.Pwritev2(fd, iovs, -1, unix.RWF_APPEND)
	if err != unix.ENOSYS && err != unix.EOPNOTSUPP {
		return n, err
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		return 0, err
	}
	return unix.Writev(fd, iovs)
}

func fdPread(s *System, m memory, a []uint64) errno {
	f, e := s.transfer(a[0], rightRead)
	if e != ok {
		return e
	}
	if f.isDir() {
		return eIsdir
	}
	iovs, e := s.vectors(m, a[1], a[2])
	if e != ok {
		return e
	}
	if int64(a[3]) < 0 {
		return eInval
	}
	n, err := retry(func() (int, error) { return unix.Preadv(f.fd, iovs, int64(a[3])) })
	if err != nil {
		return toErrno(err)
	}
	return m.put32(a[4], uint32(n))
}

func fdPwrite(s *System, m memory, a []uint64) errno {
	f, e := s.transfer(a[0], rightWrite)
	if e != ok {
		return e
	}
	if f.isDir() {
		return eIsdir
	}
	iovs, e := s.vectors(m, a[1], a[2])
	if e != ok {
		return e
	}
	if int64(a[3]) < 0 {
		return eInval
	}
	n, err := retry(func() (int, error) { return unix.Pwritev(f.fd, iovs, int64(a[3])) })
	if err != nil {
		return toErrno(err)
	}
	return m.put32(a[4], uint32(n))
}

func fdSeek(s *System, m memory, a []uint64) errno {
	whence := uint32(a[2])
	rights := uint64(rightSeek)
	if whence == 1 && a[1] == 0 {
		rights = rightTell
	}
	f, e := s.get(uint32(a[0]), 0)
	switch {
	case e != ok:
		return e
	case whence > 2:
		return eInval
	case f.isDir():
		return eBadf
	case f.kind != typeRegular && f.kind != typeBlock && f.kind != typeChar:
		return eSpipe
	case f.base&rights == 0 && f.base&rightSeek == 0:
		return eNotcap
	}
	at, err := unix.Seek(f.fd, int64(a[1]), int(whence))
	if err != nil {
		return toErrno(err)
	}
	return m.put64(a[3], uint64(at))
}

func fdTell(s *System, m memory, a []uint64) errno {
	return fdSeek(s, m, []uint64{a[0], 0, 1, a[1]})
}

func fdClose(s *System, _ memory, a []uint64) errno {
	f, e := s.get(uint32(a[0]), 0)
	if e != ok {
		return e
	}
	f.close()
	s.files[a[0]] = nil
	return ok
}

// fdRenumber moves a descriptor onto another, which must be open.
func fdRenumber(s *System, _ memory, a []uint64) errno {
	from, e := s.get(uint32(a[0]), 0)
	if e != ok {
		return e
	}
	to, e := s.get(uint32(a[1]), 0)
	if e != ok {
		return e
	}
	if from == to {
		return ok
	}
	to.close()
	s.files[a[1]], s.files[a[0]] = from, nil
	return ok
}

func fdFdstatGet(s *System, m memory, a []uint64) errno {
	f, e := s.get(uint32(a[0]), 0)
	if e != ok {
		return e
	}
	b, in := m.bytes(a[1], 24)
	if !in {
		return eFault
	}
	clear(b)
	b[0] = f.kind
	le.PutUint16(b[2:], f.flags)
	le.PutUint64(b[8:], f.base)
	le.PutUint64(b[16:], f.inherit)
	return ok
}

func fdFdstatSetFlags(s *System, _ memory, a []uint64) errno {
	f, e := s.get(uint32(a[0]), rightSetFlags)
	if e != ok {
		return e
	}
	flags := uint16(a[1])
	if a[1]&^(flagAppend|flagDsync|flagNonblock|flagRsync|flagSync) != 0 {
		return eInval
	}
	if (flags^f.flags)&(flagDsync|flagRsync|flagSync) != 0 {
		return eNotsup // Linux can't change these of an open file
	}
	if f.fd >= 0 && !f.isDir() && (flags^f.flags)&flagNonblock != 0 {
		if err := unix.SetNonblock(f.fd, flags&flagNonblock != 0); err != nil {
			return toErrno(err)
		}
	}
	f.flags = flags
	return ok
}

func fdFdstatSetRights(s *System, _ memory, a []uint64) errno {
	f, e := s.get(uint32(a[0]), 0)
	if e != ok {
		return e
	}
	if a[1]&^f.base != 0 || a[2]&^f.inherit != 0 {
		return eNotcap
	}
	f.base, f.inherit = a[1], a[2]
	return ok
}

// putStat writes a filestat.
func putStat(m memory, at uint64, st *unix.Stat_t) errno {
	b, in := m.bytes(at, 64)
	if !in {
		return eFault
	}
	clear(b)
	le.PutUint64(b[0:], uint64(st.Dev))
	le.PutUint64(b[8:], st.Ino)
	b[16] = hostType(st.Mode)
	le.PutUint64(b[24:], uint64(st.Nlink))
	le.PutUint64(b[32:], uint64(st.Size))
	le.PutUint64(b[40:], uint64(st.Atim.Nano()))
	le.PutUint64(b[48:], uint64(st.Mtim.Nano()))
	le.PutUint64(b[56:], uint64(st.Ctim.Nano()))
	return ok
}

func fdFilestatGet(s *System, m memory, a []uint64) errno {
	f, e := s.get(uint32(a[0]), rightStat)
	if e != ok {
		return e
	}
	var st unix.Stat_t
	if f.fd < 0 {
		if f.isDir() {
			st.Mode = unix.S_IFDIR
		}
		return putStat(m, a[1], &st)
	}
	if err := unix.Fstat(f.fd, &st); err != nil {
		return toErrno(err)
	}
	if e := putStat(m, a[1], &st); e != ok {
		return e
	}
	b, _ := m.bytes(a[1]+16, 1)
	b[0] = f.kind
	return ok
}

// writable is what every changing call asks first.
func (f *file) writable() errno {
	if f.readOnly {
		return eRofs
	}
	return ok
}

func fdFilestatSetSize(s *System, _ memory, a []uint64) errno {
	f, e := s.get(uint32(a[0]), rightSetSize)
	if e != ok {
		return e
	}
	if e := f.writable(); e != ok {
		return e
	}
	if int64(a[1]) < 0 {
		return eInval
	}
	return toErrno(unix.Ftruncate(f.fd, int64(a[1])))
}

func fdFilestatSetTimes(s *System, _ memory, a []uint64) errno {
	f, e := s.get(uint32(a[0]), rightSetTimes)
	if e != ok {
		return e
	}
	if e := f.writable(); e != ok {
		return e
	}
	ts, e := times(a[1], a[2], uint32(a[3]))
	if e != ok {
		return e
	}
	return toErrno(setTimes(f.fd, ts))
}

// times makes the two times of utimensat from WASI's.
func times(atime, mtime uint64, flags uint32) ([2]unix.Timespec, errno) {
	const (
		atim = 1 << iota
		atimNow
		mtim
		mtimNow
		utimeNow  = 1<<30 - 1
		utimeOmit = 1<<30 - 2
	)
	var ts [2]unix.Timespec
	if flags > 15 || flags&(atim|atimNow) == atim|atimNow || flags&(mtim|mtimNow) == mtim|mtimNow {
		return ts, eInval
	}
	one := func(t uint64, set, now uint32) unix.Timespec {
		switch {
		case flags&set != 0:
			return unix.NsecToTimespec(int64(t))
		case flags&now != 0:
			return unix.Timespec{Nsec: utimeNow}
		}
		return unix.Timespec{Nsec: utimeOmit}
	}
	ts[0], ts[1] = one(atime, atim, atimNow), one(mtime, mtim, mtimNow)
	return ts, ok
}

func fdSync(s *System, _ memory, a []uint64) errno {
	f, e := s.get(uint32(a[0]), rightSync)
	if e != ok {
		return e
	}
	return f.sync(unix.Fsync)
}

func fdDatasync(s *System, _ memory, a []uint64) errno {
	f, e := s.get(uint32(a[0]), rightDatasync)
	if e != ok {
		return e
	}
	return f.sync(unix.Fdatasync)
}

func (f *file) sync(how func(int) error) errno {
	fd := f.fd
	if f.isDir() {
		if e := f.openDir(); e != ok {
			return e
		}
		fd = f.dirFD
	}
	if fd < 0 {
		return ok
	}
	return toErrno(how(fd))
}

func fdAdvise(s *System, _ memory, a []uint64) errno {
	f, e := s.get(uint32(a[0]), rightAdvise)
	if e != ok {
		return e
	}
	if a[3] > 5 || int64(a[1]) < 0 || int64(a[2]) < 0 {
		return eInval
	}
	host := [...]int{unix.FADV_NORMAL, unix.FADV_SEQUENTIAL, unix.FADV_RANDOM, unix.FADV_WILLNEED, unix.FADV_DONTNEED, unix.FADV_NOREUSE}
	return toErrno(unix.Fadvise(f.fd, int64(a[1]), int64(a[2]), host[a[3]]))
}

func fdAllocate(s *System, _ memory, a []uint64) errno {
	f, e := s.get(uint32(a[0]), rightAllocate)
	if e != ok {
		return e
	}
	if e := f.writable(); e != ok {
		return e
	}
	if int64(a[1]) < 0 || int64(a[2]) <= 0 {
		return eInval
	}
	return toErrno(unix.Fallocate(f.fd, 0, int64(a[1]), int64(a[2])))
}

// tagSocket is the prestat tag of what is preopened but no directory.
// wasi-libc and Go step over tags that they don't know, while an error ends
// the program or its search for directories.
const tagSocket = 1

func fdPrestatGet(s *System, m memory, a []uint64) errno {
	f, e := s.get(uint32(a[0]), 0)
	if e != ok {
		return e
	}
	b, in := m.bytes(a[1], 8)
	if !in {
		return eFault
	}
	switch {
	case f.preopen != "":
		clear(b)
		le.PutUint32(b[4:], uint32(len(f.preopen)))
	case f.listener && a[0] > 2:
		clear(b)
		b[0] = tagSocket
	default:
		return eBadf
	}
	return ok
}

func fdPrestatDirName(s *System, m memory, a []uint64) errno {
	f, e := s.get(uint32(a[0]), 0)
	if e != ok {
		return e
	}
	if f.preopen == "" {
		return eNotdir
	}
	if a[2] < uint64(len(f.preopen)) {
		return eNametool
	}
	b, in := m.bytes(a[1], uint64(len(f.preopen)))
	if !in {
		return eFault
	}
	copy(b, f.preopen)
	return ok
}
