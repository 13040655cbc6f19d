package oom

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"
)

const (
	system = "6,1204,98765432,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/kubepods/besteffort/pod1/c,task=stress,pid=4242,uid=0\n"
	cgroup = "6,1205,98765433,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c,mems_allowed=0,oom_memcg=/kubepods/pod1,task_memcg=/kubepods/pod1/c,task=stress,pid=4243,uid=0\n"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]Victim{
		system:                                  {4242, "stress"},
		cgroup:                                  {},
		strings.Replace(system, "6,", "0,", 1):  {4242, "stress"},
		strings.Replace(system, "6,", "14,", 1): {}, // a program's
		strings.Replace(system, "task=stress", "task=a,pid=1,b", 1):             {4242, "a,pid=1,b"},
		strings.Replace(system, "pid=4242", "pid=0", 1):                         {},
		strings.Replace(system, "pid=4242", "pid=99999999999", 1):               {},
		"6,1,2,-;Out of memory: Killed process 4242 (stress) total-vm:1kB\n":    {},
		"6,1,2,-;eth0: link is up\n SUBSYSTEM=net\n":                            {},
		strings.Replace(system, "oom-kill:", "eth0: oom-kill:", 1):              {},
		"oom-kill:constraint=CONSTRAINT_NONE,global_oom,task=x,pid=1,uid=0":     {},
		"6,1,2,-;oom-kill:constraint=CONSTRAINT_NONE,global_oom,task=x,uid=0\n": {},
	} {
		if got, ok := parse([]byte(in)); got != want || ok != (want != Victim{}) {
			t.Errorf("%q: %+v, %t; want %+v", in, got, ok, want)
		}
	}
	v, _ := parse([]byte(system))
	if got := v.Message(); got != "System OOM encountered, victim process: stress, pid: 4242" {
		t.Error(got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(system))
	f.Add([]byte(cgroup))
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, ok := parse(b); ok && (v.PID <= 0 || !utf8.ValidString(v.Name)) {
			t.Errorf("%q: %+v", b, v)
		}
	})
}

// A pair of packet sockets is read as the log is: a record with each read.
func TestFollow(t *testing.T) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	reads, writes := os.NewFile(uintptr(fds[0]), "reads"), os.NewFile(uintptr(fds[1]), "writes")
	defer writes.Close()
	found := make(chan Victim)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- follow(ctx, reads, func(v Victim) { found <- v }, slog.New(slog.DiscardHandler)) }()
	for i := range 3 {
		for _, line := range []string{cgroup, strings.Replace(system, "pid=4242", fmt.Sprintf("pid=%d", 10+i), 1)} {
			if _, err := io.WriteString(writes, line); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case v := <-found:
			if v.PID != 10+i {
				t.Errorf("%+v", v)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("a kill wasn't seen")
		}
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it doesn't end with its context")
	}
}

// The kernel's own log: it is followed from its end, what a program writes there is
// read and not believed, and the watch ends with its context.
func TestKernelsLog(t *testing.T) {
	w, err := os.OpenFile(DefaultLog, os.O_WRONLY, 0)
	if err != nil {
		t.Skip("needs root:", err)
	}
	defer w.Close()
	f, err := os.OpenFile(DefaultLog, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Skip(err)
	}
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	mark := fmt.Sprintf("coracle-test-%d", os.Getpid())
	// What Read returns is seen on its way to follow.
	seen := make(chan struct{})
	tee := &teed{ReadCloser: f, mark: mark, seen: seen}
	done := make(chan error, 1)
	go func() {
		done <- follow(ctx, tee, func(v Victim) { t.Errorf("a program's line was believed: %+v", v) }, slog.New(slog.DiscardHandler))
	}()
	// With its line's end: without, the kernel holds the record back for what follows.
	if _, err := io.WriteString(w, "<6>"+strings.TrimSpace(system[strings.Index(system, ";")+1:])+mark+"\n"); err != nil {
		t.Skip("this machine's log can't be written to:", err)
	}
	select {
	case <-seen:
	case <-ctx.Done():
		t.Fatal("the line wasn't read")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

type teed struct {
	io.ReadCloser
	mark string
	seen chan struct{}
	once bool
}

func (r *teed) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	if err == nil && !r.once && strings.Contains(string(b[:n]), r.mark) {
		r.once = true
		close(r.seen)
	}
	return n, err
}

func TestALogThatIsNotThere(t *testing.T) {
	if err := Watch(t.Context(), filepath.Join(t.TempDir(), "no"), nil, slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
}
