package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// bbolt trusts its file: on a damaged page it panics, when opening even in a
// goroutine of its own, which nobody can recover from, and a mapping longer than
// the file faults. So everything that is reachable is checked before bbolt sees
// it. The format is bbolt's (internal/common/{page,meta,inode,bucket}.go), little
// endian as on all machines that we build for.

const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHeader  = 16
	branchFlag  = 0x01
	leafFlag    = 0x02
	bucketFlag  = 0x01
	elementSize = 16
	maxDepth    = 32
	maxPages    = 1 << 20 // 4 GiB: no state file is that large
)

type meta struct {
	pageSize uint32
	root     uint64
	pages    uint64 // high water mark
	txid     uint64
}

// verify checks the file's structure: every page that can be reached is where it
// must be, holds what it must, and is used once. It returns the size the file
// must at least have, in bytes.
func verify(r io.ReaderAt, size int64) (need int64, err error) {
	m, err := newestMeta(r, size)
	if err != nil {
		return 0, err
	}
	v := &verifier{r: r, size: size, meta: m, seen: map[uint64]bool{}}
	if err := v.bucket(m.root, 0); err != nil {
		return 0, err
	}
	return int64(m.pages) * int64(m.pageSize), nil
}

// newestMeta returns the newer of the valid meta pages.
func newestMeta(r io.ReaderAt, size int64) (meta, error) {
	var best meta
	found := false
	try := func(at int64) (meta, bool) {
		m, err := readMeta(r, at)
		if err != nil {
			return m, false
		}
		if !found || m.txid > best.txid {
			best, found = m, true
		}
		return m, true
	}
	if m, ok := try(0); ok {
		try(int64(m.pageSize))
	} else {
		// As bbolt, look where the second one is for each size of page.
		for i := 0; i <= 15; i++ {
			try(1024 << i)
		}
	}
	if !found {
		return best, errors.New("neither meta page is valid")
	}
	if size < 2*int64(best.pageSize) {
		return best, errors.New("shorter than two pages")
	}
	return best, nil
}

func readMeta(r io.ReaderAt, at int64) (meta, error) {
	buf := make([]byte, pageHeader+64)
	if _, err := r.ReadAt(buf, at); err != nil {
		return meta{}, err
	}
	le := binary.LittleEndian
	b := buf[pageHeader:]
	sum := fnv.New64a()
	sum.Write(b[:56])
	m := meta{pageSize: le.Uint32(b[8:]), root: le.Uint64(b[16:]), pages: le.Uint64(b[40:]), txid: le.Uint64(b[48:])}
	switch {
	case le.Uint32(b) != boltMagic || le.Uint32(b[4:]) != boltVersion || le.Uint64(b[56:]) != sum.Sum64():
		return m, errors.New("not a meta page")
	case m.pageSize < 512 || m.pageSize > 64<<10 || m.pageSize&(m.pageSize-1) != 0:
		return m, fmt.Errorf("page size %d", m.pageSize)
	case m.pages < 2 || m.pages > maxPages:
		return m, fmt.Errorf("%d pages", m.pages)
	}
	return m, nil
}

type verifier struct {
	r    io.ReaderAt
	size int64
	meta meta
	seen map[uint64]bool
}

// page reads a page with its overflow, and takes note that it is used.
func (v *verifier) page(id uint64) (flags uint16, count int, data []byte, err error) {
	at := int64(id) * int64(v.meta.pageSize)
	if id < 2 || id >= v.meta.pages || at+int64(v.meta.pageSize) > v.size {
		return 0, 0, nil, fmt.Errorf("page %d is outside", id)
	}
	header := make([]byte, pageHeader)
	if _, err := v.r.ReadAt(header, at); err != nil {
		return 0, 0, nil, fmt.Errorf("page %d: %w", id, err)
	}
	le := binary.LittleEndian
	if own := le.Uint64(header); own != id {
		return 0, 0, nil, fmt.Errorf("page %d says that it is %d", id, own)
	}
	overflow := uint64(le.Uint32(header[12:]))
	end := id + overflow
	if end >= v.meta.pages || int64(end+1)*int64(v.meta.pageSize) > v.size {
		return 0, 0, nil, fmt.Errorf("page %d runs over the end", id)
	}
	for p := id; p <= end; p++ {
		if v.seen[p] {
			return 0, 0, nil, fmt.Errorf("page %d is used twice", p)
		}
		v.seen[p] = true
	}
	data = make([]byte, int(overflow+1)*int(v.meta.pageSize))
	if _, err := v.r.ReadAt(data, at); err != nil {
		return 0, 0, nil, fmt.Errorf("page %d: %w", id, err)
	}
	return le.Uint16(header[8:]), int(le.Uint16(header[10:])), data, nil
}

func (v *verifier) bucket(root uint64, depth int) error {
	return v.tree(root, depth, nil, nil)
}

// tree checks the page and what is below it. Keys are in [low, high); a nil high
// has no end.
func (v *verifier) tree(id uint64, depth int, low, high []byte) error {
	if depth > maxDepth {
		return fmt.Errorf("page %d is nested too deeply", id)
	}
	flags, count, data, err := v.page(id)
	if err != nil {
		return err
	}
	switch flags {
	case leafFlag:
		return v.leaf(fmt.Sprintf("page %d", id), data, count, depth, low, high)
	case branchFlag:
		if count == 0 {
			return fmt.Errorf("branch page %d is empty", id)
		}
		return v.branch(id, data, count, depth, low, high)
	}
	return fmt.Errorf("page %d has flags %#x", id, flags)
}

func (v *verifier) branch(id uint64, data []byte, count, depth int, low, high []byte) error {
	le := binary.LittleEndian
	keys := make([][]byte, count)
	children := make([]uint64, count)
	for i := range count {
		e := pageHeader + i*elementSize
		if e+elementSize > len(data) {
			return fmt.Errorf("branch page %d has %d elements", id, count)
		}
		key, err := slice(data, e, le.Uint32(data[e:]), le.Uint32(data[e+4:]))
		if err != nil {
			return fmt.Errorf("branch page %d, element %d: %w", id, i, err)
		}
		keys[i], children[i] = key, le.Uint64(data[e+8:])
	}
	if err := ordered(keys, low, high); err != nil {
		return fmt.Errorf("branch page %d: %w", id, err)
	}
	for i, child := range children {
		end := high
		if i+1 < count {
			end = keys[i+1]
		}
		if err := v.tree(child, depth+1, keys[i], end); err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) leaf(name string, data []byte, count, depth int, low, high []byte) error {
	le := binary.LittleEndian
	keys := make([][]byte, count)
	for i := range count {
		e := pageHeader + i*elementSize
		if e+elementSize > len(data) {
			return fmt.Errorf("leaf %s has %d elements", name, count)
		}
		flags, pos, ksize, vsize := le.Uint32(data[e:]), le.Uint32(data[e+4:]), le.Uint32(data[e+8:]), le.Uint32(data[e+12:])
		key, err := slice(data, e, pos, ksize)
		if err != nil {
			return fmt.Errorf("leaf %s, element %d: %w", name, i, err)
		}
		keys[i] = key
		if uint64(pos)+uint64(ksize) > 1<<31 {
			return fmt.Errorf("leaf %s, element %d is outside", name, i)
		}
		value, err := slice(data, e, pos+ksize, vsize)
		if err != nil {
			return fmt.Errorf("leaf %s, value %d: %w", name, i, err)
		}
		if flags&bucketFlag == 0 {
			continue
		}
		if len(value) < 16 {
			return fmt.Errorf("leaf %s: bucket %q is cut", name, key)
		}
		if root := le.Uint64(value); root != 0 {
			if err := v.bucket(root, depth+1); err != nil {
				return fmt.Errorf("bucket %q: %w", key, err)
			}
			continue
		}
		if err := v.inline(key, value[16:], depth+1); err != nil {
			return err
		}
	}
	if err := ordered(keys, low, high); err != nil {
		return fmt.Errorf("leaf %s: %w", name, err)
	}
	return nil
}

// inline is a bucket that is so small that its page lies in its parent's value.
func (v *verifier) inline(key, page []byte, depth int) error {
	if depth > maxDepth || len(page) < pageHeader {
		return fmt.Errorf("inline bucket %q is cut", key)
	}
	le := binary.LittleEndian
	if flags := le.Uint16(page[8:]); flags != leafFlag {
		return fmt.Errorf("inline bucket %q has flags %#x", key, flags)
	}
	return v.leaf(fmt.Sprintf("of inline bucket %q", key), page, int(le.Uint16(page[10:])), depth, nil, nil)
}

// slice is what an element at e points to, pos bytes on.
func slice(data []byte, e int, pos, size uint32) ([]byte, error) {
	from := uint64(e) + uint64(pos)
	to := from + uint64(size)
	if to > uint64(len(data)) {
		return nil, errors.New("points outside its page")
	}
	return data[from:to], nil
}

func ordered(keys [][]byte, low, high []byte) error {
	for i, k := range keys {
		switch {
		case i > 0 && bytes.Compare(keys[i-1], k) >= 0:
			return errors.New("keys out of order")
		case low != nil && i == 0 && bytes.Compare(k, low) < 0, high != nil && bytes.Compare(k, high) >= 0:
			return errors.New("keys outside their range")
		}
	}
	return nil
}
