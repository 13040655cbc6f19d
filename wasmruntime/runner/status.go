package runner

import (
	"encoding/json"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/wasmruntime/internal/bundle"
)

// report writes one line to the starter's pipe and closes it. Nobody may
// listen any more; then so be it.
func report(fd int, st bundle.Status) {
	if fd < 0 {
		return
	}
	b, err := json.Marshal(st)
	if err == nil {
		unix.Write(fd, append(b, '\n'))
	}
	unix.Close(fd)
}
