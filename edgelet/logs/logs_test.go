package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func stamp(second int) string { return fmt.Sprintf("2026-10-06T00:17:%02d.000000001Z", second) }

func writeLog(t *testing.T, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

var sample = []string{
	stamp(1) + " stdout F one\n",
	stamp(2) + " stderr F two\n",
	stamp(3) + " stdout P thr\n",
	stamp(3) + " stdout F ee\n",
	stamp(4) + " stdout F \n",
	stamp(5) + " stdout F:x five\n",
}

func ptr(n int64) *int64 { return &n }

func TestRead(t *testing.T) {
	at := func(second int) time.Time { return time.Date(2026, 10, 6, 0, 17, second, 1, time.UTC) }
	tests := map[string]struct {
		options Options
		want    string
		wantErr string // what went to stderr, if that is apart
	}{
		"all":            {Options{}, "one\ntwo\nthree\n\nfive\n", ""},
		"timestamps":     {Options{Timestamps: true}, stamp(1) + " one\n" + stamp(2) + " two\n" + stamp(3) + " three\n" + stamp(4) + " \n" + stamp(5) + " five\n", ""},
		"tail 0":         {Options{Tail: ptr(0)}, "", ""},
		"tail 1":         {Options{Tail: ptr(1)}, "five\n", ""},
		"tail 3":         {Options{Tail: ptr(3)}, "three\n\nfive\n", ""},
		"tail 5":         {Options{Tail: ptr(5)}, "one\ntwo\nthree\n\nfive\n", ""},
		"tail 99":        {Options{Tail: ptr(99)}, "one\ntwo\nthree\n\nfive\n", ""},
		"since":          {Options{Since: at(4)}, "\nfive\n", ""},
		"since and tail": {Options{Since: at(5), Tail: ptr(3)}, "five\n", ""},
		"limit":          {Options{Limit: ptr(6)}, "one\ntw", ""},
		"limit in stamp": {Options{Limit: ptr(4), Timestamps: true}, "2026", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			test.options.Stdout, test.options.Stderr = &out, &out
			if err := Read(t.Context(), writeLog(t, sample...), test.options); err != nil {
				t.Fatal(err)
			}
			if out.String() != test.want {
				t.Errorf("got  %q\nwant %q", out.String(), test.want)
			}
		})
	}
}

func TestStreamsApart(t *testing.T) {
	var stdout, stderr bytes.Buffer
	path := writeLog(t, sample...)
	if err := Read(t.Context(), path, Options{Stderr: &stderr}); err != nil || stderr.String() != "two\n" {
		t.Errorf("stderr alone: %q, %v", stderr.String(), err)
	}
	if err := Read(t.Context(), path, Options{Stdout: &stdout, Limit: ptr(4)}); err != nil || stdout.String() != "one\n" {
		t.Errorf("stdout alone: %q, %v", stdout.String(), err)
	}
}

func TestDamagedLinesAreLeftOut(t *testing.T) {
	path := writeLog(t, "garbage\n", "\x00\x00\x00\n", stamp(1)+" stdout F good\n", stamp(2)+" stdlog F bad\n", "\n", stamp(3)+" stdout F cut off")
	var out bytes.Buffer
	if err := Read(t.Context(), path, Options{Stdout: &out, Stderr: &out}); err != nil || out.String() != "good\ncut off" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestLineLongerThanTheBuffer(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", maxLine/4)
	path := writeLog(t, stamp(1)+" stdout P "+long+"\n", stamp(1)+" stdout F end\n", stamp(2)+" stdout F next\n")
	var out bytes.Buffer
	if err := Read(t.Context(), path, Options{Stdout: &out, Timestamps: true}); err != nil {
		t.Fatal(err)
	}
	if want := stamp(1) + " " + long + "end\n" + stamp(2) + " next\n"; out.String() != want {
		t.Errorf("%d bytes, want %d; ends in %q", out.Len(), len(want), out.String()[max(0, out.Len()-60):])
	}
	out.Reset()
	if err := Read(t.Context(), path, Options{Stdout: &out, Since: time.Date(2026, 10, 6, 0, 17, 2, 0, time.UTC)}); err != nil || out.String() != "next\n" {
		t.Errorf("an old long line wasn't left out whole: %.80q, %v", out.String(), err)
	}
}

func TestMissingFile(t *testing.T) {
	err := Read(t.Context(), filepath.Join(t.TempDir(), "0.log"), Options{})
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "0.log") {
		t.Errorf("error %v", err)
	}
}

// tailStart has to agree with reading everything, for every n, wherever blocks end.
func TestTailAgreesWithReadingAll(t *testing.T) {
	var all []string
	for i := range 3000 {
		tag, pad := "F", strings.Repeat("x", i%97)
		if i%5 == 3 {
			tag = "P"
		}
		all = append(all, fmt.Sprintf("%s stdout %s %d%s\n", stamp(i%60), tag, i, pad))
	}
	all[2999] = stamp(59) + " stdout F last\n"
	path := writeLog(t, all...)
	var whole bytes.Buffer
	if err := Read(t.Context(), path, Options{Stdout: &whole}); err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(strings.TrimSuffix(whole.String(), "\n"), "\n")
	for _, n := range []int{1, 2, 7, 50, 333, 1000, 2000, len(lines), len(lines) + 1} {
		var out bytes.Buffer
		if err := Read(t.Context(), path, Options{Stdout: &out, Tail: ptr(int64(n))}); err != nil {
			t.Fatal(err)
		}
		if want := strings.Join(lines[max(0, len(lines)-n):], "") + "\n"; out.String() != want {
			t.Errorf("tail %d: %d bytes, want %d", n, out.Len(), len(want))
		}
	}
}

// sink collects what a follower writes.
type sink struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

func (s *sink) waitFor(t *testing.T, want string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if s.String() == want {
			return
		}
	}
	t.Fatalf("got %q, want %q", s.String(), want)
}

type container struct {
	t       *testing.T
	path    string
	running atomic.Bool
	out     sink
	done    chan error
}

func follow(t *testing.T, options Options) *container {
	t.Helper()
	c := &container{t: t, path: filepath.Join(t.TempDir(), "0.log"), done: make(chan error, 1)}
	c.running.Store(true)
	options.Follow, options.Running, options.Stdout, options.Stderr = true, c.running.Load, &c.out, &c.out
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	go func() { c.done <- Read(ctx, c.path, options) }()
	return c
}

func (c *container) say(text string) {
	c.t.Helper()
	f, err := os.OpenFile(c.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		c.t.Fatal(err)
	}
}

func (c *container) rotate(suffix string) {
	c.t.Helper()
	if err := os.Rename(c.path, c.path+"."+suffix); err != nil {
		c.t.Fatal(err)
	}
}

func (c *container) exit() {
	c.t.Helper()
	c.running.Store(false)
	if err := <-c.done; err != nil {
		c.t.Error(err)
	}
}

func TestFollow(t *testing.T) {
	c := follow(t, Options{Poll: 50 * time.Millisecond})
	time.Sleep(20 * time.Millisecond) // the file comes after the follower
	c.say(stamp(1) + " stdout F one\n")
	c.out.waitFor(t, "one\n")
	c.say(stamp(2) + " std") // a line in two writes
	time.Sleep(20 * time.Millisecond)
	c.say("out F two\n")
	c.out.waitFor(t, "one\ntwo\n")
	c.say(stamp(3) + " stdout F last words\n")
	c.exit()
	c.out.waitFor(t, "one\ntwo\nlast words\n")
}

// inotify has to wake it: with a poll of an hour nothing else would.
func TestFollowIsNotified(t *testing.T) {
	path := writeLog(t, sample[0])
	c := &container{t: t, path: path, done: make(chan error, 1)}
	c.running.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		c.done <- Read(ctx, path, Options{Follow: true, Running: c.running.Load, Stdout: &c.out, Stderr: &c.out, Poll: time.Hour})
	}()
	c.out.waitFor(t, "one\n")
	c.say(sample[1])
	c.out.waitFor(t, "one\ntwo\n")
	cancel()
	if err := <-c.done; !errors.Is(err, context.Canceled) {
		t.Errorf("after cancel: %v", err)
	}
}

func TestFollowOverRotation(t *testing.T) {
	c := follow(t, Options{Poll: 20 * time.Millisecond})
	c.say(stamp(1) + " stdout F one\n")
	c.out.waitFor(t, "one\n")
	// The runtime writes into the renamed file until it is told to reopen.
	old, err := os.OpenFile(c.path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	c.rotate("20261006-001702")
	fmt.Fprint(old, stamp(2)+" stdout F two\n")
	c.out.waitFor(t, "one\ntwo\n")
	c.say(stamp(3) + " stdout F three\n")
	c.out.waitFor(t, "one\ntwo\nthree\n")
	c.exit()
}

// What the runtime writes into the old file while we look at the names isn't lost.
func TestRotationBetweenTwoLooks(t *testing.T) {
	path := writeLog(t, stamp(1)+" stdout F one\n")
	var out bytes.Buffer
	r := &reader{Options: Options{Stdout: &out, Follow: true}, path: path, remain: 1 << 20, begin: map[Stream]bool{Stdout: true}}
	if err := r.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() { r.file.Close() }()
	r.lines = newLineReader(r.file)
	if err := r.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := &container{t: t, path: path}
	c.say(stamp(2) + " stdout F two\n")
	c.rotate("20261006-001702")
	c.say(stamp(3) + " stdout F three\n")
	for range 3 {
		if _, err := r.advance(); err != nil {
			t.Fatal(err)
		}
		if err := r.drain(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if out.String() != "one\ntwo\nthree\n" {
		t.Errorf("got %q", out.String())
	}
}

// A follower on a slow link may sleep through several rotations.
func TestFollowMissesNoRotatedFile(t *testing.T) {
	gate := make(chan struct{})
	c := &container{t: t, path: filepath.Join(t.TempDir(), "0.log"), done: make(chan error, 1)}
	c.running.Store(true)
	c.say(stamp(1) + " stdout F one\n")
	first := true
	go func() {
		c.done <- Read(t.Context(), c.path, Options{Follow: true, Running: c.running.Load, Stdout: &c.out, Poll: 20 * time.Millisecond,
			CaughtUp: func() error {
				if first {
					<-gate
				}
				first = false
				return nil
			}})
	}()
	c.out.waitFor(t, "one\n")
	for i, word := range []string{"two", "three", "four"} {
		c.rotate(fmt.Sprintf("20261006-00170%d", i))
		c.say(stamp(i+2) + " stdout F " + word + "\n")
	}
	close(gate)
	c.out.waitFor(t, "one\ntwo\nthree\nfour\n")
	c.exit()
}

func TestFollowTruncated(t *testing.T) {
	c := follow(t, Options{Poll: 20 * time.Millisecond})
	c.say(stamp(1) + " stdout F a long first line\n")
	c.out.waitFor(t, "a long first line\n")
	if err := os.Truncate(c.path, 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(60 * time.Millisecond)
	c.say(stamp(2) + " stdout F two\n")
	c.out.waitFor(t, "a long first line\ntwo\n")
	c.exit()
}

func FuzzParse(f *testing.F) {
	for _, line := range sample {
		f.Add([]byte(line))
	}
	f.Add([]byte(stamp(1) + " stdout F\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := Parse(line)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error without its sentinel: %v", err)
			}
			return
		}
		if !bytes.Contains(append(line, '\n'), r.Content) || r.Stream != Stdout && r.Stream != Stderr {
			t.Fatalf("%q became %+v", line, r)
		}
	})
}

// Whatever is in the file: no panic, no error, the same from the tail as from the start.
func FuzzRead(f *testing.F) {
	f.Add([]byte(strings.Join(sample, "")), int64(2))
	f.Add([]byte("\n\n\n"), int64(1))
	f.Fuzz(func(t *testing.T, content []byte, n int64) {
		path := filepath.Join(t.TempDir(), "0.log")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		var whole, tail bytes.Buffer
		if err := Read(t.Context(), path, Options{Stdout: &whole, Stderr: &whole}); err != nil {
			t.Fatal(err)
		}
		if n < 0 {
			n = -(n + 1)
		}
		if err := Read(t.Context(), path, Options{Stdout: &tail, Stderr: &tail, Tail: &n}); err != nil {
			t.Fatal(err)
		}
		if !bytes.HasSuffix(whole.Bytes(), tail.Bytes()) {
			t.Fatalf("tail %d gives %q of %q", n, tail.Bytes(), whole.Bytes())
		}
	})
}
