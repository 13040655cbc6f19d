package logs

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watch wakes up when something in a folder is written, made or renamed. Where
// the kernel has no inotify left (it is bounded per user), it only polls.
type watch struct {
	file   *os.File
	events chan struct{} // capacity 1
	done   chan struct{}
}

func newWatch(dir string) *watch {
	w := &watch{events: make(chan struct{}, 1), done: make(chan struct{})}
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		close(w.done)
		return w
	}
	const mask = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE
	if _, err := unix.InotifyAddWatch(fd, dir, mask); err != nil {
		unix.Close(fd)
		close(w.done)
		return w
	}
	w.file = os.NewFile(uintptr(fd), "inotify")
	go w.run()
	// What was written before the watch began counts as one event.
	w.events <- struct{}{}
	return w
}

// run ends when the file is closed. What happened doesn't matter, only that something did.
func (w *watch) run() {
	defer close(w.done)
	buf := make([]byte, 4096)
	for {
		if _, err := w.file.Read(buf); err != nil {
			return
		}
		select {
		case w.events <- struct{}{}:
		default:
		}
	}
}

// wait returns nil after an event or poll, and ctx's error when that ends.
func (w *watch) wait(ctx context.Context, poll time.Duration) error {
	t := time.NewTimer(poll)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-w.events:
	case <-t.C:
	}
	return nil
}

func (w *watch) close() {
	if w.file != nil {
		w.file.Close()
	}
	<-w.done
}
