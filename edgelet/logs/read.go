package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Options say what of a log is wanted.
type Options struct {
	// Follow waits for more at the end, as long as Running.
	Follow bool
	// Running says whether the container may still write; nil means that it may not.
	Running func() bool
	// Tail is the number of the container's lines to begin with, from the end; nil means all.
	Tail *int64
	// Since leaves out what is older, if not zero.
	Since time.Time
	// Timestamps puts the time before each line.
	Timestamps bool
	// Limit is the number of bytes after which to end; nil means none.
	Limit *int64
	// Stdout and Stderr may be the same writer, or nil for a stream that isn't wanted.
	Stdout, Stderr io.Writer
	// CaughtUp, if set, is called when all there is was written and Read is about
	// to wait or to return: time to flush.
	CaughtUp func() error
	// Poll is how often to look without a notification; 0 means a second.
	Poll time.Duration
}

// errEnough ends reading at Limit.
var errEnough = errors.New("limit reached")

// settle is how long a container's last words may take from its exit into the file.
const settle = 150 * time.Millisecond

// Read writes the log at path. Lines that can't be parsed are left out. Without
// Follow it reads what is there at the call; with it, until the container no
// longer runs, or ctx ends.
func Read(ctx context.Context, path string, o Options) error {
	if o.Poll <= 0 {
		o.Poll = time.Second
	}
	if o.Running == nil {
		o.Running = func() bool { return false }
	}
	r := &reader{Options: o, remain: math.MaxInt64, begin: map[Stream]bool{Stdout: true, Stderr: true}}
	if o.Limit != nil {
		r.remain = *o.Limit
	}
	err := r.read(ctx, path)
	if errors.Is(err, errEnough) {
		err = nil
	}
	if r.file != nil {
		r.file.Close()
	}
	if o.CaughtUp != nil {
		err = errors.Join(err, o.CaughtUp())
	}
	return err
}

type reader struct {
	Options
	path   string
	file   *os.File
	lines  lineReader
	remain int64
	// begin says for each stream whether its next content begins a line.
	begin map[Stream]bool
	// long is the record whose line didn't fit into the buffer: what follows is more of its content.
	long *Record
	skip bool
}

func (r *reader) read(ctx context.Context, path string) error {
	// Symbolic links, as in /var/log/containers, are followed once: what is watched is where the file really is.
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	r.path = path
	if err := r.open(ctx); err != nil {
		return err
	}
	start, end, err := r.bounds()
	if err != nil {
		return fmt.Errorf("failed to read log file %q: %w", path, err)
	}
	if !r.Follow {
		r.lines = newLineReader(io.NewSectionReader(r.file, start, end-start))
		if err := r.drain(ctx); err != nil {
			return err
		}
		return r.rest()
	}
	if _, err := r.file.Seek(start, io.SeekStart); err != nil {
		return fmt.Errorf("failed to read log file %q: %w", path, err)
	}
	r.lines = newLineReader(r.file)
	return r.follow(ctx)
}

// open waits for the file if it may come: a container may run before its first word.
func (r *reader) open(ctx context.Context) error {
	for {
		f, err := os.Open(r.path)
		if err == nil {
			r.file = f
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) || !r.Follow || !r.Running() {
			return fmt.Errorf("failed to open log file %q: %w", r.path, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(r.Poll):
		}
	}
}

func (r *reader) bounds() (start, end int64, err error) {
	info, err := r.file.Stat()
	if err != nil {
		return 0, 0, err
	}
	end = info.Size()
	if r.Tail == nil {
		return 0, end, nil
	}
	start, err = tailStart(r.file, end, *r.Tail)
	return start, end, err
}

// drain writes all complete lines up to the end of the file.
func (r *reader) drain(ctx context.Context) error {
	for {
		line, whole, err := r.lines.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("failed to read log file %q: %w", r.path, err)
		}
		if err := r.write(line, whole); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// rest writes a last line that has no end.
func (r *reader) rest() error {
	if line := r.lines.rest(); len(line) > 0 {
		return r.write(line, true)
	}
	return nil
}

func (r *reader) follow(ctx context.Context) error {
	w := newWatch(filepath.Dir(r.path))
	defer w.close()
	for {
		running := r.Running()
		if !running {
			// The runtime may be about to write the last lines.
			if err := wait(ctx, settle); err != nil {
				return err
			}
		}
		if err := r.drain(ctx); err != nil {
			return err
		}
		moved, err := r.advance()
		if err != nil {
			return err
		}
		if moved {
			continue
		}
		if !running {
			return r.rest()
		}
		if r.CaughtUp != nil {
			if err := r.CaughtUp(); err != nil {
				return err
			}
		}
		if err := w.wait(ctx, r.Poll); err != nil {
			return err
		}
	}
}

// advance goes to the file that follows the one being read, which was drained,
// if there is one: after a rotation that is a rotated file that we haven't seen,
// or else the new file under the log's name.
func (r *reader) advance() (bool, error) {
	here, err := r.file.Stat()
	if err != nil {
		return false, fmt.Errorf("failed to read log file %q: %w", r.path, err)
	}
	now, err := os.Stat(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // renamed, and the new one isn't there yet
	}
	if err != nil {
		return false, fmt.Errorf("failed to open log file %q: %w", r.path, err)
	}
	if os.SameFile(here, now) {
		return r.truncated(here)
	}
	// The writer turned to the new file before we looked, so one more look at the old one finds its end.
	at, err := r.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return false, fmt.Errorf("failed to read log file %q: %w", r.path, err)
	}
	if old, err := r.file.Stat(); err == nil && old.Size() > at {
		return true, nil
	}
	next := r.path
	if rotated := r.successor(here); rotated != "" {
		next = rotated
	}
	f, err := os.Open(next)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("failed to open log file %q: %w", next, err)
	}
	if err := r.rest(); err != nil {
		f.Close()
		return false, err
	}
	r.file.Close()
	r.file, r.lines, r.long, r.skip = f, newLineReader(f), nil, false
	return true, nil
}

// truncated begins again if the file was cut under us.
func (r *reader) truncated(here fs.FileInfo) (bool, error) {
	at, err := r.file.Seek(0, io.SeekCurrent)
	if err != nil || here.Size() >= at {
		return false, err
	}
	if _, err := r.file.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	r.lines = newLineReader(r.file)
	return true, nil
}

// successor is the rotated file after the one that is here. Rotated files are
// called LOG.TIMESTAMP, so their names sort by age; compressed ones are left out.
func (r *reader) successor(here fs.FileInfo) string {
	entries, err := os.ReadDir(filepath.Dir(r.path))
	if err != nil {
		return ""
	}
	var rotated []string
	for _, e := range entries {
		suffix, ok := strings.CutPrefix(e.Name(), filepath.Base(r.path)+".")
		if ok && !strings.HasSuffix(suffix, ".gz") && !strings.HasSuffix(suffix, ".tmp") {
			rotated = append(rotated, filepath.Join(filepath.Dir(r.path), e.Name()))
		}
	}
	slices.Sort(rotated)
	for i, name := range rotated {
		if info, err := os.Stat(name); err == nil && os.SameFile(info, here) && i+1 < len(rotated) {
			return rotated[i+1]
		}
	}
	return ""
}

// write puts out one line of the file, or a part of one that is too long for the buffer.
func (r *reader) write(line []byte, whole bool) error {
	var rec Record
	switch {
	case r.long != nil:
		rec = *r.long
		if rec.Content = line; rec.Partial && whole {
			rec.Content = line[:max(0, len(line)-1)]
		}
	case r.skip:
		r.skip = !whole
		return nil
	default:
		var err error
		if rec, err = Parse(line); err != nil || rec.Time.Before(r.Since) {
			r.skip = !whole
			return nil
		}
	}
	prefix := r.long == nil && r.Timestamps && r.begin[rec.Stream]
	if r.long = nil; !whole {
		more := rec
		r.long = &more
	}
	r.begin[rec.Stream] = !rec.Partial && whole
	out := r.Stdout
	if rec.Stream == Stderr {
		out = r.Stderr
	}
	if out == nil {
		return nil
	}
	if prefix {
		if err := r.put(out, rec.Time.AppendFormat(nil, timeOut+" ")); err != nil {
			return err
		}
	}
	return r.put(out, rec.Content)
}

func (r *reader) put(out io.Writer, data []byte) error {
	if int64(len(data)) > r.remain {
		data = data[:r.remain]
	}
	n, err := out.Write(data)
	r.remain -= int64(n)
	if err != nil {
		return err
	}
	if r.remain <= 0 {
		return errEnough
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
