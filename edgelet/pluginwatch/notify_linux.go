package pluginwatch

import (
	"os"

	"golang.org/x/sys/unix"
)

// notifier says that something in one of its folders came or went.
type notifier struct {
	file    *os.File
	changed chan struct{} // capacity 1
	done    chan struct{}
}

func newNotify() (*notifier, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	n := &notifier{file: os.NewFile(uintptr(fd), "inotify"), changed: make(chan struct{}, 1), done: make(chan struct{})}
	go n.run()
	return n, nil
}

// add watches a folder; adding it again changes nothing.
func (n *notifier) add(dir string) error {
	raw, err := n.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		const mask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_ONLYDIR
		_, failed = unix.InotifyAddWatch(int(fd), dir, mask)
	})
	if err == nil && failed != nil {
		err = &os.PathError{Op: "inotify_add_watch", Path: dir, Err: failed}
	}
	return err
}

// run ends when the file is closed. What happened doesn't matter: the folder is
// read again.
func (n *notifier) run() {
	defer close(n.done)
	buf := make([]byte, 4096)
	for {
		if _, err := n.file.Read(buf); err != nil {
			return
		}
		select {
		case n.changed <- struct{}{}:
		default:
		}
	}
}

func (n *notifier) close() {
	n.file.Close()
	<-n.done
}

func identify(path string) (socketID, bool) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return socketID{}, false
	}
	return socketID{st.Ino, st.Ctim.Nano()}, true
}
