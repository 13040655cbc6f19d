package datastore

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newLogger makes etcd's warnings and errors ours. etcd logs what it can't go
// on with as Fatal or Panic, which would end the process without a word to the
// rest of it: here that ends etcd's goroutine, after fatal has been told.
func newLogger(logger *slog.Logger, fatal func(message string)) *zap.Logger {
	core := &slogCore{logger: logger, fatal: fatal}
	return zap.New(core, zap.WithFatalHook(zapcore.WriteThenGoexit), zap.WithPanicHook(zapcore.WriteThenGoexit))
}

type slogCore struct {
	logger *slog.Logger
	fields []zapcore.Field
	fatal  func(string)
}

func (c *slogCore) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	all := append(append([]zapcore.Field(nil), c.fields...), fields...)
	return &slogCore{logger: c.logger, fields: all, fatal: c.fatal}
}

func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range append(append([]zapcore.Field(nil), c.fields...), fields...) {
		f.AddTo(enc)
	}
	args := make([]any, 0, 2*len(enc.Fields))
	for k, v := range enc.Fields {
		args = append(args, k, v)
	}
	if e.Level >= zapcore.DPanicLevel {
		message := e.Message
		if err, ok := enc.Fields["error"].(string); ok {
			message += ": " + err
		}
		c.fatal(message)
		c.logger.Error("etcd: "+e.Message, args...)
		return nil
	}
	level := slog.LevelDebug // its warnings are about settings that are meant so, and slow disks
	if e.Level >= zapcore.ErrorLevel {
		level = slog.LevelWarn
	}
	c.logger.Log(context.Background(), level, "etcd: "+e.Message, args...)
	return nil
}

func (c *slogCore) Sync() error { return nil }
