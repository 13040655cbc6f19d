// Registryd serves the registry of `coracle up` on a free port of loopback, for
// tests that shouldn't link it. It prints "ready ADDRESS" and ends with its
// standard input.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/coracle-edge/coracle/cmd/coracle/registry"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "registryd:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	r := &registry.Registry{Dir: dir}
	l, err := r.Listen("127.0.0.1:0")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	fmt.Println("ready", l.Addr())
	return r.Serve(ctx, l)
}
