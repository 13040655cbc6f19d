package modcheck

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// Kind is what a file is by its first eight bytes.
type Kind string

const (
	KindUnknown   Kind = ""
	KindModule    Kind = "module"
	KindComponent Kind = "component"
)

// Import is one import of a module. Names are cut at 256 bytes.
type Import struct {
	Module, Name string
	// Kind is func, table, memory, global or tag.
	Kind string
	// Signature is that of a function of the socket extension, which has
	// several of some; empty for preview 1's.
	Signature Signature
}

// Info is what Check learned of a module.
type Info struct {
	Kind Kind
	// Imports, at most the first 1000 of them.
	Imports []Import
	// Functions and CodeBytes of the code section.
	Functions uint32
	CodeBytes int64
	// MemoryPages is the initial memory in 64 KiB, MemoryMaxPages its
	// declared maximum (0: none declared).
	MemoryPages, MemoryMaxPages uint32
	// HasStart is true if _start is exported as a function.
	HasStart bool
	// Go is true if the Go toolchain made the module.
	Go bool
}

// Sections by id. In a file they stand in the order of rank.
var sections = [...]struct {
	name string
	rank int
}{
	{"custom", 0}, {"type", 1}, {"import", 2}, {"function", 3}, {"table", 4},
	{"memory", 5}, {"global", 7}, {"export", 8}, {"start", 9}, {"element", 10},
	{"code", 12}, {"data", 13}, {"datacount", 11}, {"tag", 6},
}

// SectionName is the name of a section id.
func SectionName(id byte) string {
	if int(id) < len(sections) {
		return sections[id].name
	}
	return fmt.Sprintf("section %d", id)
}

// Check reads the structure of the module in r and says whether it may be
// compiled here; package wasmruntime has the contract.
func Check(r io.ReaderAt, size int64, limits Limits) (Info, error) {
	c := &checker{r: NewReader(r, size), limits: limits.or(DefaultLimits(0)), dataCount: -1}
	c.module(size)
	if c.r.err == nil && len(c.unknown) > 0 {
		c.failUnknown()
	}
	if c.r.err == nil && !c.info.HasStart {
		c.r.failAt(0, []error{ErrUnsupported}, "no function _start is exported: not a WASI command")
	}
	return c.info, c.r.err
}

type checker struct {
	r      *Reader
	limits Limits
	info   Info
	// types: parameter count per type and, while short, their signature.
	types []funcType
	// functions counts imported and own, ownTypes the type of each own one.
	imported, own    uint32
	importedGlobals  uint32
	globals          uint32
	tables, memories uint32
	ownTypes         []uint32
	bodies           uint32
	dataCount        int64
	tableEntries     uint64
	unknown          []string
	unknownAt        int64
}

type funcType struct {
	params    uint32
	signature Signature
}

func (c *checker) module(size int64) {
	r := c.r
	if size > c.limits.ModuleBytes {
		r.failAt(0, []error{ErrTooLarge}, "%d bytes, the limit is %d", size, c.limits.ModuleBytes)
	}
	if size < 8 {
		r.failAt(0, []error{ErrMalformed}, "%d bytes are too few for a module", size)
		return
	}
	var head [8]byte
	for i := range head {
		head[i] = r.Byte()
	}
	switch string(head[:]) {
	case "\x00asm\x01\x00\x00\x00":
		c.info.Kind = KindModule
	case "\x00asm\x0d\x00\x01\x00":
		c.info.Kind = KindComponent
		r.failAt(4, []error{ErrUnsupported}, "this is a component (WASI preview 2 or later); only core modules of WASI preview 1 run here")
	default:
		if string(head[:4]) == "\x00asm" {
			r.failAt(4, []error{ErrUnsupported}, "version % x of the binary format is not known", head[4:])
		} else {
			r.failAt(0, []error{ErrMalformed}, "the file doesn't start with \\0asm but with % x", head[:4])
		}
	}
	rank, customs := 0, uint32(0)
	for r.err == nil && r.Left() > 0 {
		r.section = ""
		off := r.Offset()
		id := r.Byte()
		if int(id) >= len(sections) {
			r.failAt(off, []error{ErrMalformed}, "section id %d is not known", id)
			return
		}
		r.section = SectionName(id)
		if id == 0 {
			if customs++; customs > c.limits.CustomSections {
				r.failAt(off, []error{ErrTooLarge}, "%d custom sections, the limit is %d", customs, c.limits.CustomSections)
			}
		} else {
			if sections[id].rank <= rank {
				r.failAt(off, []error{ErrMalformed}, "it stands twice or after a section that must follow it")
			}
			rank = sections[id].rank
		}
		r.Within("the section", int64(r.U32()), func() { c.sectionBody(id) })
	}
	r.section = "code"
	if r.err == nil && c.bodies != c.own {
		r.fail(ErrMalformed, "%d functions declared, %d bodies", c.own, c.bodies)
	}
	if r.err == nil && c.dataCount > 0 {
		r.section = "data"
		r.fail(ErrMalformed, "%d data segments announced, none there", c.dataCount)
	}
}

func (c *checker) sectionBody(id byte) {
	switch id {
	case 0:
		c.custom()
	case 1:
		c.typeSection()
	case 2:
		c.importSection()
	case 3:
		c.functionSection()
	case 4:
		c.tableSection()
	case 5:
		c.memorySection()
	case 6:
		c.globalSection()
	case 7:
		c.exportSection()
	case 8:
		c.index("start function", c.imported+c.own)
	case 9:
		c.elementSection()
	case 10:
		c.codeSection()
	case 11:
		c.dataSection()
	case 12:
		c.dataCount = int64(c.r.U32())
	default:
		c.r.fail(ErrUnsupported, "exception handling is off in this runtime")
	}
}

// index reads an index below limit.
func (c *checker) index(what string, limit uint32) uint32 {
	off := c.r.Offset()
	i := c.r.U32()
	if c.r.err == nil && i >= limit {
		c.r.failAt(off, []error{ErrMalformed}, "%s has index %d, there are %d", what, i, limit)
	}
	return i
}

func (c *checker) custom() {
	name := c.r.Name("name", c.limits.NameBytes)
	if strings.HasPrefix(name, "go:") || strings.HasPrefix(name, "go.") {
		c.info.Go = true
	}
	c.r.Skip(c.r.Left())
}

func (c *checker) typeSection() {
	r := c.r
	n := r.Count("types", c.limits.Types, 3)
	c.types = make([]funcType, 0, min(n, 4096))
	for i := uint32(0); i < n && r.err == nil; i++ {
		if form := r.Byte(); form != 0x60 && r.err == nil {
			r.fail(ErrUnsupported, "type %d has form %#x; only functions (0x60) are supported", i, form)
			return
		}
		var sig [24]byte
		params := r.Count("parameters", c.limits.Params, 1)
		s := sig[:0]
		for range params {
			if v := c.valueType(); len(s) < 12 {
				s = append(s, v)
			}
		}
		s = append(s, ':')
		results := r.Count("results", c.limits.Results, 1)
		for range results {
			if v := c.valueType(); len(s) < 20 {
				s = append(s, v)
			}
		}
		t := funcType{params: params}
		if params < 12 && results < 2 {
			t.signature = Signature(s)
		}
		c.types = append(c.types, t)
	}
}

// valueType reads one and gives its letter.
func (c *checker) valueType() byte {
	switch t := c.r.Byte(); t {
	case 0x7f:
		return 'i'
	case 0x7e:
		return 'I'
	case 0x7d:
		return 'f'
	case 0x7c:
		return 'F'
	case 0x7b:
		return 'v'
	case 0x70, 0x6f:
		return 'r'
	default:
		c.r.fail(ErrUnsupported, "value type %#x is not supported", t)
		return '?'
	}
}

func (c *checker) refType() {
	if t := c.r.Byte(); t != 0x70 && t != 0x6f {
		c.r.fail(ErrUnsupported, "reference type %#x is not supported", t)
	}
}

func (c *checker) importSection() {
	r := c.r
	n := r.Count("imports", c.limits.Imports, 4)
	for i := uint32(0); i < n && r.err == nil; i++ {
		off := r.Offset()
		imp := Import{Module: r.Name("module name", c.limits.NameBytes), Name: r.Name("name", c.limits.NameBytes)}
		var why string
		switch kind := r.Byte(); kind {
		case 0:
			imp.Kind = "func"
			t := c.index("type", uint32(len(c.types)))
			if r.err != nil {
				return
			}
			why = c.function(&imp, c.types[t].signature)
			c.imported++
		case 1:
			imp.Kind, why = "table", "the host has no tables to import"
			c.tableType()
		case 2:
			imp.Kind, why = "memory", "the host has no memories to import"
			c.memoryType()
		case 3:
			imp.Kind, why = "global", "the host has no globals to import"
			c.valueType()
			r.Byte()
			c.importedGlobals++
			c.globals++
		default:
			r.fail(ErrMalformed, "import %q.%q is of kind %#x", imp.Module, imp.Name, kind)
			return
		}
		if r.err != nil {
			return
		}
		if len(c.info.Imports) < 1000 {
			c.info.Imports = append(c.info.Imports, imp)
		}
		if why != "" {
			if len(c.unknown) == 0 {
				c.unknownAt = off
			}
			c.unknown = append(c.unknown, fmt.Sprintf("%s.%s (%s)", printable(imp.Module), printable(imp.Name), why))
		}
	}
}

// function says what is wrong with an imported function, if anything.
func (c *checker) function(imp *Import, sig Signature) string {
	switch imp.Module {
	case HostModule:
		want := HostSignature(imp.Name)
		socket := SocketSignatures(imp.Name)
		switch {
		case want == sig:
			return c.again(*imp)
		case slices.Contains(socket, sig):
			imp.Signature = sig
			return c.again(*imp)
		case want == "" && len(socket) > 0:
			return fmt.Sprintf("its signature is %s, the socket extension has %s", sig.text(), socket[0].text())
		case want == "":
			return "no such function in WASI preview 1"
		default:
			return fmt.Sprintf("its signature is %s, WASI preview 1 has %s", sig.text(), want.text())
		}
	case "wasi_unstable":
		return "the preview 0 of 2019; build the module for wasm32-wasip1"
	}
	return "the host has only " + HostModule
}

// again says what is wrong with an import whose name was imported before: the
// host can have but one function of a name.
func (c *checker) again(imp Import) string {
	for _, other := range c.info.Imports {
		if other.Module == imp.Module && other.Name == imp.Name && other.Signature != imp.Signature {
			return "it is imported with two signatures"
		}
	}
	return ""
}

func (s Signature) text() string {
	if s == "" {
		return "another one"
	}
	names := map[byte]string{'i': "i32", 'I': "i64", 'f': "f32", 'F': "f64", 'v': "v128", 'r': "ref"}
	part := func(letters string) string {
		var out []string
		for _, l := range []byte(letters) {
			out = append(out, names[l])
		}
		return "(" + strings.Join(out, ",") + ")"
	}
	return part(s.Params()) + "->" + part(s.Results())
}

// printable keeps hostile names out of terminals and logs.
func printable(s string) string {
	if len(s) > 64 {
		s = s[:64] + "..."
	}
	for _, b := range []byte(s) {
		if b < 0x20 || b > 0x7e {
			return fmt.Sprintf("%q", s)
		}
	}
	return s
}

func (c *checker) failUnknown() {
	shown := c.unknown[:min(3, len(c.unknown))]
	more := ""
	if n := len(c.unknown) - len(shown); n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	c.r.section = "import"
	c.r.failAt(c.unknownAt, []error{ErrUnsupported, ErrUnknownImport}, "unknown import %s%s", strings.Join(shown, ", "), more)
}

func (c *checker) functionSection() {
	r := c.r
	n := r.Count("functions", c.limits.Functions, 1)
	c.own = n
	c.ownTypes = make([]uint32, 0, min(n, 8192))
	for i := uint32(0); i < n && r.err == nil; i++ {
		c.ownTypes = append(c.ownTypes, c.index("type", uint32(len(c.types))))
	}
}

func (c *checker) tableType() {
	c.refType()
	off := c.r.Offset()
	low, _, _ := c.limitsOf()
	if c.r.err == nil && low > c.limits.TableEntries {
		c.r.failAt(off, []error{ErrTooLarge}, "a table of %d entries, the limit is %d", low, c.limits.TableEntries)
	}
	c.tables++
	if c.r.err == nil && c.tables > c.limits.Tables {
		c.r.failAt(off, []error{ErrTooLarge}, "%d tables, the limit is %d", c.tables, c.limits.Tables)
	}
}

func (c *checker) memoryType() {
	off := c.r.Offset()
	low, high, bounded := c.limitsOf()
	switch {
	case c.r.err != nil:
		return
	case low > 65536 || bounded && high > 65536:
		c.r.failAt(off, []error{ErrMalformed}, "a memory of %d pages (maximum %d); 65536 is all there can be", low, high)
	case low > c.limits.MemoryPages:
		c.r.failAt(off, []error{ErrTooLarge}, "an initial memory of %d pages of 64 KiB, the limit is %d", low, c.limits.MemoryPages)
	}
	c.info.MemoryPages, c.info.MemoryMaxPages = low, high
	if c.memories++; c.memories > 1 {
		c.r.failAt(off, []error{ErrUnsupported}, "more than one memory")
	}
}

func (c *checker) limitsOf() (low, high uint32, bounded bool) {
	off := c.r.Offset()
	flag := c.r.Byte()
	if flag > 1 && c.r.err == nil {
		c.r.failAt(off, []error{ErrUnsupported}, "limits of kind %#x: shared and 64-bit memories are not supported", flag)
		return 0, 0, false
	}
	low = c.r.U32()
	if bounded = flag == 1; bounded {
		if high = c.r.U32(); high < low && c.r.err == nil {
			c.r.failAt(off, []error{ErrMalformed}, "the minimum %d is over the maximum %d", low, high)
		}
	}
	return low, high, bounded
}

func (c *checker) tableSection() {
	n := c.r.Count("tables", c.limits.Tables, 3)
	for i := uint32(0); i < n && c.r.err == nil; i++ {
		c.tableType()
	}
}

func (c *checker) memorySection() {
	n := c.r.Count("memories", 1, 2)
	for i := uint32(0); i < n && c.r.err == nil; i++ {
		c.memoryType()
	}
}

func (c *checker) globalSection() {
	r := c.r
	n := r.Count("globals", c.limits.Globals, 4)
	for i := uint32(0); i < n && r.err == nil; i++ {
		c.valueType()
		r.Byte()
		c.constExpr()
		c.globals++
	}
}

func (c *checker) exportSection() {
	r := c.r
	n := r.Count("exports", c.limits.Exports, 3)
	for i := uint32(0); i < n && r.err == nil; i++ {
		length := r.Count("bytes of name", c.limits.NameBytes, 1)
		var name [6]byte
		k := min(length, 6)
		for j := range k {
			name[j] = r.Byte()
		}
		r.Skip(int64(length - k))
		off := r.Offset()
		kind := r.Byte()
		index := r.U32()
		if r.err != nil {
			return
		}
		if kind > 3 {
			r.failAt(off, []error{ErrMalformed}, "export %d is of kind %#x", i, kind)
			return
		}
		have := [...]uint32{c.imported + c.own, c.tables, c.memories, c.globals}[kind]
		if index >= have {
			r.failAt(off, []error{ErrMalformed}, "export %d has index %d, there are %d", i, index, have)
			return
		}
		if kind == 0 && length == 6 && string(name[:]) == "_start" {
			c.info.HasStart = true
		}
	}
}

func (c *checker) elementSection() {
	r := c.r
	n := r.Count("element segments", c.limits.ElementSegments, 2)
	for i := uint32(0); i < n && r.err == nil; i++ {
		off := r.Offset()
		flag := r.U32()
		if flag > 7 {
			r.failAt(off, []error{ErrMalformed}, "element segment %d is of kind %d", i, flag)
			return
		}
		passive, explicit, exprs := flag&1 != 0, flag&2 != 0, flag&4 != 0
		if !passive {
			if explicit {
				c.index("table", c.tables)
			}
			c.constExpr()
		}
		if flag&3 != 0 {
			if exprs {
				c.refType()
			} else if kind := r.Byte(); kind != 0 && r.err == nil {
				r.fail(ErrMalformed, "element kind %#x", kind)
			}
		}
		off = r.Offset()
		m := r.Count("elements", c.limits.TableEntries, 1)
		c.tableEntries += uint64(m)
		if r.err == nil && c.tableEntries > uint64(c.limits.TableEntries) {
			r.failAt(off, []error{ErrTooLarge}, "%d elements in all segments, the limit is %d", c.tableEntries, c.limits.TableEntries)
		}
		for j := uint32(0); j < m && r.err == nil; j++ {
			if exprs {
				c.constExpr()
			} else {
				c.index("function", c.imported+c.own)
			}
		}
	}
}

// constExpr reads an initialiser: a few constant instructions and end.
func (c *checker) constExpr() {
	r := c.r
	for range 16 {
		off := r.Offset()
		switch op := r.Byte(); op {
		case 0x0b:
			return
		case 0x41:
			r.SkipS(32)
		case 0x42:
			r.SkipS(64)
		case 0x43:
			r.Skip(4)
		case 0x44:
			r.Skip(8)
		case 0x23:
			c.index("global", c.globals)
		case 0xd0:
			c.refType()
		case 0xd2:
			c.index("function", c.imported+c.own)
		case 0xfd:
			if sub := r.U32(); sub != 12 && r.err == nil {
				r.failAt(off, []error{ErrMalformed}, "instruction fd %d in an initialiser", sub)
			}
			r.Skip(16)
		default:
			r.failAt(off, []error{ErrUnsupported}, "instruction %#x in an initialiser", op)
		}
		if r.err != nil {
			return
		}
	}
	r.fail(ErrTooLarge, "an initialiser of more than 16 instructions")
}

func (c *checker) codeSection() {
	r := c.r
	n := r.Count("function bodies", c.limits.Functions, 3)
	if r.err == nil && n != c.own {
		r.fail(ErrMalformed, "%d functions declared, %d bodies", c.own, n)
	}
	c.bodies, c.info.Functions, c.info.CodeBytes = n, n, r.Left()
	for i := uint32(0); i < n && r.err == nil; i++ {
		off := r.Offset()
		size := r.U32()
		if r.err == nil && size > c.limits.FunctionBytes {
			r.failAt(off, []error{ErrTooLarge}, "function %d has %d bytes, the limit is %d", c.imported+i, size, c.limits.FunctionBytes)
		}
		r.Within("the function", int64(size), func() {
			Walk(r, WalkLimits{
				Params: c.types[c.ownTypes[i]].params, Locals: c.limits.Locals,
				Nesting: c.limits.Nesting, BranchTargets: c.limits.BranchTargets,
			}, nil)
		})
	}
}

func (c *checker) dataSection() {
	r := c.r
	n := r.Count("data segments", c.limits.DataSegments, 2)
	if r.err == nil && c.dataCount >= 0 && c.dataCount != int64(n) {
		r.fail(ErrMalformed, "%d data segments announced, %d there", c.dataCount, n)
	}
	c.dataCount = -1
	for i := uint32(0); i < n && r.err == nil; i++ {
		off := r.Offset()
		switch flag := r.U32(); flag {
		case 0:
			c.constExpr()
		case 1:
		case 2:
			c.index("memory", c.memories)
			c.constExpr()
		default:
			r.failAt(off, []error{ErrMalformed}, "data segment %d is of kind %d", i, flag)
			return
		}
		r.skipName("bytes of data", ^uint32(0))
	}
}

// UsesImport is true if the module imports the host function.
func (i Info) UsesImport(name string) bool {
	return slices.ContainsFunc(i.Imports, func(m Import) bool { return m.Module == HostModule && m.Name == name })
}
