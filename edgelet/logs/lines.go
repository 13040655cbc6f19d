package logs

import (
	"bytes"
	"errors"
	"io"
)

// maxLine is how much of one line is held in memory. Runtimes split what
// containers write at 16 KiB; a longer line is passed on in pieces.
const maxLine = 32 << 10

// lineReader gives lines, and keeps one that isn't ended yet for the next call
// after more was written.
type lineReader struct {
	from       io.Reader
	buf        []byte
	start, end int
	scanned    int // no line end in buf[start:scanned]
}

func newLineReader(from io.Reader) lineReader {
	return lineReader{from: from, buf: make([]byte, maxLine)}
}

// next returns a line with its end (whole), or a full buffer of one that is
// longer. It returns io.EOF when there is no more now. The line is valid until the next call.
func (l *lineReader) next() (line []byte, whole bool, err error) {
	for {
		if i := bytes.IndexByte(l.buf[l.scanned:l.end], '\n'); i >= 0 {
			line = l.buf[l.start : l.scanned+i+1]
			l.start += len(line)
			l.scanned = l.start
			return line, true, nil
		}
		l.scanned = l.end
		if l.end-l.start == len(l.buf) {
			line = l.buf
			l.start, l.end, l.scanned = 0, 0, 0
			return line, false, nil
		}
		if l.start > 0 {
			copy(l.buf, l.buf[l.start:l.end])
			l.end -= l.start
			l.start, l.scanned = 0, l.end
		}
		n, err := l.from.Read(l.buf[l.end:])
		l.end += n
		if n == 0 && err != nil {
			return nil, false, err
		}
		if n == 0 {
			return nil, false, io.ErrNoProgress
		}
	}
}

// rest is what came after the last line end; it is gone afterwards.
func (l *lineReader) rest() []byte {
	line := l.buf[l.start:l.end]
	l.start, l.end, l.scanned = 0, 0, 0
	return line
}

// tailStart is where the last n lines of the container begin, in a file of that
// size. Parts of a line count once, with its end; what comes after the last line
// end belongs to the tail in any case. It reads backwards, no more than it needs.
func tailStart(f io.ReaderAt, size, n int64) (int64, error) {
	const block = 16 << 10
	buf := make([]byte, block)
	// Every line end at pos means that a line starts at pos+1. Walking back, a
	// line that is full (F) ends one of the container's lines.
	lineEnd := size // end of the line whose start is being looked for
	seen := int64(0)
	visit := func(start int64) (done bool, err error) {
		if start >= lineEnd {
			return false, nil
		}
		full, err := endsLine(f, start, lineEnd)
		if err != nil {
			return false, err
		}
		if full {
			seen++
		}
		if seen > n {
			return true, nil
		}
		lineEnd = start
		return false, nil
	}
	for right := size; right > 0; {
		left := max(0, right-block)
		part := buf[:right-left]
		if _, err := f.ReadAt(part, left); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		for i := len(part) - 1; i >= 0; i-- {
			if part[i] != '\n' {
				continue
			}
			if done, err := visit(left + int64(i) + 1); done || err != nil {
				return lineEnd, err
			}
		}
		right = left
	}
	if done, err := visit(0); done || err != nil {
		return lineEnd, err
	}
	return 0, nil
}

// endsLine says whether the file's line [start, end) ends one of the container's.
func endsLine(f io.ReaderAt, start, end int64) (bool, error) {
	var buf [96]byte // a timestamp of 35 bytes, the stream, and tags
	head := buf[:min(int64(len(buf)), end-start)]
	if _, err := f.ReadAt(head, start); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	fields := bytes.SplitN(head, []byte(" "), 4)
	if len(fields) < 3 {
		return false, nil // not a record, so not shown
	}
	tag, _, _ := bytes.Cut(bytes.TrimSuffix(fields[2], []byte("\n")), []byte(":"))
	return string(tag) != "P", nil
}
