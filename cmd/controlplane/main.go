// Command controlplane is the control plane of a Coracle cluster in one
// process: etcd, the Kubernetes API, scheduler, controllers, and the fleet's
// hub, broker and endpoint.
package main

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(start(os.Args[1:], ownKinds()...)) }

// start is the program; kinds are the manifests of kinds that it serves of its own.
func start(args []string, kinds ...fs.FS) (code int) {
	opts, err := parseFlags(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "controlplane:", err)
		return 2
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: opts.logLevel}))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, opts, kinds, logger); err != nil {
		logger.Error("controlplane stopped", "err", err)
		return 1
	}
	return 0
}
