package wasm

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-edge/coracle/wasmruntime"
)

// guestOf is the guest's end of a pump's FIFOs, as a runner holds it.
func guestOf(t *testing.T, dir string) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "stdout"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func pumpFor(t *testing.T, dir string, takeover bool) *logPump {
	t.Helper()
	return mortalPumpFor(t, dir, takeover, nil)
}

func mortalPumpFor(t *testing.T, dir string, takeover bool, dies func(p *logPump, step string) bool) *logPump {
	t.Helper()
	m := &Manager{log: slog.New(slog.DiscardHandler), opts: Options{Now: time.Now, Dir: dir}}
	if err := m.scratch.open(); err != nil {
		t.Fatal(err)
	}
	m.scratch.dies = dies
	rec := containerRecord{ID: "c", LogPath: filepath.Join(dir, "log", "0.log"), Spec: wasmruntime.Spec{Dir: dir}}
	if err := errors.Join(os.MkdirAll(m.containerDir("c"), 0o700), writeRecord(filepath.Join(m.containerDir("c"), recordFile), &rec, false)); err != nil {
		t.Fatal(err)
	}
	flight, pending, err := openInflight(filepath.Join(dir, "inflight"), "this boot")
	if err != nil {
		t.Fatal(err)
	}
	m.scratch.inflight = *flight
	m.landFlight(pending)
	p, err := m.openLogs(&rec, takeover)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// end is what the manager does when a guest has ended.
func end(p *logPump, rest ...[]byte) {
	rest = append(rest, nil, nil)
	p.drain(rest...)
	p.writeRest(rest...)
	p.wait()
}

func TestSilentGuestsTakeNoGoroutines(t *testing.T) {
	const guests = 20
	m := &Manager{log: slog.New(slog.DiscardHandler), opts: Options{Now: time.Now}}
	if err := m.scratch.open(); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	var pumps []*logPump
	var dirs []string
	for range guests {
		dir := t.TempDir()
		p, err := m.openLogs(&containerRecord{ID: "c", LogPath: filepath.Join(dir, "log", "0.log"), Spec: wasmruntime.Spec{Dir: dir}}, false)
		if err != nil {
			t.Fatal(err)
		}
		pumps, dirs = append(pumps, p), append(dirs, dir)
	}
	if n := runtime.NumGoroutine() - before; n > 1 {
		t.Errorf("%d goroutines for %d guests that say nothing", n, guests)
	}
	for i, dir := range dirs {
		fmt.Fprintf(guestOf(t, dir), "it is %d\n", i)
	}
	for i, dir := range dirs {
		end(pumps[i])
		if got, want := content(t, dir), fmt.Sprintf("it is %d\n", i); got != want {
			t.Errorf("the log of guest %d: %q", i, got)
		}
	}
}

// content puts a log's lines together again.
func content(t *testing.T, dir string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "log", "0.log"))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(raw)) {
		f := strings.SplitN(line, " ", 4)
		if len(f) != 4 || !strings.HasSuffix(line, "\n") {
			t.Fatalf("line %q", line)
		}
		b.WriteString(strings.TrimSuffix(f[3], "\n"))
		if f[2] == "F" {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func TestLogPumpOverManyReaders(t *testing.T) {
	// A guest writes pieces of all sizes while its reader is exchanged again
	// and again, as by restarts. Nothing is lost, nothing doubled.
	dir := t.TempDir()
	p := pumpFor(t, dir, false)
	guest := guestOf(t, dir)
	var want bytes.Buffer
	written := make(chan error)
	go func() {
		for i := range 400 {
			piece := fmt.Sprintf("%d:%s", i, strings.Repeat("x", rand.IntN(3000)))
			if i%17 == 0 {
				piece = strings.Repeat("long", 12_000)
			}
			if i%3 == 0 {
				piece += "\n"
			}
			want.WriteString(piece)
			if _, err := guest.WriteString(piece); err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	for done := false; !done; {
		select {
		case err := <-written:
			if err != nil {
				t.Fatal(err)
			}
			done = true
		case <-time.After(5 * time.Millisecond):
			p.stop()
			p.wait()
			p = pumpFor(t, dir, true)
		}
	}
	want.WriteString("the end")
	if _, err := guest.WriteString("the end"); err != nil {
		t.Fatal(err)
	}
	end(p)
	if got := content(t, dir); got != want.String()+"\n" {
		t.Errorf("the log has %d bytes, %d were written", len(got), want.Len())
	}
}

func TestLogPumpWithPipesOfTwoPages(t *testing.T) {
	dir := t.TempDir()
	p := pumpFor(t, dir, false)
	guest := guestOf(t, dir)
	if _, err := unix.FcntlInt(guest.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("y", 20_000) + "\n"
	if _, err := guest.WriteString(line); err != nil {
		t.Fatal(err)
	}
	end(p)
	if got := content(t, dir); got != line {
		t.Errorf("the log has %d bytes, %d were written", len(got), len(line))
	}
}

func TestLogPumpTakesTheRest(t *testing.T) {
	for _, c := range []struct{ name, inFIFO, rest, want string }{
		{"nothing left", "a\nb\n", "", "a\nb\n"},
		{"unfinished line", "a\nb", "", "a\nb\n"},
		{"all in the record", "", "a\nb", "a\nb\n"},
	} {
		dir := t.TempDir()
		p := pumpFor(t, dir, false)
		if c.inFIFO != "" {
			if _, err := guestOf(t, dir).WriteString(c.inFIFO); err != nil {
				t.Fatal(err)
			}
		}
		end(p, []byte(c.rest))
		if got := content(t, dir); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// A runner that ends may take the output of a FIFO just when it was written to
// the log and not yet taken by the pump: it is in the exit record then, and
// mustn't be in the log twice.
func TestLogPumpAndRunnerTakeTheSame(t *testing.T) {
	dir := t.TempDir()
	var guest *os.File
	var rest []byte
	p := mortalPumpFor(t, dir, false, func(_ *logPump, step string) bool {
		if step == "written" && rest == nil {
			rest = make([]byte, 1<<16)
			n, err := guest.Read(rest)
			if err != nil {
				t.Error(err)
			}
			rest = rest[:n]
		}
		return false
	})
	p.stop() // all is moved below
	p.wg.Wait()
	guest = guestOf(t, dir)
	if _, err := guest.WriteString("a\nb\n"); err != nil {
		t.Fatal(err)
	}
	p.drain(nil, nil)
	p.writeRest(rest, nil)
	p.wait()
	if got := content(t, dir); got != "a\nb\n" {
		t.Errorf("log %q", got)
	}
}

// A pump is killed at every step of moving a batch; the next one goes on.
func TestLogPumpKilledAtEveryStep(t *testing.T) {
	for _, step := range []string{"seen", "begun", "written", "taken"} {
		t.Run(step, func(t *testing.T) {
			dir := t.TempDir()
			dead := make(chan struct{})
			p := mortalPumpFor(t, dir, false, func(p *logPump, at string) bool {
				select {
				case <-dead: // and stays so
					return true
				default:
				}
				if at == step && p.file != nil {
					if fi, err := p.file.Stat(); err == nil && fi.Size() > 0 {
						close(dead)
						return true
					}
				}
				return false
			})
			guest := guestOf(t, dir)
			say := func(s string) {
				t.Helper()
				if _, err := guest.WriteString(s); err != nil {
					t.Fatal(err)
				}
			}
			// The same line again and again: content can't tell which is which.
			said := 2
			for alive := true; alive; {
				say("same\n")
				said++
				select {
				case <-dead:
					alive = false
				case <-time.After(20 * time.Millisecond):
				}
			}
			say("same\nsame\n")
			p.stop()
			p.wg.Wait()
			next := pumpFor(t, dir, true)
			say("last\n")
			end(next)
			if got, want := content(t, dir), strings.Repeat("same\n", said)+"last\n"; got != want {
				t.Errorf("log %q, want %q", got, want)
			}
		})
	}
}

func TestPendingFlightIsOfThisBootAndThisLog(t *testing.T) {
	dir := t.TempDir()
	f, pending, err := openInflight(filepath.Join(dir, "inflight"), "one")
	if err != nil || pending != nil {
		t.Fatalf("%+v, %v", pending, err)
	}
	f.begin("abc", logMark{1, 2, 3}, 'x')
	f.close()
	if f, pending, err = openInflight(filepath.Join(dir, "inflight"), "one"); err != nil || pending == nil || pending.id != "abc" || pending.at != (logMark{1, 2, 3}) {
		t.Fatalf("%+v, %v", pending, err)
	}
	f.close()
	if f, pending, err = openInflight(filepath.Join(dir, "inflight"), "two"); err != nil || pending != nil {
		t.Fatalf("of another boot: %+v, %v", pending, err)
	}
	f.close()

	log := filepath.Join(dir, "0.log")
	if err := os.WriteFile(log, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	at, err := markOf(file)
	if err != nil {
		t.Fatal(err)
	}
	at.Offset = 2
	other := at
	other.Ino++
	for _, c := range []struct {
		at   logMark
		want string
	}{{other, "12345"}, {at, "12"}, {logMark{at.Dev, at.Ino, 4}, "12"}} {
		if err := cutLog(log, c.at); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(log); string(got) != c.want {
			t.Errorf("cut at %+v: %q, want %q", c.at, got, c.want)
		}
	}
}

func FuzzParseFlight(f *testing.F) {
	dir := f.TempDir()
	in, _, err := openInflight(filepath.Join(dir, "inflight"), "boot")
	if err != nil {
		f.Fatal(err)
	}
	in.begin("abc", logMark{1, 2, 3}, 'x')
	f.Add(append([]byte{}, in.page...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, page []byte) {
		if p := parseFlight(page, "boot"); p != nil && (p.id == "" || strings.Contains(p.id, "/") || p.at.Offset < 0) {
			t.Errorf("%+v", p)
		}
	})
}

func TestLogPumpRepairsATornLine(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "log"), 0o755); err != nil {
		t.Fatal(err)
	}
	whole := "2026-01-01T00:00:00Z stdout F whole\n"
	if err := os.WriteFile(filepath.Join(dir, "log", "0.log"), []byte(whole+"2026-01-01T00:00:00Z stdo"), 0o640); err != nil {
		t.Fatal(err)
	}
	p := pumpFor(t, dir, true)
	if _, err := guestOf(t, dir).WriteString("again\n"); err != nil {
		t.Fatal(err)
	}
	end(p)
	if got := content(t, dir); got != "whole\nagain\n" {
		t.Errorf("log %q", got)
	}
}

func TestLogPumpOnAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small file system")
	}
	dir := t.TempDir()
	logs := filepath.Join(dir, "log")
	if err := os.MkdirAll(logs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", logs, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("can't mount a tmpfs: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(logs, unix.MNT_DETACH) })
	// Room for one page: what doesn't fit is dropped, and a write that fits in part
	// is taken back.
	ballast := filepath.Join(logs, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 252<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	p := pumpFor(t, dir, false)
	guest := guestOf(t, dir)
	for i := range 2000 { // 200 KB: more than the FIFO holds, and the guest isn't held up
		if _, err := fmt.Fprintf(guest, "%d %s\n", i, strings.Repeat("z", 90)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(ballast, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.WriteString("room again\n"); err != nil {
		t.Fatal(err)
	}
	end(p)
	if got := content(t, dir); !strings.Contains(got, "bytes of output are missing here") || !strings.HasSuffix(got, "room again\n") {
		t.Errorf("log %q", got)
	}
}
