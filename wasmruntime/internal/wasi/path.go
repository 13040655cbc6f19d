package wasi

import (
	stdpath "path"
	stdstrings "strings"

	"golang.org/x/sys/unix"
)

// lookupFollow is the only lookup flag.
const lookupFollow = 1

// dirAndPath gets the directory and path that path functions begin with.
// The caller must care for single files of the directory (f.singles).
func (s *System) dirAndPath(m memory, fd, at, n uint64, rights uint64) (*file, string, errno) {
	f, e := s.get(uint32(fd), 0)
	if e != ok {
		return nil, "", e
	}
	if !f.isDir() {
		return nil, "", eNotdir
	}
	if f.base&rights != rights {
		return nil, "", eNotcap
	}
	p, e := guestPath(m, at, n)
	return f, p, e
}

// changing is dirAndPath for what changes the directory.
func (s *System) changing(m memory, fd, at, n uint64, rights uint64) (*file, string, errno) {
	f, p, e := s.dirAndPath(m, fd, at, n, rights)
	if e == ok && f.fixed(p) {
		e = eRofs
	}
	return f, p, e
}

// fixed reports whether nothing at path may be changed: in a directory that is
// read-only or has single files alone, or at the place of a single file.
func (f *file) fixed(path string) bool {
	return f.readOnly || f.fd < 0 || f.single(path) != nil
}

// inParent runs op with the directory that holds the path's last component.
func (s *System) inParent(f *file, path string, op func(dir int, name string) error) errno {
	dir, name, err := s.parent(f.fd, path)
	if err != nil {
		return toErrno(err)
	}
	defer unix.Close(dir)
	return toErrno(op(dir, name))
}

// single is the single file that path names, nil if it names none.
func (f *file) single(path string) *single {
	if len(f.singles) == 0 {
		return nil
	}
	path = stdpath.Clean(path)
	for i := range f.singles {
		if f.singles[i].name == path {
			return &f.singles[i]
		}
	}
	return nil
}

func pathCreateDirectory(s *System, m memory, a []uint64) errno {
	f, path, e := s.changing(m, a[0], a[1], a[2], rightCreateDir)
	if e != ok {
		return e
	}
	return s.inParent(f, path, func(dir int, name string) error {
		if name == "." {
			return unix.EEXIST
		}
		return unix.Mkdirat(dir, stdstrings.TrimSuffix(name, "/"), 0o777)
	})
}

func pathRemoveDirectory(s *System, m memory, a []uint64) errno {
	f, path, e := s.changing(m, a[0], a[1], a[2], rightRemoveDir)
	if e != ok {
		return e
	}
	return s.inParent(f, path, func(dir int, name string) error {
		if name == "." {
			return unix.EINVAL
		}
		return unix.Unlinkat(dir, stdstrings.TrimSuffix(name, "/"), unix.AT_REMOVEDIR)
	})
}

func pathUnlinkFile(s *System, m memory, a []uint64) errno {
	f, path, e := s.changing(m, a[0], a[1], a[2], rightUnlink)
	if e != ok {
		return e
	}
	return s.inParent(f, path, func(dir int, name string) error {
		if name == "." {
			return unix.EISDIR
		}
		// A trailing slash goes on to the kernel: ENOTDIR for a file.
		err := unix.Unlinkat(dir, name, 0)
		if err == unix.EPERM || err == unix.ENOTDIR && stdstrings.HasSuffix(name, "/") {
			var st unix.Stat_t
			if unix.Fstatat(dir, stdstrings.TrimSuffix(name, "/"), &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
				return unix.EISDIR
			}
		}
		return err
	})
}

func pathRename(s *System, m memory, a []uint64) errno {
	from, fromPath, e := s.changing(m, a[0], a[1], a[2], rightRenameSource)
	if e != ok {
		return e
	}
	to, toPath, e := s.changing(m, a[3], a[4], a[5], rightRenameTarget)
	if e != ok {
		return e
	}
	return s.inParent(from, fromPath, func(fromDir int, fromName string) error {
		toDir, toName, err := s.parent(to.fd, toPath)
		if err != nil {
			return err
		}
		defer unix.Close(toDir)
		if fromName == "." || toName == "." {
			return unix.EBUSY
		}
		return unix.Renameat(fromDir, fromName, toDir, toName)
	})
}

func pathLink(s *System, m memory, a []uint64) errno {
	from, fromPath, e := s.dirAndPath(m, a[0], a[2], a[3], rightLinkSource)
	if e != ok {
		return e
	}
	to, toPath, e := s.changing(m, a[4], a[5], a[6], rightLinkTarget)
	if e != ok {
		return e
	}
	if from.fixed(fromPath) {
		return eRofs
	}
	if a[1] != 0 {
		return eInval // following too, as in other runtimes: a hard link is of the name itself
	}
	return s.inParent(from, fromPath, func(fromDir int, fromName string) error {
		toDir, toName, err := s.parent(to.fd, toPath)
		if err != nil {
			return err
		}
		defer unix.Close(toDir)
		return unix.Linkat(fromDir, fromName, toDir, toName, 0)
	})
}

func pathSymlink(s *System, m memory, a []uint64) errno {
	b, in := m.bytes(a[0], a[1])
	if !in {
		return eFault
	}
	target := string(b)
	f, path, e := s.changing(m, a[2], a[3], a[4], rightSymlink)
	switch {
	case e != ok:
		return e
	case target == "":
		return eNoent
	case target[0] == '/':
		return ePerm // it could only lead out
	case stdstrings.IndexByte(target, 0) >= 0:
		return eInval
	}
	return s.inParent(f, path, func(dir int, name string) error {
		if stdstrings.HasSuffix(name, "/") {
			var st unix.Stat_t
			if unix.Fstatat(dir, stdstrings.TrimSuffix(name, "/"), &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
				if st.Mode&unix.S_IFMT != unix.S_IFDIR {
					return unix.ENOTDIR
				}
				return unix.EEXIST
			}
			return unix.ENOENT
		}
		return unix.Symlinkat(target, dir, name)
	})
}

func pathReadlink(s *System, m memory, a []uint64) errno {
	f, path, e := s.dirAndPath(m, a[0], a[1], a[2], rightReadlink)
	if e != ok {
		return e
	}
	if f.fd < 0 || f.single(path) != nil {
		return eInval
	}
	buf, in := m.bytes(a[3], a[4])
	if !in {
		return eFault
	}
	var n int
	e = s.inParent(f, path, func(dir int, name string) (err error) {
		if len(buf) == 0 {
			// readlink(2) refuses an empty buffer; WASI truncates.
			_, err = unix.Readlinkat(dir, name, make([]byte, 1))
			return err
		}
		n, err = unix.Readlinkat(dir, name, buf)
		return err
	})
	if e != ok {
		return e
	}
	return m.put32(a[5], uint32(n))
}

// openPath opens what path names for stat and times: O_PATH, following the
// last link if asked.
func (s *System) openPath(f *file, path string, follow bool) (int, error) {
	flags := unix.O_PATH
	if !follow {
		flags |= unix.O_NOFOLLOW
	}
	one := f.single(path)
	if one == nil && f.fd < 0 {
		return -1, unix.ENOENT
	}
	if one != nil {
		return s.open(one.parent, one.hostName, flags|unix.O_NOFOLLOW, 0)
	}
	return s.open(f.fd, path, flags, 0)
}

func pathFilestatGet(s *System, m memory, a []uint64) errno {
	f, path, e := s.dirAndPath(m, a[0], a[2], a[3], rightPathStat)
	if e != ok {
		return e
	}
	if a[1]&^lookupFollow != 0 {
		return eInval
	}
	if f.fd < 0 && path == "." {
		return putStat(m, a[4], &unix.Stat_t{Mode: unix.S_IFDIR, Nlink: 1})
	}
	fd, err := s.openPath(f, path, a[1]&lookupFollow != 0)
	if err != nil {
		return toErrno(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return toErrno(err)
	}
	return putStat(m, a[4], &st)
}

func pathFilestatSetTimes(s *System, m memory, a []uint64) errno {
	f, path, e := s.changing(m, a[0], a[2], a[3], rightPathSetTimes)
	if e != ok {
		return e
	}
	ts, e := times(a[4], a[5], uint32(a[6]))
	if e != ok {
		return e
	}
	if a[1]&^lookupFollow != 0 {
		return eInval
	}
	if a[1]&lookupFollow == 0 {
		return s.inParent(f, path, func(dir int, name string) error {
			return unix.UtimesNanoAt(dir, name, ts[:], unix.AT_SYMLINK_NOFOLLOW)
		})
	}
	fd, err := s.openPath(f, path, true)
	if err != nil {
		return toErrno(err)
	}
	defer unix.Close(fd)
	err = unix.UtimesNanoAt(fd, "", ts[:], unix.AT_EMPTY_PATH)
	if err == unix.EINVAL || err == unix.ENOENT { // before Linux 5.8
		var rw int
		if rw, err = s.open(f.fd, path, unix.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
			err = setTimes(rw, ts)
			unix.Close(rw)
		}
	}
	return toErrno(err)
}

// Open flags of preview 1.
const (
	openCreate    = 1
	openDirectory = 2
	openExclusive = 4
	openTruncate  = 8
)

func pathOpen(s *System, m memory, a []uint64) errno {
	dir, path, e := s.dirAndPath(m, a[0], a[2], a[3], rightOpen)
	if e != ok {
		return e
	}
	lookup, oflags, base, inherit, fdflags := a[1], a[4], a[5], a[6], uint16(a[7])
	if lookup > 1 || oflags > 15 || a[7] > 31 {
		return eInval
	}
	// Rights can only shrink. Programs ask for all there are; what they
	// don't get they notice when they use it.
	base &= dir.inherit
	inherit &= dir.inherit
	if oflags&openCreate != 0 && dir.base&rightCreateFile == 0 {
		return eNotcap
	}
	if oflags&openTruncate != 0 && dir.base&rightPathSetSize == 0 {
		return ePerm // what the public suite took alone for years
	}
	read := base&(rightRead|rightReaddir) != 0
	// Go asks for the right to set the size of files it only reads. Who asks
	// for all rights of a directory means to list it; who wants to write, and
	// not to list, learns from the kernel that it is a directory.
	write := base&(rightWrite|rightAllocate) != 0 && (oflags&openDirectory == 0 || base&rightReaddir == 0)

	flags := unix.O_NOCTTY
	switch {
	case read && write:
		flags |= unix.O_RDWR
	case write:
		flags |= unix.O_WRONLY
	default:
		flags |= unix.O_RDONLY
	}
	if lookup&lookupFollow == 0 {
		flags |= unix.O_NOFOLLOW
	}
	if oflags&openCreate != 0 {
		flags |= unix.O_CREAT
	}
	if oflags&openDirectory != 0 {
		flags |= unix.O_DIRECTORY
		if oflags&(openCreate|openExclusive|openTruncate) != 0 {
			return eInval
		}
	}
	if oflags&openExclusive != 0 {
		flags |= unix.O_EXCL
	}
	if oflags&openTruncate != 0 {
		flags |= unix.O_TRUNC
	}
	if fdflags&flagDsync != 0 {
		flags |= unix.O_DSYNC
	}
	if fdflags&(flagSync|flagRsync) != 0 {
		flags |= unix.O_SYNC
	}
	// A FIFO in a volume must not hang the open; the flag is taken back
	// below unless the guest asked for it.
	flags |= unix.O_NONBLOCK

	readOnly := dir.readOnly
	host, hostPath := dir.fd, path
	if one := dir.single(path); one == nil && dir.fd < 0 {
		switch {
		case path == "." && oflags&(openCreate|openTruncate) == 0:
			return s.opened(m, a[8], &file{fd: -1, dirFD: -1, kind: typeDirectory, base: base & rightsDir, inherit: inherit, readOnly: true, singles: dir.singles})
		case oflags&openCreate != 0:
			return eRofs
		}
		return eNoent
	} else if one != nil {
		host, hostPath, readOnly = one.parent, one.hostName, one.readOnly
		flags = flags&^unix.O_CREAT | unix.O_NOFOLLOW
		if oflags&openExclusive != 0 {
			return eExist
		}
	}
	fd, err := s.openForGuest(host, hostPath, flags, readOnly)
	if err == unix.EISDIR && write && oflags&(openCreate|openTruncate) == 0 && base&rightReaddir != 0 {
		// Libraries that ask for all rights of a directory mean to read it.
		flags = flags&^(unix.O_RDWR|unix.O_WRONLY) | unix.O_DIRECTORY
		fd, err = s.openForGuest(host, hostPath, flags, readOnly)
	}
	if err != nil {
		if err == unix.ELOOP && oflags&openDirectory != 0 {
			return eLoop
		}
		return toErrno(err)
	}
	var singles []single
	if len(dir.singles) > 0 && stdpath.Clean(path) == "." {
		singles = dir.singles // the same directory again
	}
	return s.adopt(m, a[8], fd, fdflags, base, inherit, readOnly, singles)
}

// openForGuest opens, and under a read-only directory what only read.
func (s *System) openForGuest(dir int, path string, flags int, readOnly bool) (int, error) {
	if readOnly {
		if flags&unix.O_TRUNC != 0 || flags&unix.O_ACCMODE == unix.O_WRONLY {
			return -1, unix.EROFS
		}
		if flags&unix.O_CREAT != 0 {
			// An existing file may be opened with O_CREAT, a new one not.
			fd, err := s.open(dir, path, unix.O_PATH|flags&unix.O_NOFOLLOW, 0)
			if err == unix.ENOENT {
				return -1, unix.EROFS
			} else if err != nil {
				return -1, err
			}
			unix.Close(fd)
			if flags&unix.O_EXCL != 0 {
				return -1, unix.EEXIST
			}
			flags &^= unix.O_CREAT
		}
		if flags&unix.O_ACCMODE == unix.O_RDWR && flags&unix.O_DIRECTORY == 0 {
			// Asking for all rights is how toolchains open for reading
			// too, but a guest that means to write must hear of it.
			fd, err := s.open(dir, path, unix.O_PATH|flags&unix.O_NOFOLLOW, 0)
			if err != nil {
				return -1, err
			}
			var st unix.Stat_t
			err = unix.Fstat(fd, &st)
			unix.Close(fd)
			if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
				return -1, unix.EROFS
			}
			flags &^= unix.O_RDWR
		}
	}
	return s.open(dir, path, flags, 0o666)
}

// adopt makes a descriptor of the table out of a host descriptor.
func (s *System) adopt(m memory, at uint64, fd int, fdflags uint16, base, inherit uint64, readOnly bool, singles []single) errno {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return toErrno(err)
	}
	f := &file{fd: fd, dirFD: -1, kind: hostType(st.Mode), flags: fdflags, base: base, inherit: inherit, readOnly: readOnly, singles: singles}
	if f.isDir() {
		f.base &= rightsDir
	} else {
		f.base &= rightsFile
		f.inherit = 0
		if fdflags&flagNonblock == 0 {
			unix.SetNonblock(fd, false)
		}
	}
	if readOnly {
		f.base &^= rightsFileWrite &^ (rightSync | rightDatasync)
	}
	return s.opened(m, at, f)
}

func (s *System) opened(m memory, at uint64, f *file) errno {
	n, e := s.add(f)
	if e != ok {
		return e
	}
	if e := m.put32(at, n); e != ok {
		f.close()
		s.files[n] = nil
		return e
	}
	return ok
}
