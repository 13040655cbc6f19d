package rewrite

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/coracle-edge/coracle/wasmruntime/internal/modcheck"
)

// errShape is returned for what modcheck.Check wouldn't have admitted.
var errShape = errors.New("wasm module changed after it was checked")

const (
	idCustom   = 0
	idType     = 1
	idImport   = 2
	idFunction = 3
	idTable    = 4
	idCode     = 10
)

// section is one of a module: its contents without id and size.
type section struct {
	id   byte
	body []byte
}

// sections splits a module.
func sections(module []byte) ([]section, error) {
	if len(module) < 8 {
		return nil, errShape
	}
	var out []section
	for rest := module[8:]; len(rest) > 0; {
		id := rest[0]
		size, n := binary.Uvarint(rest[1:])
		if n <= 0 || size > uint64(len(rest)-1-n) {
			return nil, errShape
		}
		body := rest[1+n:][:size]
		out = append(out, section{id, body})
		rest = rest[1+n+int(size):]
	}
	return out, nil
}

// join makes a module of sections again.
func join(list []section) []byte {
	size := 8
	for _, s := range list {
		size += len(s.body) + 6
	}
	out := make([]byte, 0, size)
	out = append(out, "\x00asm\x01\x00\x00\x00"...)
	for _, s := range list {
		out = append(out, s.id)
		out = binary.AppendUvarint(out, uint64(len(s.body)))
		out = append(out, s.body...)
	}
	return out
}

// cursor reads what Check has admitted; err sticks.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) u32() uint32 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.err, c.b = errShape, nil
		return 0
	}
	c.b = c.b[n:]
	return uint32(v)
}

func (c *cursor) take(n uint32) []byte {
	if uint64(n) > uint64(len(c.b)) {
		c.err, c.b = errShape, nil
		return nil
	}
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

// CapTables gives tables without a maximum, or with a higher one, the maximum
// most: table.grow beyond it gives -1. The module is returned as it is if
// there is nothing to do.
func CapTables(module []byte, most uint32) ([]byte, error) {
	list, err := sections(module)
	if err != nil {
		return nil, err
	}
	changed := false
	for i, s := range list {
		if s.id != idTable {
			continue
		}
		c := cursor{b: s.body}
		n := c.u32()
		out := binary.AppendUvarint(nil, uint64(n))
		for range n {
			head := c.take(2)
			if c.err != nil {
				return nil, c.err
			}
			low, high := c.u32(), most
			if head[1] == 1 {
				high = min(c.u32(), most)
			}
			out = append(out, head[0], 1)
			out = binary.AppendUvarint(out, uint64(low))
			out = binary.AppendUvarint(out, uint64(max(low, high)))
		}
		if c.err != nil {
			return nil, c.err
		}
		if !bytes.Equal(out, s.body) {
			list[i].body, changed = out, true
		}
	}
	if !changed {
		return module, nil
	}
	return join(list), nil
}

// Stub replaces all function bodies by one that traps, and drops custom
// sections but a name section of at most names bytes.
func Stub(module []byte, names int) ([]byte, error) {
	list, err := sections(module)
	if err != nil {
		return nil, err
	}
	out := list[:0]
	for _, s := range list {
		switch s.id {
		case idCode:
			c := cursor{b: s.body}
			n := c.u32()
			body := binary.AppendUvarint(nil, uint64(n))
			for range n {
				body = append(body, 3, 0, 0x00, 0x0b) // no locals, unreachable, end
			}
			s.body = body
		case idCustom:
			c := cursor{b: s.body}
			if name := c.take(c.u32()); string(name) != "name" || len(s.body) > names {
				continue
			}
		}
		out = append(out, s)
	}
	return join(out), nil
}

// remainders are the helpers: opcode, its type and its code.
// rem_s must give 0 for -1 as divisor, where div_s would trap for the least
// number; a divisor of 0 traps in div as it does in rem.
var remainders = [...]struct {
	op   byte
	typ  byte
	code []byte
}{
	{op: 0x6f, typ: 0x7f, code: signedRem(0x7f, 0x41, 0x46, 0x6d, 0x6c, 0x6b)},
	{op: 0x70, typ: 0x7f, code: unsignedRem(0x6e, 0x6c, 0x6b)},
	{op: 0x81, typ: 0x7e, code: signedRem(0x7e, 0x42, 0x51, 0x7f, 0x7e, 0x7d)},
	{op: 0x82, typ: 0x7e, code: unsignedRem(0x80, 0x7e, 0x7d)},
}

func signedRem(typ, constant, eq, div, mul, sub byte) []byte {
	return []byte{
		0,       // no locals
		0x20, 1, // local.get 1
		constant, 0x7f, // -1
		eq,
		0x04, typ, // if
		constant, 0, // 0
		0x05,                      // else
		0x20, 0, 0x20, 0, 0x20, 1, // a a b
		div, 0x20, 1, mul, sub,
		0x0b, 0x0b,
	}
}

func unsignedRem(div, mul, sub byte) []byte {
	return []byte{0, 0x20, 0, 0x20, 0, 0x20, 1, div, 0x20, 1, mul, sub, 0x0b}
}

// ReplaceRemainders replaces i32 and i64 rem_s and rem_u by calls of helper
// functions that are put behind the module's own, so that no index changes.
func ReplaceRemainders(module []byte) ([]byte, error) {
	list, err := sections(module)
	if err != nil {
		return nil, err
	}
	var types, functions, imports, code *section
	for i := range list {
		switch list[i].id {
		case idType:
			types = &list[i]
		case idImport:
			imports = &list[i]
		case idFunction:
			functions = &list[i]
		case idCode:
			code = &list[i]
		}
	}
	if types == nil || functions == nil || code == nil {
		return module, nil
	}
	tc, fc := cursor{b: types.body}, cursor{b: functions.body}
	nTypes, nOwn := tc.u32(), fc.u32()
	nImported, err := importedFunctions(imports)
	if err != nil {
		return nil, err
	}
	first := nImported + nOwn
	body, used, err := replaceInCode(code.body, first)
	if err != nil || !used {
		return module, err
	}
	// Two types, (i32 i32)->i32 and (i64 i64)->i64, and the four helpers.
	typeBody := binary.AppendUvarint(nil, uint64(nTypes+2))
	typeBody = append(typeBody, tc.b...)
	typeBody = append(typeBody, 0x60, 2, 0x7f, 0x7f, 1, 0x7f, 0x60, 2, 0x7e, 0x7e, 1, 0x7e)
	funcBody := binary.AppendUvarint(nil, uint64(nOwn)+uint64(len(remainders)))
	funcBody = append(funcBody, fc.b...)
	for _, r := range remainders {
		t := nTypes
		if r.typ == 0x7e {
			t++
		}
		funcBody = binary.AppendUvarint(funcBody, uint64(t))
		body = binary.AppendUvarint(body, uint64(len(r.code)))
		body = append(body, r.code...)
	}
	types.body, functions.body, code.body = typeBody, funcBody, body
	return join(list), nil
}

func importedFunctions(imports *section) (uint32, error) {
	if imports == nil {
		return 0, nil
	}
	c := cursor{b: imports.body}
	var funcs uint32
	for n := c.u32(); n > 0 && c.err == nil; n-- {
		c.take(c.u32())
		c.take(c.u32())
		kind := c.take(1)
		if c.err != nil || kind[0] != 0 {
			// Check admits functions only.
			return 0, fmt.Errorf("%w: an import that is no function", errShape)
		}
		c.u32()
		funcs++
	}
	return funcs, c.err
}

// replaceInCode gives the new contents of the code section, with the count of
// the helpers included, which stand at index first and after.
func replaceInCode(code []byte, first uint32) (out []byte, used bool, err error) {
	c := cursor{b: code}
	n := c.u32()
	out = make([]byte, 0, len(code)+len(code)/64+256)
	out = binary.AppendUvarint(out, uint64(n)+uint64(len(remainders)))
	var scratch []byte
	for range n {
		body := c.take(c.u32())
		if c.err != nil {
			return nil, false, c.err
		}
		scratch = scratch[:0]
		done := int64(0)
		r := modcheck.NewReader(bytes.NewReader(body), int64(len(body)))
		most := ^uint32(0)
		modcheck.Walk(r, modcheck.WalkLimits{Locals: most, Nesting: most, BranchTargets: most}, func(off int64, op byte) {
			for i, rem := range remainders {
				if rem.op == op {
					scratch = append(scratch, body[done:off]...)
					scratch = append(scratch, 0x10) // call
					scratch = binary.AppendUvarint(scratch, uint64(first)+uint64(i))
					done = off + 1
				}
			}
		})
		if r.Err() != nil {
			return nil, false, r.Err()
		}
		if done > 0 {
			used = true
			body = append(scratch, body[done:]...)
			scratch = body
		}
		out = binary.AppendUvarint(out, uint64(len(body)))
		out = append(out, body...)
	}
	return out, used, nil
}
