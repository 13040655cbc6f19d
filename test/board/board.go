package board

import (
	"bufio"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

//go:embed guest
var guest embed.FS

// Host is the address by which a board reaches what listens on the host's loopback.
const Host = "10.0.2.2"

// startTimeout is until the board's shell answers: five seconds of a machine that does
// nothing else.
const startTimeout = 5 * time.Minute

// Config of a board.
type Config struct {
	// Parts is the folder that fetch.sh has filled.
	Parts string
	// Memory in MiB.
	Memory int
	// OCI puts containerd, runc and CNI's plugins on its disk.
	OCI bool
	// Files of the host, by their path on the board; they may be run.
	Files map[string]string
	// Console gets all that the board says; nil: nobody does.
	Console io.Writer
}

// Board is a running one.
type Board struct {
	dir  string
	cmd  *exec.Cmd
	in   io.WriteCloser
	said chan string // lines; closed when the board has ended

	mu   sync.Mutex // one command at a time
	last int
}

// Start makes the disk and waits until the board's shell answers. The board ends with
// Close, and with this process.
func Start(ctx context.Context, cfg Config) (_ *Board, err error) {
	if _, err := os.Stat(filepath.Join(cfg.Parts, "complete")); err != nil {
		return nil, fmt.Errorf("%w: run test/board/fetch.sh %s", err, cfg.Parts)
	}
	b := &Board{said: make(chan string, 64)}
	if b.dir, err = os.MkdirTemp("", "cor-board-*"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	if err := b.makeDisk(ctx, cfg); err != nil {
		return nil, err
	}
	b.cmd = exec.Command("qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a53", "-smp", "2", "-m", strconv.Itoa(cfg.Memory),
		"-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot",
		"-drive", "file="+b.disk()+",format=raw,if=none,id=disk,cache=unsafe", "-device", "virtio-blk-pci,drive=disk",
		"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
		"-kernel", filepath.Join(cfg.Parts, "kernel"), "-initrd", b.first(), "-append", "console=ttyAMA0 panic=-1 quiet rdinit=/init")
	b.cmd.Stderr = os.Stderr
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if b.in, err = b.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := b.cmd.Start(); err != nil {
		b.cmd = nil
		return nil, fmt.Errorf("%w (package qemu-system-arm)", err)
	}
	go b.read(out, cfg.Console)
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if _, err := b.until(ctx, "board: ready"); err != nil {
		return nil, fmt.Errorf("starting the board: %w", err)
	}
	return b, nil
}

// read the console; it ends when the board has.
func (b *Board) read(out io.Reader, console io.Writer) {
	defer close(b.said)
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		if console != nil {
			fmt.Fprintln(console, line)
		}
		b.said <- line
	}
}

// until a line that has the prefix; the result is what was said before it, and the
// rest of that line.
func (b *Board) until(ctx context.Context, prefix string) ([]string, error) {
	var before []string
	for {
		select {
		case <-ctx.Done():
			return before, fmt.Errorf("%w; the board said %q", context.Cause(ctx), tail(before))
		case line, ok := <-b.said:
			if !ok {
				return before, fmt.Errorf("the board ended; it said %q", tail(before))
			}
			if rest, found := strings.CutPrefix(line, prefix); found {
				return append(before, rest), nil
			}
			before = append(before, line)
		}
	}
}

func tail(lines []string) string {
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// ErrExit is returned when a command of the board's ended with another code than 0.
var ErrExit = errors.New("a command on the board failed")

// Run a script of its shell, and give what it said. What it leaves running must have
// its output elsewhere. After an error other than ErrExit the board is no good any more.
func (b *Board) Run(ctx context.Context, script string) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last++
	mark := fmt.Sprintf("board-end-%d ", b.last)
	// Its words are in a file until it has ended, so that no word of the kernel's stands
	// among them; the mark begins a line whatever they end with.
	_, err := fmt.Fprintf(b.in, "cat >/run/script <<'board-script'\n%s\nboard-script\nsh /run/script >/run/said 2>&1 </dev/null; code=$?; echo; echo board-begin-%d; cat /run/said; echo; echo %s$code\n", script, b.last, mark)
	if err != nil {
		return "", fmt.Errorf("the board's console: %w", err)
	}
	if _, err := b.until(ctx, fmt.Sprintf("board-begin-%d", b.last)); err != nil {
		return "", fmt.Errorf("%s: %w", script, err)
	}
	lines, err := b.until(ctx, mark)
	if err != nil {
		return "", fmt.Errorf("%s: %w", script, err)
	}
	code := strings.TrimSpace(lines[len(lines)-1])
	said := strings.Join(lines[:max(0, len(lines)-1)], "\n")
	said = strings.TrimSuffix(said, "\n")
	if code != "0" {
		return said, fmt.Errorf("%w: %s: code %s: %s", ErrExit, script, code, said)
	}
	return said, nil
}

// Close pulls the plug and removes the disk.
func (b *Board) Close() error {
	if b.cmd != nil {
		_ = b.cmd.Process.Kill()
		for range b.said { // until it has ended
		}
		_ = b.cmd.Wait() // by the signal
		b.cmd = nil
	}
	return os.RemoveAll(b.dir)
}
