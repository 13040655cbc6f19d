package shutdown

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The D-Bus wire format, as far as logind needs it
// (https://dbus.freedesktop.org/doc/dbus-specification.html).

// ErrMessage is returned for a message that isn't D-Bus, or larger than any that
// is expected here.
var ErrMessage = errors.New("not a message of the bus")

const (
	typeCall   = 1
	typeReturn = 2
	typeError  = 3
	typeSignal = 4

	fieldPath        = 1
	fieldInterface   = 2
	fieldMember      = 3
	fieldError       = 4
	fieldReplySerial = 5
	fieldDestination = 6
	fieldSender      = 7
	fieldSignature   = 8
	fieldFDs         = 9

	fixedHeader = 16
	// maxMessage bounds header and body; the specification allows 128 MiB.
	maxMessage = 64 << 10
)

// message is one that came or goes.
type message struct {
	kind                                                byte
	serial, replySerial, fds                            uint32
	path, iface, member, errorName, destination, sender string
	signature                                           string
	body                                                []byte
	order                                               binary.ByteOrder
	files                                               []int // that came with it; the receiver closes them
}

// encode writes a call.
func (m *message) encode() []byte {
	e := encoder{}
	e.bytes('l', m.kind, 0, 1)
	e.u32(uint32(len(m.body)))
	e.u32(m.serial)
	lengthAt := len(e.b)
	e.u32(0)
	start := len(e.b)
	field := func(code byte, signature, value string) {
		if value == "" {
			return
		}
		e.align(8)
		e.bytes(code)
		e.signature(signature)
		if signature == "g" {
			e.signature(value)
		} else {
			e.str(value)
		}
	}
	field(fieldPath, "o", m.path)
	field(fieldInterface, "s", m.iface)
	field(fieldMember, "s", m.member)
	field(fieldDestination, "s", m.destination)
	field(fieldSignature, "g", m.signature)
	binary.LittleEndian.PutUint32(e.b[lengthAt:], uint32(len(e.b)-start))
	e.align(8)
	return append(e.b, m.body...)
}

// sizes reads the fixed part of a header and says how many bytes follow it.
func sizes(fixed []byte) (header, body int, order binary.ByteOrder, err error) {
	switch fixed[0] {
	case 'l':
		order = binary.LittleEndian
	case 'B':
		order = binary.BigEndian
	default:
		return 0, 0, nil, fmt.Errorf("%w: byte order %q", ErrMessage, fixed[0])
	}
	if fixed[3] != 1 {
		return 0, 0, nil, fmt.Errorf("%w: protocol version %d", ErrMessage, fixed[3])
	}
	b, h := order.Uint32(fixed[4:]), order.Uint32(fixed[12:])
	if b > maxMessage || h > maxMessage {
		return 0, 0, nil, fmt.Errorf("%w: %d and %d bytes are more than %d", ErrMessage, h, b, maxMessage)
	}
	return int(h+7) &^ 7, int(b), order, nil
}

// decode reads a whole message.
func decode(raw []byte) (*message, error) {
	if len(raw) < fixedHeader {
		return nil, fmt.Errorf("%w: %d bytes", ErrMessage, len(raw))
	}
	header, body, order, err := sizes(raw[:fixedHeader])
	if err != nil {
		return nil, err
	}
	if len(raw) != fixedHeader+header+body {
		return nil, fmt.Errorf("%w: %d bytes instead of %d", ErrMessage, len(raw), fixedHeader+header+body)
	}
	m := &message{kind: raw[1], serial: order.Uint32(raw[8:]), order: order, body: raw[fixedHeader+header:]}
	fields := int(order.Uint32(raw[12:]))
	d := decoder{b: raw[:fixedHeader+fields], at: fixedHeader, order: order}
	for d.at < len(d.b) && d.err == nil {
		d.align(8)
		if d.at >= len(d.b) {
			break
		}
		code := d.byte()
		var text string
		var number uint32
		switch signature := d.signature(); signature {
		case "s", "o":
			text = d.str()
		case "g":
			text = d.signature()
		case "u":
			number = d.u32()
		default:
			return nil, fmt.Errorf("%w: header field %d is of type %q", ErrMessage, code, signature)
		}
		switch code {
		case fieldPath:
			m.path = text
		case fieldInterface:
			m.iface = text
		case fieldMember:
			m.member = text
		case fieldError:
			m.errorName = text
		case fieldReplySerial:
			m.replySerial = number
		case fieldDestination:
			m.destination = text
		case fieldSender:
			m.sender = text
		case fieldSignature:
			m.signature = text
		case fieldFDs:
			m.fds = number
		}
	}
	return m, d.err
}

// args reads the body.
func (m *message) args() *decoder { return &decoder{b: m.body, order: m.order} }

type encoder struct{ b []byte }

func (e *encoder) align(n int) {
	for len(e.b)%n != 0 {
		e.b = append(e.b, 0)
	}
}
func (e *encoder) bytes(b ...byte) { e.b = append(e.b, b...) }
func (e *encoder) u32(v uint32) {
	e.align(4)
	e.b = binary.LittleEndian.AppendUint32(e.b, v)
}
func (e *encoder) str(s string) {
	e.u32(uint32(len(s)))
	e.b = append(append(e.b, s...), 0)
}
func (e *encoder) signature(s string) {
	e.b = append(e.b, byte(len(s)))
	e.b = append(append(e.b, s...), 0)
}

// decoder reads values; after the first error all are zero.
type decoder struct {
	b     []byte
	at    int
	order binary.ByteOrder
	err   error
}

// take returns the next n bytes, nil if there aren't so many.
func (d *decoder) take(n int) []byte {
	if d.err != nil || n < 0 || n > len(d.b)-d.at {
		if d.err == nil {
			d.err = fmt.Errorf("%w: it is cut", ErrMessage)
		}
		return nil
	}
	d.at += n
	return d.b[d.at-n : d.at]
}

func (d *decoder) align(n int) {
	if r := d.at % n; r != 0 {
		d.take(n - r)
	}
}

func (d *decoder) byte() byte {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) u32() uint32 {
	d.align(4)
	if b := d.take(4); b != nil {
		return d.order.Uint32(b)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	d.align(8)
	if b := d.take(8); b != nil {
		return d.order.Uint64(b)
	}
	return 0
}

func (d *decoder) str() string {
	n := d.u32()
	if n > maxMessage {
		d.err = fmt.Errorf("%w: a string of %d bytes", ErrMessage, n)
		return ""
	}
	s := d.take(int(n))
	d.take(1)
	return string(s)
}

func (d *decoder) signature() string {
	s := d.take(int(d.byte()))
	d.take(1)
	return string(s)
}

// variant checks that a variant of this type comes.
func (d *decoder) variant(signature string) {
	if got := d.signature(); d.err == nil && got != signature {
		d.err = fmt.Errorf("%w: a value of type %q instead of %q", ErrMessage, got, signature)
	}
}
