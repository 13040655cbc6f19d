package rewrite

import (
	"encoding/binary"
	"slices"
)

const (
	idData      = 11
	idDataCount = 12
)

// dataGap is up to how many zero bytes are written between two data segments to make
// one of them. The engine needs more than a hundred bytes for each.
const dataGap = 128

// MergeData makes one data segment of those that follow each other closely. Go's
// linker leaves out every few zeros, and its small programs have thousands of
// segments. The module is returned as it is if its code could name a segment by its
// number, or if one isn't of the plain kind. A memory begins with zeros, so the gaps
// are filled with what is there; segments keep their order, for one may overwrite
// another.
func MergeData(module []byte) ([]byte, error) {
	list, err := sections(module)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(list, func(s section) bool { return s.id == idData })
	if at < 0 || slices.ContainsFunc(list, func(s section) bool { return s.id == idDataCount }) {
		return module, nil
	}
	merged, ok, err := mergeSegments(list[at].body)
	if err != nil || !ok {
		return module, err
	}
	list[at].body = merged
	return join(list), nil
}

// segment is an active one of memory 0.
type segment struct {
	at   uint32
	data []byte
}

func mergeSegments(body []byte) (merged []byte, ok bool, err error) {
	c := cursor{b: body}
	n := c.u32()
	var out []segment
	for range n {
		s, plain := c.segment()
		if c.err != nil {
			return nil, false, c.err
		}
		if !plain {
			return nil, false, nil
		}
		if len(out) > 0 {
			last := &out[len(out)-1]
			end := uint64(last.at) + uint64(len(last.data))
			if gap := uint64(s.at) - end; uint64(s.at) >= end && gap <= dataGap && zeros(out[:len(out)-1], end, gap) {
				last.data = append(append(last.data, make([]byte, gap)...), s.data...)
				continue
			}
		}
		out = append(out, segment{s.at, slices.Clone(s.data)})
	}
	if uint32(len(out)) == n {
		return nil, false, nil
	}
	merged = binary.AppendUvarint(nil, uint64(len(out)))
	for _, s := range out {
		merged = append(merged, 0, 0x41) // memory 0, i32.const
		merged = appendSigned(merged, int32(s.at))
		merged = append(merged, 0x0b)
		merged = binary.AppendUvarint(merged, uint64(len(s.data)))
		merged = append(merged, s.data...)
	}
	return merged, true, nil
}

// zeros says whether the gap at end is known to hold zeros: that no segment before
// has written there.
func zeros(before []segment, end, gap uint64) bool {
	const most = 256 // to look through, per segment
	if gap == 0 {
		return true
	}
	return len(before) <= most && !slices.ContainsFunc(before, func(s segment) bool {
		return uint64(s.at) < end+gap && end < uint64(s.at)+uint64(len(s.data))
	})
}

// segment reads one; plain is false for another kind than `i32.const N`.
func (c *cursor) segment() (s segment, plain bool) {
	head := c.take(2)
	if c.err != nil || head[0] != 0 || head[1] != 0x41 {
		return s, false
	}
	s.at = uint32(c.signed())
	if end := c.take(1); c.err != nil || end[0] != 0x0b {
		return s, false
	}
	s.data = c.take(c.u32())
	return s, true
}

// signed reads a signed LEB128 of 32 bits.
func (c *cursor) signed() int32 {
	var v int64
	for shift := 0; shift < 35; shift += 7 {
		b := c.take(1)
		if c.err != nil {
			return 0
		}
		v |= int64(b[0]&0x7f) << shift
		if b[0]&0x80 == 0 {
			if b[0]&0x40 != 0 {
				v |= -1 << (shift + 7)
			}
			return int32(v)
		}
	}
	c.err = errShape
	return 0
}

func appendSigned(b []byte, v int32) []byte {
	for {
		low := byte(v & 0x7f)
		v >>= 7
		if v == 0 && low&0x40 == 0 || v == -1 && low&0x40 != 0 {
			return append(b, low)
		}
		b = append(b, low|0x80)
	}
}
