package state

import (
	"os"
	"syscall"
)

// tryLock takes the lock that bbolt takes, shared.
func tryLock(f *os.File) (unlock func(), held bool) {
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
		return nil, false
	}
	return func() { _ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }, true
}
