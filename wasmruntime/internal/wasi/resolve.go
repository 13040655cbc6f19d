package wasi

import (
	"errors"
	stdstrings "strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// guestPath reads and checks a path.
func guestPath(m memory, at, n uint64) (string, errno) {
	b, in := m.bytes(at, n)
	if !in {
		return "", eFault
	}
	switch {
	case n == 0:
		return "", eNoent
	case n >= 4096:
		return "", eNametool
	case !utf8.Valid(b):
		return "", eIlseq
	}
	for _, c := range b {
		if c == 0 {
			return "", eInval
		}
	}
	if b[0] == '/' {
		return "", ePerm // absolute: outside of every preopen
	}
	return string(b), ok
}

// resolveFlags keep a path under its directory: no absolute path, no "..",
// no link may lead out, and /proc's links aren't followed at all.
const resolveFlags = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS

// open opens path beneath dir. It is the only way by which a guest's path
// reaches the kernel with more than one component.
func (s *System) open(dir int, path string, flags int, mode uint32) (int, error) {
	if flags&unix.O_CREAT == 0 {
		mode = 0 // openat2 insists
	}
	if !s.noOpenat2 {
		for tries := 0; ; tries++ {
			fd, err := unix.Openat2(dir, path, &unix.OpenHow{
				Flags: uint64(flags | unix.O_CLOEXEC), Mode: uint64(mode), Resolve: resolveFlags,
			})
			switch err {
			case unix.EXDEV:
				return -1, ePerm // it leads out
			case unix.EINTR:
				continue
			case unix.EAGAIN:
				// A rename raced with a ".." in the path.
				if tries < 64 && flags&unix.O_NONBLOCK == 0 {
					continue
				}
				return -1, err
			case unix.ENOSYS:
				s.noOpenat2 = true
			default:
				return fd, err
			}
			break
		}
	}
	return walk(dir, path, flags, mode)
}

// ErrNoDir is returned by [OpenDir] where a path leads to no directory beneath the
// one it starts from.
var ErrNoDir = errors.New("no such directory")

// OpenDir opens the directory that a guest finds at path beneath dir, O_PATH.
func OpenDir(dir int, path string) (int, error) {
	fd, err := new(System).open(dir, path, unix.O_PATH|unix.O_DIRECTORY, 0)
	switch err {
	case nil:
		return fd, nil
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, ePerm:
		return -1, ErrNoDir
	}
	return -1, err
}

// walk is open for kernels before 5.6: component by component over directory
// descriptors, links expanded by hand. ".." pops a descriptor, so that a
// directory moved meanwhile can't lead out.
func walk(dir int, path string, flags int, mode uint32) (int, error) {
	root, err := unix.FcntlInt(uintptr(dir), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, err
	}
	stack := []int{root}
	defer func() {
		for _, fd := range stack {
			unix.Close(fd)
		}
	}()
	mustBeDir := stdstrings.HasSuffix(path, "/")
	if mustBeDir && flags&unix.O_CREAT != 0 && stdstrings.Trim(path, "/.") != "" {
		return -1, unix.EISDIR // open makes files only
	}
	parts := split(path)
	for links := 0; len(parts) > 0; {
		part := parts[0]
		parts = parts[1:]
		top := stack[len(stack)-1]
		last := len(parts) == 0
		switch part {
		case ".":
			continue
		case "..":
			if len(stack) == 1 {
				return -1, ePerm
			}
			unix.Close(top)
			stack = stack[:len(stack)-1]
			continue
		}
		fd, err := unix.Openat(top, part, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if last && err == unix.ENOENT && flags&unix.O_CREAT != 0 && !mustBeDir {
			return unix.Openat(top, part, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		}
		if err != nil {
			return -1, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			return -1, err
		}
		switch {
		case st.Mode&unix.S_IFMT == unix.S_IFLNK && !(last && !mustBeDir && flags&unix.O_NOFOLLOW != 0):
			unix.Close(fd)
			if links++; links > 40 {
				return -1, unix.ELOOP
			}
			if last && flags&unix.O_EXCL != 0 {
				return -1, unix.EEXIST
			}
			target := make([]byte, 4096)
			n, err := unix.Readlinkat(top, part, target)
			if err != nil {
				return -1, err
			}
			if n > 0 && target[0] == '/' {
				return -1, ePerm
			}
			if last && n > 0 && target[n-1] == '/' {
				mustBeDir = true
			}
			parts = append(split(string(target[:n])), parts...)
		case last:
			unix.Close(fd)
			// O_NOFOLLOW: what is a link now wasn't one a moment ago.
			if mustBeDir {
				if flags&unix.O_CREAT != 0 {
					return -1, unix.EISDIR
				}
				flags |= unix.O_DIRECTORY
			}
			return unix.Openat(top, part, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		case st.Mode&unix.S_IFMT != unix.S_IFDIR:
			unix.Close(fd)
			return -1, unix.ENOTDIR
		default:
			stack = append(stack, fd)
		}
	}
	// The path ended in "." or "..": the directory on top.
	if flags&unix.O_EXCL != 0 {
		return -1, unix.EEXIST
	}
	return unix.Openat(stack[len(stack)-1], ".", flags&^(unix.O_CREAT|unix.O_NOFOLLOW)|unix.O_CLOEXEC, 0)
}

func split(path string) []string {
	var out []string
	for _, p := range stdstrings.Split(path, "/") {
		if p != "" {
			out = append(out, p)
		}
	}
	return out
}

// parent opens the directory that holds the last component of path, which
// it returns with a trailing slash if path had one. A path that ends in "."
// or ".." has no last component of its own: name is then ".", and dir is
// what the path names.
func (s *System) parent(dir int, path string) (fd int, name string, err error) {
	trimmed := stdstrings.TrimRight(path, "/")
	slash := trimmed != path
	i := stdstrings.LastIndexByte(trimmed, '/')
	head, last := ".", trimmed[i+1:]
	if i >= 0 {
		head = trimmed[:i+1]
	}
	if last == "." || last == ".." || last == "" {
		head, last = path, "."
	} else if slash {
		last += "/"
	}
	fd, err = s.open(dir, head, unix.O_PATH|unix.O_DIRECTORY, 0)
	return fd, last, err
}
