package modcheck

import "strings"

// SocketSignatures are the signatures under which the socket extension of
// WasmEdge has a function: none if it hasn't. Its second version came with
// other parameters, under the old names and under names that end in _v2.
//
// A guest gets them only if it is allowed to: that is asked when it starts,
// not here, where nobody knows yet who will run the module.
func SocketSignatures(name string) []Signature {
	one, second := strings.CutSuffix(name, "_v2")
	switch one {
	case "sock_open", "sock_bind", "sock_connect":
		return []Signature{"iii:i"}
	case "sock_listen":
		return []Signature{"ii:i"}
	case "sock_send_to":
		return []Signature{"iiiiiii:i"}
	case "sock_recv_from":
		if second {
			return []Signature{"iiiiiiii:i"}
		}
		return []Signature{"iiiiiiii:i", "iiiiiii:i"}
	case "sock_getlocaladdr", "sock_getpeeraddr":
		if second {
			return []Signature{"iii:i"}
		}
		return []Signature{"iiii:i", "iii:i"}
	case "sock_accept":
		if second {
			return []Signature{"iii:i"}
		}
		return []Signature{"ii:i"} // preview 1's has one more
	case "sock_recv", "sock_send":
		if second {
			return []Signature{HostSignature(one)}
		}
	case "sock_getaddrinfo":
		if !second {
			return []Signature{"iiiiiiii:i"}
		}
	case "sock_getsockopt", "sock_setsockopt":
		if !second {
			return []Signature{"iiiii:i"}
		}
	}
	return nil
}

// HostModule is the only module that a guest may import from: WASI preview 1.
// Its predecessor wasi_unstable (2019) has other layouts for the same names;
// no toolchain of the last years emits it, and it is refused by name.
const HostModule = "wasi_snapshot_preview1"

// Signature of a host function: one letter per parameter, a colon, one per
// result; i is i32 and I is i64.
type Signature string

// Params are the letters of the parameters.
func (s Signature) Params() string { p, _, _ := strings.Cut(string(s), ":"); return p }

// Results are the letters of the results.
func (s Signature) Results() string { _, r, _ := strings.Cut(string(s), ":"); return r }

// HostSignature is the signature of a function of HostModule, empty for one
// that it doesn't have.
func HostSignature(name string) Signature {
	switch name {
	case "args_get", "args_sizes_get", "environ_get", "environ_sizes_get",
		"clock_res_get", "fd_fdstat_get", "fd_fdstat_set_flags", "fd_filestat_get",
		"fd_prestat_get", "fd_renumber", "fd_tell", "random_get", "sock_shutdown":
		return "ii:i"
	case "clock_time_get":
		return "iIi:i"
	case "fd_advise":
		return "iIIi:i"
	case "fd_allocate":
		return "iII:i"
	case "fd_close", "fd_datasync", "fd_sync", "proc_raise":
		return "i:i"
	case "fd_fdstat_set_rights":
		return "iII:i"
	case "fd_filestat_set_size":
		return "iI:i"
	case "fd_filestat_set_times":
		return "iIIi:i"
	case "fd_pread", "fd_pwrite":
		return "iiiIi:i"
	case "fd_prestat_dir_name", "path_create_directory", "path_remove_directory",
		"path_unlink_file", "sock_accept":
		return "iii:i"
	case "fd_read", "fd_write", "poll_oneoff":
		return "iiii:i"
	case "fd_readdir":
		return "iiiIi:i"
	case "fd_seek":
		return "iIii:i"
	case "path_filestat_get", "path_symlink", "sock_send":
		return "iiiii:i"
	case "path_filestat_set_times":
		return "iiiiIIi:i"
	case "path_link":
		return "iiiiiii:i"
	case "path_open":
		return "iiiiiIIii:i"
	case "path_readlink", "path_rename", "sock_recv":
		return "iiiiii:i"
	case "proc_exit":
		return "i:"
	case "sched_yield":
		return ":i"
	}
	return ""
}
