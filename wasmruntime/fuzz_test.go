package wasmruntime

import (
	"bytes"
	"testing"
)

// What a child says of its work is one line of bounded size, or nothing.
func FuzzStatus(f *testing.F) {
	f.Add([]byte("{\"kind\":\"start\",\"message\":\"m\"}\n"))
	f.Add([]byte("{}"))
	f.Add([]byte("[]\n"))
	f.Fuzz(func(t *testing.T, said []byte) {
		if st, err := readStatus(bytes.NewReader(said)); err == nil && (!bytes.Contains(said, []byte("\n")) || len(st.Message) > maxStatus) {
			t.Errorf("%q became %+v", said, st)
		}
	})
}
