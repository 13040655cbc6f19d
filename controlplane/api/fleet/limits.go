package fleet

import "errors"

const (
	// ProtocolVersion is said in Hello and Welcome.
	ProtocolVersion = 1
	// EnvelopeVersion is the only Envelope.version that exists.
	EnvelopeVersion = 1

	// MaxMessage bounds an Envelope on the wire, in bytes.
	MaxMessage = 64 << 10
	// MaxDecoded bounds the payload after decompression, in bytes.
	MaxDecoded = 256 << 10
	// MaxOrderObjects is how many bytes of objects a sender puts into one
	// order: with headers and signature it stays below MaxMessage even if
	// nothing can be compressed.
	MaxOrderObjects = 48 << 10
	// MaxInline is the size from which on an object is fetched by hash.
	MaxInline = 40 << 10
	// MaxObject bounds one object, in bytes: etcd's own limit on a request is
	// 1.5 MiB.
	MaxObject = 3 << 20
	// MaxReportBytes is how many bytes of reports a sender puts into one
	// message.
	MaxReportBytes = 48 << 10
)

var (
	// ErrTooLarge is returned when a message is, or would be after
	// decompression, larger than the protocol allows.
	ErrTooLarge = errors.New("fleet: message too large")
	// ErrMalformed is returned when bytes are not what they should be.
	ErrMalformed = errors.New("fleet: malformed message")
	// ErrUnsupported is returned when the other side speaks a version or
	// encoding that this one doesn't.
	ErrUnsupported = errors.New("fleet: unsupported version or encoding")
	// ErrSignature is returned when an envelope isn't signed by who it must
	// be, for this node and in this direction.
	ErrSignature = errors.New("fleet: bad signature")
	// ErrUnknownKey is returned when the key that signed an envelope isn't
	// known.
	ErrUnknownKey = errors.New("fleet: unknown signing key")
	// ErrSealed is returned when a sealed object can't be opened with the
	// node's key.
	ErrSealed = errors.New("fleet: can't open sealed object")
)
