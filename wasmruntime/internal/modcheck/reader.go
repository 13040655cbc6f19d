package modcheck

import (
	"errors"
	"fmt"
	"io"
)

// Reader reads a module through one small buffer. Its first error sticks:
// after it every read gives zero, so that callers check once per loop.
type Reader struct {
	src     io.ReaderAt
	size    int64
	buf     []byte
	base    int64 // file offset of buf[0]
	pos, n  int   // next byte, valid bytes in buf
	end     int64 // file offset that nothing may read past
	section string
	err     error
}

const bufferSize = 32 << 10

// NewReader reads size bytes of src.
func NewReader(src io.ReaderAt, size int64) *Reader {
	return &Reader{src: src, size: size, end: size, buf: make([]byte, min(bufferSize, max(size, 1)))}
}

// Err is the first error.
func (r *Reader) Err() error { return r.err }

// Offset is that of the next byte in the file.
func (r *Reader) Offset() int64 { return r.base + int64(r.pos) }

// Left are the bytes up to the end of the section, or function body.
func (r *Reader) Left() int64 { return r.end - r.Offset() }

func (r *Reader) fail(kind error, format string, args ...any) {
	r.failAt(r.Offset(), []error{kind}, format, args...)
}

func (r *Reader) failAt(off int64, kinds []error, format string, args ...any) {
	if r.err == nil {
		r.err = &Error{Section: r.section, Offset: off, Msg: fmt.Sprintf(format, args...), Kinds: kinds}
	}
}

// Byte reads one.
func (r *Reader) Byte() byte {
	if r.pos < r.n && r.Offset() < r.end && r.err == nil {
		b := r.buf[r.pos]
		r.pos++
		return b
	}
	return r.slowByte()
}

func (r *Reader) slowByte() byte {
	if r.err != nil {
		return 0
	}
	if r.Left() <= 0 {
		r.fail(ErrMalformed, "unexpected end")
		return 0
	}
	r.base, r.pos, r.n = r.Offset(), 0, 0
	n, err := r.src.ReadAt(r.buf[:min(int64(len(r.buf)), r.size-r.base)], r.base)
	if n == 0 {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		r.err = fmt.Errorf("read wasm module at offset %d: %w", r.base, err)
		return 0
	}
	r.n, r.pos = n, 1
	return r.buf[0]
}

// Skip passes over n bytes.
func (r *Reader) Skip(n int64) {
	if r.err != nil {
		return
	}
	if n > r.Left() {
		r.fail(ErrMalformed, "%d bytes announced, %d left", n, r.Left())
		return
	}
	if n <= int64(r.n-r.pos) {
		r.pos += int(n)
		return
	}
	r.base, r.pos, r.n = r.Offset()+n, 0, 0
}

// U32 reads an unsigned LEB128 of at most 32 bits.
func (r *Reader) U32() uint32 {
	var v uint32
	for i := uint(0); i < 5; i++ {
		b := r.Byte()
		if i == 4 && b > 0x0f {
			break
		}
		v |= uint32(b&0x7f) << (7 * i)
		if b < 0x80 {
			return v
		}
	}
	r.fail(ErrMalformed, "LEB128 number over 32 bits")
	return 0
}

// SkipS passes over a signed LEB128 of at most bits bits.
func (r *Reader) SkipS(bits uint) {
	for range (bits + 6) / 7 {
		if r.Byte() < 0x80 {
			return
		}
	}
	r.fail(ErrMalformed, "LEB128 number over %d bits", bits)
}

// Count reads the number of entries that follow, each of at least least
// bytes, and holds it against the limit and the bytes that are left.
func (r *Reader) Count(what string, limit uint32, least int64) uint32 {
	off := r.Offset()
	n := r.U32()
	switch {
	case r.err != nil:
		return 0
	case int64(n)*least > r.Left():
		r.failAt(off, []error{ErrMalformed}, "%d %s announced, %d bytes left", n, what, r.Left())
		return 0
	case n > limit:
		r.failAt(off, []error{ErrTooLarge}, "%d %s, the limit is %d", n, what, limit)
		return 0
	}
	return n
}

// Name reads a name; only its first keep bytes are returned.
func (r *Reader) Name(what string, limit uint32) string {
	n := r.Count("bytes of "+what, limit, 1)
	if r.err != nil {
		return ""
	}
	const keep = 256
	b := make([]byte, 0, min(n, keep))
	for range min(n, keep) {
		b = append(b, r.Byte())
	}
	r.Skip(int64(n) - int64(len(b)))
	return string(b)
}

// skipName passes over a name without allocating.
func (r *Reader) skipName(what string, limit uint32) {
	n := r.Count(what, limit, 1)
	r.Skip(int64(n))
}

// Within narrows the reader to the next n bytes while f runs, and fails if f
// leaves some.
func (r *Reader) Within(what string, n int64, f func()) {
	if r.err != nil {
		return
	}
	if n > r.Left() {
		r.fail(ErrMalformed, "%s of %d bytes announced, %d left", what, n, r.Left())
		return
	}
	outer := r.end
	r.end = r.Offset() + n
	f()
	if r.err == nil && r.Left() > 0 {
		r.fail(ErrMalformed, "%d bytes too many in %s", r.Left(), what)
	}
	r.end = outer
}
