package oom

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// DefaultLog is where the kernel's log is read, a record at a time
// (Documentation/ABI/testing/dev-kmsg). Reading it sleeps in the runtime's poller
// until there is something: no thread and no clock.
const DefaultLog = "/dev/kmsg"

// maxRecord is the longest record that the kernel hands out
// (PRINTK_MESSAGE_MAX); a shorter buffer gets EINVAL.
const maxRecord = 8 << 10

// Victim is a process that was killed because the machine had no memory left.
type Victim struct {
	PID  int // in the machine's first PID namespace
	Name string
}

// Message is the text of a kubelet's event SystemOOM.
func (v Victim) Message() string {
	return fmt.Sprintf("System OOM encountered, victim process: %s, pid: %d", v.Name, v.PID)
}

// Watch calls found for every kill of the machine's from now on, until ctx ends. A
// machine whose log can't be read isn't watched; that is logged and no error.
func Watch(ctx context.Context, path string, found func(Victim), log *slog.Logger) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		log.Info("that the machine runs out of memory isn't noticed", "err", err)
		return nil
	}
	// What was before is history, and may have been told.
	if _, err := f.Seek(0, io.SeekEnd); err != nil && !errors.Is(err, syscall.ESPIPE) {
		log.Info("that the machine runs out of memory isn't noticed", "err", err)
		return f.Close()
	}
	return follow(ctx, f, found, log)
}

// follow closes f.
func follow(ctx context.Context, f io.ReadCloser, found func(Victim), log *slog.Logger) error {
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	defer func() {
		if stop() {
			_ = f.Close()
		}
	}()
	buf := make([]byte, maxRecord)
	for {
		n, err := f.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, syscall.EPIPE):
			continue // records were overwritten before they were read; the next read has the oldest left
		case err != nil:
			log.Warn("that the machine runs out of memory isn't noticed any more", "err", err)
			return nil
		}
		if v, ok := parse(buf[:n]); ok {
			found(v)
		}
	}
}

// parse reads a record of the kernel's, "PRIORITY,SEQUENCE,TIME,FLAGS;TEXT". Of a
// kill there are several; this is the one of dump_oom_summary (mm/oom_kill.c):
//
//	oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/a,task=name,pid=1,uid=0
//
// A kill for a cgroup's limit has oom_memcg in the place of global_oom. Programs can
// write to the log, too: theirs never have the kernel's facility, 0.
func parse(record []byte) (Victim, bool) {
	prefix, text, ok := bytes.Cut(record, []byte{';'})
	if !ok {
		return Victim{}, false
	}
	priority, _, _ := bytes.Cut(prefix, []byte{','})
	if p, err := strconv.ParseUint(string(priority), 10, 32); err != nil || p>>3 != 0 {
		return Victim{}, false
	}
	line, _, _ := strings.Cut(string(text), "\n")
	rest, ok := strings.CutPrefix(line, "oom-kill:")
	if !ok {
		return Victim{}, false
	}
	_, rest, ok = strings.Cut(rest, ",global_oom,")
	if !ok {
		return Victim{}, false
	}
	// The name is the process's own choice and may have commas in it: what follows it
	// is looked for from the end.
	_, rest, ok = strings.Cut(rest, ",task=")
	i := strings.LastIndex(rest, ",pid=")
	if !ok || i < 0 {
		return Victim{}, false
	}
	id, _, _ := strings.Cut(rest[i+len(",pid="):], ",")
	pid, err := strconv.ParseUint(id, 10, 31)
	if err != nil || pid == 0 {
		return Victim{}, false
	}
	return Victim{PID: int(pid), Name: strings.ToValidUTF8(rest[:i], "?")}, true
}
