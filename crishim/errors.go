package crishim

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-edge/coracle/crishim/images"
	"github.com/coracle-edge/coracle/crishim/wasm"
	"github.com/coracle-edge/coracle/wasmruntime"
)

// codeOf says which gRPC code callers of the CRI expect for an error. The
// first that matches counts.
var codeOf = []struct {
	err  error
	code codes.Code
}{
	{images.ErrUnauthorized, codes.PermissionDenied},
	{images.ErrInvalidReference, codes.InvalidArgument},
	{images.ErrNoSpace, codes.ResourceExhausted},
	{images.ErrInvalidImage, codes.FailedPrecondition},
	{images.ErrNotWasm, codes.FailedPrecondition},
	{images.ErrNotFound, codes.NotFound},
	{images.ErrRegistry, codes.Unavailable},
	{wasm.ErrNotFound, codes.NotFound},
	{wasm.ErrExists, codes.AlreadyExists},
	{wasm.ErrInvalid, codes.InvalidArgument},
	{wasm.ErrState, codes.FailedPrecondition},
	{wasm.ErrUnsupported, codes.Unimplemented},
	{wasmruntime.ErrCompileLimit, codes.ResourceExhausted},
	{wasmruntime.ErrModuleTooLarge, codes.FailedPrecondition},
	{wasmruntime.ErrMalformedModule, codes.FailedPrecondition},
	{wasmruntime.ErrUnsupportedModule, codes.FailedPrecondition},
	{wasmruntime.ErrCompile, codes.FailedPrecondition},
	{context.Canceled, codes.Canceled},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
}

// rpcError gives an error its gRPC code; errors.Is still finds what it wraps.
// One that has a code already, such as containerd's, is left as it is.
func rpcError(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Unknown
	for _, c := range codeOf {
		if errors.Is(err, c.err) {
			code = c.code
			break
		}
	}
	return &codedError{err: err, code: code}
}

// codedError is an error with a gRPC code.
type codedError struct {
	err  error
	code codes.Code
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

// GRPCStatus is what grpc and status.FromError look for.
func (e *codedError) GRPCStatus() *status.Status { return status.New(e.code, e.err.Error()) }
