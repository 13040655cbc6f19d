package modcheck

import (
	"errors"
	"io"
)

// Sentinels; wasmruntime documents them.
var (
	ErrMalformed     = errors.New("malformed wasm module")
	ErrUnsupported   = errors.New("unsupported wasm module")
	ErrUnknownImport = errors.New("unknown import")
	ErrTooLarge      = errors.New("wasm module over the limits of this board")
)

// Kind is what a file is by its first eight bytes.
type Kind string

const (
	KindModule    Kind = "module"
	KindComponent Kind = "component"
)

// Import is one import of a module.
type Import struct{ Module, Name, Kind string }

// Info is what Check learned.
type Info struct {
	Kind    Kind
	Imports []Import
}

// Limits bound what is admitted.
type Limits struct{ ModuleBytes int64 }

// DefaultLimits for a board with memory bytes.
func DefaultLimits(memory int64) Limits { return Limits{} }

// Check reads the structure of a module.
func Check(r io.ReaderAt, size int64, limits Limits) (Info, error) {
	return Info{}, errors.New("not there yet")
}
