package modcheck

import (
	"errors"
	"fmt"
)

// Sentinels; package wasmruntime documents them.
var (
	ErrMalformed     = errors.New("malformed wasm module")
	ErrUnsupported   = errors.New("unsupported wasm module")
	ErrUnknownImport = errors.New("unknown import")
	ErrTooLarge      = errors.New("wasm module over the limits of this board")
)

// Error is every error of this package: what is wrong, in which section, at
// which offset of the file.
type Error struct {
	// Section is the name of the section, empty for the file's header.
	Section string
	// Offset is in bytes from the start of the file.
	Offset int64
	// Msg says what is wrong, with the value and the limit.
	Msg string
	// Kinds are the sentinels that the error wraps.
	Kinds []error
}

func (e *Error) Error() string {
	where := "header"
	if e.Section != "" {
		where = e.Section + " section"
	}
	return fmt.Sprintf("%v: %s at offset %d: %s", e.Kinds[0], where, e.Offset, e.Msg)
}

func (e *Error) Unwrap() []error { return e.Kinds }
