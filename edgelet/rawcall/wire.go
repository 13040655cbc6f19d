package rawcall

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// Message is a protobuf message under construction. Empty fields are left out,
// as proto3 says.
type Message []byte

// String appends a string field.
func (m *Message) String(field protowire.Number, s string) {
	if s != "" {
		*m = protowire.AppendString(protowire.AppendTag(*m, field, protowire.BytesType), s)
	}
}

// Bytes appends an embedded message, also an empty one.
func (m *Message) Bytes(field protowire.Number, b []byte) {
	*m = protowire.AppendBytes(protowire.AppendTag(*m, field, protowire.BytesType), b)
}

// Int appends an integer or an enum.
func (m *Message) Int(field protowire.Number, n int64) {
	if n != 0 {
		*m = protowire.AppendVarint(protowire.AppendTag(*m, field, protowire.VarintType), uint64(n))
	}
}

// Bool appends a flag.
func (m *Message) Bool(field protowire.Number, b bool) {
	if b {
		m.Int(field, 1)
	}
}

// Map appends a map of strings, sorted: the same bytes for the same map.
func (m *Message) Map(field protowire.Number, values map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(values)) {
		var entry Message
		entry.String(1, k)
		entry.String(2, values[k])
		m.Bytes(field, entry)
	}
}

// Fields calls bytes for each length-delimited field and number for each varint;
// either may be nil. Other types are skipped. It returns [ErrMalformed].
func Fields(b []byte, bytes func(protowire.Number, []byte) error, number func(protowire.Number, uint64)) error {
	for len(b) > 0 {
		field, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: %v", ErrMalformed, protowire.ParseError(n))
		}
		b = b[n:]
		switch typ {
		case protowire.BytesType:
			value, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return fmt.Errorf("%w: %v", ErrMalformed, protowire.ParseError(n))
			}
			b = b[n:]
			if bytes != nil {
				if err := bytes(field, value); err != nil {
					return err
				}
			}
		case protowire.VarintType:
			value, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return fmt.Errorf("%w: %v", ErrMalformed, protowire.ParseError(n))
			}
			b = b[n:]
			if number != nil {
				number(field, value)
			}
		default:
			if n = protowire.ConsumeFieldValue(field, typ, b); n < 0 {
				return fmt.Errorf("%w: %v", ErrMalformed, protowire.ParseError(n))
			}
			b = b[n:]
		}
	}
	return nil
}

// MapEntry reads one entry of a map of strings into out.
func MapEntry(b []byte, out map[string]string) error {
	var k, v string
	err := Fields(b, func(field protowire.Number, value []byte) error {
		switch field {
		case 1:
			k = string(value)
		case 2:
			v = string(value)
		}
		return nil
	}, nil)
	if err == nil {
		out[k] = v
	}
	return err
}
