package wasm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// inflight is a page of memory that outlives this process, being a file's: it
// says which output is just now on its way from a FIFO into a log. Lines are
// written first and taken out of the FIFO afterwards, so a process killed in
// between leaves them in both. The next one asks the page, takes them out of
// the log again, and every line is there once.
//
// The kernel itself notes that the bytes were taken: the first of them is read
// right into the page, where its complement stood before. A read of a pipe
// that has the bytes isn't interrupted by SIGKILL.
//
// One page serves all logs, because one batch is moved at a time (logScratch).
// It is written to flash as little as any dirty page: once in some tens of
// seconds in which there was output.
type inflight struct {
	page []byte // nil: there is none, lines may be doubled by a kill
	boot string
}

// The page's layout.
const (
	inflightSize = 4096
	flightState  = 0  // uint32: pending or not
	flightTaken  = 4  // the first byte of the batch, or its complement
	flightFirst  = 5  // the first byte of the batch
	flightDev    = 8  // uint64, of the log
	flightIno    = 16 // uint64
	flightOffset = 24 // uint64: where the batch begins in the log
	flightBoot   = 32 // 64 bytes
	flightID     = 96 // 64 bytes: the container
	flightEnd    = 160

	flightPending = 0x436f7231
)

// logMark is a place in a log.
type logMark struct {
	Dev    uint64 `json:"dev"`
	Ino    uint64 `json:"ino"`
	Offset int64  `json:"offset"`
}

// openInflight maps the page, and says what the process before left pending.
func openInflight(path, boot string) (*inflight, *pendingFlight, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	old := make([]byte, inflightSize)
	n, _ := f.ReadAt(old, 0)
	if n < inflightSize {
		// Written, not truncated to its size: a hole would be filled at the first
		// store, and a full disk then kills the process.
		if _, err := f.WriteAt(make([]byte, inflightSize), 0); err != nil {
			return nil, nil, err
		}
	}
	page, err := unix.Mmap(int(f.Fd()), 0, inflightSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("map %s: %w", path, err)
	}
	return &inflight{page: page, boot: boot}, parseFlight(old[:n], boot), nil
}

func (f *inflight) close() {
	if f.page != nil {
		_ = unix.Munmap(f.page)
		f.page = nil
	}
}

func (f *inflight) state() *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&f.page[flightState]))
}

// begin notes a batch before it is written at a place of a container's log.
func (f *inflight) begin(id string, at logMark, first byte) {
	if f.page == nil {
		return
	}
	f.state().Store(0)
	f.page[flightTaken], f.page[flightFirst] = ^first, first
	binary.NativeEndian.PutUint64(f.page[flightDev:], at.Dev)
	binary.NativeEndian.PutUint64(f.page[flightIno:], at.Ino)
	binary.NativeEndian.PutUint64(f.page[flightOffset:], uint64(at.Offset))
	put(f.page[flightBoot:flightID], f.boot)
	put(f.page[flightID:flightEnd], id)
	f.state().Store(flightPending)
}

func put(field []byte, s string) { clear(field[copy(field, s):]) }

// take reads a batch out of its FIFO.
func (f *inflight) take(fd int, buf []byte) (int, error) {
	bufs := [][]byte{buf}
	if f.page != nil {
		bufs = [][]byte{f.page[flightTaken : flightTaken+1], buf[1:]}
	}
	for {
		n, err := unix.Readv(fd, bufs)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			return 0, nil
		}
		return max(n, 0), err
	}
}

func (f *inflight) end() {
	if f.page != nil {
		f.state().Store(0)
	}
}

// pendingFlight is a batch that was written, or about to be, and not taken.
type pendingFlight struct {
	id string
	at logMark
}

// parseFlight reads a page that a former process left; nil if everything had
// landed, or it is of another boot: the FIFO's bytes are gone then, and the
// log's are all there is.
func parseFlight(page []byte, boot string) *pendingFlight {
	if len(page) < flightEnd || binary.NativeEndian.Uint32(page[flightState:]) != flightPending || page[flightTaken] == page[flightFirst] {
		return nil
	}
	p := &pendingFlight{id: text(page[flightID:flightEnd]), at: logMark{
		Dev: binary.NativeEndian.Uint64(page[flightDev:]), Ino: binary.NativeEndian.Uint64(page[flightIno:]),
		Offset: int64(binary.NativeEndian.Uint64(page[flightOffset:])),
	}}
	if text(page[flightBoot:flightID]) != boot || p.at.Offset < 0 || p.id == "" || p.id != filepath.Base(p.id) {
		return nil
	}
	return p
}

func text(field []byte) string { return strings.TrimRight(string(field), "\x00") }

// landFlight takes a pending batch out of its log again: it is still in the
// FIFO, or in the exit record of its guest.
func (m *Manager) landFlight(p *pendingFlight) {
	if p == nil {
		return
	}
	var rec containerRecord
	if err := readRecord(filepath.Join(m.containerDir(p.id), recordFile), &rec); err != nil {
		return // removed meanwhile
	}
	if err := cutLog(rec.LogPath, p.at); err != nil {
		m.log.Warn("lines may stand twice in a log: what is in doubt can't be taken out of it", "container", p.id, "log", rec.LogPath, "err", err)
	}
}

// cutLog shortens a log to a place in it. One that is shorter, gone, or another
// file by now (rotated) is left as it is.
func cutLog(path string, at logMark) error {
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	now, err := markOf(f)
	if err != nil {
		return err
	}
	if now.Dev != at.Dev || now.Ino != at.Ino || now.Offset <= at.Offset {
		return nil
	}
	return f.Truncate(at.Offset)
}

// markOf is the end of a log.
func markOf(f *os.File) (logMark, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return logMark{}, err
	}
	return logMark{Dev: uint64(st.Dev), Ino: uint64(st.Ino), Offset: st.Size}, nil
}
