package upstream

import (
	"context"
	"log/slog"
)

// quieter lowers upstream's informational messages to debug: that a controller starts is no news. Errors stay.
type quieter struct{ slog.Handler }

func (q quieter) Enabled(ctx context.Context, level slog.Level) bool {
	return q.Handler.Enabled(ctx, lower(level))
}

func (q quieter) Handle(ctx context.Context, r slog.Record) error {
	r.Level = lower(r.Level)
	return q.Handler.Handle(ctx, r)
}

func (q quieter) WithAttrs(a []slog.Attr) slog.Handler { return quieter{q.Handler.WithAttrs(a)} }
func (q quieter) WithGroup(g string) slog.Handler      { return quieter{q.Handler.WithGroup(g)} }

func lower(level slog.Level) slog.Level {
	if level < slog.LevelWarn {
		return level - 4
	}
	return level
}
