package runner

import (
	"fmt"
	"os"
	"runtime"
)

const usage = `usage:
  wasmrunner run --spec FILE --entry DIR [--status-fd N] [--cgroup-root DIR] [--no-exec]
  wasmrunner compile --module FILE --out DIR [--status-fd N] [--memory BYTES] [--cpu SECONDS] [--uid UID] [--limits JSON] [--no-exec]
  wasmrunner info
`

// Main is the program; args are os.Args. It returns the exit code.
func Main(args []string) int {
	// Namespaces, users and filters are a thread's until the next exec.
	runtime.LockOSThread()
	if len(args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		return 2
	}
	switch args[1] {
	case "guest":
		return guestMain()
	case "compiler":
		return compilerMain()
	case "run":
		return runMain(args[2:])
	case "compile":
		return compileMain(args[2:])
	case "info":
		return infoMain()
	default:
		fmt.Fprint(os.Stderr, usage)
		return 2
	}
}
