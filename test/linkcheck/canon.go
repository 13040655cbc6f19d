package linkcheck

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"
	"time"
	"unsafe"

	"google.golang.org/protobuf/proto"

	"github.com/coracle-edge/coracle/controlplane/api/fleet"
	"github.com/coracle-edge/coracle/controlplane/fleethub"
	"github.com/coracle-edge/coracle/test/linkcheck/play"
)

// Key stands for a state. Two states that can't be told apart by anything that
// may happen to them should have the same; two that can never do (but for a
// collision of hashes).
type Key [16]byte

// canon makes keys of values of one type. It reads all fields, also those that
// aren't exported, so that a field that somebody adds to a machine is never
// forgotten; `canon:"-"` leaves one out. A time.Duration is a moment on the clock
// of the value's side and counts by how far away it is; all that are past are the
// same.
type canon[T any] struct{ write writer }

// writer appends the value at p, of the type that it was made for.
type writer func(e *encoder, p unsafe.Pointer)

type encoder struct {
	now time.Duration
	out []byte
}

func newCanon[T any]() canon[T] {
	c := compiler{made: map[reflect.Type]*writer{}}
	return canon[T]{c.compile(reflect.TypeFor[T](), false)}
}

// key of v as of this moment of its side.
func (c canon[T]) key(now time.Duration, v *T) Key {
	var buf [1024]byte
	e := encoder{now, buf[:0]}
	c.write(&e, unsafe.Pointer(v))
	return e.sum()
}

func (e *encoder) sum() Key {
	sum := sha256.Sum256(e.out)
	return Key(sum[:16])
}

func (e *encoder) number(n uint64) { e.out = binary.AppendUvarint(e.out, n) }

func (e *encoder) text(s string) {
	e.number(uint64(len(s)))
	e.out = append(e.out, s...)
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	messageType  = reflect.TypeFor[proto.Message]()
	timingType   = reflect.TypeFor[fleethub.Timing]() // lengths, not moments
)

// compiler makes writers.
type compiler struct{ made map[reflect.Type]*writer }

// compile returns the writer of a type; spans says that durations in it are
// lengths.
func (c compiler) compile(t reflect.Type, spans bool) writer {
	if done, ok := c.made[t]; ok && !spans {
		return func(e *encoder, p unsafe.Pointer) { (*done)(e, p) } // may not be there yet
	}
	w := new(writer)
	if !spans {
		c.made[t] = w
	}
	*w = c.make(t, spans)
	return *w
}

func (c compiler) make(t reflect.Type, spans bool) writer {
	switch t.Kind() {
	case reflect.Bool, reflect.Uint8:
		return func(e *encoder, p unsafe.Pointer) { e.out = append(e.out, *(*byte)(p)) }
	case reflect.Uint16:
		return func(e *encoder, p unsafe.Pointer) { e.number(uint64(*(*uint16)(p))) }
	case reflect.Int32, reflect.Uint32:
		return func(e *encoder, p unsafe.Pointer) { e.number(uint64(*(*uint32)(p))) }
	case reflect.Int, reflect.Int64, reflect.Uint, reflect.Uint64:
		if t == durationType && !spans {
			return func(e *encoder, p unsafe.Pointer) { e.number(e.ahead(*(*time.Duration)(p))) }
		}
		return func(e *encoder, p unsafe.Pointer) { e.number(*(*uint64)(p)) }
	case reflect.String:
		return func(e *encoder, p unsafe.Pointer) { e.text(*(*string)(p)) }
	case reflect.Array:
		return c.array(t, spans)
	case reflect.Slice:
		return c.slice(t, spans)
	case reflect.Pointer:
		return c.pointer(t, spans)
	case reflect.Struct:
		return c.structure(t, spans)
	case reflect.Map:
		return c.mapping(t, spans)
	}
	panic(fmt.Sprintf("linkcheck: a state can't have a %s; leave it out with `canon:\"-\"` or say here what it is", t))
}

// ahead is how far a moment is away: 0 is never, 1 is past.
func (e *encoder) ahead(at time.Duration) uint64 {
	if at == 0 {
		return 0
	}
	return uint64(max(at-e.now, 0)) + 1
}

func (c compiler) array(t reflect.Type, spans bool) writer {
	n := t.Len()
	if t.Elem().Kind() == reflect.Uint8 {
		return func(e *encoder, p unsafe.Pointer) { e.out = append(e.out, unsafe.Slice((*byte)(p), n)...) }
	}
	elem, size := c.compile(t.Elem(), spans), t.Elem().Size()
	return func(e *encoder, p unsafe.Pointer) {
		for i := range n {
			elem(e, unsafe.Add(p, uintptr(i)*size))
		}
	}
}

func (c compiler) slice(t reflect.Type, spans bool) writer {
	elem, size := c.compile(t.Elem(), spans), t.Elem().Size()
	return func(e *encoder, p unsafe.Pointer) {
		s := *(*[]struct{})(p) // data and length are the same for all
		e.number(uint64(len(s)))
		data := unsafe.Pointer(unsafe.SliceData(s))
		for i := range len(s) {
			elem(e, unsafe.Add(data, uintptr(i)*size))
		}
	}
}

func (c compiler) structure(t reflect.Type, spans bool) writer {
	spans = spans || t == timingType
	type field struct {
		write  writer
		offset uintptr
	}
	var fields []field
	for i := range t.NumField() {
		if f := t.Field(i); f.Tag.Get("canon") != "-" {
			fields = append(fields, field{c.compile(f.Type, spans), f.Offset})
		}
	}
	return func(e *encoder, p unsafe.Pointer) {
		for i := range fields {
			fields[i].write(e, unsafe.Add(p, fields[i].offset))
		}
	}
}

func (c compiler) pointer(t reflect.Type, spans bool) writer {
	if t.Implements(messageType) {
		elem := t.Elem()
		return func(e *encoder, p unsafe.Pointer) {
			if p = *(*unsafe.Pointer)(p); p == nil {
				e.number(0)
				return
			}
			m := reflect.NewAt(elem, p).Interface().(proto.Message)
			raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
			if err != nil {
				panic(fmt.Sprintf("linkcheck: %T: %v", m, err))
			}
			e.text(string(raw))
			e.number(1)
		}
	}
	elem := c.compile(t.Elem(), spans)
	return func(e *encoder, p unsafe.Pointer) {
		if p = *(*unsafe.Pointer)(p); p == nil {
			e.number(0)
			return
		}
		e.number(1)
		elem(e, p)
	}
}

// mapping appends entries in the order of their encoding. No map isn't the same
// as an empty one: it is one that isn't known.
func (c compiler) mapping(t reflect.Type, spans bool) writer {
	key, value := c.compile(t.Key(), spans), c.compile(t.Elem(), spans)
	switch { // what there is most of, without reflection
	case t.ConvertibleTo(reflect.TypeFor[map[string]fleet.Hash]()):
		return byName[fleet.Hash](value)
	case t.ConvertibleTo(reflect.TypeFor[map[string]fleethub.Item]()):
		return byName[fleethub.Item](value)
	}
	return func(e *encoder, p unsafe.Pointer) {
		m := reflect.NewAt(t, p).Elem()
		if m.IsNil() {
			e.number(0)
			return
		}
		e.number(uint64(m.Len()) + 1)
		if m.Len() == 0 {
			return
		}
		entries := make([]string, 0, 8)
		outer := e.out
		k, v := reflect.New(t.Key()).Elem(), reflect.New(t.Elem()).Elem()
		for it := m.MapRange(); it.Next(); {
			k.SetIterKey(it)
			v.SetIterValue(it)
			e.out = outer[len(outer):]
			key(e, k.Addr().UnsafePointer())
			value(e, v.Addr().UnsafePointer())
			entries = append(entries, string(e.out))
		}
		slices.Sort(entries)
		e.out = outer
		for _, entry := range entries {
			e.text(entry)
		}
	}
}

func byName[V any](value writer) writer {
	return func(e *encoder, p unsafe.Pointer) {
		m := *(*map[string]V)(p)
		if m == nil {
			e.number(0)
			return
		}
		e.number(uint64(len(m)) + 1)
		names := make([]string, 0, 8)
		for name := range m {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			v := m[name]
			e.text(name)
			value(e, unsafe.Pointer(&v))
		}
	}
}

// keys makes the keys of a world's parts. It isn't changed once it is made.
type keys struct {
	node  canon[play.Node]
	hub   canon[play.Hub]
	etcd  canon[play.Etcd]
	up    canon[struct{ *fleet.Up }]
	will  canon[fleet.SessionID]
	down  canon[play.Letter]
	known canon[known]
}

func newKeys() *keys {
	return &keys{newCanon[play.Node](), newCanon[play.Hub](), newCanon[play.Etcd](), newCanon[struct{ *fleet.Up }](),
		newCanon[fleet.SessionID](), newCanon[play.Letter](), newCanon[known]()}
}
