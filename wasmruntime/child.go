package wasmruntime

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"github.com/coracle-edge/coracle/wasmruntime/internal/bundle"
)

// command is a child that ends with its context.
func (r *Runtime) command(ctx context.Context, args ...string) *exec.Cmd {
	line := slices.Concat(r.emulator, []string{r.opts.RunnerPath}, args)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = []string{"GOTRACEBACK=none"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// runWithStatus runs a child to its end and reads its report from fd 3.
func (r *Runtime) runWithStatus(cmd *exec.Cmd) (bundle.Status, error) {
	pr, pw, err := os.Pipe()
	if err != nil {
		return bundle.Status{}, err
	}
	defer pr.Close()
	cmd.ExtraFiles = []*os.File{pw}
	err = cmd.Start()
	pw.Close()
	if err != nil {
		return bundle.Status{Kind: bundle.KindStart, Message: err.Error()}, err
	}
	status, statusErr := readStatus(pr)
	err = cmd.Wait()
	if err == nil {
		err = statusErr
	}
	return status, err
}

// maxStatus bounds what a child may say.
const maxStatus = 64 << 10

// readStatus reads the one line of a child.
func readStatus(r io.Reader) (bundle.Status, error) {
	var st bundle.Status
	line, err := bufio.NewReader(io.LimitReader(r, maxStatus)).ReadBytes('\n')
	if err != nil {
		return st, fmt.Errorf("the runner ended without a word: %w", err)
	}
	if err := json.Unmarshal(line, &st); err != nil {
		return st, fmt.Errorf("the runner said %.100q: %w", line, err)
	}
	return st, nil
}

// limited keeps the beginning of what is written and drops the rest.
type limited struct {
	to   *bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.to.Write(p[:n])
	l.left -= n
	return len(p), nil
}

// signalOf is the signal that ended a child, or 0.
func signalOf(st *os.ProcessState) syscall.Signal {
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return ws.Signal()
	}
	return 0
}
