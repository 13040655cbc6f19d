package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// request is one line to the process of the nodes; one answer comes back.
type request struct {
	Op string `json:"op"`
	// Lines of `coracle token create`, of op join.
	Lines []string `json:"lines,omitempty"`
	// Want is which pods each node should have, by UID, of op await; Since is the
	// moment from which its times count.
	Want   map[string][]string `json:"want,omitempty"`
	Since  time.Time           `json:"since,omitzero"`
	Within time.Duration       `json:"within,omitempty"`
}

type answer struct {
	Err string `json:"err,omitempty"`
	// Took is how long after request.Since each node was in step, in order.
	Took []time.Duration `json:"took,omitempty"`
	// Late are nodes that weren't, and why.
	Late  []string `json:"late,omitempty"`
	Stats stats    `json:"stats"`
}

// stats are of all nodes together, since their process began.
type stats struct {
	Live        int   `json:"live"`
	Connections int64 `json:"connections"`
	Resumed     int   `json:"resumed"`
	Started     int64 `json:"started"` // pods
	Restarted   int64 `json:"restarted"`
	// Stopped are pods that went without having been deleted.
	Stopped int64 `json:"stopped"`
	Ended   int64 `json:"ended"` // pods that were deleted
}

// herd is the process of the nodes, seen from the bench.
type herd struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

func startHerd(dir string) (*herd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	h := &herd{cmd: exec.Command(self, "-herd", dir)}
	h.cmd.Stderr = os.Stderr
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	h.out = json.NewDecoder(bufio.NewReader(out))
	return h, h.cmd.Start()
}

func (h *herd) ask(ctx context.Context, r request) (answer, error) {
	var a answer
	if err := ctx.Err(); err != nil {
		return a, err
	}
	defer context.AfterFunc(ctx, func() { _ = h.cmd.Process.Kill() })() // or an answer may be minutes away
	if err := json.NewEncoder(h.in).Encode(r); err != nil {
		return a, fmt.Errorf("the process of the nodes, %s: %w", r.Op, err)
	}
	if err := h.out.Decode(&a); err != nil {
		return a, fmt.Errorf("the process of the nodes, %s: %w", r.Op, err)
	}
	if a.Err != "" {
		return a, fmt.Errorf("the process of the nodes, %s: %s", r.Op, a.Err)
	}
	return a, nil
}

// end has all nodes say goodbye.
func (h *herd) end() error {
	return errors.Join(h.in.Close(), h.cmd.Wait())
}

// serveHerd is that process: it answers requests until there are no more.
func serveHerd(dir string) error {
	p := newPasture(dir)
	in, out := json.NewDecoder(bufio.NewReader(os.Stdin)), json.NewEncoder(os.Stdout)
	for {
		var r request
		if err := in.Decode(&r); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return errors.Join(err, p.close())
		}
		if err := out.Encode(p.handle(r)); err != nil {
			return errors.Join(err, p.close())
		}
	}
}
