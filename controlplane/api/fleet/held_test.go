package fleet

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
)

func heldSamples() []*Object {
	hash := HashObject([]byte("k8s\x00pod"))
	return []*Object{
		{Kind: "Pod", Namespace: "ns", Name: "n", Uid: "uid-1", Hash: hash[:], Raw: []byte("k8s\x00pod")},
		{Kind: "Secret", Namespace: "ns", Name: "s", Uid: "uid-2", Hash: hash[:], Raw: []byte("k8s\x00secret")},
	}
}

func TestGoldenHeld(t *testing.T) {
	var now bytes.Buffer
	for _, o := range heldSamples() {
		if err := WriteHeld(&now, o); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join("testdata", "held.hex")
	if _, err := os.Stat(path); *update && os.IsNotExist(err) {
		if err := os.WriteFile(path, []byte(hex.EncodeToString(now.Bytes())+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	golden, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(golden, now.Bytes()) {
		t.Errorf("written otherwise:\n%x\nwas\n%x", now.Bytes(), golden)
	}
	var got []*Object
	if err := ReadHeld(bytes.NewReader(golden), func(o *Object) error { got = append(got, o); return nil }); err != nil {
		t.Fatal(err)
	}
	for i, want := range heldSamples() {
		if i >= len(got) || !proto.Equal(got[i], want) {
			t.Errorf("object %d reads as %v, want %v", i, got, want)
		}
	}
}

func TestHeldRefusals(t *testing.T) {
	encode := func(objects ...*Object) []byte {
		var b bytes.Buffer
		for _, o := range objects {
			if err := WriteHeld(&b, o); err != nil {
				t.Fatal(err)
			}
		}
		return b.Bytes()
	}
	all := func(*Object) error { return nil }
	good := encode(heldSamples()...)
	for what, c := range map[string]struct {
		r    io.Reader
		want error
	}{
		"cut off":          {bytes.NewReader(good[:len(good)-1]), ErrMalformed},
		"without its name": {bytes.NewReader(encode(&Object{Kind: "Pod", Uid: "u", Raw: []byte("x")})), ErrMalformed},
		"without content":  {bytes.NewReader(encode(&Object{Kind: "Pod", Uid: "u", Name: "n"})), ErrMalformed},
		"a huge object":    {bytes.NewReader([]byte{0xff, 0xff, 0xff, 0xff, 0x7f}), ErrMalformed},
		"nothing":          {bytes.NewReader(nil), nil},
	} {
		if err := ReadHeld(c.r, all); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
	many := &Object{Kind: "ConfigMap", Name: "n", Uid: "u", Raw: make([]byte, MaxObject)}
	one := encode(many)
	if err := ReadHeld(&repeat{data: one}, all); !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrMalformed) {
		t.Errorf("an endless stream: %v", err)
	}
	if err := ReadHeld(bytes.NewReader(good), func(*Object) error { return io.ErrShortWrite }); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("%v", err)
	}
}

// repeat is data again and again.
type repeat struct {
	data []byte
	at   int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, r.data[r.at:])
	r.at = (r.at + n) % len(r.data)
	return n, nil
}

func FuzzReadHeld(f *testing.F) {
	var good bytes.Buffer
	for _, o := range heldSamples() {
		_ = WriteHeld(&good, o)
	}
	f.Add(good.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		err := ReadHeld(bytes.NewReader(data), func(o *Object) error {
			if o.GetName() == "" || len(o.GetRaw()) == 0 {
				t.Fatalf("%v", o)
			}
			return nil
		})
		if err != nil && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge) {
			t.Fatal(err)
		}
	})
}
