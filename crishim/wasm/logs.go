package wasm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/internal/fdwatch"
)

// maxLine is the longest piece of a line in a CRI log; longer lines are split
// into P (partial) pieces and a last F (full) one, as containerd does it.
const maxLine = 16 << 10

// logPump copies a guest's output from its FIFOs into its log, in the CRI's
// format. Bytes are taken out of a FIFO only after their lines were written:
// they are looked at with tee(2) first, and an unfinished line stays in the
// FIFO. So nothing is lost if this process is killed, and inflight sees to it
// that nothing is doubled. A pump holds no buffer of its own, and has a goroutine only
// while there is something to copy.
type logPump struct {
	id      string // of the container
	path    string // empty: output is thrown away
	log     *slog.Logger
	now     func() time.Time
	scratch *logScratch
	watcher *fdwatch.Watcher
	fifos   []*logFIFO
	ending  chan struct{} // closed by stop

	throttle throttle

	follows sync.Mutex // guards what follows, and the following of all FIFOs
	ended   bool       // by stop: nobody begins to follow
	wg      sync.WaitGroup

	mu   sync.Mutex // guards what follows, and orders the lines of both streams
	file *os.File
	lost int // bytes that couldn't be written
	// written is what the throttle hasn't heard of yet.
	written int
}

type logFIFO struct {
	stream string
	fd     int // for reading and writing, non-blocking; -1 when it is closed
	watch  fdwatch.Watch
	// followed: a goroutine copies what is in it; again: more came since it looked.
	followed, again bool
	// shown counts bytes at the start of the FIFO that those who are attached
	// have: an unfinished line stays there, and they don't wait for its end.
	shown int
	taps  taps
}

// logScratch is a pipe and a buffer that all pumps share, one at a time.
type logScratch struct {
	mu   sync.Mutex
	r, w int
	buf  []byte
	out  []byte

	inflight inflight
	// dies, in tests, ends a pump between two steps as a SIGKILL does.
	dies func(p *logPump, step string) bool
}

const scratchSize = 64 << 10 // a pipe's capacity

func (s *logScratch) open() error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	s.r, s.w = p[0], p[1]
	return nil
}

func (s *logScratch) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	unix.Close(s.r)
	unix.Close(s.w)
	s.inflight.close()
}

// openLogs opens log and FIFOs of a container, before its guest starts or when
// it is taken over. Both ends of the FIFOs are held open: they have no end of
// file, and keep what a guest wrote after it has ended.
func (m *Manager) openLogs(rec *containerRecord, takeover bool) (*logPump, error) {
	p := &logPump{id: rec.ID, path: rec.LogPath, log: m.log, now: m.opts.Now, scratch: &m.scratch, watcher: &m.watcher, ending: make(chan struct{})}
	if takeover && p.path != "" {
		if err := cutTornLine(p.path); err != nil {
			p.log.Warn("log can't be repaired", "container", p.id, "log", p.path, "err", err)
		}
	}
	if err := p.openFile(); err != nil {
		return nil, err
	}
	for _, stream := range []string{"stdout", "stderr"} {
		path := filepath.Join(rec.Spec.Dir, stream)
		if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
			p.abandon()
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		fd, err := openFIFO(path)
		if err != nil {
			p.abandon()
			return nil, err
		}
		p.fifos = append(p.fifos, &logFIFO{stream: stream, fd: fd})
	}
	for _, in := range p.fifos {
		// Edge-triggered: an unfinished line that stays in the FIFO wakes nobody until
		// the guest adds to it.
		watch, err := p.watcher.Add(in.fd, func() { p.came(in) })
		if err != nil {
			p.abandon()
			return nil, fmt.Errorf("log stream %s: %w", in.stream, err)
		}
		p.follows.Lock()
		in.watch = watch
		p.follows.Unlock()
	}
	return p, nil
}

// openFIFO opens one for both ends, which doesn't wait for anybody.
func openFIFO(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return fd, nil
	}
}

// abandon gives up a pump that could not be opened whole.
func (p *logPump) abandon() {
	p.stop()
	p.wait()
}

// came has what came copied, by a goroutine that ends when there is no more: guests
// are silent most of the time.
func (p *logPump) came(in *logFIFO) {
	p.follows.Lock()
	defer p.follows.Unlock()
	switch {
	case p.ended:
	case in.followed:
		in.again = true
	default:
		in.followed = true
		p.wg.Go(func() { p.follow(in) })
	}
}

// follow copies what is there, until stop or drain.
func (p *logPump) follow(in *logFIFO) {
	for {
		for p.copy(in, in.fd, false) {
			in.taps.awaitRoom(p.ending)
			p.pause()
		}
		p.follows.Lock()
		if !in.again || p.ended {
			in.followed = false
			p.follows.Unlock()
			return
		}
		in.again = false
		p.follows.Unlock()
	}
}

// stop ends following. What is in the FIFOs stays there.
func (p *logPump) stop() {
	p.follows.Lock()
	defer p.follows.Unlock()
	if p.ended {
		return
	}
	p.ended = true
	if p.ending != nil {
		close(p.ending)
	}
	for _, in := range p.fifos {
		in.watch.Remove()
	}
}

// wait returns when following has ended, and closes everything.
func (p *logPump) wait() {
	p.wg.Wait()
	for _, in := range p.fifos {
		if in.fd >= 0 {
			unix.Close(in.fd)
			in.fd = -1
		}
		in.taps.close()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file != nil {
		p.file.Close()
		p.file = nil
	}
}

// drain is called when the guest has ended: it copies what is left in the
// FIFOs, the last line too if it is unfinished. rest is what the runner took out
// of them, of stdout and of stderr; writeRest appends it.
func (p *logPump) drain(rest ...[]byte) {
	p.stop()
	p.wg.Wait()
	for i, in := range p.fifos {
		for p.copy(in, in.fd, len(rest[i]) == 0) {
		}
		in.show(rest[i])
	}
}

// mark is where the log ends; false if there is none.
func (p *logPump) mark() (logMark, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		return logMark{}, false
	}
	at, err := markOf(p.file)
	return at, err == nil
}

// writeRest appends what the runner took out of the FIFOs.
func (p *logPump) writeRest(rest ...[]byte) {
	p.scratch.mu.Lock()
	defer p.scratch.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, in := range p.fifos {
		p.write(in.stream, rest[i], true)
	}
}

// copy moves one batch from a FIFO to the log and says whether it moved any.
func (p *logPump) copy(in *logFIFO, fd int, last bool) bool {
	s := p.scratch
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buf == nil {
		s.buf = make([]byte, scratchSize)
	}
	n, err := tee(fd, s.w, scratchSize)
	if err != nil || n <= 0 {
		return false
	}
	full := pipeFull(s.w)
	seen, err := readFull(s.r, s.buf[:n])
	if err != nil || seen == 0 || p.isDead("seen") {
		return false
	}
	in.show(s.buf[:seen])
	p.mu.Lock() // until it is taken: the log's end must not become another's
	defer p.mu.Unlock()
	var before logMark
	if p.file != nil {
		if before, err = markOf(p.file); err == nil {
			s.inflight.begin(p.id, before, s.buf[0])
		}
	}
	if p.isDead("begun") {
		return false
	}
	lost := p.lost
	taken := p.write(in.stream, s.buf[:seen], last)
	if taken == 0 && (full || pipeFull(fd)) {
		// No end of line and no room for one: users with many pipes get them
		// of two pages, less than the longest line.
		taken = p.writePiece(in.stream, s.buf[:seen])
	}
	if p.isDead("written") {
		return false
	}
	if taken == 0 {
		s.inflight.end()
		return false
	}
	got, _ := s.inflight.take(fd, s.buf[:taken])
	in.shown -= got
	if p.isDead("taken") {
		return false
	}
	if got == 0 {
		// The guest ended, and its runner took all of it for the exit record.
		p.lost = lost
		if p.file != nil && before.Ino != 0 {
			_ = p.file.Truncate(before.Offset)
		}
	}
	s.inflight.end()
	return got == taken
}

// show gives what is new in data, which begins where the FIFO does, to those who
// are attached.
func (in *logFIFO) show(data []byte) {
	if in.shown < len(data) {
		in.taps.put(data[in.shown:])
		in.shown = len(data)
	}
}

func (p *logPump) isDead(step string) bool { return p.scratch.dies != nil && p.scratch.dies(p, step) }

// write appends the finished lines of data, and pieces of a line that is too
// long, and returns how many bytes of data that was. The caller holds the
// scratch and the pump's lock.
func (p *logPump) write(stream string, data []byte, last bool) (taken int) {
	stamp := p.now().UTC().Format(time.RFC3339Nano)
	out := p.scratch.out[:0]
	piece := func(tag byte, line []byte) {
		out = append(out, stamp...)
		out = append(out, ' ')
		out = append(out, stream...)
		out = append(out, ' ', tag, ' ')
		out = append(out, line...)
		out = append(out, '\n')
	}
	for rest := data; len(rest) > 0; rest = data[taken:] {
		if len(out) > 2*scratchSize { // a rest may be longer than a batch
			p.append(out, len(out))
			out = out[:0]
		}
		end := bytes.IndexByte(rest, '\n')
		switch {
		case end >= 0 && end <= maxLine:
			piece('F', rest[:end])
			taken += end + 1
			continue
		case len(rest) >= maxLine:
			piece('P', rest[:maxLine])
			taken += maxLine
			continue
		case last:
			piece('F', rest)
			taken += len(rest)
		}
		break
	}
	if cap(out) <= 4*scratchSize {
		p.scratch.out = out
	}
	if len(out) > 0 {
		p.append(out, len(out))
	}
	return taken
}

// writePiece appends data as a piece of a line. The caller holds the scratch
// and the pump's lock.
func (p *logPump) writePiece(stream string, data []byte) int {
	head := fmt.Sprintf("%s %s P ", p.now().UTC().Format(time.RFC3339Nano), stream)
	p.append(append(append([]byte(head), data...), '\n'), len(data))
	return len(data)
}

// append writes whole lines. On a full disk lines are dropped, not the guest
// stopped; when there is room again the log says how much is missing.
func (p *logPump) append(lines []byte, bytes int) {
	if p.path == "" {
		return
	}
	if p.file == nil {
		if err := p.openFile(); err != nil {
			p.drop(bytes, err)
			return
		}
	}
	if p.lost > 0 {
		note := fmt.Sprintf("%s stderr F [coracle: %d bytes of output are missing here, the log could not be written]\n", p.now().UTC().Format(time.RFC3339Nano), p.lost)
		lines = append([]byte(note), lines...)
	}
	n, err := p.file.Write(lines)
	if err != nil {
		if n > 0 {
			if fi, serr := p.file.Stat(); serr == nil {
				_ = p.file.Truncate(fi.Size() - int64(n))
			}
		}
		p.drop(bytes, err)
		return
	}
	p.lost = 0
	p.written += n
}

func (p *logPump) drop(bytes int, err error) {
	if p.lost == 0 {
		p.log.Warn("log can't be written, output is dropped", "container", p.id, "log", p.path, "err", err)
	}
	p.lost += bytes
}

func (p *logPump) openFile() error {
	if p.path == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(p.path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(p.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	p.file = f
	return nil
}

// reopen is called after the kubelet has renamed the log.
func (p *logPump) reopen() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.file
	if err := p.openFile(); err != nil {
		return err
	}
	if old != nil {
		return old.Close()
	}
	return nil
}

// cutTornLine removes an unfinished last line, which a power cut leaves: readers
// of logs want whole ones.
func cutTornLine(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size == 0 {
		return err
	}
	tail := make([]byte, min(size, 4*maxLine))
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil {
		return err
	}
	keep := size - int64(len(tail)) + int64(bytes.LastIndexByte(tail, '\n')) + 1
	if keep == size {
		return nil
	}
	return f.Truncate(keep)
}

// tee returns how many bytes it copied. On 32-bit ARM x/sys makes an int64 of
// two registers, the second of which the kernel never set.
func tee(from, to, n int) (int, error) {
	for {
		got, err := unix.Tee(from, to, n, unix.SPLICE_F_NONBLOCK)
		if err != syscall.EINTR {
			return int(int32(got)), err
		}
	}
}

// pipeFull says whether a pipe, whose writing end fd is, has no room.
func pipeFull(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 0
}

// readFull reads until buf is full or the pipe is empty.
func readFull(fd int, buf []byte) (n int, err error) {
	for n < len(buf) {
		got, err := unix.Read(fd, buf[n:])
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			return n, nil
		case err != nil:
			return n, err
		case got == 0:
			return n, nil
		}
		n += got
	}
	return n, nil
}
