package runner

import (
	"encoding/json"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/wasmruntime/internal/bundle"
)

// report writes one line to the starter's pipe and closes it. It fails if
// nobody listens any more: the starter was killed meanwhile.
func report(fd int, st bundle.Status) error {
	if fd < 0 {
		return nil
	}
	b, err := json.Marshal(st)
	if err == nil {
		_, err = unix.Write(fd, append(b, '\n'))
	}
	unix.Close(fd)
	return err
}
