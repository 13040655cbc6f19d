// Wasmrunner compiles and runs one WebAssembly module, jailed, for package
// wasmruntime, which is its only caller. It links nothing else: what a runner
// links is paid for by every guest of a board.
package main

import (
	"os"

	"github.com/coracle-edge/coracle/wasmruntime/runner"
)

func main() { os.Exit(runner.Main(os.Args)) }
