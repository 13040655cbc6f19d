package wasm

import "errors"

var (
	// ErrNotFound is returned when no sandbox or container has such an ID.
	ErrNotFound = errors.New("not found")

	// ErrExists is returned when a sandbox or container of the same name and
	// attempt is there already.
	ErrExists = errors.New("already exists")

	// ErrState is returned when something is asked of a sandbox or container
	// that its state doesn't allow.
	ErrState = errors.New("wrong state")

	// ErrInvalid is returned when a request lacks a field or has one that
	// can't be right.
	ErrInvalid = errors.New("invalid request")

	// ErrUnsupported is returned when a request asks for what a Wasm
	// container can't do, here or by its nature.
	ErrUnsupported = errors.New("not supported for wasm")

	// ErrNetwork is returned when a pod's network can't be set up.
	ErrNetwork = errors.New("pod network")
)
