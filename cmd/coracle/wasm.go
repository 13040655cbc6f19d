package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coracle-edge/coracle/wasmruntime"
)

func wasmCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "wasm", Short: "Run WebAssembly modules as a node does, and compile them for boards"}
	cmd.AddCommand(wasmRunCommand())
	cmd.AddCommand(wasmCompileCommands()...)
	return cmd
}

// startFailed is the exit code of `wasm run` when no guest ran, as of
// `docker run`: it is nobody's own.
const startFailed = 125

// exitError ends the program with a code; a message of its own it has only
// where no guest ran.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return "exit code " + strconv.Itoa(e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func wasmRunCommand() *cobra.Command {
	var o wasmRun
	cmd := &cobra.Command{
		Use:   "run [flags] FILE.wasm [ARGUMENT]...",
		Short: "Run a WASI module in the runner that pods have",
		Long: `Runs a WASI preview 1 module in the runner that a pod's container gets, with
the same walls around it, and ends with the guest's exit code. Standard input,
output and error are the guest's. Everything after FILE.wasm is the guest's too.

The guest sees what it is given here and nothing else: no file, no variable and
no socket of this machine. Run by root it is the owner of its first folder, or
root where it has none or root's, and never has a capability.

Exit codes: the guest's own; 134 after a trap; 128 and the number of the signal
that ended it; 137 when it ran out of memory; 125 when no guest was started.`,
		Example: `  coracle wasm run hello.wasm
  coracle wasm run --dir ./data::/data --dir /etc/app::/etc/app:ro --env MODE=test app.wasm --verbose
  coracle wasm run --listen 127.0.0.1:8080 server.wasm
  coracle wasm run --sockets client.wasm`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &exitError{startFailed, errors.New("which module? coracle wasm run [flags] FILE.wasm [ARGUMENT]...")}
			}
			o.file, o.args = args[0], args[1:]
			code, err := o.run(cmd.Context())
			if err != nil {
				return &exitError{startFailed, err}
			}
			if code != 0 {
				return &exitError{code: code}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.StringArrayVar(&o.dirs, "dir", nil, "a folder or file of this machine for the guest: HOST::GUEST, HOST alone for the same name, :ro at the end for read-only (repeatable)")
	f.StringArrayVar(&o.env, "env", nil, "a variable for the guest: NAME=VALUE, or NAME for the value that it has here (repeatable)")
	f.StringArrayVar(&o.listen, "listen", nil, "a TCP address to listen on; the guest gets the sockets as descriptors 3, 4, ... (repeatable)")
	f.BoolVar(&o.sockets, "sockets", false, "let the guest connect to others, by TCP and UDP, and look up names (WasmEdge's socket extension)")
	f.StringArrayVar(&o.dns, "dns", nil, "a name server for --sockets, ADDRESS or ADDRESS:PORT, instead of those of /etc/resolv.conf (repeatable)")
	f.StringVar(&o.user, "user", "", "UID or UID:GID of the guest, when run by root")
	f.BoolVar(&o.notifyTerm, "notify-term", false, "tell the guest of SIGTERM by the descriptor in CORACLE_TERM_FD, instead of ending it")
	f.StringVar(&o.cacheDir, "cache-dir", "", "where compiled code is kept (default: coracle/wasm in the user's cache folder, or nowhere if that can't be written)")
	f.StringVar(&o.runner, "runner", "", "the wasmrunner program (default: beside this one, or in PATH)")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exitError{startFailed, err} })
	return cmd
}

// parseDir reads HOST::GUEST[:ro]. The guest's name may be relative, as
// programs without a root folder have it.
func parseDir(text string) (wasmruntime.Mount, error) {
	fail := func(why string) (wasmruntime.Mount, error) {
		return wasmruntime.Mount{}, fmt.Errorf("--dir %q: %s; want HOST::GUEST, HOST::GUEST:ro or HOST", text, why)
	}
	rest, ro := strings.CutSuffix(text, ":ro")
	host, guest, both := strings.Cut(rest, "::")
	if !both {
		guest = host
	}
	switch {
	case host == "":
		return fail("it names no folder of this machine")
	case guest == "":
		return fail("it has no name for the guest")
	case strings.Contains(guest, "::"):
		return fail("it has more than one ::")
	}
	if _, err := os.Stat(host); err != nil {
		var why *os.PathError
		errors.As(err, &why)
		return fail(fmt.Sprintf("%s: %v", host, why.Err))
	}
	abs, err := filepath.Abs(host)
	if err != nil {
		return fail(err.Error())
	}
	return wasmruntime.Mount{Host: abs, Guest: guest, ReadOnly: ro}, nil
}

func parseEnv(text string) (string, error) {
	name, _, set := strings.Cut(text, "=")
	switch {
	case name == "":
		return "", fmt.Errorf("--env %q: it has no name; want NAME=VALUE or NAME", text)
	case set:
		return text, nil
	}
	value, here := os.LookupEnv(name)
	if !here {
		return "", fmt.Errorf("--env %s: there is no such variable here to hand on; want NAME=VALUE", name)
	}
	return name + "=" + value, nil
}

// parseListen takes HOST:PORT; no host means all addresses, localhost means
// 127.0.0.1. Other names don't say which address is meant.
func parseListen(text string) (wasmruntime.Listen, error) {
	fail := func(why string) (wasmruntime.Listen, error) {
		return wasmruntime.Listen{}, fmt.Errorf("--listen %q: %s; want ADDRESS:PORT, for instance 127.0.0.1:8080 or [::]:8080", text, why)
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return fail("it isn't an address and a port")
	}
	switch host {
	case "":
		host = "0.0.0.0"
	case "localhost":
		host = "127.0.0.1"
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return fail(fmt.Sprintf("%q isn't an IP address", host))
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fail(fmt.Sprintf("port %q isn't a number up to 65535", port))
	}
	return wasmruntime.Listen{Network: "tcp", Address: net.JoinHostPort(host, port)}, nil
}

// parseUser reads UID[:GID]; the group is the user's number if none is given.
func parseUser(text string) (uid, gid uint32, err error) {
	u, g, both := strings.Cut(text, ":")
	if !both {
		g = u
	}
	for _, f := range []struct {
		text string
		to   *uint32
	}{{u, &uid}, {g, &gid}} {
		n, err := strconv.ParseUint(f.text, 10, 32)
		if err != nil || n == 1<<32-1 {
			return 0, 0, fmt.Errorf("--user %q: %q isn't the number of a user or group; want UID or UID:GID", text, f.text)
		}
		*f.to = uint32(n)
	}
	return uid, gid, nil
}
