package wasi

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tetratelabs/wazero"
	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/wasmruntime/internal/modcheck"
)

// calls are the functions that neither end the guest nor may wait for ever.
var calls = []string{"args_get", "args_sizes_get", "environ_get", "environ_sizes_get", "clock_res_get", "clock_time_get", "fd_advise", "fd_allocate", "fd_close",
	"fd_datasync", "fd_fdstat_get", "fd_fdstat_set_flags", "fd_fdstat_set_rights", "fd_filestat_get", "fd_filestat_set_size", "fd_filestat_set_times", "fd_pread",
	"fd_prestat_get", "fd_prestat_dir_name", "fd_pwrite", "fd_read", "fd_readdir", "fd_renumber", "fd_seek", "fd_sync", "fd_tell", "fd_write", "path_create_directory",
	"path_filestat_get", "path_filestat_set_times", "path_link", "path_open", "path_readlink", "path_remove_directory", "path_rename", "path_symlink",
	"path_unlink_file", "random_get", "sched_yield", "sock_accept", "sock_recv", "sock_send", "sock_shutdown"}

// emptyModule has one page of memory.
var emptyModule = []byte("\x00asm\x01\x00\x00\x00\x05\x03\x01\x00\x01\x07\x05\x01\x01m\x02\x00")

// FuzzCalls: a guest may call anything with anything, in any order, and its memory
// may hold anything. Its host neither panics nor is led out of the guest's folder.
func FuzzCalls(f *testing.F) {
	call := func(name string, params ...uint16) []byte {
		out := []byte{byte(slices.Index(calls, name))}
		for i := range 9 {
			p := uint16(0)
			if i < len(params) {
				p = params[i]
			}
			out = binary.LittleEndian.AppendUint16(out, p)
		}
		return out
	}
	open := call("path_open", 3, 1, 0, 4, 9, 0xffff, 0xffff, 0, 64)
	f.Add([]byte("file"), open)
	f.Add([]byte("../x"), append(open, call("path_create_directory", 3, 0, 4)...))
	f.Add([]byte("../xlink"), append(call("path_symlink", 0, 4, 3, 4, 4), call("path_open", 3, 1, 4, 4, 1, 0xffff, 0xffff, 0, 64)...))
	f.Add([]byte("file\x00\x00\x00\x00\x00\x00\x00\x00"), append(append(open, call("fd_pwrite", 4, 0, 0xffff, 0xffff, 0)...), call("fd_renumber", 4, 3)...))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff"), append(call("fd_read", 0, 0, 1, 8), call("fd_readdir", 3, 0xfff0, 0xffff, 0xffff, 0)...))
	runtime := wazero.NewRuntimeWithConfig(f.Context(), wazero.NewRuntimeConfigInterpreter())
	defer runtime.Close(f.Context())
	mod, err := runtime.Instantiate(f.Context(), emptyModule)
	if err != nil {
		f.Fatal(err)
	}
	page := make([]byte, 1<<16)
	base := f.TempDir()
	inside, outside := filepath.Join(base, "inside"), filepath.Join(base, "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data, orders []byte) {
		if err := os.Mkdir(inside, 0o755); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(inside)
		null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		dir, err := unix.Open(inside, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		dup := func() int { fd, _ := unix.FcntlInt(uintptr(null), unix.F_DUPFD_CLOEXEC, 0); return fd }
		s := New(Config{Args: []string{"a"}, Env: []string{"B=c"}, Stdin: null, Stdout: dup(), Stderr: dup(), Preopens: []Preopen{{FD: dir, Guest: "/data"}}})
		defer func() {
			for n := range uint64(len(s.files)) {
				fdClose(s, memory{}, []uint64{n})
			}
		}()
		clear(page)
		copy(page, data)
		mod.Memory().Write(0, page)
		for n := 0; len(orders) >= 19 && n < 64; n++ {
			name := calls[int(orders[0])%len(calls)]
			stack := make([]uint64, 9)
			for i, t := range modcheck.HostSignature(name).Params() {
				stack[i] = uint64(binary.LittleEndian.Uint16(orders[1+2*i:]))
				switch { // what is large is very large, but for what would fill the disk
				case stack[i] < 0xff00 || name == "fd_allocate" || name == "fd_filestat_set_size" || name == "fd_pwrite" || name == "fd_seek":
				case t == 'I':
					stack[i] = ^uint64(0xffff) | stack[i]
				default:
					stack[i] |= 0xffff0000
				}
			}
			orders = orders[19:]
			function(name)(s, memory{mod.Memory()}, stack)
		}
		for dir, want := range map[string]int{base: 2, outside: 0} {
			if made, err := os.ReadDir(dir); err != nil || len(made) != want {
				t.Errorf("%s has %v, %v", dir, made, err)
			}
		}
	})
}
