package logs

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

// Stream is where the container wrote.
type Stream string

const (
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
)

// ErrFormat is returned when a line isn't of the CRI's format.
var ErrFormat = errors.New("not a line of a CRI log")

// timeOut has a fixed width, as `kubectl logs --timestamps` shows it.
const timeOut = "2006-01-02T15:04:05.000000000Z07:00"

// Record is one line of a log file.
type Record struct {
	Time   time.Time
	Stream Stream
	// Partial says that the container's line goes on in the stream's next record.
	Partial bool
	// Content includes the line end that the container wrote, unless Partial. It
	// is part of what was parsed.
	Content []byte
}

// Parse reads a line, with its line end if it has one.
func Parse(line []byte) (Record, error) {
	var r Record
	stamp, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok {
		return r, fmt.Errorf("%w: it has no timestamp", ErrFormat)
	}
	var err error
	if r.Time, err = time.Parse(time.RFC3339Nano, string(stamp)); err != nil {
		return r, fmt.Errorf("%w: timestamp %.40q", ErrFormat, stamp)
	}
	stream, rest, ok := bytes.Cut(rest, []byte(" "))
	if r.Stream = Stream(stream); !ok || r.Stream != Stdout && r.Stream != Stderr {
		return r, fmt.Errorf("%w: stream %.20q", ErrFormat, stream)
	}
	tags, content, ok := bytes.Cut(rest, []byte(" "))
	if !ok {
		// An empty line may come without the space: some runtimes trim it.
		if tags, ok = bytes.CutSuffix(tags, []byte("\n")); !ok {
			return r, fmt.Errorf("%w: it has no tag", ErrFormat)
		}
		content = []byte("\n")
	}
	// Tags are separated by ':', and more of them may come one day.
	tag, _, _ := bytes.Cut(tags, []byte(":"))
	if r.Partial = string(tag) == "P"; r.Partial {
		content = bytes.TrimSuffix(content, []byte("\n"))
	}
	r.Content = content
	return r, nil
}
