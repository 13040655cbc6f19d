package wasi

import (
	"golang.org/x/sys/unix"
)

// File types of preview 1.
const (
	typeUnknown   = 0
	typeBlock     = 1
	typeChar      = 2
	typeDirectory = 3
	typeRegular   = 4
	typeDatagram  = 5
	typeStream    = 6
	typeSymlink   = 7
)

// Descriptor flags of preview 1.
const (
	flagAppend   = 1
	flagDsync    = 2
	flagNonblock = 4
	flagRsync    = 8
	flagSync     = 16
)

// Rights of preview 1.
const (
	rightDatasync       = 1 << 0
	rightRead           = 1 << 1
	rightSeek           = 1 << 2
	rightSetFlags       = 1 << 3
	rightSync           = 1 << 4
	rightTell           = 1 << 5
	rightWrite          = 1 << 6
	rightAdvise         = 1 << 7
	rightAllocate       = 1 << 8
	rightCreateDir      = 1 << 9
	rightCreateFile     = 1 << 10
	rightLinkSource     = 1 << 11
	rightLinkTarget     = 1 << 12
	rightOpen           = 1 << 13
	rightReaddir        = 1 << 14
	rightReadlink       = 1 << 15
	rightRenameSource   = 1 << 16
	rightRenameTarget   = 1 << 17
	rightPathStat       = 1 << 18
	rightPathSetSize    = 1 << 19
	rightPathSetTimes   = 1 << 20
	rightStat           = 1 << 21
	rightSetSize        = 1 << 22
	rightSetTimes       = 1 << 23
	rightSymlink        = 1 << 24
	rightRemoveDir      = 1 << 25
	rightUnlink         = 1 << 26
	rightPoll           = 1 << 27
	rightShutdown       = 1 << 28
	rightAccept         = 1 << 29
	rightsFileWrite     = rightWrite | rightAllocate | rightSetSize | rightSetTimes | rightDatasync | rightSync
	rightsFile          = rightRead | rightSeek | rightTell | rightSetFlags | rightAdvise | rightStat | rightPoll | rightsFileWrite
	rightsDirWrite      = rightCreateDir | rightCreateFile | rightLinkSource | rightLinkTarget | rightRenameSource | rightRenameTarget | rightPathSetSize | rightPathSetTimes | rightSymlink | rightRemoveDir | rightUnlink | rightSetTimes
	rightsDir           = rightOpen | rightReaddir | rightReadlink | rightPathStat | rightStat | rightSetFlags | rightSync | rightDatasync | rightsDirWrite
	rightsSocket        = rightRead | rightWrite | rightSetFlags | rightStat | rightPoll | rightShutdown
	rightsListener      = rightAccept | rightSetFlags | rightStat | rightPoll | rightRead
	rightsStdin         = rightRead | rightSetFlags | rightStat | rightPoll
	rightsStdout        = rightWrite | rightSetFlags | rightStat | rightPoll | rightSync | rightDatasync
	rightsChangesOfRoot = rightsFileWrite | rightsDirWrite
)

// file is an entry of the descriptor table.
type file struct {
	fd int // of the host; -1 for a directory of single files alone
	// dirFD is a directory's readable descriptor, opened when first listed:
	// preopens are O_PATH.
	dirFD    int
	kind     byte
	flags    uint16
	base     uint64
	inherit  uint64
	preopen  string // guest path of a preopen
	readOnly bool
	listener bool
	stdio    bool
	// singles are files of the directory that its fd doesn't have, or has otherwise.
	singles []single
	// dirPos is where dirFD stands, to spare an lseek per fd_readdir.
	dirPos uint64
}

// single is one file of a directory that exists for the guest only.
type single struct {
	name     string
	parent   int // O_PATH of the directory that holds it
	hostName string
	readOnly bool
}

func (f *file) isDir() bool { return f.kind == typeDirectory }

func (f *file) close() {
	if f.fd >= 0 {
		unix.Close(f.fd)
	}
	if f.dirFD >= 0 {
		unix.Close(f.dirFD)
	}
	f.fd, f.dirFD = -1, -1
}

// maxFiles bounds the guest's table; RLIMIT_NOFILE usually bounds it before.
const maxFiles = 65536

// get finds an open descriptor that has the rights.
func (s *System) get(fd uint32, rights uint64) (*file, errno) {
	if uint64(fd) >= uint64(len(s.files)) || s.files[fd] == nil {
		return nil, eBadf
	}
	f := s.files[fd]
	if f.base&rights != rights {
		return nil, eNotcap
	}
	return f, ok
}

// add puts f at the lowest free number.
func (s *System) add(f *file) (uint32, errno) {
	for i, g := range s.files {
		if g == nil {
			s.files[i] = f
			return uint32(i), ok
		}
	}
	if len(s.files) >= maxFiles {
		f.close()
		return 0, eNfile
	}
	s.files = append(s.files, f)
	return uint32(len(s.files) - 1), ok
}

func hostType(mode uint32) byte {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return typeDirectory
	case unix.S_IFREG:
		return typeRegular
	case unix.S_IFLNK:
		return typeSymlink
	case unix.S_IFCHR:
		return typeChar
	case unix.S_IFBLK:
		return typeBlock
	case unix.S_IFSOCK:
		return typeStream
	}
	return typeUnknown
}
