package modcheck_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/coracle-edge/coracle/wasmruntime/internal/modcheck"
)

// importing is a sound module with imports of functions that give an i32 and
// take so many.
func importing(imports map[string][]int) []byte {
	types := cat([]byte{10, 0x60, 0, 0}) // type 0: nothing; type n: n times i32 to i32
	for n := 1; n < 10; n++ {
		types = cat(types, []byte{0x60, byte(n)}, bytes.Repeat([]byte{0x7f}, n), []byte{1, 0x7f})
	}
	var list []byte
	count := 0
	for name, params := range imports {
		for _, n := range params {
			list = cat(list, uv(uint64(len(modcheck.HostModule))), []byte(modcheck.HostModule), uv(uint64(len(name))), []byte(name), []byte{0, byte(n)})
			count++
		}
	}
	return mod(sec(1, types...), sec(2, cat(uv(uint64(count)), list)...), oneFunc,
		sec(7, cat([]byte{1, 6}, []byte("_start"), []byte{0, byte(count)})...), body(0, 0x0b))
}

func TestSocketExtension(t *testing.T) {
	for _, c := range []struct {
		name    string
		imports map[string][]int
		says    string // empty: it is admitted
		sigs    string // of the first import
	}{
		{"preview 1's accept", map[string][]int{"sock_accept": {3}}, "", ""},
		{"the extension's accept", map[string][]int{"sock_accept": {2}}, "", "ii:i"},
		{"both", map[string][]int{"sock_accept": {2, 3}}, "two signatures", ""},
		{"both, the other way round", map[string][]int{"sock_accept": {3, 2}}, "two signatures", ""},
		{"one of them twice", map[string][]int{"sock_accept": {2, 2}}, "", "ii:i"},
		{"neither's accept", map[string][]int{"sock_accept": {5}}, "its signature is", ""},
		{"connect", map[string][]int{"sock_connect": {3}}, "", "iii:i"},
		{"connect, second version", map[string][]int{"sock_connect_v2": {3}}, "", "iii:i"},
		{"connect with too little", map[string][]int{"sock_connect": {2}}, "socket extension has (i32,i32,i32)->(i32)", ""},
		{"receive, first version", map[string][]int{"sock_recv_from": {7}}, "", "iiiiiii:i"},
		{"receive, second version", map[string][]int{"sock_recv_from": {8}}, "", "iiiiiiii:i"},
		{"names", map[string][]int{"sock_getaddrinfo": {8}}, "", "iiiiiiii:i"},
		{"names, a version there isn't", map[string][]int{"sock_getaddrinfo_v2": {8}}, "no such function", ""},
		{"wasix's", map[string][]int{"sock_open": {4}}, "its signature is", ""},
		{"nobody's", map[string][]int{"sock_teleport": {1}}, "no such function", ""},
	} {
		m := importing(c.imports)
		info, err := modcheck.Check(bytes.NewReader(m), int64(len(m)), modcheck.Limits{})
		if c.says != "" {
			if !errors.Is(err, modcheck.ErrUnknownImport) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v, want %q", c.name, err, c.says)
			}
			continue
		}
		if err != nil || string(info.Imports[0].Signature) != c.sigs {
			t.Errorf("%s: %+v, %v", c.name, info.Imports, err)
		}
	}
}

// Every function has signatures that differ from those of preview 1, so that
// one says which is meant.
func TestSocketSignaturesAreTheirOwn(t *testing.T) {
	for _, name := range []string{"sock_open", "sock_bind", "sock_listen", "sock_accept", "sock_connect", "sock_send_to", "sock_recv_from",
		"sock_getlocaladdr", "sock_getpeeraddr", "sock_getaddrinfo", "sock_getsockopt", "sock_setsockopt", "sock_recv_v2", "sock_send_v2", "sock_open_v2"} {
		list := modcheck.SocketSignatures(name)
		if len(list) == 0 {
			t.Errorf("%s has none", name)
		}
		for _, sig := range list {
			if sig == modcheck.HostSignature(name) || sig.Params() == "" || sig.Results() != "i" {
				t.Errorf("%s: %q", name, sig)
			}
		}
	}
}
