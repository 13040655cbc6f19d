package fdwatch

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Watcher watches descriptors. The zero value is ready; it has a goroutine while
// anything is watched. It is safe for concurrent use.
type Watcher struct {
	mu    sync.Mutex
	file  *os.File // of epoll; nil while nothing is watched
	epoll int      // its descriptor
	ready map[uint64]func()
	last  uint64
}

// Watch is one descriptor's.
type Watch struct {
	of *Watcher
	id uint64
	fd int
}

// Add has ready called when fd is or becomes readable, and again whenever more comes
// (epoll(7), edge-triggered): ready has to see to it that all is read. It is called by
// the goroutine that watches all others, too, so it must not block.
//
// An error is the kernel's: a descriptor that can't be watched, or none left. The
// caller closes fd, after [Watch.Remove].
func (w *Watcher) Add(fd int, ready func()) (Watch, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		if err := w.openLocked(); err != nil {
			return Watch{}, err
		}
	}
	// A number of its own: the descriptor's may be another's by the time that an event
	// is looked at.
	w.last++
	h := Watch{of: w, id: w.last, fd: fd}
	w.ready[h.id] = ready
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(uint32(h.id)), Pad: int32(uint32(h.id >> 32))}
	if err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		w.forgetLocked(h.id)
		return Watch{}, fmt.Errorf("watching descriptor %d: %w", fd, err)
	}
	return h, nil
}

// Remove ends a watch; that of the zero value, or one that has ended, is none. A call
// that has begun may go on after it.
func (h Watch) Remove() {
	if h.of == nil {
		return
	}
	h.of.mu.Lock()
	defer h.of.mu.Unlock()
	if _, there := h.of.ready[h.id]; !there {
		return
	}
	_ = unix.EpollCtl(h.of.epoll, unix.EPOLL_CTL_DEL, h.fd, new(unix.EpollEvent)) // not nil: Linux before 2.6.9
	h.of.forgetLocked(h.id)
}

func (w *Watcher) forgetLocked(id uint64) {
	delete(w.ready, id)
	if len(w.ready) == 0 {
		// Ends run, which closes the file. To close it here would wait for run, and so
		// for a call of ready, which may wait for whoever removes a watch.
		_ = w.file.SetReadDeadline(time.Unix(1, 0))
		w.file, w.ready = nil, nil
	}
}

func (w *Watcher) openLocked() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	// Non-blocking, so that Go's poller takes it: waiting takes no thread.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return fmt.Errorf("epoll: %w", err)
	}
	f := os.NewFile(uintptr(fd), "epoll")
	raw, err := f.SyscallConn()
	if err == nil {
		err = f.SetReadDeadline(time.Time{}) // fails if the poller didn't
	}
	if err != nil {
		return errors.Join(fmt.Errorf("epoll: %w", err), f.Close())
	}
	w.file, w.epoll, w.ready = f, fd, map[uint64]func(){}
	go w.run(f, raw)
	return nil
}

// run calls what is ready until there is a deadline.
func (w *Watcher) run(f *os.File, raw syscall.RawConn) {
	defer f.Close()
	_ = raw.Read(func(fd uintptr) bool {
		var events [16]unix.EpollEvent
		for {
			n, err := unix.EpollWait(int(fd), events[:], 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || n == 0 {
				return err != nil
			}
			for _, e := range events[:n] {
				w.call(uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32)
			}
		}
	})
}

func (w *Watcher) call(id uint64) {
	w.mu.Lock()
	ready := w.ready[id]
	w.mu.Unlock()
	if ready != nil {
		ready()
	}
}
