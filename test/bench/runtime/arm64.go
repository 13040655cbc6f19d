package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const boardMemory = 512 // MiB

// arm64 boots a QEMU guest of 512 MiB with a pure cgroup v2, and starts 200 containers
// in it, and one more that needs more memory than it may have.
func (b *bench) arm64(ctx context.Context) error {
	init := filepath.Join(b.dir, "init")
	runner := filepath.Join(b.dir, "wasmrunner-arm64")
	env := []string{"GOOS=linux", "CGO_ENABLED=0", "GOARCH=arm64"}
	for out, pkg := range map[string]string{init: "./test/bench/runtime/board", runner: "./cmd/wasmrunner"} {
		if err := b.tool(ctx, env, []string{b.goTool, "build", "-trimpath", "-tags=grpcnotrace", "-buildvcs=false", "-ldflags=-s -w", pkg}, out); err != nil {
			return err
		}
	}
	image := filepath.Join(b.dir, "initramfs")
	if err := archive(image, map[string]string{"init": init, "wasmrunner": runner, "hello.wasm": b.built.wasm["c"], "hostile.wasm": b.built.wasm["hostile"]}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a53", "-smp", "2", "-m", fmt.Sprint(boardMemory),
		"-nographic", "-no-reboot", "-nic", "none", "-kernel", b.kernel, "-initrd", image,
		"-append", fmt.Sprintf("console=ttyAMA0 panic=-1 quiet containers=%d", b.boardContainers))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w (package qemu-system-arm)", err)
	}
	var said strings.Builder
	var result string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := strings.TrimRight(lines.Text(), "\r")
		fmt.Fprintln(&said, line)
		if strings.HasPrefix(line, "board: ") {
			fmt.Fprintln(os.Stderr, line)
		}
		if rest, ok := strings.CutPrefix(line, "result: "); ok {
			result = rest
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("qemu-system-aarch64: %w\n%s", err, said.String())
	}
	var running int
	var pss, before, after, seconds float64
	var oom string
	if _, err := fmt.Sscanf(result, "running=%d pss=%f available_before=%f available_after=%f seconds=%f oom=%s", &running, &pss, &before, &after, &seconds, &oom); err != nil {
		return fmt.Errorf("the guest gave no result: %w\n%s", err, said.String())
	}
	if oom != "OOMKilled/137" {
		return fmt.Errorf("a container that needs more than its limit ended with %s, not OOMKilled/137\n%s", oom, said.String())
	}
	where := fmt.Sprintf("arm64 guest of %d MiB, cgroup v2", boardMemory)
	// A mark is what shouldn't be exceeded: those that don't run.
	b.report.AddMarked(fmt.Sprintf("%s: of %d C containers, not running", where, b.boardContainers), float64(b.boardContainers-running), "containers", "-", 0)
	b.report.Add(where+": PSS each", pss, "MiB", "-")
	b.report.Add(where+": available memory before and after, by the number of them", (before-after)/float64(b.boardContainers), "MiB", fmt.Sprintf("%.0f of %.0f left", after, before))
	b.report.Add(where+": from the first start to the last greeting, emulated", seconds, "s", "-")
	return nil
}

// archive writes files as an initramfs, cpio's newc format (see
// Documentation/driver-api/early-userspace/buffer-format.rst), with the folders and the
// console that init needs before it mounts anything.
func archive(out string, files map[string]string) error {
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	inode, written := 1, 0
	entry := func(name string, mode, major, minor int, data io.Reader, size int64) error {
		n, err := fmt.Fprintf(w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, len(name)+1, 0, name)
		if err != nil {
			return err
		}
		inode++
		written += n
		pad := func() error {
			n, err := w.WriteString(strings.Repeat("\x00", (4-written%4)%4))
			written += n
			return err
		}
		if err := pad(); err != nil || data == nil {
			return err
		}
		copied, err := io.Copy(w, data)
		if err != nil || copied != size {
			return fmt.Errorf("%s: %d of %d bytes: %w", name, copied, size, err)
		}
		written += int(copied)
		return pad()
	}
	const dir, file, device = 0o040755, 0o100755, 0o020600
	if err := entry("dev", dir, 0, 0, nil, 0); err != nil {
		return err
	}
	if err := entry("dev/console", device, 5, 1, nil, 0); err != nil {
		return err
	}
	for name, path := range files {
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		st, err := in.Stat()
		if err == nil {
			err = entry(name, file, 0, 0, in, st.Size())
		}
		in.Close()
		if err != nil {
			return err
		}
	}
	if err := entry("TRAILER!!!", 0, 0, 0, nil, 0); err != nil {
		return err
	}
	return w.Flush()
}
