package modcheck

// Limits bound what is admitted. They are by what a module may cost a board
// while it is compiled and instantiated, so they depend on its memory; the
// WebAssembly JS API's implementation limits are the ceiling.
type Limits struct {
	// ModuleBytes is the size of the file.
	ModuleBytes int64
	// Counts of the sections' entries.
	Types, Imports, Functions, Exports, Globals uint32
	Tables, DataSegments, ElementSegments       uint32
	CustomSections                              uint32
	// TableEntries is the initial size of one table, and the sum of the
	// entries of all element segments. TableMax is what a table may grow to.
	TableEntries, TableMax uint32
	// MemoryPages is the initial size of the memory, in 64 KiB.
	MemoryPages uint32
	// FunctionBytes is the size of one function's body, Locals their number
	// in one function, parameters included; Params and Results are those of
	// one type; Nesting is the depth of blocks; BranchTargets those of one
	// br_table.
	FunctionBytes, Locals, Params, Results, Nesting, BranchTargets uint32
	// NameBytes is the length of one name.
	NameBytes uint32
}

// DefaultLimits are those of a board with memory bytes of RAM. Zero means
// unknown and is taken as 1 GiB.
func DefaultLimits(memory int64) Limits {
	if memory <= 0 {
		memory = 1 << 30
	}
	l := Limits{
		ModuleBytes: clamp(memory/8, 8<<20, 256<<20),
		Types:       50_000,
		Imports:     10_000,
		Functions:   uint32(clamp(memory/(8<<10), 30_000, 500_000)),
		Exports:     100_000,
		Globals:     100_000,
		Tables:      16,
		// Go's linker makes one for each run of bytes: 93,506 for net/http.
		DataSegments:    uint32(clamp(memory/(4<<10), 100_000, 1_000_000)),
		ElementSegments: 50_000,
		CustomSections:  1_000,
		TableEntries:    uint32(clamp(memory/(8<<10), 65_536, 1_000_000)),
		TableMax:        uint32(clamp(memory/(8<<10), 65_536, 1_000_000)),
		MemoryPages:     uint32(clamp(memory/65536, 256, 65536)),
		FunctionBytes:   uint32(clamp(memory/256, 1<<20, 7_654_321)),
		Locals:          10_000,
		Params:          1_000,
		Results:         1_000,
		Nesting:         1_000,
		BranchTargets:   65_520,
		NameBytes:       65_536,
	}
	return l
}

func clamp(v, low, high int64) int64 { return max(low, min(v, high)) }

// or fills the zero fields from the defaults.
func (l Limits) or(d Limits) Limits {
	if l.ModuleBytes == 0 {
		l.ModuleBytes = d.ModuleBytes
	}
	for _, f := range [...]struct{ to, from *uint32 }{
		{&l.Types, &d.Types}, {&l.Imports, &d.Imports}, {&l.Functions, &d.Functions},
		{&l.Exports, &d.Exports}, {&l.Globals, &d.Globals}, {&l.Tables, &d.Tables},
		{&l.DataSegments, &d.DataSegments}, {&l.ElementSegments, &d.ElementSegments},
		{&l.CustomSections, &d.CustomSections}, {&l.TableEntries, &d.TableEntries},
		{&l.TableMax, &d.TableMax}, {&l.MemoryPages, &d.MemoryPages},
		{&l.FunctionBytes, &d.FunctionBytes}, {&l.Locals, &d.Locals},
		{&l.Params, &d.Params}, {&l.Results, &d.Results}, {&l.Nesting, &d.Nesting},
		{&l.BranchTargets, &d.BranchTargets}, {&l.NameBytes, &d.NameBytes},
	} {
		if *f.to == 0 {
			*f.to = *f.from
		}
	}
	return l
}
