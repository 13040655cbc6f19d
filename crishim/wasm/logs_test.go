package wasm

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
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
	m := &Manager{log: slog.New(slog.DiscardHandler), opts: Options{Now: time.Now}}
	if err := m.scratch.open(); err != nil {
		t.Fatal(err)
	}
	p, err := m.openLogs(&containerRecord{ID: "c", LogPath: filepath.Join(dir, "log", "0.log"), Spec: wasmruntime.Spec{Dir: dir}}, takeover)
	if err != nil {
		t.Fatal(err)
	}
	return p
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
	p.drain(nil, nil)
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
	p.drain(nil, nil)
	if got := content(t, dir); got != line {
		t.Errorf("the log has %d bytes, %d were written", len(got), len(line))
	}
}

func TestLogPumpTakesTheRest(t *testing.T) {
	for _, c := range []struct {
		name, inFIFO, rest string
		ahead              int
		want               string
	}{
		{"nothing left", "a\nb\n", "", 0, "a\nb\n"},
		{"unfinished line", "a\nb", "", 0, "a\nb\n"},
		{"all in the record", "", "a\nb", 0, "a\nb\n"},
		{"its beginning was logged already", "", "a\nb\nc", 2, "b\nc\n"},
	} {
		dir := t.TempDir()
		p := pumpFor(t, dir, false)
		if c.inFIFO != "" {
			if _, err := guestOf(t, dir).WriteString(c.inFIFO); err != nil {
				t.Fatal(err)
			}
		}
		p.stop()
		p.wg.Wait()
		p.fifos[0].ahead = c.ahead
		p.drain([]byte(c.rest), nil)
		if got := content(t, dir); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
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
	p.drain(nil, nil)
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
	p.drain(nil, nil)
	if got := content(t, dir); !strings.Contains(got, "bytes of output are missing here") || !strings.HasSuffix(got, "room again\n") {
		t.Errorf("log %q", got)
	}
}
