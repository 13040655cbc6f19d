package state

import (
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
)

var (
	// ErrFull is returned when a write finds no space left on the device that
	// holds the state file. Nothing was changed.
	ErrFull = errors.New("disk full")
	// ErrDisk is returned when the device that holds the state file fails.
	ErrDisk = errors.New("disk failure")
	// ErrLocked is returned by Open when another process uses the state file.
	ErrLocked = errors.New("state file in use")
	// ErrNewer is returned by Open when a later version of edgelet has written
	// the state file.
	ErrNewer = errors.New("state file of a later version")
	// ErrDamaged is returned when an object's bytes aren't those that were
	// stored. The hub sends it again; until then nothing may be concluded from
	// its absence.
	ErrDamaged = errors.New("object damaged on disk")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("state file closed")
	// errCorrupt makes Open set the file aside.
	errCorrupt = errors.New("corrupt")
)

// writeError names the file and what to do.
func (s *Store) writeError(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return fmt.Errorf("%s in %s: %w: %s; free some space there, %s is one place to look (edgelet keeps going with what it has and tries again): %w",
			what, s.path, ErrFull, s.opts.Disk, filepath.Dir(s.path), err)
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%s in %s: %w: %s; check the card or disk and its mount: %w", what, s.path, ErrDisk, s.opts.Disk, err)
	}
	return fmt.Errorf("%s in %s: %w", what, s.path, err)
}
