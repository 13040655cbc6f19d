package main

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

// tuneMemory sets the garbage collector for a board, unless the environment does.
// A live heap of 30 MiB may then grow by a quarter before it is collected.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(25)
	}
}

// certificateRefresh is how soon clients of nodes, webhooks and aggregated servers
// show a certificate that was issued anew; client-go's five minutes would be a gap
// in logs and exec after a rotation of the root that is finished at once.
const certificateRefresh = 10 * time.Second

// settle gives the memory that the start needed back to the kernel.
func settle(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(settleAfter):
		debug.FreeOSMemory()
	}
}

// bridgeKlog makes Kubernetes' log ours: its errors and warnings are warnings
// here, its chatter is debug. What it ends the process for is said first; but
// upstream's start hooks end it, too, if ctx ends before they are done.
func bridgeKlog(ctx context.Context, logger *slog.Logger, verbosity int) {
	fs := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(fs)
	fs.Set("v", strconv.Itoa(verbosity))
	last := &atomic.Pointer[string]{}
	klog.SetLogger(logr.FromSlogHandler(demote{logger.Handler(), last}))
	klog.OsExit = func(code int) {
		if ctx.Err() != nil {
			logger.Info("controlplane stopped before it was ready")
			os.Exit(0)
		}
		if message := last.Load(); message != nil {
			logger.Error("controlplane stopped", "err", *message)
		}
		os.Exit(code)
	}
}

// demote lowers each record by one step: what is an error to one request or one
// retry of a controller isn't one to the process. It remembers the last message:
// klog logs what is fatal as information.
type demote struct {
	slog.Handler
	last *atomic.Pointer[string]
}

func (d demote) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo || d.Handler.Enabled(ctx, level-4)
}

func (d demote) Handle(ctx context.Context, r slog.Record) error {
	d.last.Store(&r.Message)
	r.Level -= 4
	if !d.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return d.Handler.Handle(ctx, r)
}

func (d demote) WithAttrs(attrs []slog.Attr) slog.Handler {
	return demote{d.Handler.WithAttrs(attrs), d.last}
}

func (d demote) WithGroup(name string) slog.Handler { return demote{d.Handler.WithGroup(name), d.last} }

// settleAfter is when what the start needed has become garbage.
const settleAfter = 5 * time.Second
