package fleet

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protodelim"
)

// HeldPath of the node's API, on its tunnel, serves what the node was last ordered
// to have: a stream of [Object]s, each with its length before it (a varint). Sealed
// ones are opened, so that Raw is what the API once had.
const HeldPath = "/coracle/v1/held"

// MaxHeld bounds the objects that a reader takes of one node, in bytes.
const MaxHeld = 128 << 20

// WriteHeld appends one object to the stream.
func WriteHeld(w io.Writer, o *Object) error {
	_, err := protodelim.MarshalTo(w, o)
	return err
}

// ReadHeld calls each with every object of the stream, until its end or an error
// of each. Objects that aren't what they say are ErrMalformed; a stream of more
// than MaxHeld bytes is ErrTooLarge.
func ReadHeld(r io.Reader, each func(*Object) error) error {
	in := bufio.NewReader(io.LimitReader(r, MaxHeld+1))
	options := protodelim.UnmarshalOptions{MaxSize: MaxObject + 4096}
	total := 0
	for {
		var o Object
		err := options.UnmarshalFrom(in, &o)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: what the node holds: %w", ErrMalformed, err)
		}
		if total += len(o.GetRaw()); total > MaxHeld {
			return fmt.Errorf("%w: the node holds more than %d bytes", ErrTooLarge, MaxHeld)
		}
		if o.GetUid() == "" || o.GetKind() == "" || o.GetName() == "" || len(o.GetRaw()) == 0 {
			return fmt.Errorf("%w: what the node holds: %s %s/%s (%s) lacks its name or content", ErrMalformed, o.GetKind(), o.GetNamespace(), o.GetName(), o.GetUid())
		}
		if err := each(&o); err != nil {
			return err
		}
	}
}
