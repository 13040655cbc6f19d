package wasi

import (
	"errors"

	"golang.org/x/sys/unix"
)

// errno is WASI preview 1's own numbering.
type errno uint32

const (
	ok         errno = 0
	eAcces     errno = 2
	eAgain     errno = 6
	eBadf      errno = 8
	eExist     errno = 20
	eFault     errno = 21
	eIlseq     errno = 25
	eInval     errno = 28
	eIo        errno = 29
	eIsdir     errno = 31
	eLoop      errno = 32
	eNametool  errno = 37
	eNfile     errno = 41
	eNoent     errno = 44
	eNosys     errno = 52
	eNotdir    errno = 54
	eNotsock   errno = 57
	eNotsup    errno = 58
	ePerm      errno = 63
	eRofs      errno = 69
	eOverflow  errno = 61
	eSpipe     errno = 70
	eNotcap    errno = 76
	eDestaddrq errno = 17

	eAfnosupport errno = 5

	// Those of the socket extension, for names: after preview 1's own.
	eAiAgain    errno = 78
	eAiBadflag  errno = 79
	eAiFail     errno = 80
	eAiFamily   errno = 81
	eAiMemory   errno = 82
	eAiNoname   errno = 84
	eAiService  errno = 85
	eAiSocktype errno = 86
)

// toErrno translates. What has no name of its own is EIO.
func toErrno(err error) errno {
	if err == nil {
		return ok
	}
	var e unix.Errno
	var own errno
	if errors.As(err, &own) {
		return own
	}
	if !errors.As(err, &e) {
		return eIo
	}
	switch e {
	case unix.E2BIG:
		return 1
	case unix.EACCES:
		return eAcces
	case unix.EADDRINUSE:
		return 3
	case unix.EADDRNOTAVAIL:
		return 4
	case unix.EAFNOSUPPORT:
		return eAfnosupport
	case unix.EAGAIN:
		return eAgain
	case unix.EALREADY:
		return 7
	case unix.EBADF:
		return eBadf
	case unix.EBUSY:
		return 10
	case unix.ECONNABORTED:
		return 13
	case unix.ECONNREFUSED:
		return 14
	case unix.ECONNRESET:
		return 15
	case unix.EDESTADDRREQ:
		return eDestaddrq
	case unix.EDQUOT:
		return 19
	case unix.EEXIST:
		return eExist
	case unix.EFAULT:
		return eFault
	case unix.EFBIG:
		return 22
	case unix.EHOSTUNREACH:
		return 23
	case unix.EILSEQ:
		return eIlseq
	case unix.EINPROGRESS:
		return 26
	case unix.EINTR:
		return 27
	case unix.EINVAL:
		return eInval
	case unix.EIO:
		return eIo
	case unix.EISCONN:
		return 30
	case unix.EISDIR:
		return eIsdir
	case unix.ELOOP:
		return eLoop
	case unix.EMFILE:
		return 33
	case unix.EMLINK:
		return 34
	case unix.EMSGSIZE:
		return 35
	case unix.ENAMETOOLONG:
		return eNametool
	case unix.ENETDOWN:
		return 38
	case unix.ENETUNREACH:
		return 40
	case unix.ENFILE:
		return eNfile
	case unix.ENOBUFS:
		return 42
	case unix.ENODEV:
		return 43
	case unix.ENOENT:
		return eNoent
	case unix.ENOLCK:
		return 46
	case unix.ENOMEM:
		return 48
	case unix.ENOSPC:
		return 51
	case unix.ENOSYS:
		return eNosys
	case unix.ENOTCONN:
		return 53
	case unix.ENOTDIR:
		return eNotdir
	case unix.ENOTEMPTY:
		return 55
	case unix.ENOTSOCK:
		return eNotsock
	case unix.EOPNOTSUPP:
		return eNotsup
	case unix.ENOTTY:
		return 59
	case unix.ENXIO:
		return 60
	case unix.EOVERFLOW:
		return eOverflow
	case unix.EPERM:
		return ePerm
	case unix.EPIPE:
		return 64
	case unix.EPROTO:
		return 65
	case unix.EROFS:
		return eRofs
	case unix.ESPIPE:
		return eSpipe
	case unix.ESRCH:
		return 71
	case unix.ESTALE:
		return 72
	case unix.ETIMEDOUT:
		return 73
	case unix.ETXTBSY:
		return 74
	case unix.EXDEV:
		return 75
	}
	return eIo
}

func (e errno) Error() string { return "wasi errno" }
